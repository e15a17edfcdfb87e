"""The guard: does the model still work after this edit, and what to do where it does not."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxedit.metrics.perplexity import Perplexity
from jaxedit.study.record import StepRecord

ACTIONS = ("keep", "rollback", "stop")
STATISTICS = ("mean", "pooled", "median")
NO_LIMIT = 1e308  # times a perplexity: never reached


class Violation(NamedTuple):
    """What the guard found, as a code for programs and a sentence for people.

    The codes are "ppl_ratio", "non_finite_loss" and "non_finite_edit".
    """

    code: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Guard:
    """A limit on what an edit may do to the perplexity.

    Attributes:
      max_ppl_ratio: the perplexity after an edit may be at most this many times the unedited
        model's.
      action: what happens to a damaging edit: "keep" records it and keeps the edit, "rollback"
        undoes it, "stop" undoes it and ends the study.
      statistic: of the texts' losses that is limited: the papers' `mean` of the texts'
        perplexities, the `pooled` perplexity of all their tokens, or their `median`.
      max_relative_perturbation: after an edit with a larger relative perturbation
        (`jaxedit.metrics.perturbation`) the perplexity is measured at once, however seldom
        `eval.perplexity_every` asks for it; None: it is not looked at.
    """

    max_ppl_ratio: float = 2.0
    action: str = "rollback"
    max_relative_perturbation: float | None = 0.1
    statistic: str = "mean"

    def __post_init__(self):
        if self.action == "record":
            raise ValueError("guard.action='record' is called 'keep' now")
        if self.action not in ACTIONS:
            raise ValueError(f"guard.action={self.action!r}: expected one of {', '.join(ACTIONS)}")
        if self.statistic not in STATISTICS:
            raise ValueError(
                f"guard.statistic={self.statistic!r}: expected one of {', '.join(STATISTICS)}"
            )
        if not 1 < self.max_ppl_ratio < math.inf:
            raise ValueError(
                f"guard.max_ppl_ratio={self.max_ppl_ratio}: expected a number over 1, and not inf; "
                f"{NO_LIMIT} is never reached, and stands for the inf of an older study"
            )
        limit = self.max_relative_perturbation
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"guard.max_relative_perturbation={limit}: expected a positive number")

    def log_statistic_nats(self, perplexity: Mapping[str, Any]) -> float:
        """Read the logarithm of the statistic out of a record's perplexity."""
        return perplexity[f"log_{self.statistic}_nats"]

    def log_ratio_nats(self, edited: Perplexity, unedited: Perplexity) -> float:
        """Compute the logarithm of the statistic over the unedited model's."""
        after, before = (getattr(each, f"log_{self.statistic}_nats") for each in (edited, unedited))
        return after - before

    def needs_perplexity(self, relative_perturbation: float) -> bool:
        """Tell whether an edit perturbs so much that the perplexity is to be measured at once."""
        limit = self.max_relative_perturbation
        return limit is not None and not relative_perturbation <= limit

    def violation(
        self, edited: Perplexity | None, unedited: Perplexity, edit_norm: float
    ) -> Violation | None:
        """Judge an edit by its norm and, where it was measured, the edited model's perplexity."""
        if not np.isfinite(edit_norm):
            return Violation("non_finite_edit", "the edit itself is not finite")
        if edited is None:
            return None
        if edited.n_non_finite:
            reason = f"the loss of {edited.n_non_finite} texts is not finite"
            return Violation("non_finite_loss", reason)
        after, before = (getattr(each, self.statistic) for each in (edited, unedited))
        if after / before > self.max_ppl_ratio:
            name = "perplexity" if self.statistic == "mean" else f"{self.statistic} perplexity"
            reason = f"{name} {after / before:.3g} times the unedited model's"
            return Violation("ppl_ratio", reason)
        return None


def ends_study(action: str | None, record: StepRecord) -> bool:
    """Tell whether a study whose guard has this action stops for good with a step."""
    return action == "stop" and record.guard_code is not None
