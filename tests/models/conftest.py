"""Models and tokenizers as they are stored: in several files; merges; sentencepiece."""

import io
import json
import shutil

import pytest
import sentencepiece
from reference.models import hf_model

from jaxedit.models.hf_tokenizer import read_tokenizer
from jaxedit.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def gpt2_tokenizer(shared, tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "tokenizers/gpt2" / name, directory)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    return read_tokenizer(directory)


@pytest.fixture(scope="module")
def pieces_directory(tmp_path_factory):
    """Make a directory as Llama-2's, with a tokenizer.model: sentencepiece BPE with bytes."""
    directory = tmp_path_factory.mktemp("pieces")
    lines = [
        "The Eiffel Tower is located in the city of Paris",
        "The mother tongue of the author is French",
        "The capital of Italy is Rome, and the capital of France is Paris",
        "Beyoncé Knowles was born in Houston, Texas",
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 5),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    (directory / "config.json").write_text('{"model_type": "llama"}')
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def pieces(pieces_directory) -> Tokenizer:
    return read_tokenizer(pieces_directory)


@pytest.fixture
def sharded(tiny_checkpoint, tmp_path):
    """Make a function: family -> the same checkpoint as several files with an index."""

    def shard(family: str):
        out = shutil.copytree(tiny_checkpoint(family), tmp_path / "sharded")
        (out / "model.safetensors").unlink()
        hf_model(tiny_checkpoint(family)).save_pretrained(out, max_shard_size="30KB")
        assert len(list(out.glob("*.safetensors"))) > 2
        return out

    return shard
