"""A network for MEND that works without training: the identity, with negative step sizes.

It edits with normalised gradients, against them. Its moments are those of a few facts.
"""

import functools
import tempfile
from pathlib import Path

import jax
from one_batch import make_target_rows

import jaxedit
from jaxedit.mend.hypernetwork import add_to_moments, init_hypernetwork
from jaxedit.mend.network import Switches, make_layout
from jaxedit.mend.network_file import write_network
from jaxedit.mend.places import mlp_places, weight_sizes
from jaxedit.models.output_gradients import inputs_and_output_gradients

STEP_SIZE = -2e-3
FACTS = [
    jaxedit.Request("{} is located in the city of", "The Louvre", "Paris"),
    jaxedit.Request("The mother tongue of {} is", "the author", "French"),
    jaxedit.Request("{} was sold for", "The company", "250 million"),
]


@functools.cache
def descending_network(directory: Path, layers: tuple[int, ...]) -> str:
    """Write the network of a model's layers; return its path.

    Args:
      directory: of the model.
      layers: whose MLP it edits.
    """
    model = jaxedit.load(str(directory))
    layout = make_layout(Switches(rank=4), mlp_places(model, layers), weight_sizes(model))
    rows = make_target_rows(model, FACTS)
    rows = rows._replace(weight_BQ=rows.weight_BQ * len(FACTS))
    _, factors = inputs_and_output_gradients(model, layout.places, rows)
    made = jax.jit(add_to_moments)(init_hypernetwork(layout, STEP_SIZE, seed=0), factors)
    path = Path(tempfile.mkdtemp()) / "network.safetensors"
    write_network(path, made, model, {})
    return str(path)
