"""Run with eight simulated devices: how arrays lie on meshes, what compiled phases exchange, a pmap
beside the evaluator.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import jaxedit
from jaxedit.mesh import shard_batch
from jaxedit.models import packing, score
from jaxedit.models.orbax import write_orbax
from jaxedit.solving import solve
from jaxedit.stats import collect

EXCHANGES = r"= \(?(\w+)\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def largest_exchange(function, *arguments) -> int:
    """The elements of the largest array that a compiled function's collectives give to one device."""
    text = function.lower(*arguments).compile().as_text()
    sizes = [
        int(np.prod([int(n) for n in found[1].split(",") if n]))
        for found in re.findall(EXCHANGES, text)
    ]
    return max(sizes, default=0)


def share(array: jax.Array) -> float:
    """What part of an array its first device holds."""
    return array.addressable_shards[0].data.size / array.size


def main() -> None:
    """Prints what was found as one JSON object."""
    directory = Path(sys.argv[1])
    cases = json.loads((directory / "cases.json").read_text())
    texts = [text for text in cases["texts"] if len(text) < 400]
    found = {}
    for mesh in ("data:1,model:8", "data:2,model:4"):
        model = jaxedit.load(str(directory), mesh=mesh)
        F, D = model.config.F, model.config.D
        factors = np.ones((F, 1), np.float32), np.ones((1, D), np.float32)
        edited = jaxedit.apply(model, jaxedit.Edit((jaxedit.LowRank("mlp/w_down", 2, *factors),)))
        rows = [shard_batch(model.mesh, "BT", np.ones((8, 8), np.int32))] * 3
        sums = collect._resumed(model, None, {}, [2])[1]
        whitener_MF = solve.shard_regulariser(model.mesh, np.eye(F, dtype=np.float32)).whitener_MF
        found[mesh] = {
            "parameters": {name: share(array) for name, array in model.base.items()},
            "overlay": share(edited.overlay.delta["mlp/w_down"]),
            "whitener": share(whitener_MF),
            "sums": share(collect.add_batch(model, *rows, np.array([2]), sums).high_EMF),
            "score exchanges": largest_exchange(
                score.token_losses_of_batch, edited, *rows, None, 0
            ),
            "moments exchanges": largest_exchange(
                collect.add_batch, model, *rows, np.array([2]), sums
            ),
            "solve exchanges": largest_exchange(solve.whiten, whitener_MF, factors[0]),
        }
    found["sizes"] = {letter: getattr(model.config, letter) for letter in "DFV"}
    found["pmap"] = pmapped(directory, texts)
    found["converted"] = converted(directory)
    print(json.dumps(found))


def converted(directory: Path) -> bool:
    """Whether a model that one mesh wrote is read by another, with copies of its key-value heads,
    as the original is.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_orbax(
            jaxedit.load(str(directory), mesh="data:4,model:2"), directory, Path(folder, "model")
        )
        both = [
            jaxedit.load(str(place), mesh="data:2,model:4")
            for place in (directory, Path(folder, "model"))
        ]
    assert both[0].config.kv_replication > 1
    pairs = [(array, both[1].base[name]) for name, array in both[0].base.items()]
    return all(
        a.sharding == b.sharding and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs
    )


def pmapped(directory: Path, texts: list[str]) -> float:
    """How far the evaluator over eight devices is from a pmap of its step on one."""
    many, one = (
        jaxedit.load(str(directory), mesh=mesh) for mesh in ("data:8,model:1", "data:1,model:1")
    )
    packed = packing.pack([many.tokenizer.encode(text) for text in texts], 8)
    step = jax.pmap(
        lambda model, *rows: score.token_losses_of_batch(model, *rows, None, 0)[0],
        in_axes=(None, 0, 0, 0),
    )
    apart = []
    for arrays in zip(*packed[:3], strict=True):
        ours, _ = score.token_losses_of_batch(
            many, *(shard_batch(many.mesh, "BT", array) for array in arrays), None, 0
        )
        each = [array.reshape(8, -1, array.shape[1]) for array in arrays]
        theirs = np.asarray(step(one, *each)).reshape(arrays[0].shape)
        apart.append(np.max(np.abs(np.asarray(ours) - theirs)[arrays[2] > 0]))
    return float(max(apart))


if __name__ == "__main__":
    main()
