"""More that an update must satisfy: the bare prompt's key, and prompts whose answer shall stay.

The keys K of MEMIT's family are pooled over context templates, so that no prompt's own key counts
by itself. Two kinds of columns can be added to K, each with its row of R (2210.07229, eq. 9
and 10, where K_0 are keys that keep their values):

    the key of the bare prompt, with the request's own residual (g allows as much to be missed as of
    any other; EMMET then has its slack even for one fact)
    the keys of the prompt about other subjects, with a residual of 0

The second kind is for facts that are written at the prompt's last token, which facts of one
relation share: without it the new answer is given for all of them. Facts that are written at their
subjects' tokens do not get them.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving.keys import compute_keys
from jaxedit.solving.packed_prompts import PackedPrompts, pack_prompts
from jaxedit.solving.prompts import fact_token_of

BARE = (("{}",),)  # groups of templates: the prompt alone


class KeyConstraints(NamedTuple):
    """Prompts whose keys are added; None: none are.

    Attributes:
      bare: the requests' own.
      preserved: about other subjects.
    """

    bare: PackedPrompts | None
    preserved: PackedPrompts | None


def pack_constraints(
    model: Model,
    requests: list[Request],
    fact_token: str,
    bare_key: bool,
    preserved_subjects: Sequence[str],
) -> KeyConstraints:
    """Tokenise the prompts whose keys are added.

    Args:
      model: gives the tokenizer and the mesh.
      requests: of the edit.
      fact_token: as the hyper-parameter.
      bare_key: whether the bare prompts' keys are added.
      preserved_subjects: other subjects, for which a prompt's answer shall stay.
    """
    bare = preserved = None
    if bare_key:
        bare = pack_prompts(model, requests, BARE, "mean", fact_token)
    others = {
        (request.prompt, subject): dataclasses.replace(request, subject=subject)
        for request in requests
        if preserved_subjects and fact_token_of(model.tokenizer, request, fact_token) == "last"
        for subject in preserved_subjects
    }
    for request in requests:  # what the edit writes is not preserved
        others.pop((request.prompt, request.subject), None)
    if others:
        preserved = pack_prompts(model, list(others.values()), BARE, "mean", "last")
    return KeyConstraints(bare, preserved)


def add_constraints(
    model: Model,
    layer: int,
    constraints: KeyConstraints,
    key_IF: np.ndarray,
    residual_ID: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's keys and residuals with those that are added.

    Args:
      model: with the layers below written.
      layer: which.
      constraints: of the edit.
      key_IF: the requests' pooled keys.
      residual_ID: what is to be written at them.
    """
    keys, residuals = [key_IF], [residual_ID]
    if constraints.bare is not None:
        keys.append(compute_keys(model, constraints.bare, layer)[0])
        residuals.append(residual_ID)
    if constraints.preserved is not None:
        keys.append(compute_keys(model, constraints.preserved, layer)[0])
        residuals.append(np.zeros((len(keys[-1]), residual_ID.shape[1]), residual_ID.dtype))
    return np.concatenate(keys), np.concatenate(residuals)
