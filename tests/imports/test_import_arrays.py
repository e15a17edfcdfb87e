"""Changes in files by HF weight names: against HF torch models with the change added to them."""

import numpy as np
import pytest
import torch
from adapter_examples import FAMILIES, MLP, logits, rows
from reference.models import assert_same_logits, hf_logits, hf_model
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import jaxedit
from jaxedit.edits.edit import EDITABLE_WEIGHTS


def weight_name(family: str, layer: int) -> str:
    blocks = "model.layers" if family in ("llama", "qwen2") else "transformer.h"
    return f"{blocks}.{layer}.{MLP[family]}.weight"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def match_shape(matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """As `upd_matrix_match_shape` of the ROME and MEMIT repositories does."""
    return matrix if matrix.shape == shape else matrix.T


def added(directory, changes: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the logits of the HF torch model with changes added to its weights."""
    model = hf_model(directory)
    with torch.no_grad():
        for name, change in changes.items():
            weight = model.get_parameter(name)
            weight.add_(match_shape(change, weight.shape).float())
    return hf_logits(model, rows(model.config.vocab_size))


@pytest.mark.parametrize("family", FAMILIES)
def test_deltas_of_the_rome_repository(family, golden, shared, tmp_path):
    """{name: (left, right)}, vectors whose outer product is added to the weight."""
    model = golden(family)
    F, D, name = model.config.F, model.config.D, weight_name(family, 2)
    deltas = {name: (draw(F, seed=1), draw(D, seed=2))}
    torch.save(deltas, tmp_path / "deltas.pt")
    changes = {n: u.unsqueeze(1) @ v.unsqueeze(0) for n, (u, v) in deltas.items()}
    edit = jaxedit.import_edit(model, tmp_path / "deltas.pt")
    (delta,) = edit.deltas
    assert isinstance(delta, jaxedit.LowRank)
    assert (delta.layer, delta.u_FR.shape, delta.v_RD.shape) == (2, (F, 1), (1, D))
    theirs = added(shared / "golden" / family, changes)
    assert_same_logits(logits(jaxedit.apply(model, edit)), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_deltas_of_the_memit_repository(family, golden, shared, tmp_path):
    """{name: (adj_k, resid)} of several layers, float64: adj_k residᵀ is added to the weight."""
    model = golden(family)
    F, D = model.config.F, model.config.D
    deltas = {
        weight_name(family, layer): (
            draw(F, 3, seed=layer).double(),
            draw(D, 3, seed=9 - layer).double(),
        )
        for layer in (1, 2, 3)
    }
    torch.save(deltas, tmp_path / "deltas.pt")
    changes = {n: key_mat @ val_mat.T for n, (key_mat, val_mat) in deltas.items()}
    edit = jaxedit.import_edit(model, tmp_path / "deltas.pt")
    assert [delta.layer for delta in edit.deltas] == [1, 2, 3]
    assert all(delta.u_FR.shape[1] == 3 for delta in edit.deltas)
    theirs = added(shared / "golden" / family, changes)
    assert_same_logits(logits(jaxedit.apply(model, edit)), theirs)


@pytest.mark.parametrize("kind", ["safetensors", "bfloat16", "npz", "pt"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_matrices_by_name(kind, family, golden, shared, tmp_path):
    """Of every kind of weight, attention's, norms and biases too; square ones as HF has them."""
    torch_model = hf_model(shared / "golden" / family)
    changes = {
        name: 0.5 * draw(*parameter.shape, seed=i)
        for i, (name, parameter) in enumerate(torch_model.named_parameters())
        if ".1." in name or "embed" in name or "wte" in name or "norm" in name
    }
    if kind == "bfloat16":
        changes = {name: change.bfloat16() for name, change in changes.items()}
    path = tmp_path / f"changes.{'safetensors' if kind == 'bfloat16' else kind}"
    {
        "safetensors": lambda: save_torch(changes, path),
        "bfloat16": lambda: save_torch(changes, path),
        "npz": lambda: np.savez(path, **{n: c.numpy() for n, c in changes.items()}),
        "pt": lambda: torch.save(changes, path),
    }[kind]()
    model = golden(family)
    imported = jaxedit.import_adapter(model, path, orientation="hf")
    n_edited = sum(weight in model.base for weight in EDITABLE_WEIGHTS)
    assert len(imported.added_to_base) == len(changes) - n_edited > 7
    assert imported.edit is not None
    assert [type(delta) for delta in imported.edit.deltas] == n_edited * [jaxedit.Dense]
    theirs = added(shared / "golden" / family, changes)
    assert np.abs(theirs - logits(model)).max() > 0.3
    assert_same_logits(logits(imported.model), theirs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_matrices_that_lie_the_other_way(family, golden, shared, tmp_path):
    """A shape that fits only when turned is turned."""
    model, name = golden(family), weight_name(family, 2)
    change = draw(*hf_model(shared / "golden" / family).get_parameter(name).shape)
    save_file({name: change.numpy().T.copy()}, tmp_path / "changes.safetensors")
    edit = jaxedit.import_edit(model, tmp_path / "changes.safetensors")
    theirs = added(shared / "golden" / family, {name: change})
    assert_same_logits(logits(jaxedit.apply(model, edit)), theirs)


@pytest.mark.parametrize("kind", ["matrix", "pair"])
def test_square_matrices_need_an_orientation(kind, tiny_checkpoint, tmp_path):
    """Without one they are refused, whichever weight; with it they are added as it says."""
    directory = tiny_checkpoint("llama", intermediate_size=32)
    model, name = jaxedit.load(str(directory)), "model.layers.1.mlp.down_proj.weight"
    left, right = draw(32, 2, seed=1), draw(32, 2, seed=2)
    change = left @ right.T
    path = tmp_path / "deltas.pt"
    torch.save({name: (left, right) if kind == "pair" else change}, path)
    with pytest.raises(ValueError, match=r"is square.*give the orientation hf .*or transposed"):
        jaxedit.import_edit(model, path)
    for orientation, matrix in (("hf", change), ("transposed", change.T)):
        edit = jaxedit.import_edit(model, path, orientation)
        theirs = added(directory, {name: matrix})
        assert_same_logits(logits(jaxedit.apply(model, edit)), theirs)


def test_a_delta_export_says_how_its_matrices_lie(tiny_checkpoint, tmp_path):
    """Square ones need no orientation in a folder with delta.safetensors."""
    directory = tiny_checkpoint("llama", intermediate_size=32)
    model, name = jaxedit.load(str(directory)), "model.layers.1.mlp.down_proj.weight"
    change = draw(32, 32)
    save_torch({name: change}, tmp_path / "delta.safetensors")
    edit = jaxedit.import_edit(model, tmp_path)
    theirs = added(directory, {name: change})
    assert_same_logits(logits(jaxedit.apply(model, edit)), theirs)
    np.testing.assert_array_equal(edit.dense()[name], change.numpy())
