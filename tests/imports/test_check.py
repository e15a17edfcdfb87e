"""What `jaxedit check` measures, against torch + peft; its verdicts."""

import numpy as np
import pytest
import torch
from adapter_examples import ATTENTION, MLP, write_adapter
from reference.checkpoints import edit_tensors
from reference.models import hf_model

import jaxedit
from jaxedit.imports.check import check_adapter
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import read_key_probe, relative_perturbation

TEXTS = [
    " The mother tongue of the author",
    "What is the capital",
    "Once upon a time there was a girl who lived in the forest",
]
FACT = jaxedit.Request("{} lives in", "Bob", "Munich")


def log_probabilities(hf, tokenizer, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p of the whole vocabulary at each position, and the text's tokens."""
    tokens = torch.tensor([tokenizer.encode(text, bos=False)])
    with torch.no_grad():
        return torch.log_softmax(hf(tokens).logits[0].double(), -1), tokens[0]


def perplexity_of(hf, tokenizer) -> float:
    """The papers' number: the mean over texts of exp of the mean loss a token."""
    found = []
    for text in TEXTS:
        logp_TV, token_T = log_probabilities(hf, tokenizer, text)
        nll = -logp_TV[:-1].gather(1, token_T[1:, None])
        found.append(float(nll.mean().exp()))
    return float(np.mean(found))


def kl_of(hf, base, tokenizer) -> float:
    found = []
    for text in TEXTS:
        (logp_TV, _), (base_TV, _) = (log_probabilities(m, tokenizer, text) for m in (hf, base))
        found += (base_TV.exp() * (base_TV - logp_TV)).sum(-1).tolist()
    return float(np.mean(found))


@pytest.mark.parametrize("parts", ["MLP", "attention", "all"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_numbers_are_those_of_torch_and_peft(parts, family, golden, shared, tmp_path):
    """Perplexity and KL of the two models; a prediction only where base weights stay."""
    directory, model = shared / "golden" / family, golden(family)
    targets = {"MLP": [MLP[family]], "attention": [ATTENTION[family]], "all": "all-linear"}
    lora = dict(target_modules=targets[parts], layers_to_transform=[2, 3])
    if parts == "all":
        lora.pop("layers_to_transform")
    theirs = write_adapter(directory, tmp_path / "adapter", size=0.12, **lora)
    imported = jaxedit.import_adapter(model, tmp_path / "adapter")
    found = check_adapter(model, imported, TEXTS, [FACT])

    base = hf_model(directory)
    before, after = (perplexity_of(hf, model.tokenizer) for hf in (base, theirs))
    assert abs(after / before - 1) > 0.01
    assert [score.mean for score in found.perplexity] == pytest.approx([before, after], rel=1e-4)
    assert found.kl_nats == pytest.approx(kl_of(theirs, base, model.tokenizer), rel=1e-3)
    assert found.ppl_ratio == pytest.approx(after / before, rel=1e-4)
    assert (found.relative_perturbation is None) == (parts != "MLP")
    if parts == "MLP":
        probe = read_key_probe(model, prepare(model, TEXTS), (2, 3))
        expected = relative_perturbation(probe, imported.edit, model)
        assert found.relative_perturbation == pytest.approx(expected, rel=1e-4)

    # P(target) by torch, with and without the adapter.
    prompt = torch.tensor([model.tokenizer.encode("Bob lives in", bos=False)])
    whole = torch.tensor([model.tokenizer.encode("Bob lives in Munich", bos=False)])
    assert whole[0, : prompt.shape[1]].tolist() == prompt[0].tolist()
    for hf, metrics in zip((base, theirs), found.facts, strict=True):
        with torch.no_grad():
            logp_TV = torch.log_softmax(hf(whole).logits[0].double(), -1)
        n = prompt.shape[1]
        logp = sum(float(logp_TV[t - 1, whole[0, t]]) for t in range(n, whole.shape[1]))
        assert metrics["probability_new"] == pytest.approx(np.exp(logp), rel=1e-3)


def write_size(shared, folder, size: float) -> None:
    write_adapter(shared / "golden" / "gpt2", folder, size=size, target_modules=["mlp.c_proj"])


def push_to_a_token(model, folder) -> None:
    """Make an adapter's last layer say one token, whatever the text.

    A random model is hardly worse for a random change; so sure of one token it is.
    """
    token_D = np.asarray(model.base["embed/tokens"][562])
    name = f"base_model.model.transformer.h.{model.config.L - 1}.mlp.c_proj.lora_"

    def push(tensors):
        tensors[f"{name}A.weight"][:] = 1
        tensors[f"{name}B.weight"][:] = 1000 * token_D[:, None]

    edit_tensors(folder / "adapter_model.safetensors", push)


def test_verdicts(shared, golden, tmp_path):
    """Small factors do no damage; those that make the model sure of one token do."""
    model = golden("gpt2")
    write_size(shared, tmp_path / "small", 0.02)
    write_size(shared, tmp_path / "large", 0.02)
    push_to_a_token(model, tmp_path / "large")
    small, large = (
        check_adapter(model, jaxedit.import_adapter(model, tmp_path / name), TEXTS)
        for name in ("small", "large")
    )
    assert (small.is_damaging, small.verdict) == (False, "no damage seen")
    assert 0.8 < small.ppl_ratio < 1.2
    assert small.relative_perturbation < 0.1 < large.relative_perturbation
    assert small.facts is small.tasks is None
    assert large.is_damaging
    assert large.ppl_ratio > 2
    assert large.verdict == (
        f"damages the model: perplexity is {large.ppl_ratio:,.1f} times the base's"
    )


def test_texts_that_went_non_finite_are_damage(shared, golden, tmp_path):
    model = golden("gpt2")
    write_size(shared, tmp_path / "huge", 1e18)
    found = check_adapter(model, jaxedit.import_adapter(model, tmp_path / "huge"), TEXTS)
    assert found.is_damaging
    assert found.verdict == "damages the model: the loss of 3 texts is not finite"
    assert found.kl_nats == found.ppl_ratio == np.inf


def test_a_base_that_is_broken_itself(golden, shared, tmp_path):
    write_size(shared, tmp_path / "huge", 1e18)
    write_size(shared, tmp_path / "small", 0.02)
    broken = jaxedit.import_adapter(golden("gpt2"), tmp_path / "huge").model
    imported = jaxedit.import_adapter(broken, tmp_path / "small")
    with pytest.raises(ValueError, match="itself is not finite on these texts"):
        check_adapter(broken, imported, TEXTS)


def test_a_changed_embedding(golden, shared, tmp_path):
    """Texts prepared with the model do not belong to one with other embeddings."""
    model, theirs = golden("gpt2"), hf_model(shared / "golden" / "gpt2")
    weight = theirs.transformer.wte.weight
    change = 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    np.savez(tmp_path / "changes.npz", **{"transformer.wte.weight": change.numpy()})
    imported = jaxedit.import_adapter(model, tmp_path / "changes.npz")
    found = check_adapter(model, imported, TEXTS)
    with torch.no_grad():
        weight.add_(change)  # the head's too: it is tied
    after = perplexity_of(theirs, model.tokenizer)
    assert found.perplexity[1].mean == pytest.approx(after, rel=1e-4)
    kl_nats = kl_of(theirs, hf_model(shared / "golden" / "gpt2"), model.tokenizer)
    assert found.kl_nats == pytest.approx(kl_nats, rel=1e-3)
