"""MEMIT (Meng et al. 2023, arXiv 2210.07229): a batch of facts, spread over several layers.

    delta W = (lambda C + K K^T)^-1 K R^T                                                        (eq. 14)

with lambda = mom2_update_weight and C the second moments of the layers' keys. As released, every edit starts from the same
C, whatever was edited before; `memit-sequential` remembers.
"""

import dataclasses

from jaxedit.editors._base import Editor, batch_editor
from jaxedit.solving.multi_layer import Recipe, SpreadHyper
from jaxedit.solving.solve import whitener


@dataclasses.dataclass(frozen=True)
class Hyper(SpreadHyper):
    """MEMIT's hyper-parameters: `mom2_update_weight` is lambda."""

    mom2_update_weight: float = 15000.0


def make(hyper: Hyper) -> Editor:
    """MEMIT with these hyper-parameters."""
    recipe = Recipe(whiten=lambda moment_FF, layer: whitener(moment_FF, hyper.mom2_update_weight), g=lambda n: 1.0)
    return batch_editor("memit", hyper, recipe)
