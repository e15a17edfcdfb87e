"""A change of one HF weight, as the readers of files give it.

Files differ in how a matrix lies in them, so a change says so (`order`); where it cannot,
`in_hf_order` goes by the shape, and a square matrix needs to be told.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import product_norm

ORIENTATIONS = ("hf", "transposed")  # how a square matrix lies, beside the weight it changes


class WeightChange(NamedTuple):
    """A change of a weight, read where it is needed.

    Attributes:
      shape: of the change, as it lies.
      read: one slice for each dimension -> that rectangle, float32.
      order: "hf" (as the weight it is named after), "in_out", or None: the file does not say.
      factors: (left, right) where the change is their product, of lower rank than a matrix.
    """

    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]
    order: str | None = "hf"
    factors: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def rank(self) -> int | None:
        """The number of columns of the left factor; None for a change written out."""
        return None if self.factors is None else self.factors[0].shape[1]

    @property
    def norm(self) -> float:
        """The Frobenius norm, in float64."""
        if self.factors is None:
            whole = self.read(tuple(slice(0, size) for size in self.shape))
            return float(np.linalg.norm(whole.astype(np.float64)))
        return product_norm(*self.factors)


def change_of_factors(
    left: np.ndarray, right: np.ndarray, order: str | None = "hf"
) -> WeightChange:
    """Make a change that is the product of two factors.

    Args:
      left: rows x rank.
      right: rank x columns.
      order: see `WeightChange`.
    """
    left, right = np.asarray(left, np.float32), np.asarray(right, np.float32)

    def read(spans: tuple[slice, ...]) -> np.ndarray:
        return left[spans[0]] @ right[:, spans[1]]

    return WeightChange((left.shape[0], right.shape[1]), read, order, (left, right))


def change_of_array(array: np.ndarray, order: str | None = "hf") -> WeightChange:
    """Make a change that is written out."""
    whole = np.asarray(array, np.float32)
    return WeightChange(whole.shape, whole.__getitem__, order)


def in_hf_order(
    name: str,
    change: WeightChange,
    shape: tuple[int, ...],
    is_in_out: bool,
    orientation: str | None,
) -> WeightChange:
    """Turn a change so that it lies as the HF weight it belongs to.

    Args:
      name: the weight's, for messages.
      change: as the file has it.
      shape: of the HF weight.
      is_in_out: whether HF stores the weight in x out.
      orientation: of a square matrix whose file does not say how it lies: "hf" or "transposed".

    Raises:
      ValueError: where the change has another shape than the weight, or is square and nothing says
        how it lies.
    """
    is_turned = change.order == "in_out" and not is_in_out
    if change.order is None and len(shape) == 2:
        if shape[0] == shape[1] == change.shape[0] and orientation is None:
            raise ValueError(
                f"the change of {name!r} is square, so its shape does not tell which way it lies: "
                "give the orientation hf (as the weight lies in an HF checkpoint) or transposed"
            )
        is_turned = orientation == "transposed" if shape[0] == shape[1] else change.shape != shape
    turned = _transposed(change) if is_turned and len(change.shape) == 2 else change
    if turned.shape != shape:
        raise ValueError(
            f"the change of {name!r} has shape {change.shape}; the model's weight has {shape}: "
            "made for another model?"
        )
    return turned


def _transposed(change: WeightChange) -> WeightChange:
    if change.factors is not None:
        left, right = change.factors
        return change_of_factors(right.T, left.T)
    return WeightChange(change.shape[::-1], lambda spans: change.read(spans[::-1]).T)


def check_finite(path: object, name: str, array: np.ndarray) -> None:
    """Check that an array of a file holds nothing but finite numbers.

    Raises:
      ValueError: where it does not.
    """
    n_bad = int(np.sum(~np.isfinite(array)))
    if n_bad:
        raise ValueError(
            f"{path}: {n_bad} of the {array.size} numbers of {name!r} are not finite (NaN or "
            "infinite): the file is damaged, or what made it diverged"
        )
