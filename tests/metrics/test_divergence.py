"""KL to the unedited model against HF torch on both sets of weights."""

import numpy as np
import pytest
import torch
import transformers

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import LowRank, make_edit
from jaxedit.metrics.divergence import kl_divergence
from jaxedit.metrics.perplexity import prepare

TEXTS = [
    " The mother tongue of the author",
    "What is the capital",
    "Once upon a time there was a girl who lived in the forest",
]


@pytest.mark.parametrize("lowest", [0, 2])
def test_kl_is_that_of_torch_on_both_sets_of_weights(golden, shared, lowest):
    model, rng = golden("llama"), np.random.default_rng(0)
    u_FR = rng.standard_normal((model.config.F, 1)).astype(np.float32)
    v_RD = 0.05 * rng.standard_normal((1, model.config.D)).astype(np.float32)
    edit = make_edit(model, [LowRank("mlp/w_down", 2, u_FR, v_RD)])
    texts = prepare(model, TEXTS, start_layer=lowest)
    found = kl_divergence(apply(model, edit), model, texts)

    load = transformers.AutoModelForCausalLM.from_pretrained
    folder = shared / "golden" / "llama"
    before, after = (load(folder, dtype=torch.float32).eval().double() for _ in range(2))
    after.model.layers[2].mlp.down_proj.weight.data += torch.tensor((u_FR @ v_RD).T).double()
    each = []
    with torch.no_grad():
        for text in TEXTS:
            tokens = torch.tensor([model.tokenizer.encode(text, bos=False)])
            logp_0, logp = (torch.log_softmax(hf(tokens).logits[0], -1) for hf in (before, after))
            each += (logp_0.exp() * (logp_0 - logp)).sum(-1).tolist()
    assert np.mean(each) > 1e-3
    assert found == pytest.approx(np.mean(each), rel=1e-3)


def test_a_model_does_not_diverge_from_itself(golden):
    model = golden("llama")
    assert kl_divergence(model, model, prepare(model, TEXTS)) == pytest.approx(0, abs=1e-6)


def test_a_broken_model_is_infinitely_far(golden):
    model = golden("llama")
    nan = np.full((model.config.F, 1), np.nan)
    edit = make_edit(model, [LowRank("mlp/w_down", 2, nan, np.ones((1, model.config.D)))])
    broken = apply(model, edit)
    assert kl_divergence(broken, model, prepare(model, TEXTS)) == float("inf")
