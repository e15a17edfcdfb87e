"""What the host keeps of a layer for methods that make M anew while edits go by, and null spaces of
second moments.

C, the second moment of the layer's keys, and S = sum of K K^T over the edits so far, kept as keys
until they are many."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

REBASE = 8  # keys are added up into S when they are more than 1/REBASE of its width


class KeyHistory(NamedTuple):
    """C [F, F], S [F, F] up to some edit (None: 0), and the keys [N, F] of each edit since."""

    moment_FF: np.ndarray
    gram_FF: np.ndarray | None = None
    recent: tuple[np.ndarray, ...] = ()


def append(past: KeyHistory, key_NF: np.ndarray) -> KeyHistory:
    """S + K K^T."""
    past = past._replace(recent=(*past.recent, key_NF))
    if sum(map(len, past.recent)) * REBASE <= key_NF.shape[1]:
        return past
    return past._replace(gram_FF=gram(past), recent=())


def gram(past: KeyHistory, at: np.ndarray | None = None) -> np.ndarray:
    """S in float64, or its rows and columns `at`."""
    at = np.arange(len(past.moment_FF)) if at is None else at
    found = np.zeros((len(at), len(at))) if past.gram_FF is None else past.gram_FF[np.ix_(at, at)]
    if past.recent:
        key_NS = np.concatenate(past.recent).astype(np.float64)[:, at]
        found = found + key_NS.T @ key_NS
    return found


def null_space(
    moment_FF: np.ndarray, threshold: float | Mapping[int, float], layer: int
) -> np.ndarray:
    """U [F, M]: the eigenvectors of a layer's second moment with eigenvalues below the threshold
    (or its layer's).

    Raises:
      ValueError: where there is none, or the layer has no threshold.
    """
    if isinstance(threshold, Mapping):
        if layer not in threshold:
            raise ValueError(
                f"nullspace_threshold names layers {sorted(threshold)}, not layer {layer}"
            )
        threshold = threshold[layer]
    value_F, vector_FF = np.linalg.eigh(np.asarray(moment_FF, np.float64))
    below = value_F < threshold
    if not below.any():
        raise ValueError(
            f"nullspace_threshold={threshold}: no eigenvalue of layer {layer}'s second moment is below it (they go from "
            f"{value_F[0]:.3g} to {value_F[-1]:.3g}), so nothing may change; give a higher one"
        )
    return vector_FF[:, below]
