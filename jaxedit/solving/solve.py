"""The one solver of the locate-then-edit methods: the least change that writes values at keys.

    minimise (1/g) |K^T D - R|^2 + tr(D^T M D)    over D = A D, the columns' side restricted to an
                                                  allowed subspace
    D = u_FR v_RD,   u = M^-1 K,   v = (K^T M^-1 K + g I)^-1 R          (g -> 0: K^T D = R exactly)

M = lambda C + b I + S: the second moment C of the layer's keys, a ridge, and S = H H^T of the keys
written before. ROME and C-ROME have g = 0 and M = C, and ROME takes other keys on the left than on
the right; MEMIT (2210.07229, eq. 14), AlphaEdit (2410.02355, eq. 14) and their relatives have
g = 1, EMMET (2403.14236, eq. 10) g = 0.1.

lambda C + b I is factorised once, in float64 on the host. The device holds the whitener W with
M^-1 = W^T W (L^-1 of a Cholesky factorisation, or a basis of the subspace over sqrt(b)), in whose
coordinates M is I + W S W^T: an edit costs products with W and float64 solves as wide as its keys
and the history, and small denominators survive where a float32 inverse would lose them.

Without past keys the products with W are float32. With them K is whitened in float64 with W as the
devices hold it, so that what rounding W has changed is the same for past keys and new ones; the
rest is float64 on the host (`jaxedit.solving.past_keys`). For one key and W of width 16384, 1 GB,
that is 7 s instead of 0.3 s on two cores, and another gigabyte or two while it lasts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.edit import Array, Dense, LowRank
from jaxedit.mesh import to_host
from jaxedit.models.ops import PRECISION
from jaxedit.solving import past_keys
from jaxedit.solving.regulariser import KeyRegulariser

TINY = np.finfo(np.float32).tiny

matmul = functools.partial(jnp.matmul, precision=PRECISION)


class Solution(NamedTuple):
    """The factors of an update.

    Attributes:
      u_FR: columns of length one.
      v_RD: the other factor.
      gram_RR: K_right^T u.
      residual: what M D + K_left (K_right^T D - R) = 0 is missed by, relative (`_residual`).
    """

    u_FR: jax.Array
    v_RD: np.ndarray
    gram_RR: np.ndarray
    residual: float


def add_past_keys(regulariser: KeyRegulariser, key_FR: Array) -> KeyRegulariser:
    """Add keys of an edit to the history: M + K K^T."""
    whitener_MF, past = regulariser
    key_FR = to_host(key_FR)
    if past is None:
        width = len(key_FR) if whitener_MF is None else len(whitener_MF)
        past = past_keys.no_past_keys(len(key_FR), width)
    white_MR = past_keys.fold(past, whiten_exactly(whitener_MF, key_FR))
    return KeyRegulariser(whitener_MF, past_keys.append(past, key_FR, white_MR))


def solve(
    regulariser: KeyRegulariser,
    left_FR: Array,
    right_FR: Array,
    value_RD: Array,
    slack: float,
    dtype: str = "float64",
) -> Solution:
    """Solve for the factors of the update.

    Args:
      regulariser: M.
      left_FR: keys that shape the update's input side.
      right_FR: keys at which the values are written; the same as the left ones except in ROME as
        released.
      value_RD: what to add there.
      slack: on the constraint K^T D = R, g above; 0 for equality.
      dtype: of the n x n solve, "float64" or "float32".

    Raises:
      ValueError: where the system is singular (the same key twice with g = 0).
    """
    # (K_right^T M^-1 K_left + g I)^-1 R
    whitened = _whiten_all(regulariser, left_FR, right_FR)
    value, system_RR = np.asarray(value_RD, dtype), whitened.system_RR.astype(dtype)
    slack_RR = slack * np.eye(len(value), dtype=dtype)
    try:
        weight_RD = np.linalg.solve(system_RR + slack_RR, value)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the {len(value)} keys depend on each other, so no update writes all values: {error}"
        ) from error

    # u = M^-1 K_left, its columns' lengths moved into v
    u_FR, norm_R = unwhiten(regulariser.whitener_MF, whitened.unfolded_MR)
    norm_R = to_host(norm_R).astype(dtype)
    v_RD = (norm_R[:, None] * weight_RD).astype(np.float32)
    meant_RD = np.asarray(value_RD, np.float64) - slack * weight_RD
    residual = _residual(regulariser, whitened, right_FR, (u_FR, v_RD), weight_RD, meant_RD, slack)
    return Solution(u_FR, v_RD, system_RR / norm_R, residual)


class _Whitened(NamedTuple):
    """The keys of a solve, whitened: float32 on the devices, float64 on the host with past keys.

    Attributes:
      left_MR: the left keys k.
      x_MR: (I + P P^T)^-1 k.
      unfolded_MR: the same as the whitener has it, without what past keys folded.
      system_RR: K_right^T M^-1 K_left.
    """

    left_MR: Array
    x_MR: Array
    unfolded_MR: Array
    system_RR: np.ndarray


def _whiten_all(regulariser: KeyRegulariser, left_FR: Array, right_FR: Array) -> _Whitened:
    whitener_MF, past = regulariser
    keys = (left_FR,) if right_FR is left_FR else (left_FR, right_FR)
    if past is None:
        white = [whiten(whitener_MF, key_FR) for key_FR in keys]
        return _Whitened(white[0], white[0], white[0], to_host(product(white[-1].T, white[0])))
    white = [past_keys.fold(past, whiten_exactly(whitener_MF, key_FR)) for key_FR in keys]
    x_MR = past_keys.apply_inverse(past, white[0])
    return _Whitened(white[0], x_MR, past_keys.unfold(past, x_MR), white[-1].T @ x_MR)


def _residual(
    regulariser: KeyRegulariser,
    whitened: _Whitened,
    right_FR: Array,
    factors: tuple[Array, np.ndarray],
    weight_RD: np.ndarray,
    meant_RD: np.ndarray,
    slack: float,
) -> float:
    """Measure how far an update, as it is written, is from g M D + K (K^T D - R) = 0, relative.

    Without past keys M D is what D was made of, and K^T D is compared with what it should be:
    meant_RD, R - g times the weights.
    """
    past = regulariser.past
    if past is None or slack == 0:
        missed_RD = to_host(product(right_FR.T, *factors)) - meant_RD
        return float(np.linalg.norm(missed_RD) / max(np.linalg.norm(meant_RD), TINY))
    u_FR, v_RD = (to_host(factor).astype(np.float64) for factor in factors)
    missed_RD = to_host(right_FR).astype(np.float64).T @ u_FR @ v_RD - meant_RD
    left_MR, x_MR = np.asarray(whitened.left_MR), np.asarray(whitened.x_MR)
    past_MR = np.zeros_like(left_MR)
    if regulariser.n_history:  # H H^T u, whitened anew
        past_FR = past.key_FR @ (past.key_FR.T @ u_FR)
        past_MR = past_keys.fold(past, whiten_exactly(regulariser.whitener_MF, past_FR))
    remains = past_keys.Product(
        np.concatenate([x_MR - left_MR, past_MR, left_MR], axis=1),
        np.concatenate([slack * weight_RD, slack * v_RD, missed_RD]),
    )
    update = past_keys.Product(x_MR, weight_RD)
    return past_keys.relative_error(past, left_MR, remains, update, slack)


def solve_primal(
    regulariser: KeyRegulariser, key_FR: Array, value_RD: Array, slack: float
) -> tuple[np.ndarray, float]:
    """Solve for the same update by the F x F form, for as many keys as the weight is wide.

        D = W^T (W K K^T W^T + g (I + P P^T))^-1 W K R,   P = W H

    Returns:
      The update written out [F, D], and the relative residual of the solve.

    Raises:
      ValueError: with g = 0, since so many keys cannot all be met.
    """
    if slack <= 0:
        raise ValueError(
            f"{key_FR.shape[1]} keys of width {key_FR.shape[0]} cannot all be met exactly; edit "
            "fewer at once"
        )
    whitener_MF, past = regulariser
    white_MR = whiten_exactly(whitener_MF, key_FR)
    if past is not None:
        white_MR = past_keys.fold(past, white_MR)
    system_MM = white_MR @ white_MR.T + slack * np.eye(len(white_MR))
    if past is not None:
        system_MM += slack * past.white_MR @ past.white_MR.T
    wanted_MD = white_MR @ np.asarray(value_RD, np.float64)
    found_MD = np.linalg.solve(system_MM, wanted_MD)
    residual = float(np.linalg.norm(system_MM @ found_MD - wanted_MD) / np.linalg.norm(wanted_MD))
    if past is not None:
        found_MD = past_keys.unfold(past, found_MD)
    found_MD = found_MD.astype(np.float32)
    if whitener_MF is None:
        return found_MD, residual
    return to_host(_unwhitened(whitener_MF, found_MD)), residual


def least_change(
    regulariser: KeyRegulariser,
    weight: str,
    layer: int,
    key_FR: Array,
    value_RD: Array,
    slack: float,
    dtype: str,
) -> tuple[LowRank | Dense, float]:
    """Solve for the least change of a layer that writes values at keys, in the smaller form.

    Args:
      regulariser: M.
      weight: that changes.
      layer: that changes.
      key_FR: at which the values are written.
      value_RD: what to add there.
      slack: g above.
      dtype: of the n x n solve, "float64" or "float32".

    Returns:
      The change, and the relative residual of the solve.
    """
    width, n_keys = key_FR.shape
    if n_keys >= width:
        delta_FD, residual = solve_primal(regulariser, key_FR, value_RD, slack)
        return Dense(weight, layer, delta_FD), residual
    solution = solve(regulariser, key_FR, key_FR, value_RD, slack, dtype)
    return LowRank(weight, layer, to_host(solution.u_FR), solution.v_RD), solution.residual


@jax.jit
def whiten(whitener_MF, key_FR) -> jax.Array:
    """Take keys to the coordinates in which M without past keys is the identity [M, R].

    In float32, or within `jax.enable_x64` in float64.
    """
    key_FR = jnp.asarray(key_FR, jnp.result_type(float))
    return key_FR if whitener_MF is None else matmul(whitener_MF.astype(key_FR.dtype), key_FR)


def whiten_exactly(whitener_MF: Array | None, key_FR: Array) -> np.ndarray:
    """Whiten keys in float64, by the whitener as the devices hold it [M, R], on the host."""
    with jax.enable_x64(True):
        return to_host(whiten(whitener_MF, to_host(key_FR).astype(np.float64)))


def unwhiten_exactly(whitener_MF: Array | None, x_MR: np.ndarray) -> np.ndarray:
    """Compute W^T x in float64 by the whitener as the devices hold it [F, R], on the host."""
    if whitener_MF is None:
        return x_MR
    with jax.enable_x64(True):
        return to_host(_unwhitened(whitener_MF.astype(np.float64), x_MR))


@jax.jit
def unwhiten(whitener_MF, x_MR) -> tuple[jax.Array, jax.Array]:
    """Compute W^T x with columns of length one [F, R], and the lengths they had [R]."""
    x_MR = jnp.asarray(x_MR, jnp.float32)
    u_FR = x_MR if whitener_MF is None else _unwhitened(whitener_MF, x_MR)
    norm_R = jnp.linalg.norm(u_FR, axis=0)
    return u_FR / norm_R, norm_R


@jax.jit
def _unwhitened(whitener_MF, x_MR):
    # An einsum: the product with a transposed whitener is written out first on a CPU, 20 times
    # slower for one key.
    return jnp.einsum("MF,MR->FR", whitener_MF, x_MR, precision=PRECISION)


@jax.jit
def product(a, b, *more) -> jax.Array:
    """Multiply matrices, from the left, in float32."""
    return functools.reduce(matmul, more, matmul(a, b))
