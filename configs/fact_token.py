"""Hard facts made safe and effective: where to write a fact whose subject begins the prompt.

    jaxedit compare --config=fact_token --set=texts=ME-PPL_50.json

Hardware: two CPU cores, 4 GB. Time: about 6 seconds an edit with its perplexity. Expected, on
SmolLM2-135M-Instruct: the table in configs/README.md, which has eight of the 18 variants.
runs/hard50.json are 50 facts whose subject is one token at the start of the prompt.

A variant is METHOD-WHERE@LAYER: at the subject's last token as published, at the prompt's last one
where the subject's is at position 0 ("auto"), or behind a begin-of-text token that every prompt
then has ("bos").
"""

from jaxedit.study.config import check_variant, default_config

WHERE = {"subject": dict(), "auto": dict(fact_token="auto"), "bos": dict(anchor="bos")}
METHODS = ("rome", "c-rome")
LAYERS = (3, 5, 8)
VARIANTS = tuple(
    f"{method}-{where}@{layer}" for layer in LAYERS for where in WHERE for method in METHODS
)


def get_config(variant="c-rome-auto@5"):
    check_variant(variant, VARIANTS)
    name, layer = variant.split("@")
    method, where = name.rsplit("-", 1)
    config = default_config(method, layer=int(layer), **WHERE[where])
    guard = dict(max_ppl_ratio=1.1, action="keep")
    config.update(facts="runs/hard50.json", mode="single", guard=guard)
    return config
