"""The tokenizers that GGUF metadata describe give the tokens of their HF origins."""

import json

import pytest
import transformers
from reference.models import write_gguf
from tokenizers import Regex, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

import jaxedit
from jaxedit.models.gguf.pre_tokenizers import PRE_TOKENIZERS
from jaxedit.models.gguf.tokenizer import tokenizer_from_metadata

TEXTS = [
    "The Eiffel Tower is located in the city of",
    " leading space, trailing space ",
    "I'll say: don't, she's, THEY'RE, we'd've",
    "1998 was 12345678 days; 3.14159, x2y33",
    "naïve café — 東京は日本の首都 🙂👩‍👩‍👧 Ελληνικά",
    "tabs\tand\n\nnewlines\r\n   and   spaces   \n ",
    "def f(x):\n    return x**2  # comment\n",
    "",
]


@pytest.fixture(scope="module")
def gpt2_metadata(shared) -> dict:
    """Return GPT-2's vocabulary as a GGUF file's metadata holds it."""
    vocabulary = json.loads((shared / "tokenizers/gpt2/vocab.json").read_text())
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = (shared / "tokenizers/gpt2/merges.txt").read_text().splitlines()[1:]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 50256 + [3],
        "tokenizer.ggml.merges": [line for line in merges if line],
        "tokenizer.ggml.bos_token_id": 50256,
        "tokenizer.ggml.eos_token_id": 50256,
    }


def test_gpt2_tokens_are_those_of_hf(shared, gpt2_metadata):
    ours = tokenizer_from_metadata(gpt2_metadata)
    theirs = transformers.GPT2Tokenizer.from_pretrained(shared / "tokenizers/gpt2")
    assert (ours.add_bos, ours.bos_id, ours.eos_id) == (False, 50256, 50256)
    assert len(ours.encode(TEXTS[0])) == 11
    for text in [*TEXTS, "one<|endoftext|>two"]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("one<|endoftext|>two")[1] == 50256


def pieces(metadata: dict, text: str) -> list[str]:
    """Split a text as it is split before the merges."""
    backend = tokenizer_from_metadata(metadata).backend
    return [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]


SPLIT = "I'LL pay 12345, don't!\n\n  ok"
GPT2_PIECES = ["I", "'", "LL", " pay", " 12345", ",", " don", "'t", "!", "\n\n ", " ok"]
DIGITS = [" ", "1", "2", "3", "4", "5"]
PIECES = {
    "gpt-2": GPT2_PIECES,
    "default": GPT2_PIECES,
    "smollm": [*GPT2_PIECES[:4], *DIGITS, *GPT2_PIECES[5:]],
    "llama-bpe": ["I", "'LL", " pay", " ", "123", "45", ",", " don", "'t", "!\n\n", " ", " ok"],
}


@pytest.mark.parametrize("name", PIECES)
def test_pre_tokenizers_split_as_the_models_do(gpt2_metadata, name):
    assert pieces({**gpt2_metadata, "tokenizer.ggml.pre": name}, SPLIT) == PIECES[name]


ACCENTS = "L'été: 12345 Straße,ÀB naïveTest 日本語x /a\n\n  don'T'll"


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_split_as_in_transformers(gpt2_metadata, name):
    if name not in GGUF_PRE_TOKENIZER_SPLITS:
        assert name in PIECES  # above
        return
    theirs = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")
    for text in (SPLIT, ACCENTS, *TEXTS):
        wanted = [piece for piece, _ in theirs.pre_tokenize_str(text)]
        assert pieces({**gpt2_metadata, "tokenizer.ggml.pre": name}, text) == wanted


def test_qwen_composes_accents(gpt2_metadata):
    """As its own tokenizer.json does: a letter with its accent is one character."""
    qwen = tokenizer_from_metadata({**gpt2_metadata, "tokenizer.ggml.pre": "qwen2"})
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9")
    gpt2 = tokenizer_from_metadata(gpt2_metadata)
    assert gpt2.encode("e\u0301") != gpt2.encode("\u00e9")


@pytest.fixture(scope="module")
def llama3_metadata(gpt2_metadata) -> dict:
    """Return a vocabulary of Llama 3's kind, with a token that no merges lead to."""
    return {
        **gpt2_metadata,
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*gpt2_metadata["tokenizer.ggml.tokens"], "Ġqzqzq"],
        "tokenizer.ggml.token_type": [*gpt2_metadata["tokenizer.ggml.token_type"], 1],
    }


def test_llama3_looks_words_up_before_it_merges(llama3_metadata):
    found = tokenizer_from_metadata(llama3_metadata).encode("a qzqzq", bos=False)
    assert found == [64, 50257]
    merged = tokenizer_from_metadata({**llama3_metadata, "tokenizer.ggml.pre": "gpt-2"})
    assert 50257 not in merged.encode("a qzqzq")


