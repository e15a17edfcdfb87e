"""ROME (Meng et al. 2022, arXiv 2202.05262) as released: a rank-one edit with two different keys.

    delta W = (C^-1 k_bar) (v* - W k_u)^T / (k_u . C^-1 k_bar)

k_bar, on the left, is the mean key of the prefixed prompts, and k_u, on the right, the bare
prompt's. That mixture is what makes one edit destroy a model: where a one-token subject begins the
prompt, k_u . C^-1 k_bar nearly vanishes (arXiv 2406.11263, section 3). `c-rome` is the consistent
form.
"""

import dataclasses
import functools

from jaxedit.editors._base import Editor, with_harm_texts
from jaxedit.edits.edit import EDITED_WEIGHT
from jaxedit.solving import rank_one
from jaxedit.solving.hyper import RankOneHyper


@dataclasses.dataclass(frozen=True)
class Hyper(RankOneHyper):
    """ROME's hyper-parameters.

    Attributes:
      key_variant: "mixed" as released, "prefixed" (what `c-rome` is the name for) or "bare"
        (p-ROME's: the bare prompt's key alone).
    """

    key_variant: str = "mixed"


def make(hyper: Hyper) -> Editor:
    """Make the ROME editor of these hyper-parameters.

    Raises:
      ValueError: on an unknown key_variant.
    """
    if hyper.key_variant not in rank_one.KEY_VARIANTS:
        raise ValueError(
            f"key_variant={hyper.key_variant!r}: expected one of {', '.join(rank_one.KEY_VARIANTS)}"
        )
    editor = Editor(
        name="rome",
        hyper=hyper,
        slots=lambda model: {EDITED_WEIGHT: (hyper.edited_layer,)},
        init=functools.partial(rank_one.init, hyper),
        edit=functools.partial(rank_one.edit, hyper, hyper.key_variant),
        restore=lambda state, edit: state,
        context_templates=lambda state: state.context_templates,
        edit_each=functools.partial(rank_one.edit_each, hyper, hyper.key_variant),
        bound_updates=functools.partial(rank_one.bound_updates, hyper, hyper.key_variant),
        max_requests=1,
    )
    return with_harm_texts(editor, lambda state: {hyper.edited_layer: state.regulariser})
