"""What a checkpoint's files say is compared with what is there; names, heads, code, paths."""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.checkpoints import assert_same_arrays, edit_json, edit_tensors
from reference.models import assert_same_logits, hf_logits, hf_model, token_rows
from safetensors.numpy import load_file, save_file

import jaxedit
from jaxedit.models import family as families
from jaxedit.models.hf_tokenizer import read_tokenizer

PACKAGE = Path(jaxedit.__file__).parent
INDEX = "model.safetensors.index.json"
# The one file that reads what torch pickled, with weights_only=True.
TORCH_READERS = {"torch_files.py"}


# Names and heads


@pytest.mark.parametrize("family", families.family_names())
def test_names_of_the_model_without_its_head_are_read(tiny_checkpoint, copy_of, family):
    """AutoModel.save_pretrained leaves the prefix out; the head is put beside, as in the file."""
    whole, directory = tiny_checkpoint(family), copy_of(family)
    base = transformers.AutoModel.from_pretrained(whole)
    base.save_pretrained(directory)
    heads = {"lm_head.weight", "lm_head.bias", "embed_out.weight"}
    stored = load_file(whole / "model.safetensors")
    added = {name: array for name, array in stored.items() if name in heads}
    prefix = families.find(family).PREFIX
    assert not any(name.startswith(prefix) for name in load_file(directory / "model.safetensors"))
    edit_tensors(directory / "model.safetensors", lambda tensors: tensors.update(added))
    shutil.copy(whole / "config.json", directory)
    assert_same_arrays(jaxedit.load(directory), jaxedit.load(whole))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_an_error(copy_of, family):
    directory = copy_of(family, tie_word_embeddings=True)
    embedding = hf_model(directory).get_input_embeddings().weight.detach().numpy()

    def put(head):
        change = {"lm_head.weight": head}
        edit_tensors(directory / "model.safetensors", lambda tensors: tensors.update(change))
        return jaxedit.load(directory)

    put(embedding)
    other = embedding.copy()
    other[-1, -1] += 1e-3
    with pytest.raises(ValueError, match=r"lm_head.weight', which differs from .*tie_word_embed"):
        put(other)


def test_a_gpt2_with_a_head_of_its_own_computes_with_it(tiny_checkpoint):
    directory = tiny_checkpoint("gpt2", tie_word_embeddings=False)
    model, rows = hf_model(directory), token_rows(96)
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert_same_logits(jaxedit.logits(jaxedit.load(directory), rows), hf_logits(model, rows))


# Sizes and types


def test_more_layers_than_tensors_are_refused_before_lists_are_made(copy_of):
    directory = copy_of("llama")
    edit_json(directory / "config.json", num_hidden_layers=9_999)
    with pytest.raises(ValueError, match=r"holds 30 tensors, .* not enough for .* 9999 layers"):
        jaxedit.load(directory)


@pytest.mark.parametrize("size", ["vocab_size", "intermediate_size", "max_position_embeddings"])
def test_sizes_beyond_the_tensors_allocate_nothing(copy_of, size):
    directory = copy_of("llama")
    edit_json(directory / "config.json", **{size: 2**31 - 1})
    if size == "max_position_embeddings":  # rotary positions have no end
        jaxedit.load(directory)
        return
    with pytest.raises(ValueError, match=r"has shape .*2147483647"):
        jaxedit.load(directory)


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        [],
        {},
        "x",
        {"a": None},
        {"a": 3},
        {"a": "../model.safetensors"},
        {"a": "/x"},
        {"a": ""},
    ],
)
def test_an_index_of_another_form_is_refused_by_name(copy_of, weight_map):
    directory = copy_of("llama")
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=rf"{INDEX} (has weight_map|says that)"):
        jaxedit.load(directory)


def test_weights_that_are_no_floats_are_refused(copy_of):
    path = copy_of("llama") / "model.safetensors"
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name].astype(np.int8)}, path)
    with pytest.raises(ValueError, match=rf"'{name}' .* is of type I8; weights are read as F64"):
        jaxedit.load(path.parent)


def test_a_folder_without_weights_says_what_is_missing(copy_of):
    directory = copy_of("llama")
    (directory / "model.safetensors").unlink()
    message = r"holds none of model.safetensors, .*, pytorch_model.bin, pytorch_model.bin.index"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(directory)
    (directory / "x.gguf").touch()
    with pytest.raises(ValueError, match=r"x.gguf is there: give its own path"):
        jaxedit.load(directory)


def test_a_model_loaded_by_path_can_be_saved_with_what_is_made_of_it(tiny_checkpoint, tmp_path):
    directory = tiny_checkpoint("llama")
    model = jaxedit.load(directory)
    assert model.metadata.source == str(directory)
    stats = jaxedit.collect_stats(model, ["The Eiffel Tower is in Paris."] * 3, [1])
    stats.save(tmp_path / "stats.safetensors")
    assert jaxedit.Stats.load(tmp_path / "stats.safetensors").made_from["model"] == str(directory)


