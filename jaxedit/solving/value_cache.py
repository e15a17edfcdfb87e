"""On-disk cache of optimised values, for sweeps and for methods that share them.

A value depends on the model, the request, the templates, the layer, the site and the optimisation's
hyper-parameters; not on lambda, the layers below or the method. So a sweep over those, or MEMIT
beside EMMET beside AlphaEdit, optimises its values once. Values of a model with edits are not kept.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from jaxedit.edits.request import Request
from jaxedit.files import write_atomic
from jaxedit.models.model import Model
from jaxedit.solving.hyper import ValueHyper
from jaxedit.solving.site import Site
from jaxedit.solving.value import OptimisedValues, optimise_values


def cached_values(
    hyper: ValueHyper,
    model: Model,
    requests: list[Request],
    templates: tuple[str, ...],
    layer: int,
    site: Site,
) -> OptimisedValues:
    """Optimise the values of requests, or read them from the folder `hyper.target_cache`.

    Without a folder, or on a model with edits, as `jaxedit.solving.value.optimise_values`.

    Raises:
      ValueError: where a file there is not a whole one, or with several processes.
      OSError: where the folder cannot be written.
    """
    if hyper.target_cache is not None and jax.process_count() > 1:
        raise ValueError(
            "target_cache: what is in a folder may not be there for every process; run this with "
            "one process"
        )
    if hyper.target_cache is None or model.metadata.history:
        return optimise_values(model, requests, templates, layer, hyper, site)

    # The file's name is a hash of everything that the values depend on.
    key = {
        "model": [model.fingerprint, str(model.dtype), model.tokenizer.add_bos],
        "requests": [
            [request.prompt, request.subject, request.target_new]
            + ([request.leading_space] if request.leading_space else [])
            for request in requests
        ],
        "templates": templates,
        "layer": layer,
        "site": site,
        "hyper": hyper.target_settings(),
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = Path(hyper.target_cache) / f"{digest}.safetensors"
    if path.is_file():
        return _read(path)

    from safetensors.numpy import save

    values = optimise_values(model, requests, templates, layer, hyper, site)
    arrays = {name: np.ascontiguousarray(array) for name, array in values._asdict().items()}
    write_atomic(path, save(arrays))
    return values


def _read(path: Path) -> OptimisedValues:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return OptimisedValues(**load_file(path))
    except (SafetensorError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold values that were kept ({error}); delete it to have them found "
            "again"
        ) from error
