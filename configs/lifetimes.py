"""How long does each method live: a thousand normal facts, one after the other.

    jaxedit stats --layers=4,5,6,7,8 --corpus=CORPUS --out=stats.safetensors
    jaxedit compare --config=lifetimes --set=stats=stats.safetensors \\
        --set=facts=counterfact.json --set=texts=ME-PPL_50.json

Every method writes one fact at a time but for UltraEdit and LocFT-BF, which write theirs in batches
of 100; the comparison is by facts written. The perplexity is measured every 20 facts (of batches
every 100), all facts so far are looked at again every 200. Values are the `measured` ones of
`jaxedit/editors/_published.py`; ft-m has no l-infinity ball. The guard keeps every edit and only
reports.

Hardware: two CPU cores, 4 GB. Time: three to five seconds an edit, an hour or more a method; each
study goes on where it was interrupted. Expected, on SmolLM2-135M-Instruct (configs/README.md): ROME
passes 1000 at its 98th edit and LocFT-BF after 400 facts, while MEMIT and its family live through a
hundred facts and UltraEdit through the thousand.
"""

from jaxedit.editors import find_published
from jaxedit.study.config import check_variant, default_config

CHUNK = 100
METHODS = {
    "rome": ("rome", {}),
    "c-rome": ("c-rome", {}),
    "memit": ("memit", {}),
    "memit-sequential": ("memit-sequential", {}),
    "alphaedit": ("alphaedit", {}),
    "betaedit": ("betaedit", {}),
    "encore": ("encore", {}),
    "emmet": ("emmet", {}),
    "ft-m": ("ft", dict(objective="teacher_forced", norm_constraint=False)),
    "locft-bf": ("locft-bf", {}),
    "ultraedit": ("ultraedit", {}),
}
VARIANTS = tuple(METHODS)
IN_CHUNKS = ("locft-bf", "ultraedit")
WHOLE_MATRICES = ("ft-m", "locft-bf")


def get_config(variant="memit"):
    check_variant(variant, VARIANTS)
    method, hyper = METHODS[variant]
    config = default_config(method, **find_published(f"{method}/smollm2-135m").hyper | hyper)
    size = CHUNK if variant in IN_CHUNKS else 1
    looks = dict(perplexity_every=max(1, 20 // size), retention_every=200 // size)
    config.update(n_facts=1000, facts_per_edit=size, eval=looks, guard=dict(action="keep"))
    if variant in WHOLE_MATRICES:
        config.journal_dense_every = 10
    return config
