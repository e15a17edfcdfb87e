"""StableEdit (2605.11836): UltraEdit with gradients whitened by their covariance.

    dW = (H^T H + alpha I)^-1 H^T R,    r = -lr |h~|^2 g~,    g~ = (g - mean) S^-1/2

`jaxedit.solving.lifelong` has the symbols and the solve. S is the covariance of output gradients
over all turns so far; until more rows than its width plus one were seen, and in the first
`warmup_turns` turns, the standard deviations take its place. The authors make these turns with
facts of a training set: facts for them come first.
"""

import dataclasses
from typing import Annotated, ClassVar

from jaxedit.editors._base import Editor, lifelong_editor
from jaxedit.solving.lifelong import LifelongHyper
from jaxedit.solving.ranges import NOT_NEGATIVE, POSITIVE


@dataclasses.dataclass(frozen=True)
class Hyper(LifelongHyper):
    """StableEdit's hyper-parameters; those of `LifelongHyper` and this.

    Attributes:
      warmup_turns: edits in the beginning that normalise as UltraEdit does; the authors made 20.
    """

    alpha: Annotated[float, POSITIVE] = 10.0
    warmup_turns: Annotated[int, NOT_NEGATIVE] = 0

    whitens: ClassVar[bool] = True


def make(hyper: Hyper) -> Editor:
    """Make the StableEdit editor of these hyper-parameters."""
    return lifelong_editor("stableedit", hyper)
