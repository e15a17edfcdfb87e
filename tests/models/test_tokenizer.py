"""Tokenizer files are read as written, and give the tokens of the libraries they are from."""

import json
import shutil

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizer_examples import byte_level
from tokenizers import processors

from jaxedit.models.hf_tokenizer import read_tokenizer

TEXTS = [
    "The Eiffel Tower is located in the city of",
    "Beyoncé's mother, in 1998!",
    "unseen: 東京 🙂",
    "  two  spaces",
    "",
]


def test_a_tokenizer_json_is_read_as_written(tiny_checkpoint):
    directory = tiny_checkpoint("llama")
    ours = read_tokenizer(directory)
    theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert (ours.add_bos, ours.bos_id, ours.eos_id) == (False, 0, 0)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
    text = "The Eiffel Tower is in Rome."
    ids, ends = ours.encode_with_ends(text)
    assert ours.decode(ids) == text
    assert "".join(text[start:end] for start, end in ends) == text


def test_vocabulary_and_merges_give_the_tokens_of_hf(shared, gpt2_tokenizer):
    theirs = transformers.GPT2Tokenizer.from_pretrained(shared / "tokenizers/gpt2")
    assert gpt2_tokenizer.encode("Hello world") == [15496, 995]
    for text in [*TEXTS, "a<|endoftext|>b"]:
        assert gpt2_tokenizer.encode(text) == theirs(text)["input_ids"]
        assert gpt2_tokenizer.decode(gpt2_tokenizer.encode(text)) == text
    assert (gpt2_tokenizer.add_bos, gpt2_tokenizer.bos_id, gpt2_tokenizer.eos_id) == (
        False,
        50256,
        50256,
    )


def test_a_begin_of_text_token_is_added_where_asked_for(gpt2_tokenizer):
    assert gpt2_tokenizer.encode("Hello", bos=True) == [50256, 15496]
    assert gpt2_tokenizer.encode_with_ends("Hello", bos=True)[1] == [(0, 0), (0, 5)]


def test_many_texts_are_tokenised_as_each_is_and_cut(gpt2_tokenizer):
    found = gpt2_tokenizer.encode_many(["Hello", ""], bos=True)
    assert [tokens.tolist() for tokens in found] == [[50256, 15496], [50256]]
    assert gpt2_tokenizer.encode_many(["Hello world"], max_length=1)[0].tolist() == [15496]


def test_a_sentencepiece_model_gives_the_tokens_of_sentencepiece(pieces, pieces_directory):
    model_file = str(pieces_directory / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=model_file)
    assert pieces.add_bos
    assert (pieces.bos_id, pieces.eos_id) == (theirs.bos_id(), theirs.eos_id()) == (1, 2)
    for text in TEXTS:
        assert pieces.encode(text, bos=False) == theirs.encode(text), text
        assert pieces.encode(text) == [1, *theirs.encode(text)]
        assert pieces.decode(pieces.encode(text, bos=False)) == text


def test_the_settings_say_whether_a_begin_of_text_token_is_added(pieces_directory, tmp_path):
    directory = shutil.copytree(pieces_directory, tmp_path / "no_bos")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["add_bos_token"] = False
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    without = read_tokenizer(directory)
    assert not without.add_bos
    assert without.bos_id == 1


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "tokenizer_class", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "LlamaTokenizer", None]
)
def test_tokenizer_json_decides_not_the_class(tmp_path, tokenizer_class, model_type):
    """transformers 5 rebuilds GPT2Tokenizer from code and loses SmolLM2's splitting of digits."""
    written = byte_level(["1 2", "Ġ 1"], digits=True)
    written.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 256)]
    )
    written.enable_truncation(2)
    written.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    settings = dict(bos_token="<|bos|>", eos_token="<|gone|>", tokenizer_class=tokenizer_class)
    given = {key: value for key, value in settings.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(given))
    ours = read_tokenizer(tmp_path)
    assert [ours.decode([i]) for i in ours.encode("12 1212", bos=False)] == list("12 1212")
    assert ours.add_bos
    assert ours.encode("1") == [256, written.token_to_id("1")]
    # A token that the vocabulary lacks has no id: transformers would give it one that the model
    # lacks.
    assert (ours.bos_id, ours.eos_id) == (256, None)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", None])
@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "LlamaTokenizer", None])
def test_a_directory_without_a_tokenizer_is_refused(tmp_path, tokenizer_class, model_type):
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if tokenizer_class:
        settings = json.dumps({"tokenizer_class": tokenizer_class})
        (tmp_path / "tokenizer_config.json").write_text(settings)
    (tmp_path / "vocab.json").write_text("{}")  # without its merges
    message = r"no tokenizer in .*expected tokenizer.json or vocab.json with merges.txt or"
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path)


def test_a_tokenizer_file_that_is_broken_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match="no usable tokenizer in"):
        read_tokenizer(tmp_path)
