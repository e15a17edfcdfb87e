"""The update of least change that writes given values at given keys.

    minimise tr(D^T M D)  subject to  K_right^T D = V          (D = u_FR v_RD, M symmetric positive definite)
    u = M^-1 K_left,   v = (K_right^T u + g I)^-1 V

With K_left = K_right this is the constrained least-squares solution (g = 0) or its relaxation (g = 1). ROME takes
different keys on the two sides. M is factorised once in float64 on the host; what the device holds is the whitener
L^-1 (M = L L^T), which keeps small denominators that a float32 inverse would lose.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.models.decoder import PRECISION


class Solution(NamedTuple):
    """`u_FR` with columns of length one, `v_RD`, the n x n matrix K_right^T u, and |K_right^T u v - V| / |V|."""

    u_FR: jax.Array
    v_RD: jax.Array
    product_RR: jax.Array
    residual: jax.Array


def whitener(moment_FF: np.ndarray) -> np.ndarray:
    """L^-1 as float32 [F, F], from a float64 Cholesky factorisation M = L L^T on the host.

    Raises:
      ValueError: where the matrix is not positive definite.
    """
    import scipy.linalg

    moment = np.asarray(moment_FF, np.float64)
    try:
        lower = scipy.linalg.cholesky((moment + moment.T) / 2, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the second moment ({moment.shape[0]} wide) is not positive definite: {error}. It was gathered from too few "
            "tokens, or is of low rank; take more than 10 x F tokens, or add a small multiple of the identity"
        ) from error
    return scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True).astype(np.float32)


@jax.jit
def solve(whitener_MF: jax.Array | None, left_FR: jax.Array, right_FR: jax.Array, value_RD: jax.Array, g: float) -> Solution:
    """Solves for the factors of the update.

    Args:
      whitener_MF: L^-1 of M; None for M = I.
      left_FR: keys that shape the update's input side.
      right_FR: keys at which the values are written.
      value_RD: what to add there.
      g: 0 for an equality constraint.
    """
    matmul = functools.partial(jnp.matmul, precision=PRECISION)
    u_FR = left_FR if whitener_MF is None else matmul(whitener_MF.T, matmul(whitener_MF, left_FR))
    u_FR = u_FR / jnp.linalg.norm(u_FR, axis=0, keepdims=True)
    product_RR = matmul(right_FR.T, u_FR)
    system_RR = product_RR + g * jnp.eye(product_RR.shape[0])
    v_RD = jnp.linalg.solve(system_RR, value_RD)
    residual = jnp.linalg.norm(matmul(system_RR, v_RD) - value_RD) / jnp.linalg.norm(value_RD)
    return Solution(u_FR, v_RD, product_RR, residual)
