"""Run on several devices, or in several processes: how far each mesh's results are from one
device's, as one JSON object.

compare.py MODEL ONE_DEVICE.npz MESH...                        with as many devices as there are
compare.py MODEL ONE_DEVICE.npz MESH... -- HOST:PORT N I       as one of N processes
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

import jaxedit
from jaxedit.distributed import start_processes
from jaxedit.edits.edit import to_dense
from jaxedit.mesh import to_host
from jaxedit.metrics.perplexity import perplexity_each, prepare
from jaxedit.solving.keys import compute_keys
from jaxedit.solving.packed_prompts import pack_prompts

LAYERS = (2, 3)


def results(directory: Path, mesh: str) -> dict[str, np.ndarray]:
    """Perplexity, second moments, logits, keys, edits alone, in batches and in a lot, what edited
    models say.
    """
    cases = json.loads((directory / "cases.json").read_text())
    texts = [text for text in cases["texts"] if len(text) < 400]
    model = jaxedit.load(str(directory), mesh=mesh)
    requests = [jaxedit.Request(**case) for case in cases["requests"][:3]]
    found = {"ppl": jaxedit.perplexity(model, texts).per_text}
    stats = jaxedit.collect_stats(model, texts, LAYERS)
    found |= {f"moments/{layer}": moment_FF for layer, moment_FF in stats.moments.items()}
    some = jaxedit.collect_stats(model, texts, LAYERS[:1], max_tokens=sum(map(len, texts)) // 8)
    found["moments/some"] = some.moments[LAYERS[0]]
    templates, layer = tuple(cases["context_templates"][:4]), LAYERS[0]
    hyper = {**cases["rome"], "layer": layer, "v_num_grad_steps": 4, "context_templates": templates}
    ridge = hyper.pop(
        "mom2_ridge"
    )  # as the reference implementations have it: of so few texts C is nearly singular
    moments = {
        layer: moment_FF + ridge * np.eye(len(moment_FF))
        for layer, moment_FF in stats.moments.items()
    }
    stats = dataclasses.replace(stats, moments=moments)
    prepared = prepare(model, texts, start_layer=layer)
    for name, given in (("rome", stats), ("c-rome", None)):
        editor = jaxedit.make_editor(name, **hyper)
        lot, infos = zip(
            *editor.edit_each(model, requests[:2], editor.init(model, given)), strict=True
        )
        found[f"{name}/delta"] = np.stack([to_dense(edit.deltas[0]) for edit in lot])
        found[f"{name}/ppl"] = np.concatenate(
            [score.per_text for score in perplexity_each(model, prepared, list(lot))]
        )
        found[f"{name}/steps"] = np.array([info["n_steps"] for info in infos])
    edited = jaxedit.apply(model, lot[0])
    found["c-rome/alone"] = jaxedit.perplexity(edited, prepared).per_text
    found["keys"] = compute_keys(model, pack_prompts(model, requests, (templates,), "mean"), layer)[
        0
    ]
    found["logits"] = to_host(jaxedit.logits(edited, [model.tokenizer.encode(texts[0])] * 8))
    prompts = [text[:20] for text in texts[:3]]
    found["tokens"] = np.array(
        [len(text) for text in jaxedit.generate(edited, prompts, max_new_tokens=6)]
    )
    found["devices"] = np.array([edited.overlay.delta["mlp/w_down"].sharding.num_devices])
    return found | several_layers(cases, model, requests[:2], stats)


def several_layers(
    cases: dict, model: jaxedit.Model, requests: list, stats: jaxedit.Stats
) -> dict[str, np.ndarray]:
    """The same edit twice by methods that write several layers, the second time after and with the
    history of the first.
    """
    hyper = {
        **cases["memit"],
        "layers": LAYERS,
        "v_num_grad_steps": 4,
        "context_templates": [["{}"], ["I think {}"]],
    }
    weight = hyper.pop("mom2_update_weight")
    half = {}
    for layer, moment_FF in stats.moments.items():
        value_F = np.linalg.eigvalsh(np.asarray(moment_FF, np.float64))
        middle = len(value_F) // 2
        half[layer] = float(np.mean(value_F[middle : middle + 2]))
    found = {}
    for name, own in (
        ("memit", {"mom2_update_weight": weight}),
        ("alphaedit", {"L2": 10.0, "nullspace_threshold": half}),
    ):
        editor = jaxedit.make_editor(name, **hyper, **own)
        first, state, _ = editor.edit(model, requests, editor.init(model, stats))
        second, _, _ = editor.edit(jaxedit.apply(model, first), requests, state)
        found |= {
            f"{name}/{i}": np.stack([to_dense(d) for d in edit.deltas])
            for i, edit in enumerate((first, second))
        }
    return found


def main() -> None:
    """Compares meshes with one device."""
    arguments, processes = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, processes = arguments[:at], arguments[at + 1 :]
        start_processes(processes[0], int(processes[1]), int(processes[2]))
    directory, base, *meshes = arguments
    one = np.load(base)
    differences = {}
    for mesh in meshes:
        many = results(Path(directory), mesh)
        differences[mesh] = {"n_devices": int(many.pop("devices")[0])} | {
            name: float(np.linalg.norm(many[name] - one[name]) / np.linalg.norm(one[name]))
            for name in many
        }
    print(
        json.dumps(
            {
                "n_available": len(jax.devices()),
                "n_processes": jax.process_count(),
                "differences": differences,
            }
        )
    )


if __name__ == "__main__":
    main()
