"""Hard facts against normal ones in sequence: which methods make the model collapse, and when.

    jaxedit screen --config=single_edits --facts=counterfact.json --facts=configs/one_token.json \\
        --facts=builtin --hard_out=runs/hard.json --normal_out=runs/normal.json
    jaxedit stats --layers=4,5,6,7,8 --corpus=CORPUS --out=stats.safetensors
    jaxedit compare --config=hard --set=stats=stats.safetensors --set=texts=ME-PPL_50.json

Hardware: two CPU cores, 4 GB. Time: about 7 seconds an edit with its perplexity. Expected, on
SmolLM2-135M-Instruct: ROME on hard facts passes 1000 within the first few edits, and on as many
normal ones it does not (section 5 of 2402.09656); the figure is in configs/README.md.

A variant is METHOD@FACTS. ft is FT-L without its l-infinity ball. c-rome-auto differs from c-rome
only where a subject's last token is at position 0, which is so of no normal fact of that figure.
"""

from jaxedit.study.config import check_variant, default_config

METHODS = {
    "rome": ("rome", dict(layer=5)),
    "c-rome": ("c-rome", dict(layer=5)),
    "c-rome-auto": ("c-rome", dict(layer=5, fact_token="auto")),
    "memit": ("memit", dict(layers=(4, 5, 6, 7, 8), mom2_update_weight=1000.0)),
    "ft": ("ft", dict(layers=(5,))),
}
VARIANTS = tuple(f"{method}@{facts}" for facts in ("hard", "normal") for method in METHODS)


def get_config(variant="rome@hard"):
    check_variant(variant, VARIANTS)
    name, facts = variant.split("@")
    method, hyper = METHODS[name]
    config = default_config(method, **hyper)
    guard = dict(action="keep")
    config.update(facts=f"runs/{facts}.json", guard=guard)
    return config
