"""A tokenizer of whole words, so that tests can say by hand what a prompt's tokens are."""

import dataclasses

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from jaxedit.models.tokenizer import Tokenizer

WORDS = "So . Ann Bob Lee lives sings in Rome a song Paris is Hear ,"
VOCABULARY = ["<pad>", "<bos>", *WORDS.split(" ")]


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    """Make a tokenizer of whole words and punctuation; token 0 is none of them."""
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, add_bos=False, bos_id=vocabulary["<bos>"], eos_id=None)


@pytest.fixture(scope="session")
def word_model(golden, words):
    """Give a golden model the tokenizer of words; only its tokens and sizes are looked at."""
    model = golden("gpt2")
    metadata = dataclasses.replace(model.metadata, tokenizer=words)
    return dataclasses.replace(model, metadata=metadata)


@pytest.fixture(scope="session")
def ids():
    """Make a function: words -> their tokens."""
    return lambda text: [VOCABULARY.index(word) for word in text.split()]
