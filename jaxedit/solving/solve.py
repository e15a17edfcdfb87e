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

Of an array with two axes R, one is the past keys' and the other the new ones' where its name says
so, and both are the new ones' elsewhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit.edits.edit import Array, Dense, LowRank
from jaxedit.mesh import device_put_global, parameter_sharding, to_host
from jaxedit.models.ops import PRECISION
from jaxedit.rounding import next_power_of_two
from jaxedit.solving.key_history import REBASE
from jaxedit.solving.whiteners import inverse_cholesky

HISTORY_COLUMNS = 8  # columns that a history begins with; their number doubles as it grows
TINY = np.finfo(np.float32).tiny

matmul = functools.partial(jnp.matmul, precision=PRECISION)


class KeyRegulariser(NamedTuple):
    """M of one layer's keys.

    Attributes:
      whitener_MF: W; None: the identity.
      history_MR: the whitened keys of past edits, W H, with room for more columns than `n_history`;
        the rest are zeros, which change nothing. None: no past edits.
      n_history: past keys.
    """

    whitener_MF: jax.Array | None = None
    history_MR: jax.Array | None = None
    n_history: int = 0


class Solution(NamedTuple):
    """The factors of an update.

    Attributes:
      u_FR: columns of length one.
      v_RD: the other factor.
      gram_RR: K_right^T u.
      residual: of the solve, relative.
    """

    u_FR: jax.Array
    v_RD: np.ndarray
    gram_RR: np.ndarray
    residual: float


def shard_regulariser(mesh: Mesh, whitener_MF: np.ndarray) -> KeyRegulariser:
    """Put a whitener on the devices, split as the weight is that it belongs to; no history."""
    sharding = parameter_sharding(mesh, "MF", whitener_MF.shape)
    return KeyRegulariser(device_put_global(sharding, whitener_MF))


def add_past_keys(regulariser: KeyRegulariser, key_FR: Array) -> KeyRegulariser:
    """Add keys of an edit to the history: M + K K^T.

    Past keys are kept as factors; when they are many they are folded into the whitener. Room for
    factors doubles, so that an edit after many compiles nothing new.
    """
    whitener_MF, history_MR, n_history = regulariser
    white_MR = whiten(whitener_MF, key_FR)
    width, n_new = white_MR.shape

    # Many: in whitened coordinates M is I + P P^T with all whitened past keys P, so its own
    # whitener follows that of M without history.
    if (n_history + n_new) * REBASE > width:
        parts = [part for part in (history_MR, white_MR) if part is not None]
        past_MR = np.concatenate([to_host(part).astype(np.float64) for part in parts], axis=1)
        step_MM = inverse_cholesky(past_MR @ past_MR.T, ridge=1.0)
        if whitener_MF is None:
            return KeyRegulariser(jnp.asarray(step_MM))
        folded_MF = step_MM @ to_host(whitener_MF)
        return KeyRegulariser(device_put_global(whitener_MF.sharding, folded_MF))

    # Few: the next columns of the history.
    if history_MR is None:
        history_MR = np.zeros((width, 0), np.float32)
    n_columns = max(HISTORY_COLUMNS, next_power_of_two(n_history + n_new))
    appended_MR = _append(history_MR, white_MR, n_history, n_columns)
    return KeyRegulariser(whitener_MF, appended_MR, n_history + n_new)


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
    whitener_MF = regulariser.whitener_MF
    left_MR, right_MR = whiten(whitener_MF, left_FR), whiten(whitener_MF, right_FR)
    overlap_RR, system_RR = _project(regulariser, left_MR, right_MR, dtype)
    value = np.asarray(value_RD, dtype)
    slack_RR = slack * np.eye(len(value), dtype=dtype)
    try:
        weight_RD = np.linalg.solve(system_RR + slack_RR, value)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the {len(value)} keys depend on each other, so no update writes all values: {error}"
        ) from error

    # u = M^-1 K_left, its columns' lengths moved into v
    overlap_float32 = None if overlap_RR is None else overlap_RR.astype(np.float32)
    u_FR, norm_R = unwhiten(regulariser, left_MR, overlap_float32)
    norm_R = to_host(norm_R).astype(dtype)
    v_RD = (norm_R[:, None] * weight_RD).astype(np.float32)

    # How far K_right^T u v is from what it should be, R less what the slack allows.
    wanted_RD = value - slack * weight_RD
    missed_RD = to_host(product(right_FR.T, u_FR, v_RD)).astype(np.float64) - wanted_RD
    residual = float(np.linalg.norm(missed_RD) / max(np.linalg.norm(wanted_RD), TINY))
    return Solution(u_FR, v_RD, system_RR / norm_R, residual)


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
    whitener_MF = regulariser.whitener_MF
    white_MR = to_host(whiten(whitener_MF, key_FR)).astype(np.float64)
    system_MM = white_MR @ white_MR.T + slack * np.eye(len(white_MR))
    if regulariser.history_MR is not None:
        past_MR = to_host(regulariser.history_MR).astype(np.float64)
        system_MM += slack * past_MR @ past_MR.T
    wanted_MD = white_MR @ np.asarray(value_RD, np.float64)
    found_MD = np.linalg.solve(system_MM, wanted_MD)
    residual = float(np.linalg.norm(system_MM @ found_MD - wanted_MD) / np.linalg.norm(wanted_MD))
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


def _project(
    regulariser: KeyRegulariser, left_MR, right_MR, dtype: str
) -> tuple[np.ndarray | None, np.ndarray]:
    """Compute K_right^T M^-1 K_left from whitened keys, by Woodbury's identity.

    Returns:
      (I + P^T P)^-1 P^T K_left, [past keys, new keys], None without history; and the product.
    """
    system_RR = to_host(product(right_MR.T, left_MR)).astype(dtype)
    if regulariser.history_MR is None:
        return None, system_RR
    past_RM = regulariser.history_MR.T
    past_gram_RR, past_left_RR, past_right_RR = (
        to_host(product(past_RM, other)).astype(dtype)
        for other in (regulariser.history_MR, left_MR, right_MR)
    )
    identity_RR = np.eye(len(past_gram_RR), dtype=dtype)
    overlap_RR = np.linalg.solve(past_gram_RR + identity_RR, past_left_RR)
    return overlap_RR, system_RR - past_right_RR.T @ overlap_RR


@functools.partial(jax.jit, static_argnames="n_columns")
def _append(history_MR, white_MR, n_history, n_columns: int):
    n_missing = n_columns - history_MR.shape[1]
    history_MR = jnp.pad(history_MR, ((0, 0), (0, n_missing)))
    return jax.lax.dynamic_update_slice_in_dim(history_MR, white_MR, n_history, axis=1)


@jax.jit
def whiten(whitener_MF, key_FR) -> jax.Array:
    """Take keys to the coordinates in which M without history is the identity [M, R]."""
    key_FR = jnp.asarray(key_FR, jnp.float32)
    return key_FR if whitener_MF is None else matmul(whitener_MF, key_FR)


@jax.jit
def unwhiten(regulariser: KeyRegulariser, left_MR, overlap_RR) -> tuple[jax.Array, jax.Array]:
    """Compute M^-1 K_left with columns of length one [F, R], and the lengths they had [R]."""
    if overlap_RR is not None:
        left_MR = left_MR - matmul(jnp.asarray(regulariser.history_MR), overlap_RR)
    whitener_MF = regulariser.whitener_MF
    u_FR = left_MR if whitener_MF is None else _unwhitened(whitener_MF, left_MR)
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
