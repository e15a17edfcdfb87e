"""Sixty normal facts in sequence by each method: which of them last, and what they cost.

    jaxedit stats --layers=4,5,6,7,8 --corpus=CORPUS --out=stats.safetensors
    jaxedit compare --config=sequential --set=stats=stats.safetensors \\
        --set=facts=counterfact.json --set=texts=ME-PPL_50.json

Hardware: two CPU cores, 4 GB. Time: about 5 minutes a method. Expected, on SmolLM2-135M-Instruct:
the table in configs/README.md.

Values are the `measured` ones of `jaxedit/editors/_published.py`, chosen on this model: layers 4 to
8 and lambda 1000 by the batch study (`batch.py`); the exceptions are listed there. ft-l and ft-m
have the l-infinity ball published for GPT-2 XL, RECT and SPHERE the values that were published for
all models. LyapLock's edits are whole matrices of five layers, 18 MB, journalled every ten. The
guard keeps every edit and only reports, so that the methods are seen without its help. mend needs
its network first: `jaxedit train-mend --config=mend:smollm2-135m`.
"""

from jaxedit.editors import find_published, method_names
from jaxedit.study.config import check_variant, default_config

VARIANTS = {
    **{name: (name, {}) for name in method_names() if name != "ft"},
    "mend": ("mend", dict(network="runs/mend-smollm2-135m/network.safetensors")),
    "memit-rect": ("memit", dict(rect_keep=0.4)),
    "memit-sphere": ("memit", dict(sphere_share=0.5)),
    "alphaedit-sphere": ("alphaedit", dict(sphere_share=0.5)),
    "lyaplock-sphere": ("lyaplock", dict(sphere_share=0.5)),
    "ft-l": ("ft", dict(norm_constraint=5e-4)),
    "ft-m": ("ft", dict(objective="teacher_forced", norm_constraint=5e-4)),
}


def get_config(variant="memit"):
    check_variant(variant, VARIANTS)
    method, hyper = VARIANTS[variant]
    measured = find_published(f"{method}/smollm2-135m").hyper
    config = default_config(method, **measured | hyper)
    guard = dict(action="keep")
    config.update(n_facts=60, guard=guard, eval=dict(perplexity_every=10))
    if method == "lyaplock":
        config.journal_dense_every = 10
    return config
