"""Run with several simulated devices: prints how far each mesh's results are from one device's, as one JSON object."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

import jaxedit
from jaxedit.edits.edit import matrix
from jaxedit.metrics.perplexity import perplexity_each, prepare
from jaxedit.solving.observe import ask, keys


def results(directory: Path, mesh: str) -> dict[str, np.ndarray]:
    """Perplexity, second moments, logits, keys, edits alone and in a lot, the edited models' perplexity and a continuation."""
    cases = json.loads((directory / "cases.json").read_text())
    hyper = {**cases["rome"], "v_num_grad_steps": 4}
    hyper.pop("mom2_ridge")
    texts = [text for text in cases["texts"] if len(text) < 400]
    model = jaxedit.load(str(directory), mesh=mesh)
    request = jaxedit.Request(**cases["requests"][0])
    found = {"ppl": jaxedit.perplexity(model, texts).per_text}
    moments = jaxedit.collect_stats(model, texts, [1, 3]).moments
    found |= {f"moments/{layer}": moments[layer] for layer in moments}
    for name in ("rome", "c-rome"):
        editor = jaxedit.make_editor(name, context_templates=cases["context_templates"], **hyper)
        edit, _, info = editor.edit(model, [request], editor.init(model, None))
        edited = jaxedit.apply(model, edit)
        found[f"{name}/delta"] = matrix(edit.deltas[0])
        found[f"{name}/ppl"] = jaxedit.perplexity(edited, texts).per_text
        found[f"{name}/steps"] = np.array([info["n_steps"]])
    requests = [jaxedit.Request(**case) for case in cases["requests"][:3]]
    found["keys"] = keys(model, ask(model, requests, (tuple(cases["context_templates"]),), "mean"), hyper["layer"])[0]
    lot = [edit for edit, _ in editor.each(model, requests, editor.init(model, None))]
    scored = perplexity_each(model, prepare(model, texts, lowest=hyper["layer"]), lot)
    found["c-rome/lot"] = np.concatenate([score.per_text for score in scored])
    found["logits"] = np.asarray(jaxedit.logits(edited, [model.tokenizer.encode(texts[0])] * 8))
    prompts = [text[:20] for text in texts[:3]]
    found["tokens"] = np.array([len(text) for text in jaxedit.generate(edited, prompts, max_new_tokens=6)])
    spread = edited.overlay.delta["mlp/w_down"].sharding.num_devices
    found["devices"] = np.array([spread])
    return found


def main() -> None:
    """Compares meshes with one device."""
    directory, meshes = Path(sys.argv[1]), sys.argv[2:]
    one = results(directory, "data:1,model:1")
    differences = {}
    for mesh in meshes:
        many = results(directory, mesh)
        differences[mesh] = {"n_devices": int(many.pop("devices")[0])} | {
            name: float(np.linalg.norm(many[name] - one[name]) / np.linalg.norm(one[name])) for name in many
        }
    print(json.dumps({"n_available": len(jax.devices()), "differences": differences}))


if __name__ == "__main__":
    main()