def test_llama3_adds_a_begin_of_text_token_where_the_metadata_is_silent(llama3_metadata):
    assert tokenizer_from_metadata(llama3_metadata).encode("a") == [50256, 64]
    told = {**llama3_metadata, "tokenizer.ggml.add_bos_token": False}
    assert tokenizer_from_metadata(told).encode("a") == [64]


def test_a_begin_of_text_token_is_added_as_the_metadata_says(gpt2_metadata):
    told = tokenizer_from_metadata({**gpt2_metadata, "tokenizer.ggml.add_bos_token": True})
    assert told.encode("a") == [50256, 64]
    assert told.encode("a", bos=False) == [64]


def test_a_begin_of_text_token_that_is_not_there_cannot_be_added(gpt2_metadata):
    metadata = {**gpt2_metadata, "tokenizer.ggml.add_bos_token": True}
    del metadata["tokenizer.ggml.bos_token_id"]
    without = tokenizer_from_metadata(metadata)
    assert without.encode("a") == [64]
    with pytest.raises(ValueError, match="has none"):
        without.encode("a", bos=True)


def test_the_tokenizer_of_a_file_is_that_of_its_origin(tiny_checkpoint, tmp_path):
    directory, path = tiny_checkpoint("gpt2"), tmp_path / "tiny.gguf"
    write_gguf(path, directory)
    ours, origin = (jaxedit.load(str(place)).tokenizer for place in (path, directory))
    assert (ours.add_bos, ours.bos_id, ours.eos_id) == (False, 0, 0)
    assert (origin.add_bos, origin.bos_id, origin.eos_id) == (False, 0, 0)
    for text in ("The Eiffel Tower is located in the city", " 1998: (a) 'b'<|endoftext|>c", ""):
        assert ours.encode_with_ends(text) == origin.encode_with_ends(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.smollm2
def test_smollm2_splits_digits_and_knows_its_special_tokens(smollm2):
    tokenizer = smollm2.tokenizer
    assert (tokenizer.add_bos, tokenizer.bos_id, tokenizer.eos_id) == (False, 1, 2)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = [tokenizer.decode([token]) for token in tokenizer.encode("In 1998 x22")]
    assert digits == ["In", " ", "1", "9", "9", "8", " x", "2", "2"]
    assert tokenizer.encode("<|im_start|>user<|im_end|>")[0] == 1
    assert tokenizer.encode("<|im_start|>user<|im_end|>")[-1] == 2
    assert [tokenizer.decode([t]) for t in tokenizer.encode("The Eiffel Tower")][-1] == " Tower"


def test_tokens_that_users_defined_are_parts_of_texts(gpt2_metadata):
    """Only control tokens are no part of what a model says."""
    told = tokenizer_from_metadata(
        {
            **gpt2_metadata,
            "tokenizer.ggml.tokens": [*gpt2_metadata["tokenizer.ggml.tokens"], "<think>"],
            "tokenizer.ggml.token_type": [*gpt2_metadata["tokenizer.ggml.token_type"], 4],
        }
    )
    assert told.encode("a<think>b") == [64, 50257, 65]
    assert 50257 not in told.special_ids
    assert 50256 in told.special_ids
    assert told.decode([64, 50257, 65]) == "a<think>b"


# llama.cpp's own rules, where a file says nothing (llama-vocab.cpp).


def test_sentencepiece_without_ids_has_those_of_llama():
    tokens = ["<unk>", "<s>", "</s>", "▁", "a"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 5,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
    }
    found = tokenizer_from_metadata(metadata)
    assert (found.add_bos, found.bos_id, found.eos_id) == (True, 1, 2)
    assert found.encode("a") == [1, 3, 4]
    named = tokenizer_from_metadata(metadata | {"tokenizer.ggml.add_bos_token": False})
    assert (named.add_bos, named.bos_id) == (False, 1)


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        ({}, {50256, 50257, 50258}),
        ({"tokenizer.ggml.eot_token_id": 50258}, {50256, 50258}),
        ({"tokenizer.ggml.eos_token_id": 50257}, {50257}),
    ],
    ids=str,
)
def test_turns_end_at_the_tokens_that_say_so(gpt2_metadata, named, ends):
    """Not at a token that a text may hold, here <end_of_turn> among the words."""
    more = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
    metadata = gpt2_metadata | {
        "tokenizer.ggml.tokens": [*gpt2_metadata["tokenizer.ggml.tokens"], *more],
        "tokenizer.ggml.token_type": [*gpt2_metadata["tokenizer.ggml.token_type"], 3, 3, 1],
        **named,
    }
    assert tokenizer_from_metadata(metadata).end_ids == ends
