"""LoRA adapters against the peft library: the imported model's logits are those of torch + peft."""

import numpy as np
import pytest
from adapter_examples import ATTENTION, FAMILIES, MLP, logits
from reference.checkpoints import edit_json, edit_tensors
from reference.models import assert_same_logits
from safetensors.numpy import load_file, save_file

import jaxedit
from jaxedit.edits.edit import to_dense


def lora_of(kind: str, family: str) -> dict:
    """Return what peft's LoraConfig gets, of kinds of adapters."""
    mlp, attention = MLP[family], ATTENTION[family]
    patterns = dict(
        rank_pattern={mlp: 2, rf"h\.[12]\..*{attention}|layers\.1\..*{attention}": 7},
        alpha_pattern={attention: 11, f"2.{mlp}": 3, f"3.{mlp}$": 5},
    )
    kinds = {
        "plain": {},
        "patterns": patterns,
        "rslora": dict(use_rslora=True),
        "rslora, patterns": dict(use_rslora=True, **patterns),
        "attention": dict(target_modules=[attention]),
        "layers": dict(target_modules=[attention, mlp], layers_to_transform=[1, 3]),
        "bin": dict(safe_serialization=False),
    }
    return kinds[kind]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["plain", "patterns", "rslora", "rslora, patterns", "layers"])
def test_logits_are_those_of_peft(kind, family, adapter, golden):
    folder, theirs = adapter(family, **lora_of(kind, family))
    model = golden(family)
    before = logits(model)
    imported = jaxedit.import_adapter(model, folder)
    assert np.abs(theirs - before).max() > 0.3  # the adapter is one that shows
    assert_same_logits(logits(imported.model), theirs)
    np.testing.assert_array_equal(logits(model), before)


@pytest.mark.parametrize("kind", ["attention", "bin"])
def test_logits_are_those_of_peft_with_gpt2(kind, adapter, golden):
    folder, theirs = adapter("gpt2", **lora_of(kind, "gpt2"))
    imported = jaxedit.import_adapter(golden("gpt2"), folder)
    assert_same_logits(logits(imported.model), theirs)
    assert (imported.edit is None) == (kind == "attention")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("value", [True, False])
