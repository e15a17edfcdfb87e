"""The readers of requests, texts, flags and configurations that mutate_inputs.py tries."""

import functools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from mutated_readers import Call, Make, Reader, checkpoint, mutated_files
from mutations import mutate_bytes, mutate_text

import jaxedit


def text_readers() -> dict[str, Reader]:
    """Return these readers by name."""
    return {
        **{
            f"requests-{name.lower()}": Reader(160, functools.partial(requests, name))
            for name in FORMS
        },
        "texts": Reader(300, texts),
        "flags": Reader(600, flag_values),
        "config-keys": Reader(500, config_keys),
        "config-files": Reader(100, config_files),
    }


FORMS = ("OWN", "COUNTERFACT", "FLAT", "ZSRE", "KNOWEDIT", "MQUAKE", "KNOWN")  # record_examples


def requests(form: str, folder: Path) -> Make:
    """Requests of a form, of which a journal's hash can be made."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "datasets"))
    import record_examples

    from jaxedit.datasets import read_requests

    path = folder / "facts.json"
    path.write_text(json.dumps([getattr(record_examples, form)] * 3))

    def call() -> None:
        for request in read_requests(str(path)).requests:
            f"{request}".encode()

    return mutated_files([path], call)


def texts(folder: Path) -> Make:
    """Texts for the perplexity, in both forms."""
    from jaxedit.datasets import read_texts

    paths = [folder / "texts.json", folder / "texts.jsonl"]
    paths[0].write_text(json.dumps(["a text", "another one", "ünïcode 東京"]))
    paths[1].write_text('{"text": "a text"}\n{"text": "another"}\n')

    def call() -> None:
        for path in paths:
            "".join(read_texts(str(path))).encode()

    return mutated_files(paths, call)


def flag_values(folder: Path) -> Make:
    """--mesh, --layers, --steps, --shard and --dtype."""
    from jaxedit.cli._flags import parse_steps, whole_numbers
    from jaxedit.mesh import make_mesh

    directory = checkpoint(folder, "llama")
    flags.DEFINE_list("layers", None, "as commands have it")

    def layers(text: str) -> None:
        flags.FLAGS["layers"].parse(text)
        whole_numbers("layers")

    tries: list[tuple[str, str, Callable[[str], Any]]] = [
        ("--mesh", "data:1,model:1", make_mesh),
        ("--layers", "3,4,15", layers),
        ("--steps", "1,3,7-9", lambda text: parse_steps(text.split(","), "--steps", "")),
        ("--dtype", "bfloat16", lambda text: jaxedit.load(str(directory), dtype=text)),
    ]

    def make(rng: random.Random) -> Call:
        flag, whole, read = rng.choice(tries)
        text = mutate_text(rng, whole)
        return functools.partial(read, text), (flag.removeprefix("--"),)

    return make


def config_keys(folder: Path) -> Make:
    """--config.KEY=VALUE for every key of a study, until its editor is made."""
    from ml_collections import config_flags

    from jaxedit.study.config import default_config, editor_from, plain_config

    keys = [key for key in _keys(default_config())]
    values = [
        "",
        "x",
        "1",
        "-1",
        "0",
        "nan",
        "inf",
        "true",
        "None",
        "[]",
        "(1,)",
        "{}",
        "²",
        "1e99",
    ]
    values += ["'a'", "builtin", "../x", "1.5", "9" * 400, "False", "rome", "a,b", "\x00"]

    def parse(argument: str) -> None:
        own = flags.FlagValues()
        argv = ["jaxedit", argument]
        config_flags.DEFINE_config_dict("config", default_config(), flag_values=own, sys_argv=argv)
        own(argv)
        plain = plain_config(own.config)
        editor_from(plain["editor"])

    def make(rng: random.Random) -> Call:
        key, value = rng.choice(keys), rng.choice(values)
        return functools.partial(parse, f"--config.{key}={value}"), (key.rpartition(".")[2],)

    return make


def _keys(config: Any, prefix: str = "") -> list[str]:
    """Return all keys of a configuration, dotted."""
    found = []
    for key, value in config.items():
        is_group = hasattr(value, "items")
        found += _keys(value, f"{prefix}{key}.") if is_group else [f"{prefix}{key}"]
    return found


BODIES = [
    "return None",
    "return 5",
    "raise KeyError('x')",
    "return {}",
    "return [1]",
    "1 / 0",
    "import nothing",
    "return default_config('nothing')",
    "return default_config(v_lr=1)",
    "raise SystemExit(3)",
    "raise RuntimeError",
    "return default_config()[",
]


def config_files(folder: Path) -> Make:
    """--config files whose get_config fails, or returns something else."""
    from jaxedit.study.config import plain_config, read_config

    path = folder / "mine.py"

    def make(rng: random.Random) -> Call:
        head = "from jaxedit.study.config import default_config\n"
        body = f"{head}def get_config():\n    {rng.choice(BODIES)}\n"
        mutated = mutate_bytes(rng, body.encode()) if rng.random() < 0.3 else body.encode()
        path.write_bytes(mutated)
        return lambda: plain_config(read_config(str(path))), (path.name,)

    return make
