"""Files of second moments and of unfinished passes: what has changed in them is found."""

import dataclasses
import json
import logging
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import jaxedit
from jaxedit.cli import run
from jaxedit.files import exclusive_target
from jaxedit.stats.second_moments import Stats
from jaxedit.stats.sums import read_sums, write_sums, zero_sums

ABOUT = {"n_tokens": 5, "made_from": {}}
EYE = {"mom2/2": np.eye(3, dtype=np.float32)}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return jaxedit.load(str(tiny_checkpoint("gpt2")))


@pytest.fixture(scope="module")
def stats(model) -> Stats:
    return jaxedit.collect_stats(model, ["The capital of Italy is Rome!"], [1])


@pytest.fixture
def path(stats, tmp_path):
    """Write the second moments; return the file."""
    stats.save(tmp_path / "stats.safetensors")
    return tmp_path / "stats.safetensors"


def rewrite(path, metadata: dict[str, str]) -> None:
    """Write a safetensors file anew, with other metadata."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    save_file(arrays, path, metadata)


def test_any_flipped_bit_is_found(path):
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(len(content), size=60):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"stats\.safetensors"):
            Stats.load(path)


def test_a_flipped_bit_of_a_matrix_is_said_to_be_one(path):
    content = bytearray(path.read_bytes())
    n_header = struct.unpack("<Q", content[:8])[0]
    content[8 + n_header] ^= 1  # the least bit of the first entry, on the diagonal
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not as it was written: .*make it again"):
        Stats.load(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [("configuration", "its configuration"), ("tokenizer", "its tokenizer")],
)
def test_another_configuration_or_tokenizer_is_named(model, stats, change, what):
    if change == "configuration":
        config = dataclasses.replace(model.config, eps=1e-3)
        other = dataclasses.replace(model, config=config)
    else:
        tokenizer = dataclasses.replace(model.tokenizer, eos_id=7)
        metadata = dataclasses.replace(model.metadata, tokenizer=tokenizer)
        other = dataclasses.replace(model, metadata=metadata)
    assert stats.of(model, 1) is stats.moments[1]
    with pytest.raises(
        ValueError, match=rf"made with another model .*: {what} \(.*make them again"
    ):
        stats.of(other, 1)


def test_a_file_of_before_is_read_and_said_to_be_unverified(model, stats, path, caplog):
    made_from = {k: v for k, v in stats.made_from.items() if k != "fingerprints"}
    rewrite(path, {"stats": json.dumps({"n_tokens": stats.n_tokens, "made_from": made_from})})
    with caplog.at_level(logging.WARNING, "jaxedit"):
        found = Stats.load(path)
    assert "cannot be verified" in caplog.text
    np.testing.assert_array_equal(found.of(model, 1), stats.moments[1])


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        (EYE, "", "is not JSON"),
        (EYE, "[]", "must hold an object"),
        (EYE, "[" * 100_000, "nested too deeply"),
        (EYE, json.dumps({"n_tokens": 5}), "'made_from'"),
        (EYE, json.dumps(ABOUT | {"n_tokens": "5"}), "'n_tokens'"),
        (EYE, json.dumps(ABOUT | {"n_tokens": True}), "'n_tokens'"),
        (EYE, json.dumps(ABOUT | {"n_tokens": 0}), "n_tokens=0"),
        (EYE, json.dumps(ABOUT | {"made_from": []}), "'made_from'"),
        ({"mom2/²": EYE["mom2/2"]}, json.dumps(ABOUT), "not second moments"),
        ({"mom2/02": EYE["mom2/2"]}, json.dumps(ABOUT), "not second moments"),
        ({"mom2/2": np.eye(3)}, json.dumps(ABOUT), "mom2/2 is float64"),
        ({"mom2/2": np.ones(3, np.float32)}, json.dumps(ABOUT), "finite symmetric matrix"),
        ({"mom2/2": EYE["mom2/2"] * np.nan}, json.dumps(ABOUT), "finite symmetric matrix"),
    ],
)
def test_another_content_is_refused_with_the_files_name(tmp_path, arrays, metadata, message):
    save_file(arrays, tmp_path / "s.safetensors", {"stats": metadata})
    with pytest.raises(ValueError, match=rf"s\.safetensors.*{message}"):
        Stats.load(tmp_path / "s.safetensors")


@pytest.fixture
def part(model, tmp_path):
    """Write an unfinished pass of layer 1; return the file."""
    write_sums(tmp_path / "stats.part", {"seed": 0}, [1], 3, zero_sums(model, [1]))
    return tmp_path / "stats.part"


def test_any_flipped_bit_of_an_unfinished_pass_is_found(model, part):
    content, rng = part.read_bytes(), np.random.default_rng(0)
    for at in [*rng.integers(len(content), size=20), *range(8, len(content) - 30_000, 400)]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        part.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"stats\.part.*[Rr]emove it to begin anew"):
            read_sums(model, part, {"seed": 0}, [1])
    part.write_bytes(content)
    assert read_sums(model, part, {"seed": 0}, [1])[0] == 3


@pytest.mark.parametrize(
    "described",
    ["", "[]", "{}", '{"made_from": [], "n_texts": 1}', '{"made_from": {}, "n_texts": "1"}']
    + ['{"made_from": {"seed": 0, "layers": [1]}, "n_texts": -1}'],
)
def test_an_unfinished_pass_with_another_content_is_named(model, part, described):
    rewrite(part, {"part": described})
    with pytest.raises(ValueError, match=r"stats\.part .*remove it to begin anew"):
        read_sums(model, part, {"seed": 0}, [1])


def test_sums_of_another_shape_are_refused_before_they_are_placed(model, part):
    described = {"made_from": {"seed": 0, "layers": [1]}, "n_texts": 1}
    arrays = {name: np.zeros((1, 2, 2), np.float32) for name in ("high", "low")}
    save_file(arrays, part, {"part": json.dumps(described)})
    with pytest.raises(ValueError, match=r"does not hold the sums of layers \[1\]"):
        read_sums(model, part, {"seed": 0}, [1])


def test_two_passes_to_one_file_are_not_at_once(model, tmp_path, capfd):
    out = tmp_path / "stats.safetensors"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The capital of Italy is Rome!\n")
    source = model.metadata.source
    command = ["jaxedit", "stats", f"--model={source}", "--layers=1", f"--corpus={corpus}"]
    with exclusive_target(out):
        assert run([*command, f"--out={out}"]) == 2
    assert "stats.safetensors is in use by process" in capfd.readouterr().err
    assert not out.exists()
