"""Edits of every weight of an MLP: the logits are those of HF's torch model so changed."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
from reference.models import assert_same_logits, hf_logits, hf_model, token_rows

import jaxedit
from jaxedit.edits.apply import undo
from jaxedit.edits.edit import EDITABLE_WEIGHTS, Dense, LowRank, make_edit
from jaxedit.edits.per_row import with_per_row_edits
from jaxedit.exports.export import export
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import (
    read_key_probe,
    relative_perturbation,
    total_relative_perturbation,
)
from jaxedit.models.model import with_overlay
from jaxedit.study.edited import EditedModel

FAMILIES = ("gpt2", "gptj", "llama", "gpt_neox")
TEXTS = ["Once upon a time there was a girl.", "What is the capital of Italy?"]


def weights_of(model) -> list[str]:
    """Return the weights of the model's MLPs."""
    return [weight for weight in EDITABLE_WEIGHTS if weight in model.base]


def draw_edit(model, seed: int = 0, dense_layer: int | None = 3, rank: int = 2):
    """Draw an edit of every weight in layers 1 and 3, dense in one of them."""
    rng, deltas = np.random.default_rng(seed), []
    for weight in weights_of(model):
        n_in, n_out = model.base[weight].shape[1:]
        for layer in (1, 3):
            u = rng.standard_normal((n_in, rank)) / n_in**0.5
            v = 0.2 * rng.standard_normal((rank, n_out))
            delta = LowRank(weight, layer, u, v)
            deltas.append(Dense(weight, layer, u @ v) if layer == dense_layer else delta)
    return make_edit(model, deltas)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_torch_with_the_changes(golden, shared, family):
    """`dense()` names HF's weights and lies as they do."""
    model, hf = golden(family), hf_model(shared / "golden" / family)
    edit = draw_edit(model)
    edited = jaxedit.apply(model, edit)
    parameters = dict(hf.named_parameters())
    changes = edit.dense()
    assert len(changes) == 2 * len(weights_of(model))
    with torch.no_grad():
        for name, change in changes.items():
            parameters[name] += torch.tensor(change)
    tokens_BT = token_rows(model.config.V)
    ours = jaxedit.logits(edited, tokens_BT)
    assert np.abs(ours - jaxedit.logits(model, tokens_BT)).max() > 0.05
    assert_same_logits(ours, hf_logits(hf, tokens_BT))


def test_an_edit_leaves_no_trace_once_undone(golden):
    model = golden("llama")
    first, second = draw_edit(model), draw_edit(model, seed=1)
    both = jaxedit.apply(jaxedit.apply(model, first), second)
    tokens_BT = token_rows(model.config.V)
    np.testing.assert_array_equal(
        jaxedit.logits(undo(both, first), tokens_BT),
        jaxedit.logits(jaxedit.apply(model, second), tokens_BT),
    )


