"""Hard facts made safe and effective: where to write a fact whose subject is one token at the start
of the prompt.

    jaxedit screen --config=configs/single_edits.py --facts=counterfact.json
    --facts=configs/one_token.json --facts=builtin \
        --hard=runs/hard.json --normal=runs/normal.json
    jaxedit compare --config=configs/fact_token.py --set=texts=ME-PPL_50.json

Hardware: two CPU cores, 4 GB. Time: about 6 seconds an edit with its perplexity. Expected: the
table in the README.

A variant is METHOD-WHERE@LAYER: at the subject's last token as published, at the prompt's last one
where the subject's is at position 0 ("auto"), or behind a begin-of-text token that every prompt
then has ("bos"). """

from jaxedit.study.config import default_config

WHERE = {"subject": dict(), "auto": dict(fact_token="auto"), "bos": dict(anchor="bos")}
METHODS = ("rome", "c-rome")
LAYERS = (3, 5, 8)
VARIANTS = tuple(
    f"{method}-{where}@{layer}" for layer in LAYERS for where in WHERE for method in METHODS
)


def get_config(variant="c-rome-auto@5"):
    if variant not in VARIANTS:
        raise ValueError(
            f"unknown variant {variant!r}; this configuration knows {', '.join(VARIANTS)}"
        )
    name, layer = variant.split("@")
    method, where = name.rsplit("-", 1)
    config = default_config(method, layer=int(layer), **WHERE[where])
    config.update(
        facts="runs/hard.json", mode="single", guard=dict(max_ppl_ratio=1.1, action="record")
    )
    return config
