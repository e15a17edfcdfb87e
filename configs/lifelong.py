"""Ten thousand facts in batches of 100: the lifelong editors beside fine-tuning in small batches.

    jaxedit compare --config=lifelong --set=facts=counterfact.json --set=texts=ME-PPL_50.json

An edit is a batch of 100 facts on top of all before; the perplexity is measured every 1,000 facts,
and at the end all facts are looked at again in the last model. Values are the `measured` ones of
`jaxedit/editors/_published.py`, chosen on this model and on other facts. The guard keeps every
edit and only reports. LocFT-BF's edits are whole matrices, journalled every ten.

Hardware: two CPU cores, 4 GB, 4 GB of disk. Time: an hour for UltraEdit's 100 turns on two cores
that had other work besides; LocFT-BF takes one to three minutes a turn. Expected, on
SmolLM2-135M-Instruct: the table in configs/README.md, where LocFT-BF's model collapses within a
thousand facts.
"""

from jaxedit.editors import find_published
from jaxedit.study.config import check_variant, default_config

VARIANTS = ("ultraedit", "stableedit", "locft-bf")


def get_config(variant="ultraedit"):
    check_variant(variant, VARIANTS)
    config = default_config(variant, **find_published(f"{variant}/smollm2-135m").hyper)
    config.update(
        n_facts=10_000,
        facts_per_edit=100,
        eval=dict(perplexity_every=10),
        guard=dict(action="keep"),
    )
    if variant == "locft-bf":
        config.journal_dense_every = 10
    return config
