"""What every format promises, for every file of jaxedit/exports that writes one; and refusals."""

import errno
import json
import os

import huggingface_hub
import numpy as np
import pytest

from jaxedit.exports import export as module
from jaxedit.exports.export import export, format_names


@pytest.fixture(scope="module")
def edited(edited_models):
    """The golden llama with three edits of rank one."""
    return edited_models("llama", "rome")


def test_formats_are_the_files_that_write_one():
    assert {"peft", "delta"} <= set(format_names())
    assert not {"card", "export", "low-rank", "ready-commands", "written"} & set(format_names())


@pytest.mark.parametrize("format", format_names())
def test_an_export_is_whole_with_a_card(edited, format, tmp_path):
    """Also into an empty folder that is there; nothing else is left beside it."""
    (tmp_path / "edited").mkdir()
    done = export(edited, tmp_path / "edited", format)
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]
    assert {"README.md", "jaxedit.json"} < {path.name for path in done.folder.iterdir()}
    assert not list(done.folder.rglob("*.part"))
    assert [weight.layer for weight in done.weights] == [3]
    assert done.weights[0].error < 1e-6
    assert done.commands
    card = huggingface_hub.ModelCard.load(done.folder / "README.md")
    assert "jaxedit" in (card.data.tags or [])


@pytest.mark.parametrize("format", format_names())
def test_a_full_disk_leaves_nothing(edited, format, tmp_path, monkeypatch):
    """As the last file is to be written: the others are there already."""

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "model_card", full)
    with pytest.raises(OSError, match=r"edited could not be written, and nothing .*No space left"):
        export(edited, tmp_path / "edited", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["peft", "delta"])
def test_a_disk_that_is_full_at_the_first_file_leaves_nothing(
    edited, format, tmp_path, monkeypatch
):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(edited, tmp_path / "edited", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", format_names())
def test_an_interruption_leaves_nothing(edited, format, tmp_path, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "model_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(edited, tmp_path / "edited", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", format_names())
def test_what_is_there_stays(edited, format, tmp_path):
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "half.part").mkdir()
    for name, message in (
        ("edited", "is there and not empty; give a new folder"),
        ("file", "is there and not empty; give a new folder"),
        ("half", r"half\.part is there: another export .* remove it"),
    ):
        with pytest.raises(ValueError, match=message):
            export(edited, tmp_path / name, format)
    assert (tmp_path / "edited" / "mine.txt").read_text() == (tmp_path / "file").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited", "file", "half.part"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(format="pef"), r"unknown format 'pef'; did you mean 'peft'\? Formats: .*delta"),
        (dict(rank=0), "--rank=0: the rank of a factorisation is at least 1"),
        (dict(dtype="float3"), r"--dtype=float3; did you mean 'float32'\?"),
        (dict(base="nowhere"), "--base=nowhere is neither a directory here nor a hub id"),
        (dict(push="name"), "--push=name: expected OWNER/NAME"),
    ],
)
def test_what_cannot_be_is_refused(edited, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(edited, tmp_path / "edited", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_edits_is_refused(edited, golden, tmp_path):
    with pytest.raises(ValueError, match="has no edits, so there is nothing to export"):
        export(edited._replace(model=golden("llama")), tmp_path / "edited")
    assert list(tmp_path.iterdir()) == []


# Uploads


class Hub:
    """Stands in for `huggingface_hub.HfApi`: keeps what it is asked for."""

    asked: list[tuple]  # of the class: HfApi() is made anew

    def create_repo(self, name, exist_ok):
        Hub.asked.append((name, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
        Hub.asked.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/1234",
            commit_message=commit_message,
            commit_description="",
            oid="1234",
        )


@pytest.fixture
def hub(monkeypatch):
    """The stand-in, with a token."""
    Hub.asked = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return Hub


def test_push_uploads_the_folder(edited, hub, tmp_path):
    done = export(edited, tmp_path / "edited", base="owner/base", push="owner/name")
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "jaxedit.json"]
    assert hub.asked == [("owner/name", True), ("owner/name", files)]
    assert done.url == "https://huggingface.co/owner/name"
    assert "PeftModel.from_pretrained(model, 'owner/name')" in done.commands[0].text


def test_push_without_a_token_writes_nothing(edited, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="--push=owner/name needs a token of the hub"):
        export(edited, tmp_path / "edited", base="owner/base", push="owner/name")
    assert list(tmp_path.iterdir()) == []
    assert hub.asked == []


def test_push_of_an_adapter_for_a_folder_writes_nothing(edited, hub, tmp_path):
    with pytest.raises(ValueError, match=r"others do not have .*golden/llama; name the base on"):
        export(edited, tmp_path / "edited", push="owner/name")
    assert list(tmp_path.iterdir()) == []
    assert hub.asked == []


def test_an_upload_that_fails_leaves_the_folder(edited, hub, tmp_path, monkeypatch):
    def refuse(self, name, exist_ok):
        raise OSError("403 Forbidden\nmore")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(OSError, match=r"edited is written, but not uploaded .*: 403 Forbidden$"):
        export(edited, tmp_path / "edited", base="owner/base", push="owner/name")
    assert (tmp_path / "edited" / "adapter_config.json").is_file()


def test_texts_that_are_gone_do_not_matter(edited, tmp_path):
    done = export(edited._replace(texts=str(tmp_path / "gone.txt")), tmp_path / "edited")
    record = json.loads((done.folder / "jaxedit.json").read_text())
    assert record["measured"]["perplexity"] is None
    np.testing.assert_equal(record["texts"], [])
