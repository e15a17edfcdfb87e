"""Adapters for llama.cpp, read back by the `gguf` package: names, orientation, scale, values.

What they give in llama.cpp itself is measured by tests/big/llama_cpp.py.
"""

import dataclasses
import resource

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from reference.models import write_gguf

import jaxedit
from jaxedit import Dense, LowRank
from jaxedit.edits.edit import make_edit
from jaxedit.exports import gguf_lora
from jaxedit.exports.gguf_lora import write_gguf_lora
from jaxedit.exports.written import ExportOptions
from jaxedit.study.edited import EditedModel

WEIGHT = "mlp/w_down"


def opened(model) -> EditedModel:
    return EditedModel(model, model.metadata.source, {}, (), (), None, "")


def random_edit(model, seed: int, low_rank: dict[int, int], dense: tuple[int, ...] = ()):
    """Draw normal random changes: layer -> rank, and layers that are changed in full."""
    rng = np.random.default_rng(seed)
    _, F, D = model.base[WEIGHT].shape
    draw = rng.standard_normal
    deltas = [
        LowRank(WEIGHT, layer, draw((F, rank)), draw((rank, D))) for layer, rank in low_rank.items()
    ]
    return make_edit(model, [*deltas, *(Dense(WEIGHT, layer, draw((F, D))) for layer in dense)])


def written(model, folder, *edits, **options):
    """Write the edits of a model; return what was said of them, and the file."""
    for edit in edits:
        model = jaxedit.apply(model, edit)
    said = write_gguf_lora(opened(model), folder, ExportOptions(**options))
    assert [path.name for path in folder.iterdir()] == ["adapter.gguf"]
    return said, gguf.GGUFReader(folder / "adapter.gguf")


def factors(reader) -> dict[str, np.ndarray]:
    """Return tensor name -> float64 matrix in NumPy's order of dimensions."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for tensor in reader.tensors
    }


def changes(reader) -> dict[int, np.ndarray]:
    """Return layer -> the change out x in, float64, as llama.cpp computes it: (alpha / r) B A."""
    found, alpha = factors(reader), float(reader.get_field("adapter.lora.alpha").contents())
    layers = {int(name.split(".")[1]) for name in found}
    total = {}
    for layer in layers:
        a, b = (found[f"blk.{layer}.ffn_down.weight.lora_{side}"] for side in "ab")
        total[layer] = alpha / b.shape[1] * b @ a
    return total


def exact(model, *edits) -> dict[int, np.ndarray]:
    """Return layer -> the sum of edits, out x in, from what `Edit.dense` says in HF's names."""
    total = {}
    for edit in edits:
        for name, change in edit.dense().items():
            layer = int(next(part for part in name.split(".") if part.isdigit()))
            # GPT-2's Conv1D keeps its weights in x out; llama.cpp turns them when it converts.
            turned = change.T if model.config.family == "gpt2" else change
            total[layer] = total.get(layer, 0) + turned.astype(np.float64)
    return total


def assert_close(found, expected, relative: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for layer, change in expected.items():
        assert found[layer].shape == change.shape
        assert np.linalg.norm(found[layer] - change) < relative * np.linalg.norm(change)


@pytest.mark.parametrize(("method", "layers"), [("rome", [3]), ("memit", [2, 3, 4])])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_factors_give_the_methods_changes(edited_models, tmp_path, family, method, layers):
    edited = edited_models(family, method)
    said = write_gguf_lora(edited, tmp_path, ExportOptions())
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert_close(changes(reader), exact(edited.model, *edited.model.metadata.history))
    assert [weight.layer for weight in said] == layers
    assert [weight.name for weight in said] == [f"blk.{layer}.ffn_down.weight" for layer in layers]
    assert all(weight.error < 1e-6 for weight in said)
    assert reader.get_field("adapter.lora.alpha").contents() == max(weight.rank for weight in said)


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("gpt2", "gpt2"), ("gpt_neox", "gptneox"), ("llama", "llama"), ("qwen2", "qwen2")],
)
def test_a_file_says_what_llama_cpp_asks_of_an_adapter(golden, tmp_path, family, architecture):
    model = golden(family)
    _, reader = written(model, tmp_path, random_edit(model, 0, {1: 3}))
    said = {name: field.contents() for name, field in reader.fields.items() if "GGUF" not in name}
    assert said == {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 3.0,
    }
    # As llama.cpp counts dimensions, from the innermost one on: A is [in, r] and B is [r, out].
    _, F, D = model.base[WEIGHT].shape
    assert {tensor.name: tensor.shape.tolist() for tensor in reader.tensors} == {
        "blk.1.ffn_down.weight.lora_a": [F, 3],
        "blk.1.ffn_down.weight.lora_b": [3, D],
    }
    assert {tensor.tensor_type for tensor in reader.tensors} == {Q.F32}


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("mistral", "llama"),
        ("phi", "phi2"),
        ("gemma3_text", "gemma3"),
        *((name, name) for name in ("gemma", "gemma2", "qwen3", "phi3", "olmo2", "smollm3")),
        ("granite", "granite"),
    ],
)
def test_families_have_llama_cpps_names(tiny_checkpoint, tmp_path, family, architecture):
    model = jaxedit.load(str(tiny_checkpoint(family)))
    edit = random_edit(model, 0, {1: 1})
    _, reader = written(model, tmp_path, edit)
    assert reader.get_field("general.architecture").contents() == architecture
    assert_close(changes(reader), exact(model, edit))


