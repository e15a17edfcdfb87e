"""What the formats of an export have in common: what is asked of them, and what they answer."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class ExportOptions(NamedTuple):
    """What is asked of a format.

    Attributes:
      dtype: of what is written: "float32", "bfloat16" or "float16".
      max_rank: of a low-rank factorisation; a change of a higher rank is cut to it by its SVD.
      base: the HF base's directory or hub id, where the model was not loaded from one (.gguf).
    """

    dtype: str = "float32"
    max_rank: int = 512
    base: str | None = None


class WrittenWeight(NamedTuple):
    """One weight's change as it was written.

    Attributes:
      name: the weight's name there.
      layer: which layer of the model.
      rank: of the factors; None: written out.
      error: relative Frobenius error of the change that is read back from what was written.
    """

    name: str
    layer: int
    rank: int | None
    error: float

    @property
    def error_text(self) -> str:
        """The error in percent."""
        return "< 0.0001 %" if self.error < 1e-6 else f"{100 * self.error:.2g} %"


def round_to(tensor: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Round a tensor to a dtype.

    Raises:
      ValueError: where an entry is too large for it.
    """
    with np.errstate(over="ignore"):
        rounded = tensor.astype(jnp.dtype(dtype))
    if not np.isfinite(rounded.astype(np.float32)).all() and np.isfinite(tensor).all():
        raise ValueError(f"{name} has entries too large for {dtype}: give --dtype=bfloat16")
    return rounded
