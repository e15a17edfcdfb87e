"""Places and learning rates of the methods that follow a gradient, on 200 facts: which to choose.

    jaxedit compare --config=sweep --set=facts=zsre.json --set=texts=ME-PPL_50.json
    jaxedit compare --config=sweep --variants=locft-bf/layer-5@5e-4,lora/4-8@2e-3 ...

A variant is METHOD/PLACE@LR. Facts are written in two batches of 100 (LoRA: the first 40, one by
one), and all of them looked at in the last model. The guard keeps every edit and only reports.
The places are those of a model of 30 layers. UltraEdit and StableEdit were published with w_down in
layers 18 to 26 (GPT-J), and with w_gate and w_up (models with a gate).

Hardware: two CPU cores, 4 GB. Time: about a minute a variant, LocFT-BF five. Expected, on
SmolLM2-135M-Instruct: the table in configs/README.md.
"""

from jaxedit.editors import find_published
from jaxedit.study.config import check_variant, default_config

LOCFT = {f"layer-{layer}": dict(layers=(layer,)) for layer in (2, 5, 8, 12, 18, 24)}
LORA = {"4-8": dict(layers=tuple(range(4, 9)))}
LIFELONG = {
    "down-4-8": dict(layers=tuple(range(4, 9))),
    "down-18-26": dict(layers=tuple(range(18, 27))),
    "gated-4-8": dict(layers=tuple(range(4, 9)), weights=("mlp/w_gate", "mlp/w_up")),
    "gated-16-24": dict(layers=tuple(range(16, 25)), weights=("mlp/w_gate", "mlp/w_up")),
}
LIFELONG_RATES = ("1e-6", "1e-5", "3e-5", "1e-4", "3e-4")
GRID = {  # method -> places, learning rates
    "locft-bf": (LOCFT, ("1e-4", "5e-4", "2e-3")),
    "lora": (LORA, ("5e-4", "2e-3", "5e-3", "1e-2")),
    "ultraedit": (LIFELONG, LIFELONG_RATES),
    "stableedit": (LIFELONG, LIFELONG_RATES),
}
VARIANTS = {
    f"{method}/{place}@{lr}": (method, hyper | dict(lr=float(lr)))
    for method, (places, rates) in GRID.items()
    for place, hyper in places.items()
    for lr in rates
}


def get_config(variant="locft-bf/layer-5@5e-4"):
    check_variant(variant, VARIANTS)
    method, hyper = VARIANTS[variant]
    config = default_config(method, **find_published(f"{method}/smollm2-135m").hyper | hyper)
    is_lora = method == "lora"
    config.update(
        n_facts=40 if is_lora else 200,
        facts_per_edit=1 if is_lora else 100,
        eval=dict(perplexity_every=10 if is_lora else 2),
        guard=dict(action="keep"),
    )
    return config
