"""`jaxedit verify` tells an export that is the edited model from one that is not."""

import functools
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from edited_examples import LAYERS, REQUESTS, TEXTS, edited_model, read_tensors
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from jaxedit.cli import run
from jaxedit.exports.hf import write_hf
from jaxedit.exports.measured import measure_edited
from jaxedit.exports.record import RECORD, export_record, write_export_record
from jaxedit.exports.verify import verify_export
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.study.edited import open_edit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def edited(shared, tmp_path_factory):
    """Make a function: family -> its golden model with one edit of a file, and texts."""
    folder = tmp_path_factory.mktemp("edits")
    (folder / "texts.txt").write_text("\n".join(TEXTS))

    @functools.cache
    def make(family: str):
        path = folder / f"{family}.safetensors"
        edited_model(shared / "golden" / family).model.metadata.history[0].save(path)
        return open_edit(path)._replace(texts=str(folder / "texts.txt"))

    return make


def lora(about, folder, dtype: str) -> list[WrittenWeight]:
    """Write the edit as an adapter by the formulas of the peft library's documentation."""
    (delta,) = about.model.metadata.history[0].deltas
    ((name, dense),) = about.model.metadata.history[0].dense().items()
    module = name.removesuffix(".weight")
    a, b = (torch.from_numpy(np.array(x.T)).to(DTYPES[dtype]) for x in (delta.u_FR, delta.v_RD))
    names = {"A": f"base_model.model.{module}.lora_A.weight"}
    names["B"] = names["A"].replace("lora_A", "lora_B")
    save_file({names["A"]: a, names["B"]: b}, folder / "adapter_model.safetensors")
    rank = len(a)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[module],
        fan_in_fan_out=about.model.config.family == "gpt2",
        task_type="CAUSAL_LM",
    )
    config.base_model_name_or_path = about.source
    config.save_pretrained(folder)
    product = (b.double() @ a.double()).numpy()
    exact = dense.T if config.fan_in_fan_out else dense
    error = float(np.linalg.norm(product - exact) / np.linalg.norm(exact))
    return [WrittenWeight(name, LAYERS[0], rank, error)]


def delta(about, folder, dtype: str) -> list[WrittenWeight]:
    """Write the edit as an array."""
    ((name, dense),) = about.model.metadata.history[0].dense().items()
    save_file(
        {name: torch.tensor(np.array(dense, order="C")).to(DTYPES[dtype])},
        folder / "delta.safetensors",
    )
    return [WrittenWeight(name, LAYERS[0], None, 0.0)]


def export(about, folder, format: str, dtype: str = "float32"):
    """Write an export with its account of itself, as `jaxedit export` does."""
    folder.mkdir()
    options = ExportOptions(dtype)
    if format == "hf":
        written = write_hf(about, folder, options)
    else:
        written = {"peft": lora, "delta": delta}[format](about, folder, dtype)
    record = export_record(about, format, options, measure_edited(about), written)
    write_export_record(folder, record)
    return folder


