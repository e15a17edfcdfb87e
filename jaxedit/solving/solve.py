"""The one solver that the locate-then-edit methods are instances of: the least change that writes values at keys.

    minimise (1/g) |K^T D - R|^2 + tr(D^T M D)    over D = A D, the columns' side restricted to an allowed subspace
    D = u_FR v_RD,   u = M^-1 K,   v = (K^T M^-1 K + g I)^-1 R          (g -> 0: the equality constraint K^T D = R)

M = lambda C + b I + S: the second moment C of the layer's keys, a ridge, and S = H H^T of the keys written before. ROME and
C-ROME have g = 0 and M = C, and ROME takes other keys on the left than on the right; MEMIT (2210.07229, eq. 14), AlphaEdit
(2410.02355, eq. 14) and their relatives have g = 1, EMMET (2403.14236, eq. 10) g = 0.1.

lambda C + b I is factorised once, in float64 on the host. The device holds the whitener W with M^-1 = W^T W (L^-1 of a
Cholesky factorisation, or a basis of the subspace over sqrt(b)), in whose coordinates M is I + W S W^T: an edit costs
products with W and float64 solves as wide as its keys and the history, and small denominators survive where a float32
inverse would lose them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit.edits.edit import Array, Dense, LowRank
from jaxedit.mesh import fetch, parameter_sharding, put
from jaxedit.models.decoder import PRECISION

matmul = functools.partial(jnp.matmul, precision=PRECISION)
REBASE = 8  # past keys are folded into the whitener when they are more than 1/REBASE of its width
ROOM = 8  # columns that a history begins with


class Metric(NamedTuple):
    """M of one layer's keys: its whitener (None: the identity) and the whitened keys of past edits (None: none).

    `past_MR` has room for more columns than the `n_past` in use; those hold zeros, which change nothing.
    """

    whitener_MF: jax.Array | None = None
    past_MR: jax.Array | None = None
    n_past: int = 0


class Solution(NamedTuple):
    """`u_FR` with columns of length one, `v_RD`, the n x n matrix K_right^T u, and the relative residual of the solve."""

    u_FR: jax.Array
    v_RD: np.ndarray
    product_RR: np.ndarray
    residual: float


def whitener(moment_FF: np.ndarray, scale: float = 1.0, ridge: float = 0.0) -> np.ndarray:
    """L^-1 as float32 [F, F], from a float64 Cholesky factorisation scale C + ridge I = L L^T on the host.

    Raises:
      ValueError: where the matrix is not positive definite.
    """
    import scipy.linalg

    moment = np.asarray(moment_FF, np.float64)
    diagonal = scale * np.diagonal(moment) + ridge
    if np.all(diagonal > 0) and np.count_nonzero(moment) == len(moment):  # C = I, where there are no statistics
        return np.diag((1 / np.sqrt(diagonal)).astype(np.float32))
    moment = scale * (moment + moment.T) / 2
    moment[np.diag_indices_from(moment)] += ridge
    try:
        lower = scipy.linalg.cholesky(moment, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the second moment ({len(moment)} wide) is not positive definite: {error}. It was gathered from too few "
            "tokens, or is of low rank; take more than 10 x F tokens, or add a small multiple of the identity"
        ) from error
    (invert,) = scipy.linalg.get_lapack_funcs(["trtri"], [lower])  # a fifth of a triangular solve's time
    inverse, _ = invert(lower, lower=1, overwrite_c=1)
    return inverse.astype(np.float32)


def metric_on(mesh: Mesh, whitener_MF: np.ndarray) -> Metric:
    """M without history, its whitener split over the devices as the weight is that it belongs to."""
    return Metric(put(parameter_sharding(mesh, "MF", whitener_MF.shape), whitener_MF))


def remember(metric: Metric, key_FR: Array) -> Metric:
    """M + K K^T. Past keys are kept as factors; when they grow many they are folded into the whitener.

    Room for factors doubles, so that an edit after many compiles nothing new.
    """
    white_MR = _whiten(metric.whitener_MF, key_FR)
    width, n_new = white_MR.shape
    n_past = metric.n_past + n_new
    if n_past * REBASE > width:
        parts = [fetch(part).astype(np.float64) for part in (metric.past_MR, white_MR) if part is not None]
        every_MR = np.concatenate(parts, axis=1)
        step_MM = whitener(every_MR @ every_MR.T, ridge=1.0)  # M is I + P P^T in these coordinates
        if metric.whitener_MF is None:
            return Metric(jnp.asarray(step_MM))
        return Metric(put(metric.whitener_MF.sharding, step_MM @ fetch(metric.whitener_MF)))
    past_MR = np.zeros((width, 0), np.float32) if metric.past_MR is None else metric.past_MR
    room = max(ROOM, 1 << (n_past - 1).bit_length())
    return Metric(metric.whitener_MF, _appended(past_MR, white_MR, metric.n_past, room), n_past)


def solve(metric: Metric, left_FR: Array, right_FR: Array, value_RD: Array, g: float, dtype: str = "float64") -> Solution:
    """Solves for the factors of the update.

    Args:
      metric: M.
      left_FR: keys that shape the update's input side.
      right_FR: keys at which the values are written; the same as the left ones except in ROME as released.
      value_RD: what to add there.
      g: how much a miss is allowed to cost; 0 for an equality constraint.
      dtype: of the n x n solve, "float64" or "float32".

    Raises:
      ValueError: where the system is singular (the same key twice with g = 0).
    """
    left_MR, right_MR = _whiten(metric.whitener_MF, left_FR), _whiten(metric.whitener_MF, right_FR)
    overlap_QR, system_RR = _project(metric, left_MR, right_MR, dtype)
    value = np.asarray(value_RD, dtype)
    try:
        weight_RD = np.linalg.solve(system_RR + g * np.eye(len(value), dtype=dtype), value)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the {len(value)} keys depend on each other, so no update writes all values: {error}") from error
    u_FR, norm_R = _unwhiten(metric, left_MR, None if overlap_QR is None else overlap_QR.astype(np.float32))
    norm_R = fetch(norm_R).astype(dtype)
    v_RD = (norm_R[:, None] * weight_RD).astype(np.float32)
    wanted = value - g * weight_RD
    missed = fetch(_product(right_FR.T, u_FR, v_RD)).astype(np.float64) - wanted
    residual = float(np.linalg.norm(missed) / max(np.linalg.norm(wanted), np.finfo(np.float32).tiny))
    return Solution(u_FR, v_RD, system_RR / norm_R, residual)


def solve_dense(metric: Metric, key_FR: Array, value_RD: Array, g: float) -> tuple[np.ndarray, float]:
    """The same update written out [F, D] and its residual, by the F x F form: for as many keys as the weight is wide.

        D = W^T (W K K^T W^T + g (I + P P^T))^-1 W K R,   P = W H

    Raises:
      ValueError: with g = 0, since so many keys cannot all be met.
    """
    if g <= 0:
        raise ValueError(f"{key_FR.shape[1]} keys of width {key_FR.shape[0]} cannot all be met exactly; edit fewer at once")
    white = fetch(_whiten(metric.whitener_MF, key_FR)).astype(np.float64)
    system_MM = white @ white.T + g * np.eye(len(white))
    if metric.past_MR is not None:
        past = fetch(metric.past_MR).astype(np.float64)
        system_MM += g * past @ past.T
    wanted_MD = white @ np.asarray(value_RD, np.float64)
    found_MD = np.linalg.solve(system_MM, wanted_MD)
    residual = float(np.linalg.norm(system_MM @ found_MD - wanted_MD) / np.linalg.norm(wanted_MD))
    found_MD = found_MD.astype(np.float32)
    return found_MD if metric.whitener_MF is None else fetch(_unwhitened(metric.whitener_MF, found_MD)), residual


def update(
    metric: Metric, weight: str, layer: int, key_FR: Array, value_RD: Array, g: float, dtype: str
) -> tuple[LowRank | Dense, float]:
    """The least change of a layer that writes values at keys, in the smaller of its two forms, and its residual."""
    F, n = key_FR.shape
    if n >= F:
        delta_FD, residual = solve_dense(metric, key_FR, value_RD, g)
        return Dense(weight, layer, delta_FD), residual
    found = solve(metric, key_FR, key_FR, value_RD, g, dtype)
    return LowRank(weight, layer, fetch(found.u_FR), found.v_RD), found.residual


def _project(metric: Metric, left_MR, right_MR, dtype: str) -> tuple[np.ndarray | None, np.ndarray]:
    """(I + P^T P)^-1 P^T K_left and K_right^T M^-1 K_left, in whitened coordinates (Woodbury's identity)."""
    system_RR = fetch(_product(right_MR.T, left_MR)).astype(dtype)
    if metric.past_MR is None:
        return None, system_RR
    past_QM = metric.past_MR.T
    gram_QQ, with_left_QR, with_right_QR = (
        fetch(_product(past_QM, other)).astype(dtype) for other in (metric.past_MR, left_MR, right_MR)
    )
    overlap_QR = np.linalg.solve(gram_QQ + np.eye(len(gram_QQ), dtype=dtype), with_left_QR)
    return overlap_QR, system_RR - with_right_QR.T @ overlap_QR


@functools.partial(jax.jit, static_argnames="room")
def _appended(past_MR, white_MR, n_past, room: int):
    past_MR = jnp.pad(past_MR, ((0, 0), (0, room - past_MR.shape[1])))
    return jax.lax.dynamic_update_slice_in_dim(past_MR, white_MR, n_past, axis=1)


@jax.jit
def _whiten(whitener_MF, key_FR):
    key_FR = jnp.asarray(key_FR, jnp.float32)
    return key_FR if whitener_MF is None else matmul(whitener_MF, key_FR)


@jax.jit
def _unwhiten(metric: Metric, left_MR, overlap_QR):
    """M^-1 K_left with columns of length one, and the lengths they had."""
    if overlap_QR is not None:
        left_MR = left_MR - matmul(jnp.asarray(metric.past_MR), overlap_QR)
    u_FR = left_MR if metric.whitener_MF is None else _unwhitened(metric.whitener_MF, left_MR)
    norm_R = jnp.linalg.norm(u_FR, axis=0)
    return u_FR / norm_R, norm_R


@jax.jit
def _unwhitened(whitener_MF, x_MR):
    # An einsum: the product with a transposed whitener is written out first on a CPU, 20 times slower for one key.
    return jnp.einsum("MF,MR->FR", whitener_MF, x_MR, precision=PRECISION)


@jax.jit
def _product(a, b, *more):
    return functools.reduce(matmul, more, matmul(a, b))
