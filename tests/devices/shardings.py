"""Run with eight simulated devices: how arrays lie on meshes, and what compiled phases exchange.

Also a pmap beside the evaluator, and a converted model on another mesh. Prints one JSON object.
"""

import json
import math
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
from jaxedit.solving.regulariser import shard_regulariser
from jaxedit.stats import sums

COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
EXCHANGES = rf"= \(?(\w+)\[([\d,]*)\]\S* ({COLLECTIVES})(?:-start)?\("


def largest_exchange(function, *arguments) -> int:
    """Return the elements of the largest array that one device gets by a function's collectives."""
    text = function.lower(*arguments).compile().as_text()
    shapes = [shape for _, shape, _ in re.findall(EXCHANGES, text)]
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in shapes), default=0)


def share(array: jax.Array) -> float:
    """Return which part of an array its first device holds."""
    return array.addressable_shards[0].data.size / array.size


def main() -> None:
    """Print what was found."""
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
        zero, layer_E = sums.zero_sums(model, [2]), np.array([2])
        whitener_MF = shard_regulariser(model.mesh, np.eye(F, dtype=np.float32)).whitener_MF
        found[mesh] = {
            "parameters": {name: share(array) for name, array in model.base.items()},
            "overlay": share(edited.overlay.delta["mlp/w_down"]),
            "whitener": share(whitener_MF),
            "sums": share(sums.add_batch(model, *rows, layer_E, zero).high_EMF),
            "score exchanges": largest_exchange(
                score.token_losses_of_batch, edited, *rows, None, 0
            ),
            "moments exchanges": largest_exchange(sums.add_batch, model, *rows, layer_E, zero),
            "solve exchanges": largest_exchange(solve.whiten, whitener_MF, factors[0]),
        }
    found["sizes"] = {letter: getattr(model.config, letter) for letter in "DFV"}
    found["pmap"] = pmapped(directory, texts)
    found["converted"] = converted(directory)
    print(json.dumps(found))


def converted(directory: Path) -> bool:
    """Return whether a model that one mesh wrote is on another what the original is there.

    The other mesh needs copies of its key-value heads.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "model")
        write_orbax(jaxedit.load(str(directory), mesh="data:4,model:2"), directory, copy)
        original, again = (
            jaxedit.load(str(place), mesh="data:2,model:4") for place in (directory, copy)
        )
    assert original.config.kv_replication > 1
    pairs = [(array, again.base[name]) for name, array in original.base.items()]
    return all(
        a.sharding == b.sharding and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs
    )


def pmapped(directory: Path, texts: list[str]) -> float:
    """Return how far the evaluator over eight devices is from a pmap of its step on one."""
    many = jaxedit.load(str(directory), mesh="data:8,model:1")
    one = jaxedit.load(str(directory), mesh="data:1,model:1")
    packed = packing.pack([many.tokenizer.encode(text) for text in texts], 8)

    def losses(model, *rows):
        return score.token_losses_of_batch(model, *rows, None, 0)[0]

    step = jax.pmap(losses, in_axes=(None, 0, 0, 0))
    apart = []
    for arrays in zip(*packed[:3], strict=True):
        ours = losses(many, *(shard_batch(many.mesh, "BT", array) for array in arrays))
        each = [array.reshape(8, -1, array.shape[1]) for array in arrays]
        theirs = np.asarray(step(one, *each)).reshape(arrays[0].shape)
        apart.append(np.max(np.abs(np.asarray(ours) - theirs)[arrays[2] > 0]))
    return float(max(apart))


if __name__ == "__main__":
    main()
