"""Edits that survive being saved: what is left of an edit once its model is rounded.

    jaxedit stats --layers=4,5,6,7,8 --corpus=CORPUS --out=stats.safetensors
    python tests/big/rounding.py --stats=stats.safetensors --facts=counterfact.json \\
        --texts=ME-PPL_50.json [--n_facts=20]

A measurement, not a test. Each fact is written into SmolLM2-135M-Instruct by itself: by ROME (layer
5), by MEMIT (layers 4 to 8, the values measured for this model) and by a MEMIT too weak to be
noticed (C = I, lambda 15000). Then the change is merged into weights W that lay in bfloat16 or
float16 before and are rounded to it again, and once kept as LoRA factors in bfloat16 beside
bfloat16 weights. What is left of the change D is Q(W + D) - W, Q the rounding; its error is
relative to D, Frobenius, over all layers together. P(target) and the perplexity (mean over the
texts) are those of the model with all weights in that dtype. Results go to tests/big/rounding.json
as they come, and the same command goes on from there; the figure to configs/rounding.png. Hardware:
two CPU cores; about twenty minutes.
"""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jaxedit
from jaxedit.datasets import read_requests, read_texts
from jaxedit.editors import find_published
from jaxedit.edits.edit import Dense, Edit, LowRank, make_edit, to_dense
from jaxedit.files import write_atomic
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.models.model import Model

FACTS = flags.DEFINE_string("facts", "builtin", "facts, as --config.facts takes them")
TEXTS = flags.DEFINE_string("texts", "builtin", "texts for the perplexity")
STATS = flags.DEFINE_string("stats", None, "second moments of layers 4 to 8", required=True)
N_FACTS = flags.DEFINE_integer("n_facts", 20, "how many facts")

RESULTS = Path(__file__).with_suffix(".json")
FIGURE = Path(__file__).parents[2] / "configs" / "rounding.png"
LAYERS = (4, 5, 6, 7, 8)
WEAK = dict(find_published("memit/smollm2-135m").hyper) | dict(
    mom2_update_weight=15000.0, mom2_adjustment=False
)
METHODS = {
    "ROME, layer 5": ("rome", find_published("rome/smollm2-135m").hyper, False),
    "MEMIT, layers 4-8": ("memit", find_published("memit/smollm2-135m").hyper, True),
    "MEMIT, C = I, λ = 15000": ("memit", WEAK, False),
}
SAVED = {
    "merged bf16": "bfloat16",
    "merged fp16": "float16",
    "LoRA factors in bf16": "bfloat16",
}


def rounded(array, dtype: str):
    """Round an array to a dtype, in float32 again."""
    return jnp.asarray(array, dtype).astype(jnp.float32)


def rounded_model(model: Model, dtype: str) -> Model:
    """Return the model with all its base weights rounded to a dtype."""
    base = {name: rounded(array, dtype) for name, array in model.base.items()}
    return dataclasses.replace(model, base=base)


def saved_edit(model: Model, edit: Edit, form: str) -> Edit:
    """Return what is left of an edit in a form it is saved in.

    Args:
      model: whose weights are in the form's dtype.
      edit: exact.
      form: of SAVED.
    """
    deltas, dtype = [], SAVED[form]
    for delta in edit.deltas:
        if form.startswith("LoRA"):
            assert isinstance(delta, LowRank)
            u_FR, v_RD = (np.asarray(rounded(x, dtype)) for x in (delta.u_FR, delta.v_RD))
            deltas.append(LowRank(delta.weight, delta.layer, u_FR, v_RD))
        else:
            w_FD = model.base[delta.weight][delta.layer]
            left_FD = rounded(w_FD + to_dense(delta), dtype) - w_FD
            deltas.append(Dense(delta.weight, delta.layer, np.asarray(left_FD)))
    return make_edit(model, deltas)


