"""C-ROME (Yang et al. 2024, arXiv 2406.11263), the same as r-ROME: the prefixed key everywhere.

    delta W = (C^-1 k_bar) (v* - W k_bar)^T / (k_bar . C^-1 k_bar)

k_bar is the mean key of the prefixed prompts. This keeps the model whole where ROME destroys it; on
those hard cases the bare prompt is then not what was edited, so the new fact holds behind a prefix
and often not without one (section 4 there).
"""

import functools

from jaxedit.editors._base import Editor, with_harm_texts
from jaxedit.edits.edit import EDITED_WEIGHT
from jaxedit.solving import rank_one
from jaxedit.solving.hyper import RankOneHyper

Hyper = RankOneHyper


def make(hyper: Hyper) -> Editor:
    """Make the C-ROME editor of these hyper-parameters."""
    editor = Editor(
        name="c-rome",
        hyper=hyper,
        slots=lambda model: {EDITED_WEIGHT: (hyper.edited_layer,)},
        init=functools.partial(rank_one.init, hyper),
        edit=functools.partial(rank_one.edit, hyper, "prefixed"),
        restore=lambda state, edit: state,
        context_templates=lambda state: state.context_templates,
        edit_each=functools.partial(rank_one.edit_each, hyper, "prefixed"),
        bound_updates=functools.partial(rank_one.bound_updates, hyper, "prefixed"),
        max_requests=1,
    )
    return with_harm_texts(editor, lambda state: {hyper.edited_layer: state.regulariser})
