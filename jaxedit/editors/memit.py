"""MEMIT (Meng et al. 2023, arXiv 2210.07229): a batch of facts, spread over several layers.

    delta W = (lambda C + K K^T)^-1 K R^T                                               (eq. 14)

with lambda = mom2_update_weight and C the second moments of the layers' keys. As released, every
edit starts from the same C, whatever was edited before; `memit-sequential` remembers.
"""

import dataclasses
from typing import Annotated

from jaxedit.editors._base import Editor, multi_layer_editor
from jaxedit.solving.hyper import ClosedFormHyper
from jaxedit.solving.multi_layer import MethodSpec
from jaxedit.solving.ranges import POSITIVE
from jaxedit.solving.whiteners import inverse_cholesky


@dataclasses.dataclass(frozen=True)
class Hyper(ClosedFormHyper):
    """MEMIT's hyper-parameters: `mom2_update_weight` is lambda."""

    mom2_update_weight: Annotated[float, POSITIVE] = 15000.0


def make(hyper: Hyper) -> Editor:
    """Make the MEMIT editor of these hyper-parameters."""
    spec = MethodSpec(
        whitener=lambda moment_FF, layer: inverse_cholesky(moment_FF, hyper.mom2_update_weight),
        slack=lambda n_keys: 1.0,
    )
    return multi_layer_editor("memit", hyper, spec)
