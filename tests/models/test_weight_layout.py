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

K_PROJ = "model.layers.{l}.self_attn.k_proj.weight"


def tables():
    """Yield every line of every family's tables, with the family's tiny decoder."""
    for name in families.family_names():
        family = families.find(name)
        for table in (family.WEIGHTS, getattr(family, "GGUF", {})):
            for tensor, entry in table.items():
                if entry is not None:
                    config = family.config(Fields(dict(family.TINY)))
                    yield pytest.param(config, entry, id=f"{name}-{tensor}")


def whole(config, entry, tensor):
    """Return all parameters of a tensor, by the layout alone."""
    parts = config.N, config.K, config.K
    sizes = config.sizes() | {"c": len(entry[0].split()), "two": 2, "h": config.H // 2}
    sizes["n"] = sum(parts)
    axes_there = entry[1].replace("(", " ").replace(")", " ").split()
    used = {axis: size for axis, size in sizes.items() if axis in axes_there}
    found = einops.rearrange(tensor, entry[1], **used)
    if "n" in used:  # queries' heads, then keys', then values'
        return np.split(found, np.cumsum(parts)[:2], axis=1)
    return list(found) if "c" in used else [found]


def cuts(letters: str, shape: tuple[int, ...]):
    """Yield slices of a parameter: of one axis all, either half, or the last entry."""
    spans = {letter: (0, size) for letter, size in zip(letters, shape, strict=True)}
    for letter, (_, size) in spans.items():
        parts = [(0, size), (0, size // 2), (size // 2, size), (size - 1, size)]
        for part in parts if letter != "H" else parts[:1]:  # heads are never cut
            yield {**spans, letter: part}


@pytest.mark.parametrize(("config", "entry"), list(tables()))
def test_every_slice_is_that_of_the_whole_and_little_more_is_read(config, entry):
    shape = tensor_shape(config, entry)
    tensor = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    n_parts = len(entry[0].split())
    # Between a head's queries lie its keys and values: they are read as well.
    n_times = n_parts if "(N c" in entry[1] else 1
    arrays = whole(config, entry, tensor)
    for part, (name, array) in enumerate(zip(entry[0].split(), arrays, strict=True)):
        letters = axes.PARAMETERS[name].removeprefix("L")
        for cut in cuts(letters, array.shape):
            n_read = []

            def read(rectangle, n_read=n_read):
                n_read.append(tensor[rectangle].size)
                return tensor[rectangle]

            found = read_parameter_slice(read, config, entry, part, cut)
            expected = array[tuple(slice(*cut[axis]) for axis in letters)]
            np.testing.assert_array_equal(found, expected, err_msg=str(cut))
            assert sum(n_read) <= n_times * found.size


@pytest.fixture(scope="module")
def llama():
    """Make a function: a mesh's size of `model` -> a decoder of eight heads in two groups."""
    family = families.find("llama")
    values = dict(family.TINY, num_attention_heads=8, num_key_value_heads=2)
    config = family.config(Fields(values))
    return lambda n_model: replicate_kv_heads_for(config, n_model)


def test_key_value_heads_are_as_they_are_where_a_mesh_splits_them(llama):
    assert llama(1).K == llama(2).K == 2


def test_key_value_heads_are_as_they_are_where_query_heads_cannot_be_split(llama):
    assert llama(3) == llama(1)


def test_key_value_heads_are_copied_where_a_mesh_needs_them(llama):
    assert (llama(4).K, llama(4).kv_replication, llama(4).N) == (4, 2, 8)


@pytest.mark.parametrize(
    ("rows", "heads"),
    [(None, (0, 1)), (None, (1, 2)), (None, (3, 4)), (None, (0, 4)), ((3, 9), (1, 3))],
)
def test_slices_of_copied_heads_are_those_of_the_heads_repeated(llama, rows, heads):
    copied, entry = llama(4), families.find("llama").WEIGHTS[K_PROJ]
    shape = tensor_shape(copied, entry)
    assert shape == tensor_shape(llama(1), entry)
    tensor = np.random.default_rng(0).standard_normal(shape)
    (array_DKH,) = whole(llama(1), entry, tensor)
    rows = rows or (0, copied.D)
    cut = {"D": rows, "K": heads, "H": (0, copied.H)}
    found_DKH = read_parameter_slice(lambda spans: tensor[spans], copied, entry, 0, cut)
    expected_DKH = np.repeat(array_DKH, 2, axis=1)[slice(*rows), slice(*heads)]
    np.testing.assert_array_equal(found_DKH, expected_DKH)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("heads", [(0, 1), (1, 3), (0, 4)])
def test_slices_of_copied_heads_in_a_tensor_with_the_queries(part, heads):
    family = families.find("phi3")
    values = dict(family.TINY, num_attention_heads=8, num_key_value_heads=2)
    plain = family.config(Fields(values))
    copied = replicate_kv_heads_for(plain, 4)
    entry = family.WEIGHTS["model.layers.{l}.self_attn.qkv_proj.weight"]
    tensor = np.random.default_rng(0).standard_normal(tensor_shape(copied, entry))
    array = whole(plain, entry, tensor)[part]
    cut = {"D": (3, 9), "NKK"[part]: heads, "H": (0, copied.H)}
    found = read_parameter_slice(lambda spans: tensor[spans], copied, entry, part, cut)
    expected = array if part == 0 else np.repeat(array, 2, axis=1)
    np.testing.assert_array_equal(found, expected[3:9, slice(*heads)])
