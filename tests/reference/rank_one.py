"""What tests of rank-one edits share: a request, templates, settings and second moments."""

import numpy as np

import jaxedit
from jaxedit.edits.edit import to_dense

# A target of several tokens, templates in front, and every term of the loss large enough to matter.
REQUEST = jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language")
TEMPLATES = ("{}", "I am a little. {}", "The other day I was talking to. {}")
SETTINGS = {
    "published": dict(
        layer=2,
        v_num_grad_steps=6,
        v_lr=0.5,
        v_weight_decay=0.5,
        kl_factor=0.0625,
        clamp_norm_factor=4.0,
    ),
    "every term": dict(
        layer=2,
        v_num_grad_steps=7,
        v_lr=0.3,
        v_weight_decay=40.0,
        kl_factor=3.0,
        clamp_norm_factor=1.5,
    ),
    "one update": dict(
        layer=3,
        v_num_grad_steps=2,
        v_lr=0.5,
        v_weight_decay=0.5,
        kl_factor=0.0625,
        clamp_norm_factor=4.0,
    ),
}


def golden_stats(cases: dict, tensors: dict, layer: int) -> jaxedit.Stats:
    """Read C of a layer with the ridge that the reference implementations gave it."""
    cov_FF = tensors[f"mom2/{layer}"].astype(np.float64)
    ridged_FF = cov_FF + cases["rome"]["mom2_ridge"] * np.eye(len(cov_FF))
    return jaxedit.Stats.from_moments({layer: ridged_FF}, int(tensors["mom2/n_tokens"]))


def make_edit(name: str, model, request=REQUEST, stats=None, **hyper):
    """Edit one request in TEMPLATES; return the edit and its info."""
    editor = jaxedit.make_editor(name, **{"context_templates": TEMPLATES, **hyper})
    edit, _, info = editor.edit(model, [request], editor.init(model, stats))
    return edit, info


def update(name: str, model, request=REQUEST, stats=None, **hyper) -> np.ndarray:
    """Edit one request in TEMPLATES; return delta W [F, D]."""
    edit, _ = make_edit(name, model, request, stats, **hyper)
    return to_dense(edit.deltas[0])