def test_rows_have_edits_of_their_own(golden):
    """Each row as the model with that edit alone, on top of one that all rows have."""
    model = golden("llama")
    common = jaxedit.apply(model, draw_edit(model, seed=7))
    edits = [draw_edit(model, seed, None, rank=1 + seed) for seed in (0, 1)]
    tokens_BT = token_rows(model.config.V, rows=3)
    edit_B = np.array([1, 0, 1])
    found = jaxedit.logits(with_per_row_edits(common, edits, edit_B), tokens_BT)
    for b, i in enumerate(edit_B):
        alone = jaxedit.logits(jaxedit.apply(common, edits[i]), tokens_BT)
        np.testing.assert_allclose(found[b], alone[b], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_exports_and_imports_hold_every_weight(golden, shared, family, tmp_path):
    """Peft, a whole checkpoint and a file of changes have the logits; read back, the edit."""
    model = golden(family)
    edit = draw_edit(model)
    edited = EditedModel(
        jaxedit.apply(model, edit), model.metadata.source, {"method": "x"}, (), (), None, ""
    )
    tokens_BT = token_rows(model.config.V)
    ours = jaxedit.logits(edited.model, tokens_BT)
    for format in ("peft", "hf", "delta"):
        export(edited, tmp_path / format, format)
    adapted = peft.PeftModel.from_pretrained(
        hf_model(shared / "golden" / family), tmp_path / "peft"
    )
    assert_same_logits(ours, hf_logits(adapted.eval(), tokens_BT))
    assert_same_logits(ours, hf_logits(hf_model(tmp_path / "hf"), tokens_BT))
    for format in ("peft", "hf", "delta"):
        imported = jaxedit.import_adapter(model, tmp_path / format)
        assert not imported.added_to_base
        assert_same_logits(jaxedit.logits(imported.model, tokens_BT), ours)


def test_the_perturbation_is_the_change_of_what_the_mlps_put_out(golden, shared):
    """In float64 by torch: of each layer's MLP, given what it reads in the unedited model."""
    model, hf = golden("llama"), hf_model(shared / "golden" / "llama", torch.float64)
    edit = draw_edit(model)
    probe = read_key_probe(model, prepare(model, TEXTS), (1, 3), weights_of(model))

    read, residual = {1: [], 3: []}, []
    for layer in (1, 3):
        hf.model.layers[layer].mlp.register_forward_hook(
            lambda module, args, output, layer=layer: read[layer].append(args[0][0, 1:])
        )
    with torch.no_grad():
        for text in TEXTS:
            tokens = torch.tensor([model.tokenizer.encode(text, bos=False)])
            residual.append(hf(tokens, output_hidden_states=True).hidden_states[4][0, 1:])
        inputs = {layer: torch.cat(found) for layer, found in read.items()}
        before = {layer: hf.model.layers[layer].mlp(inputs[layer][None])[0] for layer in (1, 3)}
        parameters = dict(hf.named_parameters())
        for name, change in edit.dense().items():
            parameters[name] += torch.tensor(change)
        after = {layer: hf.model.layers[layer].mlp(inputs[layer][None])[0] for layer in (1, 3)}
    change_QD = sum(after[layer] - before[layer] for layer in (1, 3))
    expected = float((change_QD.norm(dim=-1) / torch.cat(residual).norm(dim=-1)).mean())
    assert relative_perturbation(probe, edit, model) == pytest.approx(expected, rel=1e-4)
    edited = jaxedit.apply(model, edit)
    assert total_relative_perturbation(probe, edited) == pytest.approx(expected, rel=1e-4)
    assert relative_perturbation(probe, edit, edited) != pytest.approx(expected, rel=1e-2)


def test_a_weight_that_the_model_lacks_is_refused(golden):
    model = golden("gpt2")
    shape = model.base["mlp/w_up"].shape[1:]
    edit = make_edit(model, [Dense("mlp/w_up", 1, np.zeros(shape))])
    (delta,) = edit.deltas
    foreign = dataclasses.replace(edit, deltas=(delta._replace(weight="mlp/w_gate"),))
    with pytest.raises(ValueError, match=r"'mlp/w_gate'; of .* edited: mlp/w_down, mlp/w_up"):
        jaxedit.apply(model, foreign)


def test_layers_that_are_not_edited_have_no_term(golden):
    """A weight without edits costs nothing: the program is that of the model without room."""
    model = golden("llama")
    edited = jaxedit.apply(model, draw_edit(model))
    down_only = {"mlp/w_down": edited.overlay.delta["mlp/w_down"]}
    overlay = edited.overlay._replace(
        delta=down_only, slot={"mlp/w_down": edited.overlay.slot["mlp/w_down"]}
    )
    tokens_BT = token_rows(model.config.V)
    found = jaxedit.logits(with_overlay(model, overlay), tokens_BT)
    down = [delta for delta in edited.metadata.history[0].deltas if delta.weight == "mlp/w_down"]
    expected = jaxedit.logits(jaxedit.apply(model, make_edit(model, down)), tokens_BT)
    np.testing.assert_array_equal(found, expected)
