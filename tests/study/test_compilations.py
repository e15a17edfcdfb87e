"""A study compiles what it needs with its first edits; one edit more compiles nothing."""

import json

import jax
import pytest

from jaxedit.study import loop
from jaxedit.study.config import default_config

# All of one shape in the tiny gpt2.
NAMES = ("Bob", "Ann", "Tim", "Sam")
FACTS = [
    {"prompt": "{} lives in", "subject": name, "target_new": "Paris", "target_true": "London"}
    for name in NAMES
]
EVENT = "/jax/core/compile/backend_compile_duration"
METHODS = {
    "rome": dict(layer=3, v_num_grad_steps=3, context_templates=("{}", "I am. {}")),
    "alphaedit": dict(
        layers=(2, 3),
        v_num_grad_steps=3,
        context_templates=(("{}",), ("I am. {}",)),
        mom2_adjustment=False,
    ),
    "ft": dict(layers=(2,), num_steps=3),
}
METHODS["alphaedit"]["nullspace_threshold"] = 2.0  # of the identity: all of it


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["sequential", "single"])
def test_no_compilation_from_the_second_edit_on(shared, tmp_path, method, mode):
    (tmp_path / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (tmp_path / "texts.json").write_text(
        json.dumps(["The Eiffel Tower is located in the city of Paris."]), encoding="utf-8"
    )
    config = default_config(method, **METHODS[method])
    places = dict(facts=str(tmp_path / "facts.json"), texts=str(tmp_path / "texts.json"))
    config.update(
        model=str(shared / "golden" / "gpt2"),
        mode=mode,
        guard=dict(max_ppl_ratio=1e6, action="keep"),
        **places,
    )
    counts, n_compiled = [], 0

    def count(event: str, seconds: float, **more):
        nonlocal n_compiled
        n_compiled += event == EVENT

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        jax.jit(lambda x: x + 1)(1)
        assert n_compiled == 1  # so that it is seen where there is one
        loop.run_study(config, tmp_path / "run", lambda record, total: counts.append(n_compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    _, first, second, *more = counts
    assert more == [second] * len(more)
    if method != "alphaedit":  # whose second edit is the first with a history
        assert second == first