@pytest.mark.parametrize(
    ("format", "family", "dtype"),
    [
        ("hf", "gpt2", "float32"),
        ("hf", "gptj", "float32"),
        ("hf", "llama", "bfloat16"),
        ("peft", "gpt2", "float32"),
        ("peft", "llama", "bfloat16"),
        ("peft", "qwen2", "float32"),
        ("delta", "gptj", "float32"),
    ],
)
def test_a_right_export_passes(format, family, dtype, edited, tmp_path, capsys):
    folder = export(edited(family), tmp_path / "out", format, dtype)
    assert run(["jaxedit", "verify", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["compared_with"] == f"the model of {edited(family).path}, made again"
    checks = {check["name"]: check for check in found["checks"]}
    (logits,) = (check for name, check in checks.items() if name.startswith("logits of"))
    assert 0 < logits["found"] < logits["allowed"] == 1e-4
    n_lost = sum("the share that is lost" in name for name in checks)
    assert n_lost == (format != "hf")
    assert found["perplexity"][0] == pytest.approx(found["perplexity"][1], rel=1e-4)
    assert found["perplexity"][0] != pytest.approx(1, rel=0.5)


def flip_edit(tensors: dict, base: dict, name: str) -> None:
    tensors[name] = 2 * base[name] - tensors[name]


def drop_edit(tensors: dict, base: dict, name: str) -> None:
    tensors[name] = base[name]


def transpose_another(tensors: dict, base: dict, name: str) -> None:
    square = "model.layers.1.self_attn.o_proj.weight"
    assert tensors[square].shape[0] == tensors[square].shape[1]
    tensors[square] = tensors[square].T.contiguous()


def negate_another(tensors: dict, base: dict, name: str) -> None:
    tensors["model.layers.4.mlp.up_proj.weight"] *= -1


@pytest.mark.parametrize("origin", ["there", "gone"])
@pytest.mark.parametrize("change", [flip_edit, drop_edit, transpose_another, negate_another])
def test_a_checkpoint_changed_by_hand_fails(change, origin, edited, tmp_path, capsys, shared):
    about = edited("llama")
    if origin == "gone":
        about = about._replace(path=str(tmp_path / "gone"))
    folder = export(about, tmp_path / "out", "hf")
    assert run(["jaxedit", "verify", str(folder)]) == 0
    assert "out is the edited model" in capsys.readouterr().out
    tensors, base = read_tensors(folder), read_tensors(shared / "golden" / "llama")
    change(tensors, base, f"model.layers.{LAYERS[0]}.mlp.down_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert run(["jaxedit", "verify", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert found["compared_with"].startswith("the export itself") == (origin == "gone")
    # Without its origin it is its own measure, and only the recorded answers tell.
    failed = [check["name"] for check in found["checks"] if not check["passed"]]
    assert any(name.startswith("logits of") for name in failed) == (origin == "there")
    assert any(name.endswith("as recorded") or "recorded," in name for name in failed) == (
        origin == "gone"
    )


@pytest.mark.parametrize("factor", [-1.0, 0.0, 2.0])
def test_an_adapter_changed_by_hand_fails(factor, edited, tmp_path, capsys):
    """In bfloat16, where the model to compare with has the adapter's own change."""
    folder = export(edited("llama"), tmp_path / "out", "peft", "bfloat16")
    path = folder / "adapter_model.safetensors"
    arrays = {name: factor * t if "lora_B" in name else t for name, t in load_file(path).items()}
    save_file(arrays, path)
    assert run(["jaxedit", "verify", str(folder)]) == 1
    assert "is NOT the edited model" in capsys.readouterr().out


def test_a_record_that_promises_more_than_was_written_fails(edited, tmp_path):
    """The error that the export states is what it may have."""
    folder = export(edited("llama"), tmp_path / "out", "peft", "bfloat16")
    values = json.loads((folder / RECORD).read_text())
    assert 1e-3 < values["written"][0]["error"] < 5e-3
    values["written"][0]["error"] /= 2
    (folder / RECORD).write_text(json.dumps(values))
    failed = [check for check in verify_export(folder).checks if not check.passed]
    assert [check.name for check in failed] == ["edit of layer 2, the share that is lost"]


def test_an_adapter_is_compared_without_its_origin(edited, tmp_path):
    about = edited("qwen2")._replace(path=None)
    folder = export(about, tmp_path / "out", "peft")
    verified = verify_export(folder)
    assert verified.passed
    assert verified.compared_with.startswith("the export itself")
    assert {check.name for check in verified.checks} >= {"P(target) and as recorded"}


def test_a_base_that_moved_is_named(edited, tmp_path, shared, capsys):
    about = edited("qwen2")._replace(source=str(tmp_path / "gone"))
    folder = export(edited("qwen2"), tmp_path / "out", "delta")
    values = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**values, "base": about.source}))
    assert run(["jaxedit", "verify", str(folder)]) == 2
    assert "gone does not exist" in capsys.readouterr().err
    base = shared / "golden" / "qwen2"
    assert run(["jaxedit", "verify", str(folder), f"--base={base}"]) == 0


def test_what_cannot_be_compared_is_said(edited, tmp_path, shared, capsys, monkeypatch):
    folder = export(edited("qwen2")._replace(path=None), tmp_path / "out", "peft")

    def error(*flags: str) -> str:
        assert run(["jaxedit", "verify", str(folder), *flags]) == 2
        return capsys.readouterr().err

    # Another model of the same shapes; a .gguf file; a package that is missing.
    other = tmp_path / "other"
    shutil.copytree(shared / "golden" / "qwen2", other)
    tensors = read_tensors(other)
    (other / "model.safetensors").unlink()
    halved = {name: tensor / 2 for name, tensor in tensors.items()}
    save_file(halved, other / "model.safetensors", {"format": "pt"})
    assert "the edits were made on weights with the fingerprint" in error(f"--base={other}")
    (tmp_path / "base.gguf").write_bytes(b"")
    assert "is a .gguf file, which these programs" in error(f"--base={tmp_path / 'base.gguf'}")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        assert "pip install 'jaxedit[verify]'" in error()

    # A format that transformers does not read, and a folder that is no export.
    values = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**values, "format": "gguf-lora"}))
    assert "do not read the format 'gguf-lora'" in error()
    (folder / RECORD).unlink()
    assert "jaxedit.json is missing" in error()
    assert REQUESTS[0].subject in json.dumps(values)
