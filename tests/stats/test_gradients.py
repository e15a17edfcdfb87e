"""Second moments of output gradients against torch's backward pass, and their files."""

import jax
import numpy as np
import pytest
import torch
from reference.distance import relative
from reference.models import hf_model

import jaxedit
from jaxedit.stats import collect
from jaxedit.stats.second_moments import Stats

LAYERS = (2, 4)
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Once upon a time there was a girl.",
    "What is the capital of Italy? The capital of Italy is Rome!",
]


def moments_in_torch(folder, model, texts=TEXTS, max_length=None) -> dict[int, np.ndarray]:
    """E[g g^T] of the outputs of the second MLP weight, a text at a time, in float64."""
    torch.set_num_threads(1)  # tiny products
    hf, outputs = hf_model(folder, torch.float64), {}
    for layer in LAYERS:
        name = model.metadata.tensor_names["mlp/w_down"][0].format(l=layer)

        def keep(module, inputs, output, layer=layer):
            output.retain_grad()
            outputs[layer] = output

        hf.get_submodule(name.removesuffix(".weight")).register_forward_hook(keep)
    sums, n_tokens = dict.fromkeys(LAYERS, 0.0), 0
    for text in texts:
        row = torch.tensor([model.tokenizer.encode(text)[:max_length]])
        logits = hf(row).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], row[0, 1:], reduction="sum")
        loss.backward()
        n_tokens += row.shape[1]
        for layer in LAYERS:
            g_TD = outputs[layer].grad[0].numpy()
            sums[layer] = sums[layer] + g_TD.T @ g_TD
    return {layer: total / n_tokens for layer, total in sums.items()}


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_moments_are_those_of_torch(shared, golden, family):
    model = golden(family)
    stats = jaxedit.collect_stats(model, TEXTS, LAYERS, gradients=True)
    expected = moments_in_torch(shared / "golden" / family, model)
    alone = jaxedit.collect_stats(model, TEXTS, LAYERS)
    assert not alone.gradients
    assert stats.n_tokens == alone.n_tokens
    for layer in LAYERS:
        assert relative(stats.gradients[layer], expected[layer]) <= 1e-4
        assert relative(stats.moments[layer], alone.moments[layer]) <= 1e-6


def test_a_text_that_fills_its_row_does_not_predict_its_own_beginning(shared, golden):
    model, texts = golden("gpt2"), TEXTS[2:]
    stats = jaxedit.collect_stats(model, texts, LAYERS, gradients=True, max_length=16)
    assert stats.n_tokens == 16
    expected = moments_in_torch(shared / "golden" / "gpt2", model, texts, max_length=16)
    for layer in LAYERS:
        assert relative(stats.gradients[layer], expected[layer]) <= 1e-4


def test_an_interrupted_pass_goes_on_to_the_same_bits(golden, tmp_path, monkeypatch):
    model, part = golden("gpt2"), tmp_path / "stats.part"
    monkeypatch.setattr(collect, "GROUP_TOKENS", 20)  # a text each
    whole = jaxedit.collect_stats(model, TEXTS, LAYERS, gradients=True)

    def stop(n_done: int, n_total: int) -> None:
        if n_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jaxedit.collect_stats(model, TEXTS, LAYERS, gradients=True, resume=part, on_tokens=stop)
    with pytest.raises(ValueError, match=r"an unfinished pass over something else\. layers"):
        jaxedit.collect_stats(model, TEXTS, [2], gradients=True, resume=part)
    again = jaxedit.collect_stats(model, TEXTS, LAYERS, gradients=True, resume=part)
    assert again.digest == whole.digest
    assert not part.exists()


def test_a_file_holds_them_under_its_digest(golden, tmp_path):
    model, path = golden("gpt2"), tmp_path / "stats.safetensors"
    stats = jaxedit.collect_stats(model, TEXTS, [2], gradients=True)
    stats.save(path)
    read = Stats.load(path)
    np.testing.assert_array_equal(read.gradients_of(model, 2), stats.gradients[2])
    np.testing.assert_array_equal(read.moments[2], stats.moments[2])

    data = bytearray(path.read_bytes())
    data[-1] ^= 64  # of whichever matrix is last
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"finite symmetric|does not have its digest"):
        Stats.load(path)

    without = jaxedit.collect_stats(model, TEXTS, [2])
    with pytest.raises(ValueError, match="jaxedit stats --gradients"):
        without.gradients_of(model, 2)
    with pytest.raises(ValueError, match="layer 3 is asked for"):
        stats.gradients_of(model, 3)
    jax.clear_caches()
