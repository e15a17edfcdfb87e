"""What is measured of an edited model before and after it is written: its facts, its perplexity."""

from typing import NamedTuple

from jaxedit.datasets import read_texts
from jaxedit.edits.request import Request
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.metrics.perplexity import perplexity
from jaxedit.models.model import Model, with_bos
from jaxedit.study.edited import EditedModel


class ExportNumbers(NamedTuple):
    """Numbers of an edited model.

    Attributes:
      perplexity: the mean over `texts_of` the edited model; None: there are none.
      probability_new: P(target_new) after the prompt of each of `EditedModel.requests`.
    """

    perplexity: float | None
    probability_new: tuple[float, ...]


def measure_edited(edited: EditedModel) -> ExportNumbers:
    """Measure an edited model as it is, in its float32 overlay."""
    return measure_as(edited.model, edited)


def measure_as(model: Model, edited: EditedModel) -> ExportNumbers:
    """Measure another model on the facts and texts of an edited one.

    It is asked behind a begin-of-text token where the edited one is.

    Args:
      model: e.g. what was written of the edited model, loaded again.
      edited: whose facts and texts.
    """
    if edited.model.tokenizer.add_bos and not model.tokenizer.add_bos:
        model = with_bos(model)
    asked = [
        Request(
            request.prompt,
            request.subject,
            request.target_new,
            leading_space=request.leading_space,
        )
        for request in edited.requests
    ]
    found = evaluate_facts(model, asked) if asked else []
    texts = texts_of(edited)
    score = perplexity(model, texts, edited.bos) if texts else None
    return ExportNumbers(
        perplexity=score.mean if score else None,
        probability_new=tuple(float(metrics["probability_new"] or 0.0) for metrics in found),
    )


def texts_of(edited: EditedModel) -> list[str]:
    """Read the texts whose unedited perplexity is known; none where they are not there any more."""
    try:
        return read_texts(edited.texts) if edited.texts else []
    except ValueError:
        return []
