"""Eight simulated devices, in one process or two, give what one device gives."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compare import results

MESHES = {  # each mesh and each family; all pairs agree as closely
    "gpt2": ("data:4,model:2",),
    "gptj": ("data:8,model:1",),
    "llama": ("data:2,model:4",),  # data:1,model:8 as two processes
    "odd": ("data:2,model:4",),
    "gemma3_text": ("data:2,model:4",),
}
ODD = dict(
    hidden_size=36,
    intermediate_size=70,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=3,
    vocab_size=801,
    max_position_embeddings=256,
)
# Norms after attention and MLP, two kinds of layers, windows shorter than the texts.
POST_NORM = {**ODD, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1}
POST_NORM |= dict(head_dim=12, sliding_window=24, layer_types=None, sliding_window_pattern=3)
TINY = {"odd": ("llama", ODD), "gemma3_text": ("gemma3_text", POST_NORM)}
CASES_AND_TOKENIZER = (
    "cases.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@pytest.fixture(scope="module")
def directory(shared, tiny_checkpoint, tmp_path_factory):
    """Make a function: family -> a model's directory with its cases.

    "odd" is a Llama whose widths no mesh divides; it and Gemma 3 are random ones.
    """

    def find(family: str) -> Path:
        golden = shared / "golden"
        if family not in TINY:
            return golden / family
        name, attributes = TINY[family]
        copy = shutil.copytree(
            tiny_checkpoint(name, **attributes), tmp_path_factory.mktemp(name), dirs_exist_ok=True
        )
        for name in CASES_AND_TOKENIZER:
            shutil.copy(golden / "llama" / name, copy)
        return copy

    return find


def start(script: str, n_devices: int, *arguments: str) -> subprocess.Popen:
    """Start a script beside this file in a process of its own."""
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(n_devices), "NPROC": "16"}
    environment = os.environ | variables
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read(process: subprocess.Popen) -> dict:
    """Wait for a script; return what it printed."""
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def assert_close(found: dict) -> None:
    """Compare with one device: to 1e-5 before an optimisation, to 1e-4 after one."""
    assert found["n_available"] == 8
    for mesh, differences in found["differences"].items():
        assert differences.pop("n_devices") == 8, mesh
        for name, difference in differences.items():
            exact = name in ("ppl", "keys", "tokens") or name.startswith("moments/")
            assert difference <= (1e-5 if exact else 1e-4), (mesh, name, difference)


@pytest.mark.parametrize("family", MESHES)
def test_eight_devices_and_two_processes_equal_one_device(directory, tmp_path, family):
    where, base = directory(family), tmp_path / "one.npz"
    np.savez(base, **results(where, "data:1,model:1"))
    assert_close(read(start("compare.py", 8, str(where), str(base), *MESHES[family])))
    if family != "llama":
        return
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meshes = ("data:1,model:8",)  # each process holds a part of the weights
    both = [
        start(
            "compare.py", 4, str(where), str(base), *meshes, "--", f"localhost:{port}", "2", str(i)
        )
        for i in range(2)
    ]
    for found in map(read, both):
        assert found["n_processes"] == 2
        assert_close(found)


def test_nothing_large_is_whole_anywhere_and_the_evaluator_is_a_pmap(shared):
    """Weights and second moments lie in eighths; exchanges are at most a part of one layer."""
    found = read(start("shardings.py", 8, str(shared / "golden" / "llama")))
    D, F, V = (found["sizes"][letter] for letter in "DFV")
    for mesh in ("data:1,model:8", "data:2,model:4"):
        here = found[mesh]
        prefixes = ("mlp/w_", "embed/", "head/")
        large = [name for name in here["parameters"] if name.startswith(prefixes)]
        assert len(large) == 5
        assert {here["parameters"][name] for name in large} == {1 / 8}
        assert (here["overlay"], here["whitener"], here["sums"]) == (1 / 8, 1 / 8, 1 / 8)
        assert here["solve exchanges"] <= F
        assert here["moments exchanges"] < F * F
    assert found["data:1,model:8"]["score exchanges"] < D * F  # activations only
    # The embedding's part, gathered over data.
    assert found["data:2,model:4"]["score exchanges"] == V * D / 4
    assert found["pmap"] <= 1e-6
    assert found["converted"]
