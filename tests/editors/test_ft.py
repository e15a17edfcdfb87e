"""Fine-tuning against the reference implementations' golden vectors and a plain torch loop."""

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import to_dense

FAMILIES = ("gpt2", "gptj", "llama", "qwen2", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("variant", "ball"), [("ft_linf", True), ("ft_free", False)])
def test_golden_updates(golden, golden_expected, family, variant, ball):
    """Delta W of the first request to 1e-4 relative in the Frobenius norm, with and without the
    ball.
    """
    cases, tensors = golden_expected(family)
    own = cases["ft"]
    editor = jaxedit.make_editor(
        "ft",
        layers=[own["layer"]],
        lr=own["lr"],
        num_steps=own["num_steps"],
        norm_constraint=own["norm_constraint"] if ball else False,
    )
    model = golden(family)
    edit, _, info = editor.edit(
        model, [jaxedit.Request(**cases["requests"][0])], editor.init(model, None)
    )
    ((name, _),) = edit.dense().items()
    wanted_FD = tensors[f"{variant}/{name}"]
    found_FD = to_dense(edit.deltas[0])
    assert np.linalg.norm(found_FD - wanted_FD) / np.linalg.norm(wanted_FD) <= 1e-4
    if ball:
        assert info["largest_change"] == pytest.approx(own["norm_constraint"], rel=1e-5)
