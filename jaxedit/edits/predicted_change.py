"""An edit's change of the texts' loss, in sign and size, predicted without running the model.

Of a text d let dy_t = x_t dW be what an edit changes of a weight's output at token t, with the
inputs and gradients of `jaxedit.models.loss_probe`. Then

    first order     f_d = sum_t g_t . dy_t
    second order    s_d = 1/2 E_labels [ (sum_t g~_t . dy_t)^2 ]
    predicted       f_d + c s_d

Several edited weights are summed before squaring. c is below 1, as the loss curves less than this
form.

An edit of low rank costs some products with what was read, about a ten-thousandth of an evaluation.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxedit.distributed import sum_over_processes
from jaxedit.edits.edit import Dense, Edit, LowRank, change_of_output
from jaxedit.mesh import to_host
from jaxedit.models.loss_probe import N_DRAWS, LossProbe, read_loss_probe
from jaxedit.models.model import Model
from jaxedit.models.score import PrefilledTexts

CURVATURE_SHARE = 0.7  # the constant c, where no measured edit has told another


class PredictedChange(NamedTuple):
    """The predicted change of each text's mean loss, in nats a token.

    Attributes:
      first_nats: the first order of each text.
      second_nats: the second order by each draw of labels, [n_draws, texts].
    """

    first_nats: np.ndarray
    second_nats: np.ndarray

    def per_text(self, curvature_share: float = CURVATURE_SHARE) -> np.ndarray:
        """Return the predicted change of each text: first order and a share c of the second."""
        return self.first_nats + curvature_share * np.mean(self.second_nats, axis=0)

    def mean_nats(self, curvature_share: float = CURVATURE_SHARE) -> float:
        """Return its mean over texts, which `delta_nll_nats` is the measured one of."""
        return float(np.mean(self.per_text(curvature_share)))

    def harm_nats(self, curvature_share: float = CURVATURE_SHARE) -> float:
        """Return the second order's share alone: what other texts are to expect.

        The first order is of these texts; where a model has learnt such texts it averages out.
        """
        return curvature_share * float(np.mean(self.second_nats))

    def stderr_nats(self, curvature_share: float = CURVATURE_SHARE) -> float:
        """Return the mean's standard error by the draws; NaN of a single draw."""
        draws = np.mean(self.second_nats, axis=1)
        if len(draws) < 2:
            return math.nan
        return curvature_share * float(np.std(draws, ddof=1) / math.sqrt(len(draws)))

    def summary(self, curvature_share: float = CURVATURE_SHARE) -> dict[str, float]:
        """Return the mean and its standard error by name."""
        return {
            "mean_nats": self.mean_nats(curvature_share),
            "stderr_nats": self.stderr_nats(curvature_share),
        }


def predict_change(probe: LossProbe, edit: Edit) -> PredictedChange:
    """Predict what an edit changes of each text's mean loss.

    Args:
      probe: of the model that the edit is for.
      edit: of the probed weights.

    Raises:
      ValueError: where it changes another weight.
    """
    return change_of_scores(loss_scores(probe, edit.deltas))


def predict_edit(
    model: Model, texts: PrefilledTexts, edit: Edit, n_draws: int = N_DRAWS
) -> PredictedChange:
    """Predict what one edit changes, in 1 + n_draws backward passes over the texts.

    Args:
      model: that the edit is for.
      texts: from `jaxedit.metrics.perplexity.prepare`, at or below the edit's lowest layer.
      edit: of any weights.
      n_draws: of labels.
    """
    places = tuple(sorted({(delta.weight, delta.layer) for delta in edit.deltas}))
    return predict_change(read_loss_probe(model, texts, places, n_draws), edit)


def predict_total_change(probe: LossProbe, before: Model, model: Model) -> PredictedChange:
    """Predict what all edits of a model change together.

    Args:
      probe: of `before`.
      before: the model without these edits, with room for them.
      model: with them.
    """
    deltas = []
    for weight, layer in probe.places:
        slot = int(np.asarray(model.overlay.slot[weight])[layer])
        change = model.overlay.delta[weight][slot] - before.overlay.delta[weight][slot]
        deltas.append(Dense(weight, layer, to_host(change)))
    return change_of_scores(loss_scores(probe, deltas))


def change_of_scores(scores: np.ndarray) -> PredictedChange:
    """Return the predicted change of the texts' losses by their scores (`loss_scores`)."""
    return PredictedChange(scores[0], 0.5 * scores[1:] ** 2)


def loss_scores(probe: LossProbe, deltas: Sequence[LowRank | Dense]) -> np.ndarray:
    """Sum gradient times change of output over each text's tokens and all changes.

    Args:
      probe: of the weights that change.
      deltas: the changes.

    Returns:
      [1 + n_draws, texts]: of the texts' mean losses, then of drawn labels'. The second order is
      half the square of the latter.

    Raises:
      ValueError: where another weight changes.
    """
    n_rows = len(probe.gradient_of[probe.places[0]])
    scores = np.zeros((n_rows, len(probe.text_Q)))
    for delta in deltas:
        place = delta.weight, delta.layer
        if place not in probe.places:
            raise ValueError(
                f"the edit changes {delta.weight} of layer {delta.layer}; probed were "
                f"{', '.join(f'{weight} of layer {layer}' for weight, layer in probe.places)}"
            )
        change = change_of_output(delta, probe.input_of[place])
        scores += np.einsum("nqo,qo->nq", probe.gradient_of[place], change)
    by_text = np.stack(
        [np.bincount(probe.text_Q, weights=score, minlength=probe.n_texts) for score in scores]
    )
    return sum_over_processes(by_text) if probe.is_split else by_text
