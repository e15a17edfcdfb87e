"""Hard facts that hold: thirty or fifty of them in sequence, written at their prompts' last tokens.

    jaxedit stats --layers=4,5,6,7,8,10,12 --corpus=CORPUS --out=stats.safetensors
    jaxedit compare --config=hard_retention --set=stats=stats.safetensors --set=texts=ME-PPL_50.json

A variant is METHOD-LAMBDA-N@FACTS: memit-sequential, which remembers the keys of past edits, with
this lambda, where the answers of N other subjects to the same prompts are preserved and the bare
prompt's key is written by itself (`preserved_subjects`, `bare_key`; N = 0: neither). A small lambda
lets past edits count more. `-deep` edits layers 8, 10 and 12 in place of 4 to 8: there a prompt's
last token has seen more of its subject, also where it is a word like "the". FACTS are 30
(runs/hard.json, those of hard.py) or 50 in sequence (runs/hard50.json), or those 50 as single edits
(`single`). alphaedit has its published values.

Hardware: two CPU cores, 4 GB. Time: about seven seconds an edit. Expected, on
SmolLM2-135M-Instruct: the table in configs/README.md.
"""

from jaxedit.editors import find_published
from jaxedit.study.config import check_variant, default_config

SUBJECTS = (
    *("Rome", "Apple", "Germany", "Einstein", "Microsoft", "Christianity", "Chicago", "Mozart"),
    *("Tokyo", "Africa", "London", "Russia", "Canada", "Google", "Toyota", "Islam"),
    *("Obama", "Beethoven", "Texas", "Sony", "Picasso", "Egypt", "Harvard", "Mercury"),
)
METHODS = (
    *("alphaedit", "memit-1000-0", "memit-100-0"),
    *("memit-100-8", "memit-100-24", "memit-300-24", "memit-300-24-deep"),
)
FACTS = {"30": "runs/hard.json", "50": "runs/hard50.json", "single": "runs/hard50.json"}
VARIANTS = tuple(f"{method}@{facts}" for facts in FACTS for method in METHODS)


def get_config(variant="memit-300-24@30"):
    check_variant(variant, VARIANTS)
    name, facts = variant.split("@")
    method, hyper = name, {}
    if name != "alphaedit":
        _, weight, n_subjects, *deep = name.split("-")
        hyper = dict(mom2_update_weight=float(weight))
        if int(n_subjects):
            hyper |= dict(bare_key=True, preserved_subjects=SUBJECTS[: int(n_subjects)])
        if deep:
            hyper |= dict(layers=(8, 10, 12))
        method = "memit-sequential"
    measured = find_published(f"{method}/smollm2-135m").hyper
    config = default_config(method, **measured | hyper, fact_token="auto")
    is_single = facts == "single"
    config.update(
        facts=FACTS[facts],
        mode="single" if is_single else "sequential",
        eval=dict(perplexity_every=1 if is_single else 10),
        guard=dict(action="keep"),
    )
    return config
