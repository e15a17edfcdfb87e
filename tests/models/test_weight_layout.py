"""A slice of a parameter is read from the tensors that hold it, and little besides."""

import math

import einops
import numpy as np
import pytest

from jaxedit import axes
from jaxedit.models import family as families
from jaxedit.models.config import replicate_kv_heads_for
from jaxedit.models.family import Fields
from jaxedit.models.weight_layout import read_parameter_slice, tensor_shape


def tables():
    """Every line of every family's tables, with the family's tiny decoder."""
    for name in families.family_names():
        family = families.find(name)
        for table in (family.WEIGHTS, getattr(family, "GGUF", {})):
            for tensor, entry in table.items():
                if entry is not None:
                    yield pytest.param(
                        family.config(Fields(dict(family.TINY))), entry, id=f"{name}-{tensor}"
                    )


def whole(config, entry, tensor):
    """All parameters of a tensor, by the layout alone."""
    sizes = config.sizes() | {"c": len(entry[0].split()), "two": 2, "h": config.H // 2}
    used = {
        axis: size
        for axis, size in sizes.items()
        if axis in entry[1].replace("(", " ").replace(")", " ").split()
    }
    found = einops.rearrange(tensor, entry[1], **used)
    return list(found) if "c" in used else [found]


@pytest.mark.parametrize(("config", "entry"), list(tables()))
def test_every_slice_is_that_of_the_whole(config, entry):
    shape = tensor_shape(config, entry)
    tensor = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    for part, (name, array) in enumerate(
        zip(entry[0].split(), whole(config, entry, tensor), strict=True)
    ):
        letters = axes.PARAMETERS[name].removeprefix("L")
        spans = {letter: (0, size) for letter, size in zip(letters, array.shape, strict=True)}
        for letter, (_, size) in spans.items():
            for first, end in ((0, size), (0, size // 2), (size // 2, size), (size - 1, size)):
                if letter == "H" and (first, end) != (0, size):
                    continue  # heads are never cut
                cut = {**spans, letter: (first, end)}
                n_read = []

                def read(rectangle, n_read=n_read):
                    n_read.append(tensor[rectangle].size)
                    return tensor[rectangle]

                found = read_parameter_slice(read, config, entry, part, cut)
                np.testing.assert_array_equal(
                    found, array[tuple(slice(*cut[axis]) for axis in letters)], err_msg=str(cut)
                )
                n_parts = len(
                    entry[0].split()
                )  # between a head's queries lie its keys and values: they are read as well
                assert sum(n_read) <= found.size * (n_parts if "(N c" in entry[1] else 1)


def test_key_value_heads_are_copied_where_a_mesh_needs_them():
    family = families.find("llama")
    config = family.config(Fields(dict(family.TINY, num_attention_heads=8, num_key_value_heads=2)))
    assert replicate_kv_heads_for(config, 1) is config
    assert replicate_kv_heads_for(config, 2) is config
    assert replicate_kv_heads_for(config, 3) is config  # not even the query heads can be split
    copied = replicate_kv_heads_for(config, 4)
    assert (copied.K, copied.kv_replication, copied.N) == (4, 2, 8)
    entry = family.WEIGHTS["model.layers.{l}.self_attn.k_proj.weight"]
    shape = tensor_shape(copied, entry)
    assert shape == tensor_shape(config, entry)
    tensor = np.random.default_rng(0).standard_normal(shape)
    (array_DKH,) = whole(config, entry, tensor)
    for head in range(4):
        cut = {"D": (0, config.D), "K": (head, head + 1), "H": (0, config.H)}
        found_D1H = read_parameter_slice(lambda spans: tensor[spans], copied, entry, 0, cut)
        np.testing.assert_array_equal(found_D1H[:, 0], array_DKH[:, head // 2])
    every = read_parameter_slice(
        lambda spans: tensor[spans],
        copied,
        entry,
        0,
        {"D": (0, config.D), "K": (0, 4), "H": (0, config.H)},
    )
    np.testing.assert_array_equal(every, np.repeat(array_DKH, 2, axis=1))
    uneven = read_parameter_slice(
        lambda spans: tensor[spans],
        copied,
        entry,
        0,
        {"D": (3, 9), "K": (1, 3), "H": (0, config.H)},
    )
    np.testing.assert_array_equal(uneven, np.repeat(array_DKH, 2, axis=1)[3:9, 1:3])
