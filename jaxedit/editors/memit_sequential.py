"""MEMIT that remembers, as AlphaEdit (2410.02355) and ENCORE (2502.01636) formulate it.

    delta W = (lambda C + S + b I + K K^T)^-1 K R^T,     S = sum of K_p K_p^T over the edits before

The keys K_p of earlier edits are kept from being written over: it is MEMIT for sequences of edits.
"""

import dataclasses

from jaxedit.editors._base import Editor, multi_layer_editor
from jaxedit.solving.hyper import ClosedFormHyper
from jaxedit.solving.multi_layer import MethodSpec
from jaxedit.solving.whiteners import inverse_cholesky


@dataclasses.dataclass(frozen=True)
class Hyper(ClosedFormHyper):
    """Hyper-parameters: `mom2_update_weight` is lambda, `update_norm_lambda` is b."""

    mom2_update_weight: float = 15000.0
    update_norm_lambda: float = 0.0


def make(hyper: Hyper) -> Editor:
    """Make the sequential MEMIT editor of these hyper-parameters."""
    spec = MethodSpec(
        whitener=lambda moment_FF, layer: inverse_cholesky(
            moment_FF, hyper.mom2_update_weight, hyper.update_norm_lambda
        ),
        slack=lambda n_keys: 1.0,
        history=True,
    )
    return multi_layer_editor("memit-sequential", hyper, spec)
