"""Run on several devices, or in several processes: how far results are from one device's.

    compare.py MODEL ONE_DEVICE.npz MESH...                        with all devices there are
    compare.py MODEL ONE_DEVICE.npz MESH... -- HOST:PORT N I       as one of N processes

Prints one JSON object: mesh -> relative distances by result.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

import jaxedit
from jaxedit.distributed import start_processes
from jaxedit.edits.edit import EDITABLE_WEIGHTS, to_dense
from jaxedit.mesh import to_host
from jaxedit.metrics.perplexity import perplexity_each, prepare
from jaxedit.solving.keys import compute_keys
from jaxedit.solving.packed_prompts import pack_prompts

LAYERS = (2, 3)


def results(directory: Path, mesh: str) -> dict[str, np.ndarray]:
    """Compute what is to be the same on every mesh.

    Perplexity, second moments, logits, keys, edits one by one and together, and what edited models
    say.
    """
    cases = json.loads((directory / "cases.json").read_text())
    texts = [text for text in cases["texts"] if len(text) < 400]
    model = jaxedit.load(str(directory), mesh=mesh)
    requests = [jaxedit.Request(**case) for case in cases["requests"][:3]]
    found = {"ppl": jaxedit.perplexity(model, texts).per_text}

    # Second moments, of all tokens and of some.
    stats = jaxedit.collect_stats(model, texts, LAYERS)
    found |= {f"moments/{layer}": moment_FF for layer, moment_FF in stats.moments.items()}
    some = jaxedit.collect_stats(model, texts, LAYERS, max_tokens=sum(map(len, texts)) // 8)
    found["moments/some"] = some.moments[LAYERS[0]]

    # Edits of one layer, two made together and measured each by itself. Of so few texts C is nearly
    # singular: it gets a ridge, as the reference implementations have it.
    templates, layer = tuple(cases["context_templates"][:4]), LAYERS[0]
    hyper = {**cases["rome"], "layer": layer, "v_num_grad_steps": 4, "context_templates": templates}
    ridge = hyper.pop("mom2_ridge")
    ridged = {l: cov_FF + ridge * np.eye(len(cov_FF)) for l, cov_FF in stats.moments.items()}
    stats = dataclasses.replace(stats, moments=ridged)
    prepared = prepare(model, texts, start_layer=layer)
    for name, given in (("rome", stats), ("c-rome", None)):
        editor = jaxedit.make_editor(name, **hyper)
        made = editor.edit_each(model, requests[:2], editor.init(model, given))
        edits, infos = zip(*made, strict=True)
        scores = perplexity_each(model, prepared, list(edits))
        found[f"{name}/delta"] = np.stack([to_dense(edit.deltas[0]) for edit in edits])
        found[f"{name}/ppl"] = np.concatenate([score.per_text for score in scores])
        found[f"{name}/steps"] = np.array([info["n_steps"] for info in infos])

    # An edited model, keys, logits and generated texts.
    edited = jaxedit.apply(model, edits[0])
    found["c-rome/alone"] = jaxedit.perplexity(edited, prepared).per_text
    packed = pack_prompts(model, requests, (templates,), "mean")
    found["keys"] = compute_keys(model, packed, layer)[0]
    found["logits"] = to_host(jaxedit.logits(edited, [model.tokenizer.encode(texts[0])] * 8))
    prompts = [text[:20] for text in texts[:3]]
    generated = jaxedit.generate(edited, prompts, max_new_tokens=6)
    found["tokens"] = np.array(list(map(len, generated)))
    found["devices"] = np.array([edited.overlay.delta["mlp/w_down"].sharding.num_devices])
    if not model.config.gated:
        return found  # what follows has one code for all families: models with a gate suffice
    found |= every_mlp_weight(model, requests)
    return found | several_layers(cases, model, requests[:2], stats)


def every_mlp_weight(model: jaxedit.Model, requests: list) -> dict[str, np.ndarray]:
    """Edit every weight of MLPs by what they read and their output gradients."""
    weights = tuple(weight for weight in EDITABLE_WEIGHTS if weight in model.base)
    editor = jaxedit.make_editor(
        "ultraedit", layers=LAYERS, weights=weights, lr=1e-4, batch_size=2, alpha=0.5
    )
    made, _, _ = editor.edit(model, requests, editor.init(model, None))
    changes = [to_dense(delta).ravel() for delta in made.deltas]
    tokens = model.tokenizer.encode(requests[0].prompt_text)
    edited = jaxedit.apply(model, made)
    logits = to_host(jaxedit.logits(edited, [tokens] * 8))
    return {"ultraedit": np.concatenate(changes), "ultraedit/logits": logits}


def several_layers(
    cases: dict, model: jaxedit.Model, requests: list, stats: jaxedit.Stats
) -> dict[str, np.ndarray]:
    """Make the same edit twice by methods that write several layers.

    The second time after the first, with its history.
    """
    hyper = {
        **cases["memit"],
        "layers": LAYERS,
        "v_num_grad_steps": 4,
        "context_templates": [["{}"], ["I think {}"]],
    }
    weight = hyper.pop("mom2_update_weight")
    # A threshold in the middle of the eigenvalues, where rounding moves none across it.
    half = {}
    for layer, cov_FF in stats.moments.items():
        value_F = np.linalg.eigvalsh(np.asarray(cov_FF, np.float64))
        middle = len(value_F) // 2
        half[layer] = float(np.mean(value_F[middle : middle + 2]))
    methods = {
        "memit": {"mom2_update_weight": weight},
        "alphaedit": {"L2": 10.0, "nullspace_threshold": half},
    }
    found = {}
    for name, own in methods.items():
        editor = jaxedit.make_editor(name, **hyper, **own)
        first, state, _ = editor.edit(model, requests, editor.init(model, stats))
        second, _, _ = editor.edit(jaxedit.apply(model, first), requests, state)
        for i, edit in enumerate((first, second)):
            found[f"{name}/{i}"] = np.stack([to_dense(delta) for delta in edit.deltas])
    return found


def main() -> None:
    """Compare meshes with one device."""
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
        n_devices = int(many.pop("devices")[0])
        distances = {
            name: float(np.linalg.norm(many[name] - one[name]) / np.linalg.norm(one[name]))
            for name in many
        }
        differences[mesh] = {"n_devices": n_devices, **distances}
    found = {"n_available": len(jax.devices()), "n_processes": jax.process_count()}
    print(json.dumps(found | {"differences": differences}))


if __name__ == "__main__":
    main()
