"""CrispEdit's projection of a gradient in NumPy, float64, direction by direction."""

import numpy as np


def project(gradient_FD, c_FF, b_DD, energy_threshold: float) -> np.ndarray:
    """Return U_A ((U_A^T G U_B) o M) U_B^T of a gradient in x out."""
    s_F, u_FF = np.linalg.eigh(np.asarray(c_FF, np.float64))
    s_D, u_DD = np.linalg.eigh(np.asarray(b_DD, np.float64))
    directions = sorted(
        ((s_F[i] * s_D[j], i, j) for i in range(len(s_F)) for j in range(len(s_D))), reverse=True
    )
    total, held, threshold = sum(curvature for curvature, _, _ in directions), 0.0, 0.0
    for curvature, _, _ in directions:
        held += curvature
        threshold = curvature
        if held >= energy_threshold * total:
            break
    out_FD = np.zeros(np.shape(gradient_FD))
    for curvature, i, j in directions:
        if curvature < threshold:
            direction_FD = np.outer(u_FF[:, i], u_DD[:, j])
            out_FD += np.sum(direction_FD * gradient_FD) * direction_FD
    return out_FD
