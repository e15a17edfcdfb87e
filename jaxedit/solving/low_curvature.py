"""Gradients projected to where the loss on ordinary text is nearly flat, as CrispEdit does it.

    G <- U_A ((U_A^T G U_B) o M) U_B^T                                   (2602.15823)

K-FAC approximates the curvature of the loss on texts at a weight by C (x) B, C = E[k k^T] of its
inputs and B = E[g g^T] of its outputs' gradients. U_A and U_B are their eigenvectors, and s_i t_j,
the products of their eigenvalues, the curvatures along u_i v_j^T. M keeps the directions below the
least of those largest curvatures that together hold the share `energy_threshold` of their sum.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxedit.mesh import device_put_global, parameter_sharding
from jaxedit.models.ops import PRECISION


class Curvature(NamedTuple):
    """The masked eigenbases of E layers of a weight; float32 on the devices.

    Attributes:
      u_EFM: eigenvectors of C, a column each.
      u_EDD: eigenvectors of B.
      mask_EMD: 1 for the directions that are kept, else 0.
    """

    u_EFM: Any
    u_EDD: Any
    mask_EMD: Any


def low_curvature_mask(s_M: np.ndarray, s_D: np.ndarray, energy_threshold: float) -> np.ndarray:
    """Mark the directions of low curvature.

    Args:
      s_M: eigenvalues of C.
      s_D: eigenvalues of B.
      energy_threshold: the share of the sum of all curvatures that the others hold.

    Returns:
      Boolean [M, D].
    """
    curvature_MD = np.maximum(s_M, 0)[:, None] * np.maximum(s_D, 0)
    largest_first = np.sort(curvature_MD, axis=None)[::-1]
    held = np.cumsum(largest_first, dtype=np.float64)
    at = int(np.searchsorted(held, energy_threshold * held[-1]))
    return curvature_MD < largest_first[min(at, len(largest_first) - 1)]


def decompose(
    mesh: Mesh, moments: list[tuple[np.ndarray, np.ndarray]], energy_threshold: float
) -> Curvature:
    """Factorise C and B of each layer, in float64 on the host.

    Args:
      mesh: the devices.
      moments: C [F, F] and B [D, D] of each layer.
      energy_threshold: see `low_curvature_mask`.
    """
    parts = []
    for moment_FF, gradient_DD in moments:
        s_M, u_FM = np.linalg.eigh(np.asarray(moment_FF, np.float64))
        s_D, u_DD = np.linalg.eigh(np.asarray(gradient_DD, np.float64))
        parts.append((u_FM, u_DD, low_curvature_mask(s_M, s_D, energy_threshold)))
    u_EFM, u_EDD, mask_EMD = (
        np.stack(arrays).astype(np.float32) for arrays in zip(*parts, strict=True)
    )
    whole = NamedSharding(mesh, PartitionSpec())
    return Curvature(
        device_put_global(parameter_sharding(mesh, "EFM", u_EFM.shape), u_EFM),
        device_put_global(whole, u_EDD),
        device_put_global(whole, mask_EMD),
    )


def project_to_low_curvature(
    curvatures: Mapping[str, Curvature],
) -> optax.GradientTransformation:
    """Make the transformation that projects the gradients of these weights, [E, F, D] each."""

    def project(gradient_EFD: jax.Array, curvature: Curvature) -> jax.Array:
        u_EFM, u_EDD, mask_EMD = curvature
        turned_EMD = multiply(multiply(u_EFM.mT, gradient_EFD), u_EDD)
        return multiply(multiply(u_EFM, turned_EMD * mask_EMD), u_EDD.mT)

    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.matmul(left, right, precision=PRECISION)

    def project_all(gradients: Any, params: Any = None) -> Any:
        return {
            weight: project(gradient_EFD, curvatures[weight])
            for weight, gradient_EFD in gradients.items()
        }

    return optax.stateless(project_all)
