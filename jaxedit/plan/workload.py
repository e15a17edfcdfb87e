"""What a planned study does, and the lengths that its phases have.

Lengths are as those of CounterFact with sampled templates of ten tokens, padded as the library
pads.
"""

from typing import NamedTuple

from jax.sharding import Mesh

from jaxedit.models import packing
from jaxedit.models.config import DecoderConfig
from jaxedit.solving.prompt_batch import PREFIX_STEP, PaddedShape

SHARED_TOKENS = 2 * PREFIX_STEP  # what a template begins with
PROMPT_TOKENS = PREFIX_STEP  # a prompt up to its subject
VALUE_SHAPE = PaddedShape(prefix=3 * PREFIX_STEP, suffix=8, n_read=2)


class Workload(NamedTuple):
    """What a study does; one call of a phase is for all requests, or for one batch of texts."""

    layers: tuple[int, ...]  # edited ones, in ascending order
    n_requests: int  # edited together
    n_templates: int
    v_num_grad_steps: int
    row_tokens: int  # of a row of texts


def moment_tokens(config: DecoderConfig) -> int:
    """Return the width of rows for second moments: the model's positions, up to one batch."""
    return min(config.P, packing.BATCH_TOKENS)


def count_text_rows(mesh: Mesh, row_tokens: int) -> int:
    """Return how many rows of texts make a batch."""
    return mesh.shape["data"] * max(1, packing.BATCH_TOKENS // row_tokens)
