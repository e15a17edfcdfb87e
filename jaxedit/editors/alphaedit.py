"""AlphaEdit (Fang et al. 2025, arXiv 2410.02355): changes in the null space of preserved knowledge.

    delta W = P (S P + K K^T P + L2 I)^-1 K R^T                                         (eq. 14)

in effect: with U the eigenvectors of C whose eigenvalues are below nullspace_threshold and
P = U U^T, it is the least-change update within U under M = S + L2 I. Keys of what is to be
preserved hardly reach there.

S holds the keys of the edits before. With SPHERE (`sphere_share`) each layer's update is projected
before the next layer is written, as that method's authors do with AlphaEdit.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated

import numpy as np

from jaxedit.editors._base import Editor, multi_layer_editor
from jaxedit.solving import sphere
from jaxedit.solving.hyper import ClosedFormHyper
from jaxedit.solving.multi_layer import MethodSpec
from jaxedit.solving.ranges import POSITIVE, SHARE
from jaxedit.solving.sphere import SphereHyper
from jaxedit.solving.whiteners import null_space


@dataclasses.dataclass(frozen=True)
class Hyper(ClosedFormHyper, SphereHyper):
    """AlphaEdit's hyper-parameters: `nullspace_threshold` is a number, or one for each layer."""

    L2: Annotated[float, POSITIVE] = 10.0
    nullspace_threshold: float | Mapping[int, float] = 2e-2
    sphere_strength: Annotated[float, SHARE] = 0.5


def make(hyper: Hyper) -> Editor:
    """Make the AlphaEdit editor of these hyper-parameters."""
    spec = MethodSpec(
        whitener=lambda moment_FF, layer: whiten(hyper, moment_FF, layer),
        slack=lambda n_keys: 1.0,
        history=True,
        constrain=functools.partial(sphere.project, hyper),
    )
    return multi_layer_editor("alphaedit", hyper, spec)


def whiten(hyper: Hyper, moment_FF: np.ndarray, layer: int) -> np.ndarray:
    """Compute the whitener U^T / sqrt(L2) [M, F].

    Raises:
      ValueError: where there is no null space.
    """
    u_FM = null_space(moment_FF, hyper.nullspace_threshold, layer)
    return (u_FM.T / np.sqrt(hyper.L2)).astype(np.float32)
