"""A guard that measures seldom: does it decide as one that measures the perplexity after each edit?

    jaxedit stats --layers=5 --corpus=CORPUS --max_tokens=200000 --out=stats.safetensors
    jaxedit compare --config=auto_perplexity --set=stats=stats.safetensors \\
        --set=texts=ME-PPL_50.json

A variant is HOW-N: `each` measures after every edit, `auto` where the predicted change of the loss
asks for it. runs/mixed_N.json are the first 200 facts of CounterFact from position 3000 on whose
subject is not one token at the start of the prompt. The first of them and every (200 // N)th after
it are replaced by the first N facts of CounterFact whose subject is one token there. ROME damages
the model with these N, and the guard rolls them back. Without second moments (C = I) normal facts
take the perplexity to the guard's limit within fifty edits, and near it every edit is measured.

Hardware: two CPU cores, 4 GB. Time: 4 to 23 seconds an edit. Expected, on SmolLM2-135M-Instruct:
the table in configs/README.md.
"""

from jaxedit.study.config import check_variant, default_config

EVERY = {"each": 1, "auto": "auto"}
VARIANTS = tuple(f"{how}-{n_hard}" for n_hard in (6, 26) for how in EVERY)


def get_config(variant="auto-6"):
    check_variant(variant, VARIANTS)
    how, n_hard = variant.split("-")
    config = default_config("rome", layer=5, mom2_adjustment=True)
    config.update(
        facts=f"runs/mixed_{n_hard}.json",
        eval=dict(perplexity_every=EVERY[how], prediction_draws=12),
        guard=dict(max_ppl_ratio=2.0, action="rollback"),
    )
    return config