def relative_error(left: Edit, edit: Edit) -> float:
    """Return the relative Frobenius error of what is left of an edit, over all its layers."""
    pairs = list(zip(left.deltas, edit.deltas, strict=True))
    missing = sum(
        float(np.sum(np.square(to_dense(a) - to_dense(b), dtype=np.float64))) for a, b in pairs
    )
    return float(np.sqrt(missing) / edit.norm)


def measured(model: Model, request: jaxedit.Request, texts: list[str]) -> dict[str, float]:
    """Measure P(target) and the perplexity."""
    (facts,) = evaluate_facts(model, [request])
    probability = facts["probability_new"]
    assert probability is not None
    return {"p_target": probability, "perplexity": jaxedit.perplexity(model, texts).mean}


def measure_fact(
    models: dict[str, Model], request: jaxedit.Request, texts: list[str], label: str, stats
) -> dict[str, dict[str, float]]:
    """Write a fact by a method, and measure it exact and in each form that it is saved in."""
    method, hyper, has_stats = METHODS[label]
    model = models["float32"]
    editor = jaxedit.make_editor(method, **hyper)
    edit, _, _ = editor.edit(model, [request], editor.init(model, stats if has_stats else None))
    found = {"exact": measured(jaxedit.apply(model, edit), request, texts)}
    for form, dtype in SAVED.items():
        left = saved_edit(models[dtype], edit, form)
        after = measured(jaxedit.apply(models[dtype], left), request, texts)
        found[form] = {"error": relative_error(left, edit), **after}
    return found


def draw(results: dict) -> None:
    """Draw each edit's error by method and form, one point a fact."""
    from matplotlib.figure import Figure

    from jaxedit.reports.figures import save_figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    colours = ("#b2182b", "#ef8a62", "#2166ac")
    for i, label in enumerate(METHODS):
        for j, form in enumerate(SAVED):
            errors = [100 * fact[form]["error"] for fact in results[label]]
            x = i + (j - 1) * 0.25 + np.linspace(-0.07, 0.07, len(errors))
            axis.scatter(x, errors, s=14, color=colours[j], label=form if i == 0 else None)
            axis.annotate(
                f"{np.median(errors):,.2f} %",
                (float(np.mean(x)), max(errors)),
                xytext=(0, 5),
                textcoords="offset points",
                fontsize=8,
                ha="center",
                color=colours[j],
            )
    axis.set_yscale("log")
    axis.set_xlim(-0.5, len(METHODS) - 0.5)
    axis.set_ylim(top=300)
    axis.set_xticks(range(len(METHODS)), list(METHODS))
    axis.set_ylabel("error of the change that is left, %")
    axis.set_title("Edits that survive being saved (a point a fact; medians)")
    axis.legend(frameon=False)
    save_figure(figure, FIGURE.with_suffix(""))


def main(argv: list[str]) -> None:
    """Measure what is not there yet, then print the table and draw the figure."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    requests = read_requests(FACTS.value).requests[: N_FACTS.value]
    texts, stats = read_texts(TEXTS.value), jaxedit.Stats.load(Path(STATS.value))
    model = jaxedit.load("smollm2-135m", dtype="float32")
    models = {"float32": model} | {d: rounded_model(model, d) for d in set(SAVED.values())}
    for i, request in enumerate(requests):
        for label in METHODS:
            done = results.setdefault(label, [])
            if len(done) > i:
                continue
            done.append(
                {"fact": request.summary} | measure_fact(models, request, texts, label, stats)
            )
            write_atomic(
                RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()
            )
            print(f"{i + 1}/{len(requests)} {label}", flush=True)
    for label in METHODS:
        for form in ("exact", *SAVED):
            facts = [fact[form] for fact in results[label]]
            errors = [100 * fact.get("error", 0.0) for fact in facts]
            p, ppl = ([fact[name] for fact in facts] for name in ("p_target", "perplexity"))
            print(
                f"| {label} | {form} | {np.median(errors):.2f} ({min(errors):.2f} to "
                f"{max(errors):.2f}) | {np.mean(p):.3f} | {np.mean(ppl):.2f} |"
            )
    draw(results)


if __name__ == "__main__":
    app.run(main)
