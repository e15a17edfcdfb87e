"""Values found once: what `optimise` found on a model without edits, kept in a folder for whoever
asks for the same again.

A value depends on the model, the request, the templates, the layer and the target's
hyper-parameters; not on lambda, the layers below or the method. So a sweep over those, or MEMIT
beside EMMET beside AlphaEdit, finds its values once."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from jaxedit.edits.request import Request
from jaxedit.files import write_atomic
from jaxedit.models.model import Model
from jaxedit.solving.hyper import ValueHyper
from jaxedit.solving.value import OptimisedValues, optimise_values


def cached_values(
    hyper: ValueHyper,
    model: Model,
    requests: list[Request],
    templates: tuple[str, ...],
    layer: int,
    residual: bool,
    attention: bool = False,
) -> OptimisedValues:
    """As `jaxedit.solving.value.optimise_values`, through the folder `hyper.target_cache` where
    there is one and no edit.

    Raises:
      ValueError: where a file there is not a whole one, or with several processes.
      OSError: where the folder cannot be written.
    """
    if hyper.target_cache is not None and jax.process_count() > 1:
        raise ValueError(
            "target_cache: what is in a folder may not be there for every process; run this with one process"
        )
    if hyper.target_cache is None or model.metadata.history:
        return optimise_values(
            model, requests, templates, layer, hyper.target(), residual, attention
        )
    asked = {
        "model": [model.fingerprint, str(model.dtype), model.tokenizer.add_bos],
        "requests": [[request.prompt, request.subject, request.target_new] for request in requests],
        "templates": templates,
        "where": [layer, residual, attention],
        "hyper": dataclasses.asdict(hyper.target()),
    }
    path = (
        Path(hyper.target_cache)
        / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.safetensors"
    )
    if path.is_file():
        return _read(path)
    from safetensors.numpy import save

    found = optimise_values(model, requests, templates, layer, hyper.target(), residual, attention)
    write_atomic(
        path, save({name: np.ascontiguousarray(array) for name, array in found._asdict().items()})
    )
    return found


def _read(path: Path) -> OptimisedValues:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return OptimisedValues(**load_file(path))
    except (SafetensorError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold values that were kept ({error}); delete it to have them found again"
        ) from error
