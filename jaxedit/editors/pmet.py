"""PMET (Li et al. 2024, arXiv 2308.08742): MEMIT for the MLP's own output.

    delta W = (lambda C + K K^T)^-1 K R^T
    R = (z - what the MLP of the last layer puts out) / sqrt(layers still to write)

z is the MLP's output, not the residual stream, with a vector added that is optimised together with
one for the attention's output, which then is not used: what the attention has to say is not pressed
into the MLP's weights. As released the target's term weighs a tenth once the target is the most
likely in every template (`jaxedit.solving.value`), and "layers still to write" counts this one.
"""

import dataclasses
import math
from typing import Annotated

from jaxedit.editors._base import Editor, multi_layer_editor
from jaxedit.solving.hyper import ClosedFormHyper
from jaxedit.solving.multi_layer import MethodSpec
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE
from jaxedit.solving.site import Site
from jaxedit.solving.whiteners import inverse_cholesky


@dataclasses.dataclass(frozen=True)
class Hyper(ClosedFormHyper):
    """PMET's hyper-parameters, as released for GPT-J: `mom2_update_weight` is lambda."""

    v_num_grad_steps: Annotated[int, AT_LEAST_ONE] = 30
    v_lr: Annotated[float, POSITIVE] = 0.2
    kl_factor: float = 1.0
    nll_loss_factor: Annotated[float, POSITIVE] = 1.0
    reduce_nll_when_correct: bool = True
    mom2_update_weight: Annotated[float, POSITIVE] = 6000.0


def make(hyper: Hyper) -> Editor:
    """Make the PMET editor of these hyper-parameters."""
    spec = MethodSpec(
        whitener=lambda moment_FF, layer: inverse_cholesky(moment_FF, hyper.mom2_update_weight),
        slack=lambda n_keys: 1.0,
        residual_divisor=math.sqrt,
        site=Site.MLP_WITH_ATTENTION,
    )
    return multi_layer_editor("pmet", hyper, spec)
