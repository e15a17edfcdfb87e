"""How far a training of MEND has come."""

from typing import NamedTuple

import numpy as np
import optax

from jaxedit.mend.hypernetwork import Hypernetwork
from jaxedit.mend.training_config import Training
from jaxedit.mend.training_step import BatchSums

NO_EDITS = BatchSums(*[np.zeros((), np.float32)] * len(BatchSums._fields))


class Validation(NamedTuple):
    """What a validation found, and the edits since the one before.

    Attributes:
      iteration: edits trained with so far.
      total_loss: the mean loss of the validation's edits, which decides when to stop.
      edit_loss: NLL of the edits' targets, the mean.
      locality_loss: KL on the locality texts, the mean.
      success: the share of edits whose target decoding reproduces.
      drawdown: by what share an edit raises the perplexity of the locality texts.
      training_loss: the mean loss of the edits since the last validation; None: there are none.
      training_success: the share of successes among them.
    """

    iteration: int
    total_loss: float
    edit_loss: float
    locality_loss: float
    success: float
    drawdown: float
    training_loss: float | None = None
    training_success: float | None = None


class Progress(NamedTuple):
    """A training so far.

    Attributes:
      iteration: edits trained with.
      hypernetwork: as it is.
      optimiser_state: Adam's.
      validations: those so far.
      since: sums over the edits since the last of them.
    """

    iteration: int
    hypernetwork: Hypernetwork
    optimiser_state: optax.OptState
    validations: tuple[Validation, ...] = ()
    since: BatchSums = NO_EDITS

    @property
    def best(self) -> Validation:
        """The validation with the lowest loss."""
        return min(self.validations, key=lambda each: each.total_loss)

    @property
    def is_validated(self) -> bool:
        """Whether nothing was trained since the last validation."""
        return bool(self.validations) and self.validations[-1].iteration == self.iteration

    def is_due(self, training: Training) -> bool:
        """Tell whether a validation is due: every so many edits, and at the end."""
        last = self.validations[-1].iteration if self.validations else 0
        is_interval = self.iteration - last >= training.val_interval
        return not self.is_validated and (is_interval or self.iteration >= training.max_iters)

    def is_over(self, training: Training) -> bool:
        """Tell whether the last validation ends the training."""
        if not self.is_validated:
            return False
        is_stale = self.iteration - self.best.iteration >= training.early_stop_patience
        return is_stale or self.iteration >= training.max_iters
