"""UltraEdit (2505.14679): a closed-form solve on keys and normalised output gradients.

    dW = (H^T H + alpha I)^-1 H^T R,    r = -lr |h~|^2 g~

`jaxedit.solving.lifelong` has the symbols and the solve. h~ and g~ are normalised by means and
standard deviations of all turns so far. The published turn is 100 facts (facts_per_edit=100). The
released code pads rows before it normalises them, and cuts them off again: nothing comes of it.
"""

import dataclasses

from jaxedit.editors._base import Editor, lifelong_editor
from jaxedit.solving.lifelong import LifelongHyper


@dataclasses.dataclass(frozen=True)
class Hyper(LifelongHyper):
    """UltraEdit's hyper-parameters; those of `LifelongHyper` and this.

    Attributes:
      released_variance: the sum of squares of a batch is its n times the unbiased variance, as
        released; false: n - 1 times, which makes the running variance the rows' own.
    """

    released_variance: bool = True


def make(hyper: Hyper) -> Editor:
    """Make the UltraEdit editor of these hyper-parameters."""
    return lifelong_editor("ultraedit", hyper)
