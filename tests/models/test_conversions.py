"""A conversion is whole or not there, and what has changed since it was written is found."""

import json
import logging
import resource
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from reference.checkpoints import convert, edit_json

import jaxedit
from jaxedit.files import exclusive_target
from jaxedit.models.conversion_record import check_content


@pytest.fixture(scope="module")
def written(tiny_checkpoint, tmp_path_factory) -> Path:
    """Convert a tiny model; return the folder."""
    out = tmp_path_factory.mktemp("converted") / "model"
    assert convert(tiny_checkpoint("gpt2"), out) == 0
    return out


@pytest.fixture
def copy(written, tmp_path) -> Path:
    """Copy the converted model, to be changed."""
    return shutil.copytree(written, tmp_path / "copy")


def test_the_record_names_the_models_fingerprints(written, tiny_checkpoint):
    record = json.loads((written / "converted.json").read_text())
    model = jaxedit.load(str(tiny_checkpoint("gpt2")))
    assert record["fingerprints"] == model.fingerprints._asdict()
    assert jaxedit.load(str(written)).fingerprints == model.fingerprints


def test_any_flipped_bit_of_the_weights_is_found(copy):
    rng = np.random.default_rng(0)
    files = sorted(path for path in (copy / "weights").rglob("*") if path.is_file())
    for path in [*files, *[max(files, key=lambda path: path.stat().st_size)] * 40]:
        content = bytearray(path.read_bytes())
        at, bit = int(rng.integers(len(content))), int(rng.integers(8))
        content[at] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name} is not as it was written .*again"):
            check_content(copy)
        content[at] ^= 1 << bit
        path.write_bytes(content)
    check_content(copy)


@pytest.mark.parametrize("change", ["lost", "added", "damaged"])
def test_a_file_that_is_lost_added_or_damaged_is_an_error_of_loading(copy, change):
    path = copy / "weights" / "manifest.ocdbt"
    if change == "lost":
        path.unlink()
    elif change == "added":
        path.with_name("more").write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not as it was written"):
        jaxedit.load(str(copy))


@pytest.mark.parametrize(
    ("file", "values", "what"),
    [
        ("config.json", {"layer_norm_epsilon": 1e-3}, "its configuration"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "its tokenizer"),
    ],
)
def test_a_changed_configuration_or_tokenizer_is_named(copy, file, values, what):
    edit_json(copy / file, **values)
    with pytest.raises(ValueError, match=rf"not the model that was converted: {what} \("):
        jaxedit.load(str(copy))


def test_a_model_that_was_converted_before_is_read_and_said_to_be_unverified(copy, caplog):
    (copy / "converted.json").unlink()
    with caplog.at_level(logging.WARNING, "jaxedit"):
        jaxedit.load(str(copy))
    assert "cannot be verified; convert it again" in caplog.text


@pytest.mark.parametrize(
    "content", ["", "[]", '{"weights": {"a": 1}, "fingerprints": {}}', '{"weights": {}}', "\0"]
)
def test_a_damaged_record_is_named(copy, content):
    (copy / "converted.json").write_text(content)
    with pytest.raises(ValueError, match=r"converted\.json"):
        jaxedit.load(str(copy))


def test_a_disk_without_room_leaves_nothing_and_says_so_in_one_line(
    tiny_checkpoint, tmp_path, capfd
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tiny_checkpoint("llama")
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        assert convert(tiny_checkpoint("llama"), tmp_path / "out") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "could not be written" in said[0]
    assert "File too large" in said[0]
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == []
    assert convert(tiny_checkpoint("llama"), tmp_path / "out") == 0


def test_less_room_than_the_model_takes_is_said_before_anything_is_written(
    tiny_checkpoint, tmp_path, monkeypatch, capfd
):
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert convert(tiny_checkpoint("llama"), tmp_path / "out") == 2
    assert "there is no room for the model" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_conversions_to_one_folder_are_not_at_once(tiny_checkpoint, tmp_path, capfd):
    (tmp_path / "out.part" / "weights").mkdir(parents=True)  # of one that was killed
    with exclusive_target(tmp_path / "out"):
        assert convert(tiny_checkpoint("llama"), tmp_path / "out") == 2
    assert "is in use by process" in capfd.readouterr().err
    assert convert(tiny_checkpoint("llama"), tmp_path / "out") == 0
    assert not (tmp_path / "out.part").exists()
