"""The keys of past edits in the coordinates of a whitener, in float64 on the host.

In these coordinates M of `jaxedit.solving.solve` is I + P P^T, P = W H. Where a subject is edited
again its key nearly is one of H, and P^T k, as large as k^T k, must cancel down to about 1: float32
would leave nothing of it. So whitened keys and products with them are float64 throughout.

A layer of M = 16384 with its most past keys, R = M / 8, holds 0.4 GB on the host (P in float64, H
in float32). Beyond that they are folded into S with S^T S = (I + P P^T)^-1, and the coordinates
become those of S W: 2.1 GB, made once in M / 8 facts.
"""

from typing import NamedTuple

import numpy as np

from jaxedit.solving.key_history import REBASE
from jaxedit.solving.whiteners import inverse_cholesky


class PastKeys(NamedTuple):
    """What past edits add to M; all in float64 but `key_FR`.

    Attributes:
      key_FR: H, the keys that are not folded, as they were given [F, R].
      white_MR: P, the same whitened.
      gram_RR: P^T P.
      fold_MM: S, of the keys that are folded; None: the identity.
    """

    key_FR: np.ndarray
    white_MR: np.ndarray
    gram_RR: np.ndarray
    fold_MM: np.ndarray | None = None


def no_past_keys(F: int, M: int, fold_MM: np.ndarray | None = None) -> PastKeys:
    """Return a history without keys, or with those alone that `fold_MM` holds."""
    return PastKeys(np.zeros((F, 0), np.float32), np.zeros((M, 0)), np.zeros((0, 0)), fold_MM)


def fold(past: PastKeys, white_MR: np.ndarray) -> np.ndarray:
    """Take whitened keys to the coordinates that the folded keys give: S k."""
    return white_MR if past.fold_MM is None else past.fold_MM @ white_MR


def unfold(past: PastKeys, x_MR: np.ndarray) -> np.ndarray:
    """Take an update back to the whitener's coordinates: S^T x."""
    return x_MR if past.fold_MM is None else past.fold_MM.T @ x_MR


def append(past: PastKeys, key_FR: np.ndarray, white_MR: np.ndarray) -> PastKeys:
    """Add the keys of an edit; fold all where they are many.

    Args:
      past: the keys so far.
      key_FR: as given.
      white_MR: whitened, and folded as those so far are.
    """
    cross_RR = past.white_MR.T @ white_MR
    grown = PastKeys(
        np.concatenate([past.key_FR, key_FR], axis=1),
        np.concatenate([past.white_MR, white_MR], axis=1),
        np.block([[past.gram_RR, cross_RR], [cross_RR.T, white_MR.T @ white_MR]]),
        past.fold_MM,
    )
    width, n_keys = grown.white_MR.shape
    if n_keys * REBASE <= width:
        return grown
    gram_MM = grown.white_MR @ grown.white_MR.T
    fold_MM = inverse_cholesky(gram_MM, ridge=1.0, dtype=np.float64)
    if past.fold_MM is not None:
        fold_MM = fold_MM @ past.fold_MM
    return no_past_keys(len(key_FR), width, fold_MM)


def apply_inverse(past: PastKeys, white_MR: np.ndarray) -> np.ndarray:
    """Compute (I + P P^T)^-1 k for whitened keys k, by Woodbury's identity."""
    identity_RR = np.eye(len(past.gram_RR))
    overlap_RR = np.linalg.solve(identity_RR + past.gram_RR, past.white_MR.T @ white_MR)
    return white_MR - past.white_MR @ overlap_RR


class Product(NamedTuple):
    """A product of two factors, in whitened coordinates."""

    left_MR: np.ndarray
    right_RD: np.ndarray

    @property
    def norm(self) -> float:
        """The Frobenius norm; it needs only the left factor's triangle."""
        return float(np.linalg.norm(np.linalg.qr(self.left_MR, mode="r") @ self.right_RD))


def relative_error(
    past: PastKeys, white_MR: np.ndarray, remains: Product, update: Product, slack: float
) -> float:
    """Estimate how far an update is from the exact one by what remains of its equation.

    What remains, r, is taken back to the error (g M + K K^T)^-1 r and divided by the update: by the
    geometric mean of all of it and what keys see of it. They may see little of it, and little of
    the error.

    Args:
      past: the keys before.
      white_MR: the new keys k, whitened.
      remains: g M D + K (K^T D - R), whitened.
      update: D, whitened.
      slack: g.
    """
    keys_MR = np.concatenate([np.sqrt(slack) * past.white_MR, white_MR], axis=1)
    cross_RR = np.sqrt(slack) * past.white_MR.T @ white_MR
    new_RR = white_MR.T @ white_MR
    system_RR = np.block([[slack * past.gram_RR, cross_RR], [cross_RR.T, new_RR]])
    system_RR += slack * np.eye(len(system_RR))

    def seen(x_MR: np.ndarray) -> np.ndarray:
        return keys_MR @ np.linalg.solve(system_RR, keys_MR.T @ x_MR)

    error = remains._replace(left_MR=(remains.left_MR - seen(remains.left_MR)) / slack)
    part = update._replace(left_MR=seen(update.left_MR))
    tiny = float(np.finfo(np.float32).tiny)
    return error.norm / max(np.sqrt(part.norm * update.norm), tiny)