def test_fan_in_fan_out_does_not_turn_the_change(value, family, adapter, golden):
    """Peft corrects it by the module's kind, and so the factors mean the same."""
    folder, theirs = adapter(family, fan_in_fan_out=value)
    edit_json(folder / "adapter_config.json", fan_in_fan_out=value)
    assert_same_logits(logits(jaxedit.import_adapter(golden(family), folder).model), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_the_edited_weight_is_an_edit(family, adapter, golden):
    """Nothing is added to the base: the edit alone gives peft's logits, and is undone exactly."""
    folder, theirs = adapter(family, target_modules=[MLP[family]])
    model = golden(family)
    edit = jaxedit.import_edit(model, folder)
    assert [delta.layer for delta in edit.deltas] == list(range(model.config.L))
    assert all(isinstance(delta, jaxedit.LowRank) for delta in edit.deltas)
    edited = jaxedit.apply(model, edit)
    assert_same_logits(logits(edited), theirs)
    np.testing.assert_array_equal(logits(jaxedit.undo(edited, edit)), logits(model))
    imported = jaxedit.import_adapter(model, folder)
    assert imported.added_to_base == ()
    assert imported.base is model


def test_an_imported_base_has_a_fingerprint_of_its_own(adapter, golden):
    folder, _ = adapter("llama")
    model = golden("llama")
    imported = jaxedit.import_adapter(model, folder)
    assert imported.base.fingerprint != model.fingerprint
    assert imported.model.fingerprint == imported.base.fingerprint
    assert imported.edit is not None
    assert imported.edit.base == imported.base.rounded_fingerprint
    with pytest.raises(ValueError, match="the edit was made on weights with the fingerprint"):
        jaxedit.apply(model, imported.edit)
    np.testing.assert_array_equal(
        logits(jaxedit.undo(imported.model, imported.edit)), logits(imported.base)
    )
    with pytest.raises(ValueError, match=r"no weight that edits change: jaxedit\.import"):
        jaxedit.import_edit(model, folder)


def test_norms_and_ranks_are_those_of_the_changes(adapter, golden, shared):
    """|ΔW| and |W| from the files, in float64."""
    folder, _ = adapter("gpt2", **lora_of("patterns", "gpt2"))
    factors = load_file(folder / "adapter_model.safetensors")
    weights = load_file(shared / "golden" / "gpt2" / "model.safetensors")
    imported = jaxedit.import_adapter(golden("gpt2"), folder)
    assert len(imported.weights) == 4 * golden("gpt2").config.L
    for weight in imported.weights:
        module = f"base_model.model.{weight.name.removesuffix('.weight')}"
        a, b = (factors[f"{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        alpha = (
            11
            if "c_attn" in module
            else {"2.mlp.c_proj": 3, "3.mlp.c_proj": 5}.get(module.split(".h.")[1], 6)
        )
        assert weight.rank == len(a)
        assert weight.norm == pytest.approx(alpha / len(a) * np.linalg.norm(b @ a), rel=1e-5)
        whole = np.linalg.norm(weights[weight.name].astype(np.float64))
        assert weight.relative_norm == pytest.approx(weight.norm / whole, rel=1e-5)
        assert weight.is_edit == (".mlp." in module)
    assert {weight.rank for weight in imported.weights} == {2, 4, 7}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_an_edits_factors_gives_back_the_edit(family, golden, tmp_path):
    """A = uᵀ, B = vᵀ, alpha = r, padded with zeros to a common rank."""
    model = golden(family)
    edit = random_edit(model, {1: 2, 3: 5})
    write_by_hand(tmp_path, edit, rank=5)
    found = jaxedit.import_edit(model, tmp_path)
    assert [delta[:2] for delta in found.deltas] == [delta[:2] for delta in edit.deltas]
    for ours, theirs in zip(found.deltas, edit.deltas, strict=True):
        np.testing.assert_allclose(to_dense(ours), to_dense(theirs), atol=1e-6, rtol=0)
    assert found.dense().keys() == edit.dense().keys()


def test_names_without_prefix_and_with_the_adapters_name(adapter, golden):
    """As in a PeftModel's own state, and of a model without a head (gpt2's "h.0...")."""
    folder, theirs = adapter("gpt2")

    def rename(tensors):
        for name in list(tensors):
            new = name.replace("base_model.model.transformer.", "").replace(
                ".weight", ".default.weight"
            )
            tensors[new] = tensors.pop(name)

    edit_tensors(folder / "adapter_model.safetensors", rename)
    assert_same_logits(logits(jaxedit.import_adapter(golden("gpt2"), folder).model), theirs)


def random_edit(model, ranks: dict[int, int]) -> jaxedit.Edit:
    """Draw an edit of the given ranks by layer."""
    from jaxedit.edits.edit import make_edit

    rng = np.random.default_rng(5)
    _, F, D = model.base["mlp/w_down"].shape
    return make_edit(
        model,
        [
            jaxedit.LowRank(
                "mlp/w_down",
                layer,
                0.3 * rng.standard_normal((F, rank)),
                0.3 * rng.standard_normal((rank, D)),
            )
            for layer, rank in ranks.items()
        ],
    )


def write_by_hand(folder, edit: jaxedit.Edit, rank: int) -> None:
    """Write an edit as a LoRA adapter, by nothing but its factors and names."""
    import json

    arrays = {}
    for delta in edit.deltas:
        name = edit.hf_layout[delta.weight][0].format(l=delta.layer).removesuffix(".weight")
        n_more = rank - delta.u_FR.shape[1]
        for which, factor in (
            ("A", np.pad(delta.u_FR.T, ((0, n_more), (0, 0)))),
            ("B", np.pad(delta.v_RD.T, ((0, 0), (0, n_more)))),
        ):
            arrays[f"base_model.model.{name}.lora_{which}.weight"] = np.ascontiguousarray(factor)
    save_file(arrays, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
