"""Screening: the damage that a rank-one edit would do, predicted from forward passes alone.

ROME's update is u v^T with u = C^-1 k_bar and v = (v* - W k_u) / (u . k_u). Its relative
perturbation of ordinary texts is p = mean_t |u . k_t| |v| / |h_t| (`jaxedit.metrics.perturbation`),
of which only v* is not known before the optimisation. |v*| stays within clamp_norm_factor times
the norm of the value W k_u that the subject has now, and mostly ends there, so

    predicted = clamp_norm_factor |W k_u| mean_t (|u . k_t| / |h_t|) / |u . k_u|

bounds the relative perturbation of the edit, and is mostly reached.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.editors import Editor
from jaxedit.edits.request import Request
from jaxedit.files import write_atomic
from jaxedit.metrics.perturbation import KeyProbe
from jaxedit.models.model import Model
from jaxedit.study.config import editor_from
from jaxedit.study.guard import Guard
from jaxedit.study.renamed import RENAMED_SCREENING

SCREENINGS = ("", "log", "skip", "c-rome")


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


class Screening(NamedTuple):
    """What is predicted of a study's steps, and what is done to the hard ones.

    Attributes:
      predicted: step -> predicted relative perturbation; empty where it was not asked for.
      hard: steps whose prediction is over the guard's limit.
      instead: the editor that makes their edits; None: they are skipped.
    """

    predicted: dict[int, float]
    hard: frozenset[int]
    instead: Editor | None


def predict_damage(
    model: Model, requests: list[Request], editor: Editor, state: Any, key_probe: KeyProbe
) -> list[DamagePrediction]:
    """Predict what an edit of each request alone would do to the model, in the order given.

    Args:
      model: the edits would be made on.
      requests: at least one.
      editor: of a method that makes one rank-one edit a request.
      state: of the editor.
      key_probe: of the texts that the damage is measured on, at the edited layer.

    Raises:
      ValueError: with another method, or where a request in a template is longer than the model's
        positions.
    """
    if editor.bound_updates is None:
        raise ValueError(
            f"screening predicts what rank-one edits do (rome, c-rome); the method is {editor.name}"
        )
    predictions = []
    bounds = editor.bound_updates(model, requests, state)
    for request, bound in zip(requests, bounds, strict=True):
        along_u = np.abs(key_probe.key_EQF[0] @ bound.u_F) / key_probe.norm_Q
        predicted = float(np.mean(along_u)) * bound.v_norm
        predictions.append(DamagePrediction(request, predicted, bound.denominator, bound.key_ratio))
    return predictions


def check_screening(screening: str, guard: Guard) -> None:
    """Check the configuration's key `screening`.

    Raises:
      ValueError: on a value there is not, or one that needs a limit which the guard does not have.
    """
    if screening in RENAMED_SCREENING:
        raise ValueError(f"screening={screening!r} is called {RENAMED_SCREENING[screening]!r} now")
    if screening not in SCREENINGS:
        raise ValueError(
            f"screening={screening!r}: expected one of {', '.join(map(repr, SCREENINGS))}"
        )
    if screening in ("skip", "c-rome") and guard.max_relative_perturbation is None:
        raise ValueError(
            f"screening={screening!r} needs guard.max_relative_perturbation, over which a "
            "prediction is a hard case"
        )


def screen_steps(
    values: Mapping[str, Any],
    model: Model,
    batches: list[list[Request]],
    guard: Guard,
    editor: Editor,
    state: Any,
    key_probe: KeyProbe,
) -> Screening:
    """Predict the damage of a study's steps, where its configuration asks for it.

    Args:
      values: the configuration, checked.
      model: unedited.
      batches: the requests of each step.
      guard: whose limit a hard case is over.
      editor: of the study.
      state: of the editor.
      key_probe: of the study's texts.
    """
    action, limit = values["screening"], guard.max_relative_perturbation
    if not action:
        return Screening({}, frozenset(), None)
    requests = [request for batch in batches for request in batch]
    predictions = predict_damage(model, requests, editor, state, key_probe)
    predicted = {step: each.predicted for step, each in enumerate(predictions, 1)}
    if action == "log" or limit is None:
        return Screening(predicted, frozenset(), None)
    hard = frozenset(step for step, value in predicted.items() if not value <= limit)
    hyper = {**values["editor"], "method": "c-rome"}
    hyper.pop("key_variant", None)
    return Screening(predicted, hard, editor_from(hyper) if action == "c-rome" else None)


def hard_and_normal(
    predictions: list[DamagePrediction], limit: float
) -> tuple[list[DamagePrediction], list[DamagePrediction]]:
    """Split off the hard cases, worst first, and as many normal ones in the order given."""
    hard = [each for each in predictions if not each.predicted <= limit]  # NaN is hard
    normal = [each for each in predictions if each.predicted <= limit]
    hard.sort(key=lambda each: -each.predicted)
    return hard, normal[: len(hard)]


def write_facts(path: Path, chosen: list[DamagePrediction]) -> None:
    """Write requests as a file of facts in this project's own form, with the predictions."""
    records = []
    for each in chosen:
        fields = dataclasses.asdict(each.request)
        record = {name: value for name, value in fields.items() if value not in (None, ())}
        for name in ("neighbours", "portability"):
            if name in record:
                record[name] = [answer._asdict() for answer in getattr(each.request, name)]
        records.append({**record, "note": f"predicted perturbation {each.predicted:.4g}"})
    write_atomic(path, (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode())
