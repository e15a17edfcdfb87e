"""Hard cases before editing: requests ranked by the damage that a rank-one edit of each would do,
from forward passes alone.

ROME's update is u v^T with u = C^-1 k_bar and v = (v* - W k_u) / (u . k_u). How hard it pushes
ordinary texts is the relative perturbation p = mean_t |u . k_t| |v| / |h_t|
(`jaxedit.metrics.perturbation`), of which only v* is not known before the optimisation. That stays
within clamp_norm_factor times the length of the value W k_u that the subject has now, and mostly
ends there, so

    predicted = clamp_norm_factor |W k_u| mean_t (|u . k_t| / |h_t|) / |u . k_u|

is the most that the edit will push, and mostly what it does.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.editors import Editor
from jaxedit.edits.request import Request
from jaxedit.files import write_atomic
from jaxedit.metrics.perturbation import KeyProbe
from jaxedit.models.model import Model


class DamagePrediction(NamedTuple):
    """A request and what its edit would do, as far as forward passes tell.

    Attributes:
      request: as given.
      predicted: the predicted relative perturbation.
      denominator: |u . k_u| with u of length one: small where the bare prompt's key is unlike the
        prefixed ones.
      key_ratio: |k_u| / |k_bar|.
    """

    request: Request
    predicted: float
    denominator: float
    key_ratio: float


def predict_damage(
    model: Model, requests: list[Request], editor: Editor, state: Any, probes: KeyProbe
) -> list[DamagePrediction]:
    """What an edit of each request alone would do to the model, in the order given.

    Args:
      model: the edits would be made on.
      requests: at least one.
      editor: of a method that makes one rank-one edit a request.
      state: of the editor.
      probes: of the texts that the damage is measured on, at the edited layer.

    Raises:
      ValueError: with another method, or where a request in a template is longer than the model's
        positions.
    """
    if editor.bound_updates is None:
        raise ValueError(
            f"screening predicts what rank-one edits do (rome, c-rome); the method is {editor.name}"
        )
    found = []
    for request, bound in zip(requests, editor.bound_updates(model, requests, state), strict=True):
        push = float(np.mean(np.abs(probes.key_EQF[0] @ bound.u_F) / probes.norm_Q))
        found.append(
            DamagePrediction(request, push * bound.v_norm, bound.denominator, bound.key_ratio)
        )
    return found


def hard_and_normal(
    found: list[DamagePrediction], limit: float
) -> tuple[list[DamagePrediction], list[DamagePrediction]]:
    """The requests predicted to push the texts harder than `limit`, worst first, and as many others
    in the order given.
    """
    hard = sorted(
        (each for each in found if each.predicted > limit), key=lambda each: -each.predicted
    )
    return hard, [each for each in found if each.predicted <= limit][: len(hard)]


def write_facts(path: Path, chosen: list[DamagePrediction]) -> None:
    """Writes requests as a file of facts in this project's own form, each with its prediction as a
    note.
    """
    records = []
    for each in chosen:
        record = {
            name: value
            for name, value in dataclasses.asdict(each.request).items()
            if value not in (None, ())
        }
        for name in ("neighbours", "portability"):
            if name in record:
                record[name] = [probe._asdict() for probe in getattr(each.request, name)]
        records.append({**record, "kind": f"predicted perturbation {each.predicted:.4g}"})
    write_atomic(path, (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode())