@pytest.mark.parametrize("kind", [Q.F32, Q.Q8_0], ids=["F32", "Q8_0"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_added_to_the_file_it_was_made_on_it_gives_the_edited_model(
    tiny_checkpoint, tmp_path, family, kind
):
    path, folder = tmp_path / "base.gguf", tmp_path / "adapter"
    folder.mkdir()
    # A square matrix hides a transposed change from every check of shapes.
    square = dict(intermediate_size=32, num_key_value_heads=2) if family == "llama" else {}
    write_gguf(path, tiny_checkpoint(family, **square), kind)
    model = jaxedit.load(str(path))
    edits = [random_edit(model, 1, {1: 2}), random_edit(model, 2, {1: 1})]
    _, reader = written(model, folder, *edits)
    base = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}[
        "blk.1.ffn_down.weight"
    ]
    weight = gguf.quants.dequantize(base.data, base.tensor_type) + changes(reader)[1]

    edited = jaxedit.apply(jaxedit.apply(model, edits[0]), edits[1])
    slot = int(edited.overlay.slot[WEIGHT][1])
    here_FD = np.asarray(edited.base[WEIGHT][1]) + np.asarray(edited.overlay.delta[WEIGHT][slot])
    np.testing.assert_allclose(weight, here_FD.T, atol=1e-5, rtol=0)


def test_steps_stand_side_by_side_and_layers_have_one_rank(golden, tmp_path):
    model = golden("llama")
    edits = [random_edit(model, 1, {1: 2, 4: 1}), random_edit(model, 2, {1: 1})]
    said, reader = written(model, tmp_path, *edits)
    assert [(weight.layer, weight.rank) for weight in said] == [(1, 3), (4, 1)]
    assert reader.get_field("adapter.lora.alpha").contents() == 3.0
    found = factors(reader)
    assert {array.shape[side == "b"] for name, array in found.items() for side in name[-1]} == {3}
    assert not found["blk.4.ffn_down.weight.lora_a"][1:].any()
    assert_close(changes(reader), exact(model, *edits))


def test_what_exceeds_the_rank_is_cut_by_its_svd(golden, tmp_path):
    model = golden("gpt2")
    edit = random_edit(model, 0, {1: 5}, dense=(2,))
    said, reader = written(model, tmp_path, edit, max_rank=4)
    assert [weight.rank for weight in said] == [4, 4]
    assert reader.get_field("adapter.lora.alpha").contents() == 4.0
    for weight, change in zip(said, exact(model, edit).values(), strict=True):
        u, singular, v = np.linalg.svd(change)
        assert_close(
            {weight.layer: changes(reader)[weight.layer]},
            {weight.layer: u[:, :4] * singular[:4] @ v[:4]},
            relative=1e-5,
        )
        missed = np.sqrt(np.sum(singular[4:] ** 2) / np.sum(singular**2))
        assert weight.error == pytest.approx(missed, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "kind", "most"), [("float16", Q.F16, 1e-3), ("bfloat16", Q.BF16, 8e-3)]
)
def test_rounded_factors_are_off_by_what_is_said(golden, tmp_path, dtype, kind, most):
    model = golden("llama")
    edit = random_edit(model, 0, {1: 2})
    said, reader = written(model, tmp_path, edit, dtype=dtype)
    assert {tensor.tensor_type for tensor in reader.tensors} == {kind}
    assert {tuple(tensor.shape[::-1]) for tensor in reader.tensors} == {(2, 112), (48, 2)}
    expected = exact(model, edit)[1]
    error = np.linalg.norm(changes(reader)[1] - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < most
    assert said[0].error == pytest.approx(error, rel=1e-3)


def test_a_family_that_llama_cpp_does_not_run_is_refused(golden, tmp_path):
    model = golden("gptj")
    with pytest.raises(ValueError, match=r"does not run .* gptj, .*--format=peft or --format=hf"):
        written(model, tmp_path, random_edit(model, 0, {1: 1}))
    assert not list(tmp_path.iterdir())


def test_a_weight_that_llama_cpp_has_no_name_for_is_refused(golden, tmp_path):
    model = golden("llama")
    names = {**model.metadata.tensor_names, WEIGHT: ("model.layers.{l}.mlp.third", "D F -> F D")}
    metadata = dataclasses.replace(model.metadata, tensor_names=names)
    model = dataclasses.replace(model, metadata=metadata)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.third, .* llama has no name"):
        written(model, tmp_path, random_edit(model, 0, {1: 1}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", [2_000, 8], ids=["an array", "the last bytes"])
def test_no_room_leaves_no_file(golden, tmp_path, missing):
    """Of eight bytes that find no room NumPy's `tofile` says nothing."""
    model = golden("llama")
    edit = random_edit(model, 0, {1: 8})
    written(model, tmp_path, edit)
    path = tmp_path / "adapter.gguf"
    room = path.stat().st_size - missing
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    edited = opened(jaxedit.apply(model, edit))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(OSError, match=r"adapter\.gguf could not be written .*make room"):
            write_gguf_lora(edited, tmp_path, ExportOptions())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_writes(golden, tmp_path, monkeypatch):
    model = golden("llama")
    monkeypatch.setattr(gguf_lora, "is_first_process", lambda: False)
    edited = opened(jaxedit.apply(model, random_edit(model, 0, {1: 1})))
    assert [weight.layer for weight in write_gguf_lora(edited, tmp_path, ExportOptions())] == [1]
    assert not list(tmp_path.iterdir())
