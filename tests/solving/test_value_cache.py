"""Values that are kept: found once, for whoever asks for the same; never for a model with edits."""

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
    more = dict(
        layers=(2, 3),
        mom2_adjustment=False,
        v_num_grad_steps=3,
        context_templates=GROUPS,
        target_cache=str(folder),
    )
    return jaxedit.make_editor(method, **{**more, **hyper})


def test_values_are_found_once_for_all_that_share_them(golden, tmp_path, monkeypatch):
    model = golden("gpt2")
    asked = []
    optimise = value_cache.optimise
    monkeypatch.setattr(value_cache, "optimise", lambda *args: asked.append(1) or optimise(*args))

    def edit(**hyper):
        made = editor(tmp_path, **hyper)
        return made.edit(model, REQUESTS, made.init(model, None))[0]

    first = edit(mom2_update_weight=1.0)
    again = edit(mom2_update_weight=1.0)
    assert len(asked) == 1
    for mine, theirs in zip(first.deltas, again.deltas, strict=True):
        np.testing.assert_array_equal(to_dense(mine), to_dense(theirs))
    for shared in (dict(mom2_update_weight=9.0), dict(method="emmet"), dict(layers=(3,))):
        edit(**shared)
    assert len(asked) == 1
    for other in (
        dict(v_lr=0.4),
        dict(layers=(1, 2)),
        dict(context_templates=(("{}",), ("You are. {}",))),
        dict(method="pmet"),
    ):
        edit(**other)
    assert len(asked) == 5
    free = edit(target_cache=None, mom2_update_weight=1.0)
    np.testing.assert_array_equal(to_dense(free.deltas[0]), to_dense(first.deltas[0]))


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
    with pytest.raises(
        ValueError, match=rf"{path.name} does not hold values that were kept .*; delete it"
    ):
        made.edit(model, REQUESTS[:1], state)
