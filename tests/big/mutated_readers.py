"""The readers of models that mutate_inputs.py tries; others are in mutated_texts.py (data sets and
flags) and mutated_studies.py.

A reader makes whole inputs once, in a folder (`prepare`), and from then on mutated ones: a function
to call, and what a proper message names.
"""

import functools
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/: conftest, reference

from mutations import mutate_bytes, mutate_json

import jaxedit
from jaxedit.models import family

Call = tuple[Callable[[], Any], tuple[str, ...]]
Make = Callable[[random.Random], Call]


class Reader(NamedTuple):
    """What reads an input: its part of all inputs, and the making of them."""

    share: int
    prepare: Callable[[Path], Make]


def readers() -> dict[str, Reader]:
    """Return all readers by name."""
    from mutated_studies import study_readers
    from mutated_texts import text_readers

    models = {
        f"config-{name}": Reader(260, functools.partial(config_with_weights, name))
        for name in ("gpt2", "gptj", "gpt_neox", "llama", "qwen2")
    }
    return {
        **models,
        "config-alone": Reader(2400, config_alone),
        "tokenizer": Reader(700, tokenizer),
        "safetensors": Reader(400, weights),
        "index": Reader(500, index),
        "gguf": Reader(900, gguf),
        **text_readers(),
        **study_readers(),
    }


def checkpoint(folder: Path, name: str) -> Path:
    """Write a tiny checkpoint of a family with a tokenizer, as tests/conftest.py does."""
    import transformers
    from conftest import randomise, write_tokenizer

    values = {**family.find(name).TINY, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    directory = folder / name
    model.save_pretrained(directory)
    write_tokenizer(directory, config.vocab_size)
    return directory


def mutated_files(
    paths: list[Path], call: Callable[[], Any], mention: tuple[str, ...] = (), typed: float = 0.7
) -> Make:
    """Mutate one of some files at a time, and put it right before the next.

    Args:
      paths: the files, whole.
      call: reads them.
      mention: what a message may name instead of a file.
      typed: the share of a JSON file's mutations that are of values, not of bytes.
    """
    whole = {path: path.read_bytes() for path in paths}
    changed: list[Path] = []

    def make(rng: random.Random) -> Call:
        for path in changed:
            path.write_bytes(whole[path])
        path = rng.choice(paths)
        changed[:] = [path]
        if path.suffix == ".json" and rng.random() < typed:
            path.write_bytes(mutate_json(rng, json.loads(whole[path])))
        elif path.suffix == ".jsonl" and rng.random() < typed:
            lines = whole[path].splitlines(keepends=True)
            i = rng.randrange(len(lines))
            lines[i] = mutate_json(rng, json.loads(lines[i])).replace(b"\n", b" ") + b"\n"
            path.write_bytes(b"".join(lines))
        else:
            path.write_bytes(mutate_bytes(rng, whole[path]))
        return call, (path.name, *mention)

    return make


def load_checked(directory: Path) -> jaxedit.Model:
    """Load a model; what its configuration says must be of the types that it says."""
    model = jaxedit.load(str(directory))
    check_types(model.config)
    model.config.check_length(2, "a text")
    return model


def check_types(config: Any) -> None:
    """Raise a TypeError on a size that is no whole number, and on a switch that is none."""
    for letter, size in config.sizes().items():
        if type(size) is not int or size < 1:
            raise TypeError(f"{letter}={size!r} was accepted")
    if not 0 < config.eps < float("inf") or type(config.tied) is not bool:
        raise TypeError(f"eps={config.eps!r}, tied={config.tied!r} was accepted")
    if config.rope is not None and not 0 < config.rope.theta < float("inf"):
        raise TypeError(f"theta={config.rope.theta!r} was accepted")


def config_with_weights(name: str, folder: Path) -> Make:
    """config.json of a checkpoint that is loaded whole."""
    directory = checkpoint(folder, name)
    call = functools.partial(load_checked, directory)
    return mutated_files([directory / "config.json"], call, (str(directory),), typed=0.85)


ROTARY = [
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 10000.0, "rope_scaling": None},
    {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
]


def config_alone(folder: Path) -> Make:
    """Configurations of all families with rotary scalings, read without weights."""
    from jaxedit.plan.models import read_decoder_config

    names = family.family_names()
    path = folder / "config.json"

    def call() -> None:
        check_types(read_decoder_config(str(folder)))

    def make(rng: random.Random) -> Call:
        name = rng.choice(names)
        values = {**family.find(name).TINY, "tie_word_embeddings": False, "vocab_size": 96}
        if name not in ("gpt2", "gptj"):
            values |= rng.choice([{}, *ROTARY])
        path.write_bytes(mutate_json(rng, values))
        return call, (str(path),)

    return make


def tokenizer(folder: Path) -> Make:
    """tokenizer.json and tokenizer_config.json; a text is tokenised with what is read."""
    from jaxedit.models.hf_tokenizer import read_tokenizer

    directory = checkpoint(folder, "llama")
    paths = [directory / "tokenizer.json", directory / "tokenizer_config.json"]
    settings = json.loads(paths[1].read_text())
    settings |= {
        "model_max_length": 64,
        "add_bos_token": True,
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
    }
    paths[1].write_text(json.dumps(settings))

    def call() -> None:
        read_tokenizer(directory).encode("The tower is in Rome.")

    return mutated_files(paths, call, (str(directory),))


def weights(folder: Path) -> Make:
    """model.safetensors."""
    directory = checkpoint(folder, "llama")
    call = functools.partial(load_checked, directory)
    return mutated_files([directory / "model.safetensors"], call, (str(directory),))


def index(folder: Path) -> Make:
    """The index of sharded weights, and the shards."""
    from reference.models import hf_model

    directory = checkpoint(folder, "llama")
    hf_model(directory).save_pretrained(folder / "shards", max_shard_size="30KB")
    (directory / "model.safetensors").unlink()
    for path in (folder / "shards").glob("model*"):
        shutil.copy(path, directory)
    listed = directory / "model.safetensors.index.json"
    paths = [listed] * 8 + sorted(directory.glob("*.safetensors"))
    return mutated_files(paths, functools.partial(load_checked, directory), (str(directory),))


def gguf(folder: Path) -> Make:
    """GGUF files of both architectures."""
    from reference.models import write_gguf

    paths = []
    for name in ("llama", "gpt2"):
        paths.append(folder / f"{name}.gguf")
        write_gguf(paths[-1], checkpoint(folder, name))
    whole = {path: path.read_bytes() for path in paths}

    def make(rng: random.Random) -> Call:
        path = rng.choice(paths)
        # Where the lengths and counts are: from names of keys on.
        content = whole[path]
        keys = [
            b".block_count",
            b".embedding_length",
            b".head_count",
            b"ggml.tokens",
            b".merges",
            b"token_type",
            b".freq_base",
            b"epsilon",
            b"_token_id",
            b"ggml.pre",
            b".weight",
        ]
        at = content.find(rng.choice(keys)) if rng.random() < 0.6 else -1
        if at < 0:
            path.write_bytes(mutate_bytes(rng, content))
        else:
            near = mutate_bytes(rng, content[at : at + 60])
            path.write_bytes(content[:at] + near + content[at + 60 :])
        return functools.partial(load_checked, path), (path.name,)

    return make
