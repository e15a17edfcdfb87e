"""Which signal warns first: 300 facts one after the other, every tenth from the fiftieth on hard.

    jaxedit stats --layers=4,5,6,7,8 --corpus=CORPUS --out=stats.safetensors
    jaxedit compare --config=signals --set=stats=stats.safetensors --set=texts=ME-PPL_50.json
    jaxedit signals --run=runs/signals/rome --tasks=piqa,lambada_standard --every=20 --limit=200

runs/signals.json are 274 facts of CounterFact from position 3000 on and, as facts 50, 60 and so on
up to 300, the 26 whose subject is one token at the start of the prompt. The perplexity is measured
after every edit, KL after every fifth, and the change of the loss is predicted by twelve draws of
labels. The guard keeps every edit and only reports.

Hardware: two CPU cores, 4 GB. Time: four to ten seconds an edit, and about a minute for each model
that is evaluated on 200 items of both tasks. Expected, on SmolLM2-135M-Instruct: the table in
configs/README.md.
"""

from jaxedit.editors import find_published
from jaxedit.study.config import check_variant, default_config

VARIANTS = ("rome", "memit", "alphaedit", "ft")


def get_config(variant="rome"):
    check_variant(variant, VARIANTS)
    config = default_config(variant, **find_published(f"{variant}/smollm2-135m").hyper)
    config.update(
        facts="runs/signals.json",
        eval=dict(kl_every=5, prediction_draws=12),
        guard=dict(action="keep"),
    )
    return config
