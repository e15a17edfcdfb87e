"""The built-in model as an HF checkpoint, and adapters of its edits, in transformers and peft."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import jaxedit
from jaxedit.datasets import read_texts
from jaxedit.edits.edit import to_dense
from jaxedit.exports.export import export
from jaxedit.exports.hf import write_hf
from jaxedit.exports.written import ExportOptions
from jaxedit.models.layers import logits
from jaxedit.study.edited import EditedModel

pytestmark = [pytest.mark.smollm2, pytest.mark.real_model]

REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
N_PROMPTS, N_TOKENS = 20, 12
BARE = dict(v_num_grad_steps=5, context_templates=(("{}",),))
EDITS = {
    "rome": dict(layer=5, v_num_grad_steps=5, context_templates=("{}",)),
    "memit": BARE | dict(layers=(4, 5), mom2_adjustment=False, mom2_update_weight=0.1),
    "alphaedit": BARE | dict(layers=(4, 5), nullspace_threshold=2e-2, L2=10.0),
    "ft": dict(layers=(5,), num_steps=5, lr=5e-4),
}


@pytest.fixture(scope="module")
def prompts(smollm2) -> np.ndarray:
    """Make the tokens of twenty prompts, int [20, 12]."""
    token_lists = [smollm2.tokenizer.encode(text) for text in read_texts("builtin")]
    cut = [tokens[:N_TOKENS] for tokens in token_lists if len(tokens) >= N_TOKENS]
    return np.array(cut[:N_PROMPTS])


@pytest.fixture(scope="module")
def stats(smollm2):
    return jaxedit.collect_stats(smollm2, read_texts("builtin")[:4], (4, 5))


@pytest.fixture(scope="module")
def checkpoint(smollm2, tmp_path_factory):
    """Write the dequantised weights as an HF checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    write_hf(EditedModel(smollm2, "smollm2-135m", {}, (), (), None, ""), folder, ExportOptions())
    return folder


@pytest.fixture(scope="module")
def hf(checkpoint):
    """Load the checkpoint in float64, so that torch's own rounding does not count."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()


@pytest.mark.parametrize("method", EDITS)
def test_an_adapter_of_the_built_in_model_computes_what_the_edited_model_does(
    smollm2, prompts, stats, checkpoint, hf, tmp_path, method
):
    """To 1e-4, or 1e-5 of the largest logit: float32 holds no more of it over thirty layers."""
    needed = stats if method == "alphaedit" else None
    edited, edit, _ = jaxedit.edit_model(smollm2, REQUEST, method, stats=needed, **EDITS[method])
    about = EditedModel(edited, "smollm2-135m", {}, (), (), None, "")
    export(about, tmp_path / "adapter", "peft", base=str(checkpoint), rank=smollm2.config.D)

    adapted = PeftModel.from_pretrained(hf, tmp_path / "adapter").to(torch.float64)
    with torch.no_grad():
        theirs = adapted(torch.tensor(prompts)).logits.numpy()
    adapted.unload()
    ours = logits(edited, prompts)
    assert np.abs(ours - theirs).max() <= max(1e-4, 1e-5 * np.abs(theirs).max())
    assert np.abs(ours - logits(smollm2, prompts)).max() > 1e-2

    again = jaxedit.import_edit(smollm2, tmp_path / "adapter")
    for mine, exact in zip(again.deltas, edit.deltas, strict=True):
        assert mine.layer == exact.layer
        found_FD, exact_FD = to_dense(mine), to_dense(exact)
        assert np.linalg.norm(found_FD - exact_FD) <= 1e-6 * np.linalg.norm(exact_FD)
