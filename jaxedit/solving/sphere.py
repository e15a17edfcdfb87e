"""SPHERE (2510.01172): updates that spare the directions along which a weight's neurons lie.

    delta W <- (I - alpha U U^T) delta W

W, in x out, has a neuron in each column. U holds the eigenvectors of the mean of w w^T / |w|^2 over
the neurons w that belong to its largest eigenvalues: the fewest whose sum is over the share beta of
all. Only the factor u of a low-rank update changes, so that it stays one.

The authors' code projects MEMIT's and RECT's updates once the edit is made, and AlphaEdit's layer
by layer, so that the layers above write what a projection took away. beta is 0.5; alpha is 0.5 for
AlphaEdit, 0.8 for the others. Their W is the one edited so far; the paper's text says the
pretrained one. On GPT-2, whose weights lie transposed, that code would turn to the output side.
"""

import dataclasses
from typing import Annotated

import numpy as np

from jaxedit.edits.edit import Dense, LowRank
from jaxedit.edits.weights import base_weight, sum_of_edits
from jaxedit.mesh import to_host
from jaxedit.models.model import Model
from jaxedit.solving.ranges import SHARE

WEIGHTS = ("edited", "unedited")
NEAR_ZERO = 1e-8  # added to a neuron's length, as released


@dataclasses.dataclass(frozen=True, kw_only=True)
class SphereHyper:
    """SPHERE's hyper-parameters.

    Attributes:
      sphere_share: beta; None: no projection.
      sphere_strength: alpha.
      sphere_on: "edited": U is of the weight with the edits so far, as released; "unedited".
    """

    sphere_share: Annotated[float | None, SHARE] = None
    sphere_strength: Annotated[float, SHARE] = 0.8
    sphere_on: str = "edited"

    def check_sphere(self) -> None:
        """Raise a ValueError on a name that is none."""
        if self.sphere_on not in WEIGHTS:
            raise ValueError(
                f"sphere_on={self.sphere_on!r}: expected {' or '.join(map(repr, WEIGHTS))}"
            )


def project(hyper: SphereHyper, model: Model, delta: LowRank | Dense) -> LowRank | Dense:
    """Project a layer's update; without a share it is returned as it is.

    Args:
      hyper: beta, alpha, and which weight's neurons.
      model: with the edits before this update.
      delta: low-rank or dense, which it stays.
    """
    if hyper.sphere_share is None:
        return delta
    weight_FD = base_weight(model, delta.weight, delta.layer)
    if hyper.sphere_on == "edited":
        weight_FD = weight_FD + sum_of_edits(model, delta.weight, delta.layer)
    u_FM = principal_directions(weight_FD, hyper.sphere_share)

    def spare(change_FR: np.ndarray) -> np.ndarray:
        along_FR = u_FM @ (u_FM.T @ change_FR.astype(np.float64))
        return (change_FR - hyper.sphere_strength * along_FR).astype(np.float32)

    if isinstance(delta, Dense):
        return delta._replace(delta_FD=spare(to_host(delta.delta_FD)))
    return delta._replace(u_FR=spare(to_host(delta.u_FR)))


def principal_directions(weight_FD: np.ndarray, share: float) -> np.ndarray:
    """Compute the directions along which the columns of a weight lie.

    Args:
      weight_FD: in x out.
      share: of the sum of the eigenvalues that those of the directions exceed.

    Returns:
      U [F, M], orthonormal, in float64.
    """
    # The eigenvectors of X X^T [F, F] out of those of X^T X [D, D], X the columns at length one.
    weight_FD = weight_FD.astype(np.float64)
    unit_FD = weight_FD / (np.linalg.norm(weight_FD, axis=0) + NEAR_ZERO)
    value_D, vector_DD = np.linalg.eigh(unit_FD.T @ unit_FD)

    # As many of the largest ones as are counted in the authors' code; none of what rounding makes.
    largest_first_D = value_D[::-1]
    n_directions = 1 + np.count_nonzero(np.cumsum(largest_first_D) <= share * value_D.sum())
    rank = np.count_nonzero(value_D > value_D[-1] * len(value_D) * np.finfo(np.float64).eps)
    n_directions = min(n_directions, rank)
    value_M, vector_DM = value_D[-n_directions:], vector_DD[:, -n_directions:]
    return unit_FD @ vector_DM / np.sqrt(value_M)
