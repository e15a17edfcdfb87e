"""EMMET (Gupta et al. 2024, arXiv 2403.14236): a batch of facts under equality constraints.

    delta W = C'^-1 K (K^T C'^-1 K + emmet_lambda I)^-1 R^T                             (eq. 10)
    C' = mom2_update_weight C + update_norm_lambda I

It is ROME's form for one fact: emmet_lambda, which keeps near-equal keys apart, counts only for
more than one, as the authors have it; EasyEdit's port adds it for a single one too.
"""

import dataclasses

from jaxedit.editors._base import Editor, multi_layer_editor
from jaxedit.solving.hyper import ClosedFormHyper
from jaxedit.solving.multi_layer import MethodSpec
from jaxedit.solving.whiteners import inverse_cholesky


@dataclasses.dataclass(frozen=True)
class Hyper(ClosedFormHyper):
    """EMMET's hyper-parameters; `emmet_lambda` is the solver's slack."""

    mom2_update_weight: float = 1.0
    update_norm_lambda: float = 0.0
    emmet_lambda: float = 0.1


def make(hyper: Hyper) -> Editor:
    """Make the EMMET editor of these hyper-parameters."""
    spec = MethodSpec(
        whitener=lambda moment_FF, layer: inverse_cholesky(
            moment_FF, hyper.mom2_update_weight, hyper.update_norm_lambda
        ),
        slack=lambda n_keys: hyper.emmet_lambda if n_keys > 1 else 0.0,
    )
    return multi_layer_editor("emmet", hyper, spec)
