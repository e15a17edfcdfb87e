"""Fine-tuning against the reference implementations' golden vectors."""

import numpy as np
import pytest
from reference.distance import relative

import jaxedit
from jaxedit.editors import ft
from jaxedit.edits.edit import to_dense

FAMILIES = ("gpt2", "gptj", "llama", "qwen2", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("variant", "ball"), [("ft_linf", True), ("ft_free", False)])
def test_golden_updates(golden, golden_expected, family, variant, ball):
    """Delta W of a request to 1e-4 relative in the Frobenius norm, with and without the ball."""
    cases, tensors = golden_expected(family)
    own = cases["ft"]
    editor = jaxedit.make_editor(
        "ft",
        layers=[own["layer"]],
        lr=own["lr"],
        num_steps=own["num_steps"],
        norm_constraint=own["norm_constraint"] if ball else False,
    )
    model, request = golden(family), jaxedit.Request(**cases["requests"][0])
    edit, _, info = editor.edit(model, [request], editor.init(model, None))
    ((name, _),) = edit.dense().items()
    assert relative(to_dense(edit.deltas[0]), tensors[f"{variant}/{name}"]) <= 1e-4
    if ball:
        assert info["largest_change"] == pytest.approx(own["norm_constraint"], rel=1e-5)


def test_batches_hold_positions_before_the_targets_tokens(golden):
    """Teacher forcing reads a position for each target token, FT-L the prompt's last for all."""
    model = golden("gpt2")
    requests = [
        jaxedit.Request("{} lives in", "Ann", "Paris"),
        jaxedit.Request("The mother tongue of {} is", "Bob", "the English language"),
        jaxedit.Request("{} sings", "Tim", "a song"),
    ]
    encode = model.tokenizer.encode
    for objective in ("teacher_forced", "last_position"):
        hyper = ft.Hyper(layers=(2,), objective=objective, batch_size=2)
        batches = ft.to_batches(ft.settings_of(hyper), model, requests)
        np.testing.assert_array_equal(batches.count_G, [2, 1])
        for i, request in enumerate(requests):
            g, b = divmod(i, 2)
            prompt = encode(request.prompt_text)
            target = encode(f"{request.prompt_text} {request.target_new}")[len(prompt) :]
            n = len(target)
            first = len(prompt) - 1
            reads = range(first, first + n) if objective == "teacher_forced" else [first] * n
            np.testing.assert_array_equal(batches.rows.read_BQ[g, b, :n], list(reads))
            np.testing.assert_array_equal(batches.rows.target_BQ[g, b, :n], target)
            weight = 1 / (n * batches.count_G[g])
            np.testing.assert_allclose(batches.rows.weight_BQ[g, b, :n], weight)
            assert not np.any(batches.rows.weight_BQ[g, b, n:])
        assert not np.any(batches.rows.weight_BQ[1, 1])
