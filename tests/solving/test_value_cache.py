"""The cache of values: found once for all that share them; never for a model with edits."""

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import to_dense
from jaxedit.solving import value_cache

REQUESTS = [
    jaxedit.Request("{} lives in", "Bob", "Paris"),
    jaxedit.Request("{} lives in", "Ann", "Rome"),
]
GROUPS = (("{}",), ("I am. {}",))


def editor(folder, method="memit", **hyper):
    shared = dict(
        layers=(2, 3),
        mom2_adjustment=False,
        v_num_grad_steps=3,
        context_templates=GROUPS,
        target_cache=str(folder),
    )
    return jaxedit.make_editor(method, **{**shared, **hyper})


@pytest.fixture
def edit(golden, tmp_path):
    """Make a function: changed hyper-parameters -> the edit of both requests."""
    model = golden("gpt2")

    def make(**hyper):
        made = editor(tmp_path, **hyper)
        return made.edit(model, REQUESTS, made.init(model, None))[0]

    return make


@pytest.fixture
def optimised(monkeypatch):
    """Count how often values are optimised, in a list that grows."""
    calls = []
    optimise = value_cache.optimise_values

    def count(*arguments):
        calls.append(arguments)
        return optimise(*arguments)

    monkeypatch.setattr(value_cache, "optimise_values", count)
    return calls


def test_a_second_edit_reads_the_same_values(edit, optimised):
    first, again = edit(mom2_update_weight=1.0), edit(mom2_update_weight=1.0)
    free = edit(target_cache=None, mom2_update_weight=1.0)
    assert len(optimised) == 2  # the first one's and the one without a folder
    for a, b, c in zip(first.deltas, again.deltas, free.deltas, strict=True):
        np.testing.assert_array_equal(to_dense(a), to_dense(b))
        np.testing.assert_array_equal(to_dense(a), to_dense(c))


def test_values_are_shared_by_weights_methods_and_layers_below(edit, optimised):
    for same in (dict(), dict(mom2_update_weight=9.0), dict(method="emmet"), dict(layers=(3,))):
        edit(**same)
    assert len(optimised) == 1


def test_values_are_not_shared_where_they_differ(edit, optimised):
    changes = (
        dict(),
        dict(v_lr=0.4),
        dict(layers=(1, 2)),
        dict(context_templates=(("{}",), ("You are. {}",))),
        dict(method="pmet", v_num_grad_steps=3, v_lr=0.5, kl_factor=0.0625),
        dict(method="encore"),
    )
    for n, change in enumerate(changes, start=1):
        edit(**change)
        assert len(optimised) == n, change


def test_a_model_with_edits_keeps_nothing(golden, tmp_path):
    model = golden("gpt2")
    made = editor(tmp_path)
    first, state, _ = made.edit(model, REQUESTS[:1], made.init(model, None))
    n_files = len(list(tmp_path.iterdir()))
    made.edit(jaxedit.apply(model, first), REQUESTS[1:], state)
    assert len(list(tmp_path.iterdir())) == n_files == 1


def test_a_damaged_file_is_named(golden, tmp_path):
    model = golden("gpt2")
    made = editor(tmp_path)
    state = made.init(model, None)
    made.edit(model, REQUESTS[:1], state)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    message = rf"{path.name} does not hold values that were kept .*; delete it"
    with pytest.raises(ValueError, match=message):
        made.edit(model, REQUESTS[:1], state)
