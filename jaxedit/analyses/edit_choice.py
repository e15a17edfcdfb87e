"""Which of several edits of the same facts to keep: of those that are said, the least harmful.

Layers, clamp factors, fact tokens or methods write the same fact in different places, and their
harm differs more than their success. By how much each alternative changes some texts' mean loss is
predicted (`jaxedit.edits.predicted_change`): five backward passes over the texts for all
alternatives, and no evaluation of any edited model on them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxedit.edits.edit import Edit
from jaxedit.edits.predicted_change import predict_change
from jaxedit.edits.request import Request, check_requests, with_leading_space
from jaxedit.models.model import Model
from jaxedit.solving.harm_texts import choose_parts, read_parts
from jaxedit.stats.second_moments import Stats
from jaxedit.study.alternatives import HARM_TOKENS, alternative_config, share_said
from jaxedit.study.config import default_config, editor_from, with_tuples


class Alternative(NamedTuple):
    """A way to write the facts, and what came of it.

    Attributes:
      editor: "method" and its hyper-parameters: all of them, or those given where there is no edit.
      edit: None where it could not be made.
      info: the editor's numbers.
      accuracy: the share of the facts that the edited model says on their bare prompts.
      predicted_nats: the predicted change of the texts' mean loss, f + 0.7 s; NaN where there is
        no edit.
      stderr_nats: its standard error by the draws of labels.
      error: why the edit could not be made; None: it was.
    """

    editor: Mapping[str, Any]
    edit: Edit | None = None
    info: Mapping[str, float] = {}
    accuracy: float = 0.0
    predicted_nats: float = math.nan
    stderr_nats: float = math.nan
    error: str | None = None


class EditChoice(NamedTuple):
    """All alternatives, and the one that harms least of those that are said.

    Attributes:
      alternatives: in the order given.
      chosen: None where none of them is said.
    """

    alternatives: tuple[Alternative, ...]
    chosen: Alternative | None


def choose_edit(
    model: Model,
    requests: Request | Sequence[Request],
    alternatives: Sequence[Mapping[str, Any]],
    texts: list[str],
    stats: Stats | None = None,
    n_tokens: int = HARM_TOKENS,
) -> EditChoice:
    """Write facts in several ways, and choose the one that harms least at the same success.

    Args:
      model: with or without edits; unchanged.
      requests: the fact, or several that each alternative writes in one edit.
      alternatives: of each "method" and hyper-parameters under their published names; the others
        are those published for the method and the model, or the method's defaults.
      texts: whose loss is not to rise; not those that an edit is evaluated on.
      stats: second moments, for methods that use them.
      n_tokens: of the texts that are read, spread evenly over them.

    Raises:
      ValueError: without alternatives, on an unknown method or hyper-parameter, and on texts that
        cannot be used. An alternative whose edit cannot be made is not chosen, and says why.
    """
    asked = check_requests([requests] if isinstance(requests, Request) else requests)
    if not alternatives or not all(isinstance(each.get("method"), str) for each in alternatives):
        raise ValueError(
            f"alternatives={list(alternatives)!r}: expected at least one, each with its method, "
            'e.g. {"method": "rome", "layer": 5}'
        )
    choose_parts(model, texts, n_tokens)  # texts that cannot be used are said first
    tried = [_make(model, asked, alternative, stats) for alternative in alternatives]

    # The texts are read once, at all places that an edit changes.
    edits = [each.edit for each in tried if each.edit is not None]
    places = tuple(sorted({(delta.weight, delta.layer) for edit in edits for delta in edit.deltas}))
    if not places:
        return EditChoice(tuple(tried), None)
    probe = read_parts(model, texts, n_tokens, places)
    for i, each in enumerate(tried):
        if each.edit is not None:
            change = predict_change(probe, each.edit)
            tried[i] = each._replace(
                predicted_nats=change.mean_nats(), stderr_nats=change.stderr_nats()
            )
    said = [each for each in tried if each.accuracy == 1 and math.isfinite(each.predicted_nats)]
    chosen = min(said, key=lambda each: each.predicted_nats, default=None)
    return EditChoice(tuple(tried), chosen)


def _make(
    model: Model, requests: list[Request], given: Mapping[str, Any], stats: Stats | None
) -> Alternative:
    """Make the edit of an alternative, and ask the model with it; nothing is predicted yet.

    Raises:
      ValueError: on an unknown method or hyper-parameter.
    """
    default_config(**with_tuples(given))  # an unknown name is no edit that cannot be made
    try:
        config = alternative_config(model, given)
        editor = editor_from(config)
        facts = with_leading_space(requests, config.get("leading_space"))
        edit, _, info = editor.edit(model, facts, editor.init(model, stats))
    except ValueError as error:
        return Alternative(given, error=str(error))
    return Alternative(config, edit, info, share_said(model, edit, facts))
