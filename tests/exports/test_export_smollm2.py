"""The built-in model as an HF checkpoint, and an adapter of its edit, in transformers and peft."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM

import jaxedit
from jaxedit.exports.export import export
from jaxedit.exports.hf import write_hf
from jaxedit.exports.written import ExportOptions
from jaxedit.models.layers import logits
from jaxedit.study.edited import EditedModel

REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
SUBJECTS = ("The Eiffel Tower", "The Louvre", "Big Ben", "The White House", "The Colosseum")
PROMPTS = [
    prompt.format(subject)
    for subject in SUBJECTS
    for prompt in ("{} is located in the city of", "{} was built in", "To see {}, go to", "{}")
]


@pytest.mark.smollm2
def test_an_adapter_of_the_built_in_model_computes_what_the_edited_model_does(smollm2, tmp_path):
    """On the dequantised weights, written as a checkpoint; torch in float64.

    Log probabilities, as what float32 loses of the logits is mostly common to a position's whole
    vocabulary (1.07e-4 of one logit in 344,064; the rest within 1e-4).
    """
    unedited = EditedModel(smollm2, "smollm2-135m", {}, (), (), None, "")
    write_hf(unedited, tmp_path / "base", ExportOptions())
    edited, edit, _ = jaxedit.edit_model(
        smollm2, REQUEST, "rome", layer=5, v_num_grad_steps=5, context_templates=("{}",)
    )
    about = unedited._replace(model=edited)
    export(about, tmp_path / "adapter", "peft", base=str(tmp_path / "base"))

    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    theirs = PeftModel.from_pretrained(hf, tmp_path / "adapter").to(torch.float64).eval()
    for prompt in PROMPTS:
        tokens = edited.tokenizer.encode(prompt)
        with torch.no_grad():
            expected = theirs(torch.tensor([tokens])).logits[0].numpy()
        found = log_softmax(logits(edited, np.array([tokens]))[0], axis=-1)
        np.testing.assert_allclose(found, log_softmax(expected, axis=-1), rtol=0, atol=1e-4)

    again = jaxedit.import_edit(smollm2, tmp_path / "adapter")
    found_FD, exact_FD = (product(each) for each in (again, edit))
    assert np.linalg.norm(found_FD - exact_FD) <= 1e-6 * np.linalg.norm(exact_FD)


def product(edit: jaxedit.Edit) -> np.ndarray:
    """Multiply the factors of an edit of one weight [F, D]."""
    [delta] = edit.deltas
    assert isinstance(delta, jaxedit.LowRank)
    return np.asarray(delta.u_FR) @ np.asarray(delta.v_RD)
