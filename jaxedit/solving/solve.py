"""The one solver that the locate-then-edit methods are instances of: the least change that writes
values at keys.

    minimise (1/g) |K^T D - R|^2 + tr(D^T M D)    over D = A D, the columns' side restricted to an allowed subspace
    D = u_FR v_RD,   u = M^-1 K,   v = (K^T M^-1 K + g I)^-1 R          (g -> 0: the equality constraint K^T D = R)

M = lambda C + b I + S: the second moment C of the layer's keys, a ridge, and S = H H^T of the keys
written before. ROME and C-ROME have g = 0 and M = C, and ROME takes other keys on the left than on
the right; MEMIT (2210.07229, eq. 14), AlphaEdit (2410.02355, eq. 14) and their relatives have g =
1, EMMET (2403.14236, eq. 10) g = 0.1.

lambda C + b I is factorised once, in float64 on the host. The device holds the whitener W with M^-1
= W^T W (L^-1 of a Cholesky factorisation, or a basis of the subspace over sqrt(b)), in whose
coordinates M is I + W S W^T: an edit costs products with W and float64 solves as wide as its keys
and the history, and small denominators survive where a float32 inverse would lose them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit.edits.edit import Array, Dense, LowRank
from jaxedit.mesh import device_put_global, parameter_sharding, to_host
from jaxedit.models.ops import PRECISION

matmul = functools.partial(jnp.matmul, precision=PRECISION)
REBASE = 8  # past keys are folded into the whitener when they are more than 1/REBASE of its width
ROOM = 8  # columns that a history begins with


class KeyRegulariser(NamedTuple):
    """M of one layer's keys: its whitener (None: the identity) and the whitened keys of past edits
    (None: none).

    `history_MR` has room for more columns than the `n_history` in use; those hold zeros, which
    change nothing."""

    whitener_MF: jax.Array | None = None
    history_MR: jax.Array | None = None
    n_history: int = 0


class Solution(NamedTuple):
    """`u_FR` with columns of length one, `v_RD`, the n x n matrix K_right^T u, and the relative
    residual of the solve.
    """

    u_FR: jax.Array
    v_RD: np.ndarray
    gram_RR: np.ndarray
    residual: float


def inverse_cholesky(moment_FF: np.ndarray, scale: float = 1.0, ridge: float = 0.0) -> np.ndarray:
    """L^-1 as float32 [F, F], from a float64 Cholesky factorisation scale C + ridge I = L L^T on
    the host.

    Raises:
      ValueError: where the matrix is not positive definite.
    """
    import scipy.linalg

    moment = np.asarray(moment_FF, np.float64)
    diagonal = scale * np.diagonal(moment) + ridge
    if np.all(diagonal > 0) and np.count_nonzero(moment) == len(
        moment
    ):  # C = I, where there are no statistics
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
    (invert,) = scipy.linalg.get_lapack_funcs(
        ["trtri"], [lower]
    )  # a fifth of a triangular solve's time
    inverse, _ = invert(lower, lower=1, overwrite_c=1)
    return inverse.astype(np.float32)


def shard_regulariser(mesh: Mesh, whitener_MF: np.ndarray) -> KeyRegulariser:
    """M without history, its whitener split over the devices as the weight is that it belongs to."""
    return KeyRegulariser(
        device_put_global(parameter_sharding(mesh, "MF", whitener_MF.shape), whitener_MF)
    )


def add_past_keys(metric: KeyRegulariser, key_FR: Array) -> KeyRegulariser:
    """M + K K^T. Past keys are kept as factors; when they grow many they are folded into the
    whitener.

    Room for factors doubles, so that an edit after many compiles nothing new.
    """
    white_MR = whiten(metric.whitener_MF, key_FR)
    width, n_new = white_MR.shape
    n_history = metric.n_history + n_new
    if n_history * REBASE > width:
        parts = [
            to_host(part).astype(np.float64)
            for part in (metric.history_MR, white_MR)
            if part is not None
        ]
        every_MR = np.concatenate(parts, axis=1)
        step_MM = inverse_cholesky(
            every_MR @ every_MR.T, ridge=1.0
        )  # M is I + P P^T in these coordinates
        if metric.whitener_MF is None:
            return KeyRegulariser(jnp.asarray(step_MM))
        return KeyRegulariser(
            device_put_global(metric.whitener_MF.sharding, step_MM @ to_host(metric.whitener_MF))
        )
    history_MR = (
        np.zeros((width, 0), np.float32) if metric.history_MR is None else metric.history_MR
    )
    room = max(ROOM, 1 << (n_history - 1).bit_length())
    return KeyRegulariser(
        metric.whitener_MF, _appended(history_MR, white_MR, metric.n_history, room), n_history
    )


def solve(
    metric: KeyRegulariser,
    left_FR: Array,
    right_FR: Array,
    value_RD: Array,
    slack: float,
    dtype: str = "float64",
) -> Solution:
    """Solves for the factors of the update.

    Args:
      metric: M.
      left_FR: keys that shape the update's input side.
      right_FR: keys at which the values are written; the same as the left ones except in ROME as
        released.
      value_RD: what to add there.
      slack: on the constraint K^T D = R, g above; 0 for equality.
      dtype: of the n x n solve, "float64" or "float32".

    Raises:
      ValueError: where the system is singular (the same key twice with g = 0).
    """
    left_MR, right_MR = whiten(metric.whitener_MF, left_FR), whiten(metric.whitener_MF, right_FR)
    overlap_QR, system_RR = _project(metric, left_MR, right_MR, dtype)
    value = np.asarray(value_RD, dtype)
    try:
        weight_RD = np.linalg.solve(system_RR + slack * np.eye(len(value), dtype=dtype), value)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the {len(value)} keys depend on each other, so no update writes all values: {error}"
        ) from error
    u_FR, norm_R = unwhiten(
        metric, left_MR, None if overlap_QR is None else overlap_QR.astype(np.float32)
    )
    norm_R = to_host(norm_R).astype(dtype)
    v_RD = (norm_R[:, None] * weight_RD).astype(np.float32)
    wanted = value - slack * weight_RD
    missed = to_host(product(right_FR.T, u_FR, v_RD)).astype(np.float64) - wanted
    residual = float(
        np.linalg.norm(missed) / max(np.linalg.norm(wanted), np.finfo(np.float32).tiny)
    )
    return Solution(u_FR, v_RD, system_RR / norm_R, residual)


def solve_primal(
    metric: KeyRegulariser, key_FR: Array, value_RD: Array, slack: float
) -> tuple[np.ndarray, float]:
    """The same update written out [F, D] and its residual, by the F x F form: for as many keys as
    the weight is wide.

        D = W^T (W K K^T W^T + g (I + P P^T))^-1 W K R,   P = W H

    Raises:
      ValueError: with g = 0, since so many keys cannot all be met.
    """
    if slack <= 0:
        raise ValueError(
            f"{key_FR.shape[1]} keys of width {key_FR.shape[0]} cannot all be met exactly; edit fewer at once"
        )
    white = to_host(whiten(metric.whitener_MF, key_FR)).astype(np.float64)
    system_MM = white @ white.T + slack * np.eye(len(white))
    if metric.history_MR is not None:
        past = to_host(metric.history_MR).astype(np.float64)
        system_MM += slack * past @ past.T
    wanted_MD = white @ np.asarray(value_RD, np.float64)
    found_MD = np.linalg.solve(system_MM, wanted_MD)
    residual = float(np.linalg.norm(system_MM @ found_MD - wanted_MD) / np.linalg.norm(wanted_MD))
    found_MD = found_MD.astype(np.float32)
    return found_MD if metric.whitener_MF is None else to_host(
        _unwhitened(metric.whitener_MF, found_MD)
    ), residual


def least_change(
    metric: KeyRegulariser,
    weight: str,
    layer: int,
    key_FR: Array,
    value_RD: Array,
    slack: float,
    dtype: str,
) -> tuple[LowRank | Dense, float]:
    """The least change of a layer that writes values at keys, in the smaller of its two forms, and
    its residual.
    """
    F, n = key_FR.shape
    if n >= F:
        delta_FD, residual = solve_primal(metric, key_FR, value_RD, slack)
        return Dense(weight, layer, delta_FD), residual
    found = solve(metric, key_FR, key_FR, value_RD, slack, dtype)
    return LowRank(weight, layer, to_host(found.u_FR), found.v_RD), found.residual


def _project(
    metric: KeyRegulariser, left_MR, right_MR, dtype: str
) -> tuple[np.ndarray | None, np.ndarray]:
    """(I + P^T P)^-1 P^T K_left and K_right^T M^-1 K_left, in whitened coordinates (Woodbury's
    identity).
    """
    system_RR = to_host(product(right_MR.T, left_MR)).astype(dtype)
    if metric.history_MR is None:
        return None, system_RR
    past_QM = metric.history_MR.T
    gram_QQ, with_left_QR, with_right_QR = (
        to_host(product(past_QM, other)).astype(dtype)
        for other in (metric.history_MR, left_MR, right_MR)
    )
    overlap_QR = np.linalg.solve(gram_QQ + np.eye(len(gram_QQ), dtype=dtype), with_left_QR)
    return overlap_QR, system_RR - with_right_QR.T @ overlap_QR


@functools.partial(jax.jit, static_argnames="room")
def _appended(history_MR, white_MR, n_history, room: int):
    history_MR = jnp.pad(history_MR, ((0, 0), (0, room - history_MR.shape[1])))
    return jax.lax.dynamic_update_slice_in_dim(history_MR, white_MR, n_history, axis=1)


@jax.jit
def whiten(whitener_MF, key_FR):
    """Keys in the coordinates in which M without history is the identity [M, R]."""
    key_FR = jnp.asarray(key_FR, jnp.float32)
    return key_FR if whitener_MF is None else matmul(whitener_MF, key_FR)


@jax.jit
def unwhiten(metric: KeyRegulariser, left_MR, overlap_QR):
    """M^-1 K_left with columns of length one, and the lengths they had."""
    if overlap_QR is not None:
        left_MR = left_MR - matmul(jnp.asarray(metric.history_MR), overlap_QR)
    u_FR = left_MR if metric.whitener_MF is None else _unwhitened(metric.whitener_MF, left_MR)
    norm_R = jnp.linalg.norm(u_FR, axis=0)
    return u_FR / norm_R, norm_R


@jax.jit
def _unwhitened(whitener_MF, x_MR):
    # An einsum: the product with a transposed whitener is written out first on a CPU, 20 times
    # slower for one key.
    return jnp.einsum("MF,MR->FR", whitener_MF, x_MR, precision=PRECISION)


@jax.jit
def product(a, b, *more):
    """The product of matrices, from the left, in float32."""
    return functools.reduce(matmul, more, matmul(a, b))
