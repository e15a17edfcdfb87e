"""What a training of MEND is made of: records to train with, others to validate with."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxedit.edits.request import Request
from jaxedit.mend.network import Layout
from jaxedit.mend.records import Record, tokenise_records
from jaxedit.models.model import Model

# Keys that may be other ones when a training goes on.
FREE_KEYS = ("mesh", "max_iters", "early_stop_patience", "facts")


class Data(NamedTuple):
    """The model and the records of a training.

    Attributes:
      model: without edits.
      training: records to train with.
      validation: and to validate with.
      made_from: a description of all that decides the result, by which a checkpoint of another
        training is told.
    """

    model: Model
    training: Sequence[Record]
    validation: Sequence[Record]
    made_from: Mapping[str, Any]


def make_data(
    model: Model, sources: Sequence[Sequence[Request]], config: Mapping[str, Any], layout: Layout
) -> Data:
    """Divide the records of sources into those to train with and those to validate with.

    Args:
      model: without edits.
      sources: the requests of each.
      config: of the training.
      layout: which weights are edited.

    Raises:
      ValueError: where a source has too few records, or none of them a neighbour.
    """
    n_train, n_validate = config["n_train"], config["n_validate"]
    training, validation = [], []
    for requests in sources:
        records = tokenise_records(model, requests[: n_train + n_validate])
        if len(records) < n_train + n_validate:
            raise ValueError(
                f"a source has {len(records)} records with a neighbour among its first "
                f"{n_train + n_validate}; n_train={n_train} and n_validate={n_validate} ask for "
                "more: give fewer"
            )
        training += records[:n_train]
        validation += records[n_train:]
    digest = hashlib.sha256(json.dumps([training, validation]).encode()).hexdigest()
    made_from = {
        **{key: value for key, value in config.items() if key not in FREE_KEYS},
        "places": layout.places,
        "base": model.rounded_fingerprint,
        "records_sha256": digest,
    }
    return Data(model, training, validation, made_from)
