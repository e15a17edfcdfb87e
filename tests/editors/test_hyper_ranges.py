"""Every hyper-parameter of every method has a range, and a type, that a wrong value is outside of.

The methods are those of the folder: a new one is tried as it is. The wrong values are made from the
declared types alone.
"""

import math

import jax
import pytest

import jaxedit
from jaxedit.editors import hyper_types, layer_field, method_names
from jaxedit.rounding import LARGEST_FLOAT
from jaxedit.solving.ranges import NOT_NEGATIVE, OVER_ONE, POSITIVE, SHARE

NEVER_MEANT = (math.nan, math.inf, -math.inf, 1e39, 10**400)
OF_BOTH_SIGNS = {"prob_cutoff"}  # minus a count: its own test


def numeric_names(method: str) -> list[str]:
    kinds = hyper_types(method)
    return [name for name, kind in kinds.items() if "int" in str(kind) or "float" in str(kind)]


def make(method: str, **hyper):
    field = layer_field(method)
    return jaxedit.make_editor(method, **{field: 1 if field == "layer" else [1], **hyper})


CASES = [(method, name) for method in method_names() for name in numeric_names(method)]


def test_all_methods_have_numbers():
    assert len({method for method, _ in CASES}) == len(method_names()) >= 11
    assert ("rome", "v_lr") in CASES
    assert ("memit", "mom2_update_weight") in CASES


@pytest.mark.parametrize(("method", "name"), CASES)
def test_a_number_that_is_none_is_refused(method, name):
    for value in (*NEVER_MEANT, -1, -1.0):
        if name in OF_BOTH_SIGNS and value == -1 and isinstance(value, int):
            make(method, **{name: value})
            continue
        with pytest.raises(ValueError, match=name):
            make(method, **{name: value})
        if name.endswith("layers") and isinstance(value, int):
            continue  # which layers there are is the model's to say: `Hyper.check`
        with pytest.raises(ValueError, match=name):
            make(method, **{name: [value]})


@pytest.mark.parametrize("method", method_names())
def test_a_value_of_another_type_is_refused(method):
    for name, kind in hyper_types(method).items():
        for value in ("three", object(), b"1", 1j):
            if isinstance(value, str) and "str" in str(kind) and "tuple" not in str(kind):
                continue
            with pytest.raises(ValueError, match=name):
                make(method, **{name: value})


@pytest.mark.parametrize("value", [math.nan, -0.1, math.inf])
def test_a_number_within_a_mapping_is_looked_at(value):
    for method in ("alphaedit", "betaedit"):
        make(method, nullspace_threshold={1: 0.02})
        with pytest.raises(ValueError, match="nullspace_threshold"):
            make(method, nullspace_threshold={1: value})


@pytest.mark.parametrize("value", [0, 1])
def test_a_count_is_minus_a_count(value):
    make("encore", prob_cutoff=-2)
    with pytest.raises(ValueError, match=f"prob_cutoff={value}: expected -k"):
        make("encore", prob_cutoff=value)


def test_whole_numbers_of_more_than_31_bits_where_they_can_be_meant():
    """In numbers with a fraction, and in seeds, of which two give two different streams."""
    many = 3_000_000_000
    make("rome", v_lr=many, kl_factor=10**20, seed=2**32 - 1)
    streams = [jax.random.bits(jax.random.key(seed)) for seed in (2**32 - 1, many, 2**31)]
    assert len({int(bits) for bits in streams}) == 3
    with pytest.raises(ValueError, match=r"seed=4294967296: expected .* of at most 4294967295"):
        make("rome", seed=2**32)
    with pytest.raises(ValueError, match=r"v_num_grad_steps=3000000000: .* at most 2147483647"):
        make("rome", v_num_grad_steps=many)


def test_ends_of_the_ranges():
    assert [NOT_NEGATIVE.holds(x) for x in (-1e-300, 0, LARGEST_FLOAT)] == [False, True, True]
    assert [POSITIVE.holds(x) for x in (0, 1e-300)] == [False, True]
    assert [OVER_ONE.holds(x) for x in (1, 1.0000001)] == [False, True]
    assert [SHARE.holds(x) for x in (0, 1e-9, 1, 1.0000001)] == [False, True, True, False]
    assert not any(each.holds(math.nan) for each in (NOT_NEGATIVE, POSITIVE, OVER_ONE, SHARE))
