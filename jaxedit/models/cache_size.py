"""Whether the keys and values that a continuation looks back at fit into memory."""

import math

from jaxedit.mesh import device_bytes_limit
from jaxedit.models.model import Model
from jaxedit.timing import host_bytes


def check_cache_fits(model: Model, n_rows: int, n_positions: int) -> None:
    """Check that there is memory for the keys and values of rows of tokens.

    Args:
      model: that continues them.
      n_rows: how many.
      n_positions: of each, the prompt's and the new ones.

    Raises:
      ValueError: where there is not; the message says what is needed and what there is.
    """
    config = model.config
    n_values = 2 * config.L * n_rows * n_positions * config.K * config.H
    needed_gb = n_values * model.dtype.itemsize / 1e9
    of_device = device_bytes_limit(model.mesh)
    held_gb = (host_bytes() if of_device is None else of_device * model.mesh.size) / 1e9
    if needed_gb > held_gb:
        raise ValueError(
            f"keys and values of {n_rows} rows of {n_positions:,} tokens take "
            f"{_rounded(needed_gb)} GB, and there are {held_gb:.1f} GB of memory: ask for fewer "
            "new tokens, or for fewer prompts at a time"
        )


def _rounded(n_gb: float) -> str:
    return f"{n_gb:,.1f}" if n_gb < 1e6 else f"10^{math.floor(math.log10(n_gb))}"
