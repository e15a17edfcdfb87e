"""Sixty normal facts in sequence, written so that they harm other texts little.

Either what would harm them is taken out of each edit, or of several methods' edits of a fact the
one that harms them least is made (`least-harm`).

    jaxedit stats --layers=4,5,6,7,8 --corpus=CORPUS --gradients --out=stats.safetensors
    jaxedit compare --config=harm --set=stats=stats.safetensors \\
        --set=facts=counterfact.json --set=texts=ME-PPL_50.json

Hardware: two CPU cores, 8 GB. Time: about 8 minutes a study, of which one or two read the texts
that are not to be harmed; `least-harm`, which makes four edits of each fact, half an hour. These
texts are the lines of `harm_texts.txt` where the command is run, e.g. WikiText-2's validation
split; they must not be those of --set=texts. Expected: where M is the identity (ROME as its authors
released it: `rome-identity`; within AlphaEdit's null space) the projection lessens the harm, and
nothing changes at the keys that are written; where M is C, which is K-FAC's estimate of the same
form, little is left to be won. Choosing wins more: the loss rises by less than half of what the
best of the four methods costs, and every fact is said.

Values are the `measured` ones of `jaxedit/editors/_published.py`. Each study predicts the change of
the loss at every edit (`eval.prediction_draws`) and measures the perplexity every ten. The guard
keeps every edit and only reports.
"""

from jaxedit.editors import find_published
from jaxedit.study.config import check_variant, default_config

IDENTITY = dict(mom2_adjustment=False)
HARM_TEXTS = "harm_texts.txt"
BESIDE_ALPHAEDIT = ("emmet", "memit", "rome")  # in `least-harm`


def _harm(weight):
    return dict(harm_projection=weight, harm_texts=HARM_TEXTS)


def _measured(method):
    return find_published(f"{method}/smollm2-135m").hyper


VARIANTS = {
    "rome-identity": ("rome", IDENTITY),
    "rome-identity-harm-30": ("rome", IDENTITY | _harm(30.0)),
    "rome-identity-harm-300": ("rome", IDENTITY | _harm(300.0)),
    "rome-identity-harm-3000": ("rome", IDENTITY | _harm(3000.0)),
    "rome": ("rome", {}),
    "rome-harm-300": ("rome", _harm(300.0)),
    "c-rome": ("c-rome", {}),
    "c-rome-harm-300": ("c-rome", _harm(300.0)),
    "memit": ("memit", {}),
    "memit-harm-10000": ("memit", _harm(10000.0)),
    "memit-sphere": ("memit", dict(sphere_share=0.5)),
    "alphaedit": ("alphaedit", {}),
    "alphaedit-harm-10000": ("alphaedit", _harm(10000.0)),
    "crispedit": ("crispedit", {}),
    "least-harm": ("alphaedit", {}),
}


def get_config(variant="rome-identity-harm-300"):
    check_variant(variant, VARIANTS)
    method, hyper = VARIANTS[variant]
    config = default_config(method, **_measured(method) | hyper)
    evaluation = dict(perplexity_every=10, prediction_draws=4)
    config.update(n_facts=60, guard=dict(action="keep"), eval=evaluation)
    if method == "crispedit":
        config.journal_dense_every = 10
    if variant == "least-harm":
        others = tuple(dict(method=other, **_measured(other)) for other in BESIDE_ALPHAEDIT)
        config.update(alternatives=others, harm_texts=HARM_TEXTS)
    return config
