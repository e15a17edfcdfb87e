"""A study compiles what it needs with its first edits; one edit more compiles nothing."""

import jax
import pytest

from jaxedit.study import loop

# All of one shape in the tiny gpt2.
NAMES = ("Bob", "Tom", "Tim", "Sam")
FACTS = [
    {"prompt": "{} lives in", "subject": name, "target_new": "Paris", "target_true": "London"}
    for name in NAMES
]
TEXTS = ["The Eiffel Tower is located in the city of Paris."]
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
    "lora": dict(layers=(2,), weights=("mlp/w_up", "mlp/w_down"), epochs=3),
}
METHODS["alphaedit"]["nullspace_threshold"] = 2.0  # of the identity: all of it


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["sequential", "single"])
def test_no_compilation_from_the_second_edit_on(study_config, tmp_path, method, mode):
    guard = dict(max_ppl_ratio=1e6, action="keep")
    config = study_config(method, FACTS, TEXTS, METHODS[method], mode=mode, guard=guard)
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