# Tokenizer files, and code


@pytest.mark.parametrize("name", ["evil.EvilTokenizer", "other/repo--evil.EvilTokenizer"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("of_known_class", [True, False])
def test_code_of_a_checkpoint_is_refused_without_a_question(
    copy_of, tmp_path, monkeypatch, file, name, of_known_class
):
    directory = copy_of("llama")
    ran = tmp_path / "ran"
    (directory / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass EvilTokenizer: pass\n")
    edit_json(directory / file, auto_map={"AutoTokenizer": [name, None]})
    if not of_known_class:
        edit_json(directory / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    with pytest.raises(ValueError, match=rf"{file}.* has auto_map=.* which is never run here"):
        jaxedit.load(directory)
    assert not ran.exists()


@pytest.mark.parametrize(
    "change",
    [
        dict(tokenizer_class=5),
        dict(bos_token=5),
        dict(added_tokens_decoder=5),
        dict(added_tokens_decoder={"x": 5}),
        dict(model_max_length="x"),
        dict(chat_template={"a": 1}, bos_token=["x"]),
    ],
)
def test_tokenizer_settings_of_another_type_are_refused_by_folder(copy_of, change):
    directory = copy_of("llama")
    edit_json(directory / "tokenizer_config.json", **change)
    with pytest.raises(ValueError, match=rf"{directory}"):
        read_tokenizer(directory)


def test_a_class_that_is_not_there_is_refused_without_a_tokenizer_json(pieces_directory, tmp_path):
    directory = shutil.copytree(pieces_directory, tmp_path / "pieces")
    edit_json(directory / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    with pytest.raises(
        ValueError, match=r"tokenizer_class='EvilTokenizer', which transformers has"
    ):
        read_tokenizer(directory)


@settings(
    derandomize=True,
    max_examples=40,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    file=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", INDEX]),
    at=st.integers(0, 3000),
    put=st.binary(max_size=6) | st.sampled_from([b"[" * 9999, b"9" * 5000, b"\\ud800", b"\0"]),
    cut=st.integers(0, 40),
)
def test_any_bytes_in_a_directory_are_read_or_refused_by_folder(
    tiny_checkpoint, tmp_path, file, at, put, cut
):
    directory = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "any", dirs_exist_ok=True)
    names = dict.fromkeys(load_file(directory / "model.safetensors"), "a.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": names}))
    if file == INDEX:
        (directory / "model.safetensors").rename(directory / "a.safetensors")
    content = (directory / file).read_bytes()
    at %= len(content)
    (directory / file).write_bytes(content[:at] + put + content[at + cut :])
    message = str(directory)
    try:
        jaxedit.load(directory)
    except ValueError as error:
        message = str(error)
    assert str(directory) in message or INDEX in message


def calls_of(tree: ast.AST):
    """Yield each call's dotted name and its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            constants = {
                keyword.arg: keyword.value.value
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant)
            }
            yield ast.unparse(node.func), constants


def test_nothing_is_unpickled_evaluated_or_trusted():
    pickled = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    torch_readers = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        for name, given_keywords in calls_of(ast.parse(path.read_text(encoding="utf-8"))):
            assert name not in {"eval", "exec", "compile", "__import__"}, f"{place}: {name}"
            assert name.split(".")[0] not in pickled, f"{place}: {name}"
            if name.endswith(("np.load", "numpy.load")):
                assert not given_keywords.get("allow_pickle"), place
            if name.endswith("torch.load"):
                assert given_keywords.get("weights_only") is True, place
                torch_readers.add(place)
            if name.endswith(".from_pretrained") and name.startswith("Auto"):
                assert given_keywords.get("trust_remote_code") is False, f"{place}: {name}"
    assert torch_readers == TORCH_READERS


def test_an_adapter_beside_the_weights_is_not_passed_over(copy_of, tmp_path):
    """transformers loads such a directory with the adapter where peft is installed."""
    directory = copy_of("llama")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["down_proj"])
    adapted = peft.get_peft_model(hf_model(directory), config)
    edit_adapter = adapted.base_model.model.model.layers[1].mlp.down_proj.lora_B.default
    torch.nn.init.normal_(edit_adapter.weight)
    adapted.save_pretrained(directory)
    rows = token_rows(96)
    base = hf_logits(hf_model(tiny := shutil.copytree(directory, tmp_path / "tiny")), rows)
    with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config.json\) beside"):
        jaxedit.load(directory)
    alone = shutil.copytree(directory, tmp_path / "alone")
    (alone / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"holds an adapter and no model: load the model it is for"
    ):
        jaxedit.load(alone)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tiny / name).unlink()
    ours = jaxedit.logits(jaxedit.load(tiny), rows)
    assert np.abs(np.asarray(ours) - base).max() > 1e-2
