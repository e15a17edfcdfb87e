"""Sixty normal facts written one after the other into SmolLM2-135M by each method: which of them
last, and what they cost.

    jaxedit stats --layers=4,5,6,7,8 --corpus=CORPUS --out=stats.safetensors jaxedit compare
    --config=configs/sequential.py --stats=stats.safetensors --set=facts=counterfact.json \
        --set=texts=ME-PPL_50.json

Hardware: two CPU cores, 4 GB. Time: about 5 minutes a method. Expected: the table in the README.

Values are the published ones for GPT-J and Llama (see `published.py`) where they carry over; layers
and lambda are those that `batch.py` chose for this model. The guard only records: this is about
what the methods do when nobody watches. """

from jaxedit.study.config import default_config

LAYERS = (4, 5, 6, 7, 8)
VARIANTS = {
    "rome": ("rome", dict(layer=5)),
    "c-rome": ("c-rome", dict(layer=5)),
    "memit": ("memit", dict(layers=LAYERS, mom2_update_weight=1000.0)),
    "memit-sequential": ("memit-sequential", dict(layers=LAYERS, mom2_update_weight=1000.0)),
    "encore": ("encore", dict(layers=LAYERS, mom2_update_weight=1000.0)),
    "emmet": ("emmet", dict(layers=(5,), mom2_update_weight=1.0)),
    "pmet": ("pmet", dict(layers=LAYERS, mom2_update_weight=1000.0)),
    "alphaedit": ("alphaedit", dict(layers=LAYERS)),
    "betaedit": ("betaedit", dict(layers=LAYERS, lambda1=1000.0)),
    # Distances of this model's residual stream: a value is about 100 away, and counts as written
    # within a tenth of that.
    "nse": ("nse", dict(layers=LAYERS, mom2_update_weight=1000.0, alpha=10.0, upper_bound=300.0)),
    "memit-rect": ("memit", dict(layers=LAYERS, mom2_update_weight=1000.0, rect_keep=0.4)),
    "ft-l": ("ft", dict(layers=(5,), norm_constraint=5e-4)),
    "ft-m": ("ft", dict(layers=(5,), objective="teacher_forced", norm_constraint=5e-4)),
}


def get_config(variant="memit"):
    if variant not in VARIANTS:
        raise ValueError(
            f"unknown variant {variant!r}; this configuration knows {', '.join(VARIANTS)}"
        )
    method, hyper = VARIANTS[variant]
    config = default_config(method, **hyper)
    config.update(n_facts=60, perplexity_every=10, guard=dict(max_ppl_ratio=2.0, action="record"))
    return config
