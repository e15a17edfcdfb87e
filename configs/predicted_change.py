"""Is an edit's change of the loss predicted: single edits by several methods, and a sequence.

    jaxedit stats --layers=3,4,5,6,7,8 --corpus=CORPUS --out=stats.safetensors
    jaxedit compare --config=predicted_change --set=stats=stats.safetensors \\
        --set=facts=runs/predicted_change.json --set=texts=ME-PPL_50.json

A variant is METHOD@LAYER, each edit on the unedited model, or `sequence`, sixty edits one after the
other. runs/predicted_change.json are 200 facts of CounterFact: the 26 whose subject is one token at
the start of the prompt, and the first 174 others from position 3000 on. Each edit's change is
predicted by twelve draws of labels; the report has the rank correlations, the slope and the
constant c.

Hardware: two CPU cores, 4 GB. Time: about four seconds an edit with its perplexity. Expected, on
SmolLM2-135M-Instruct: the table in configs/README.md.
"""

from jaxedit.editors import find_published
from jaxedit.study.config import check_variant, default_config

METHODS = {
    "rome@3": ("rome", dict(layer=3)),
    "rome@5": ("rome", dict(layer=5)),
    "rome@8": ("rome", dict(layer=8)),
    "memit": ("memit", {}),
    "alphaedit": ("alphaedit", {}),
    "ft": ("ft", {}),
    "sequence": ("memit", {}),
}
VARIANTS = tuple(METHODS)


def get_config(variant="rome@5"):
    check_variant(variant, VARIANTS)
    method, hyper = METHODS[variant]
    config = default_config(method, **find_published(f"{method}/smollm2-135m").hyper | hyper)
    is_sequence = variant == "sequence"
    config.update(
        mode="sequential" if is_sequence else "single",
        eval=dict(prediction_draws=12),
        guard=dict(action="keep"),
    )
    if is_sequence:
        config.n_facts = 60
    return config
