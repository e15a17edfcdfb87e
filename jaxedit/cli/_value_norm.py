"""The mean norm of facts' values, measured for `jaxedit stats`."""

import logging
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from jaxedit.distributed import is_first_process

if TYPE_CHECKING:
    from jaxedit.models.model import Model
    from jaxedit.stats.value_norm import ValueNorm

FLAGS = flags.FLAGS
VALUE_NORM_REQUESTS = 1000  # as NAS was published
BUILT_IN_REQUESTS = 100  # of a built-in model, on a CPU: some minutes


def measure_with_progress(model: "Model", layer: int) -> "ValueNorm":
    """Measure the mean norm of values at a layer, of facts drawn from --facts, with a bar."""
    from rich.console import Console
    from rich.progress import Progress

    from jaxedit.datasets import read_requests
    from jaxedit.editors import known_name, make_editor, published_hyper
    from jaxedit.models.built_in import BUILT_IN
    from jaxedit.solving.norm_anchor import measure_value_norm

    # MEMIT's values, those published for the model or the method's own, of facts drawn by --seed.
    published = published_hyper("memit", model) if known_name(model.config) else {}
    hyper = make_editor("memit", **published | {"layers": (layer,)}).hyper
    is_built_in = model.metadata.source in BUILT_IN
    wanted = FLAGS.requests or (BUILT_IN_REQUESTS if is_built_in else VALUE_NORM_REQUESTS)
    usable = read_requests(FLAGS.facts).requests
    drawn = np.random.default_rng(FLAGS.seed).permutation(len(usable))[:wanted]
    requests = [usable[i] for i in drawn]
    if len(requests) < wanted:
        logging.getLogger("jaxedit").warning(
            "%s holds %d facts, fewer than the %d asked for; all were taken",
            FLAGS.facts,
            len(requests),
            wanted,
        )
    with Progress(console=Console(stderr=True, quiet=not is_first_process())) as bar:
        task = bar.add_task("values of facts", total=len(requests))
        return measure_value_norm(
            model, requests, layer, hyper, lambda n_done: bar.update(task, completed=n_done)
        )
