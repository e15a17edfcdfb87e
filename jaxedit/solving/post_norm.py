"""What an MLP must put out so that a vector arrives in the residual stream, behind a post-norm.

MEMIT and its relatives know what is missing of the residual stream and write it into what MLPs put
out. In most families the one is added to the other as it is. Behind a norm of scale g the MLP's
output m arrives as

    n(m) = A m,    A = diag(g) / sqrt(|m|^2 / D + eps),

so that only points of an ellipsoid can be reached, and scaling m changes nothing. To add r, the
value m' of m's own length is written that arrives nearest to n(m) + r:

    minimise |A m' - (n(m) + r)|  subject to  |m'| = |m|.

Its Lagrange condition (A^2 + nu) m' = A (n(m) + r) leaves one number, nu > -min A^2, by which |m'|
falls: it is found by bisection. To first order in r this is the least-squares solution of J x = r
across m, with J the norm's Jacobian. That alone does not do: coordinates with small g take large
numbers, which the norm then divides all others by (jaxedit/README.md has the numbers).
"""

import numpy as np

from jaxedit.mesh import to_host
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model

STEPS = 200  # of the bisection, more than float64 has bits


def change_of_values(
    model: Model, layer: int, value_ID: np.ndarray, residual_ID: np.ndarray
) -> np.ndarray:
    """Find the change of an MLP's output that adds vectors to the residual stream [I, D].

    Args:
      model: whose config's `adds_as_is` is false.
      layer: which.
      value_ID: what the layer's MLP puts out, before a post-norm.
      residual_ID: the vectors.
    """
    residual_ID = residual_ID / model.config.residual_scale
    if not model.config.post_norm:
        return residual_ID
    scale_D = to_host(model.base["mlp/post_norm_scale"][layer]).astype(np.float64)
    return nearest_value(model.config, scale_D, value_ID, residual_ID) - value_ID


def nearest_value(
    config: DecoderConfig, scale_D: np.ndarray, value_ID: np.ndarray, residual_ID: np.ndarray
) -> np.ndarray:
    """Find the values m' [I, D], float64.

    Args:
      config: with the norm's offset and eps.
      scale_D: the norm's scale as it is stored.
      value_ID: m.
      residual_ID: r.
    """
    value_ID = np.asarray(value_ID, np.float64)
    rms_I1 = np.sqrt(np.mean(value_ID**2, axis=-1, keepdims=True) + config.eps)
    a_ID = (scale_D + config.norm_offset) / rms_I1
    square_ID = a_ID**2
    wanted_ID = a_ID * (a_ID * value_ID + residual_ID)
    length_I1 = np.linalg.norm(value_ID, axis=-1, keepdims=True)

    # |m'| falls in nu: from its pole to where it surely is too short.
    low_I1 = -np.min(square_ID, axis=-1, keepdims=True)
    high_I1 = np.linalg.norm(wanted_ID, axis=-1, keepdims=True) / length_I1
    for _ in range(STEPS):
        nu_I1 = (low_I1 + high_I1) / 2
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found_I1 = np.linalg.norm(wanted_ID / (square_ID + nu_I1), axis=-1, keepdims=True)
        is_long_I1 = ~(found_I1 <= length_I1)
        low_I1, high_I1 = np.where(is_long_I1, nu_I1, low_I1), np.where(is_long_I1, high_I1, nu_I1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found_ID = np.nan_to_num(wanted_ID / (square_ID + high_I1))

    # Where the pole leaves it too short, the rest lies where it changes least.
    missing_I = length_I1[:, 0] ** 2 - np.sum(found_ID**2, axis=-1)
    least_I = np.argmin(square_ID, axis=-1)
    row_I = np.arange(len(value_ID))
    sign_I = np.where(value_ID[row_I, least_I] < 0, -1.0, 1.0)
    is_short_I = missing_I > 1e-9 * length_I1[:, 0] ** 2
    filled_I = sign_I * np.sqrt(np.maximum(found_ID[row_I, least_I] ** 2 + missing_I, 0))
    found_ID[row_I, least_I] = np.where(is_short_I, filled_I, found_ID[row_I, least_I])
    return found_ID
