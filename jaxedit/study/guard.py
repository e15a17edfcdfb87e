"""The guard: does the model still work after this edit, and what to do where it does not."""

import dataclasses

import numpy as np

from jaxedit.metrics.perplexity import Perplexity

ACTIONS = ("record", "rollback", "stop")


@dataclasses.dataclass(frozen=True)
class Guard:
    """A limit on what an edit may do to the perplexity.

    Attributes:
      max_ppl_ratio: the perplexity after an edit may be at most this many times the unedited
        model's.
      action: "record" keeps a damaging edit and says so, "rollback" undoes it, "stop" undoes it and
        ends the study.
      max_relative_perturbation: an edit that pushes the texts harder
        (`jaxedit.metrics.perturbation`) has its perplexity measured at once, however seldom
        `perplexity_every` would; None: that is not looked at.
    """

    max_ppl_ratio: float = 2.0
    action: str = "rollback"
    max_relative_perturbation: float | None = 0.1

    def __post_init__(self):
        if self.action not in ACTIONS:
            raise ValueError(f"guard.action={self.action!r}: expected one of {', '.join(ACTIONS)}")
        if not self.max_ppl_ratio > 1:
            raise ValueError(f"guard.max_ppl_ratio={self.max_ppl_ratio}: expected a number over 1")
        if self.max_relative_perturbation is not None and not self.max_relative_perturbation > 0:
            raise ValueError(
                f"guard.max_relative_perturbation={self.max_relative_perturbation}: expected a positive number"
            )

    def wants_a_look(self, relative_perturbation: float) -> bool:
        """Whether an edit's push is so hard that the perplexity is to be measured at once."""
        return (
            self.max_relative_perturbation is not None
            and not relative_perturbation <= self.max_relative_perturbation
        )

    def trips(self, after: Perplexity | None, unedited: Perplexity, edit_norm: float) -> str:
        """Why the edit is damaging; empty where it is not, as far as is known where the perplexity
        was not measured.
        """
        if not np.isfinite(edit_norm):
            return "the edit itself is not finite"
        if after is None:
            return ""
        if after.n_broken:
            return f"the loss of {after.n_broken} texts is not finite"
        ratio = after.mean / unedited.mean
        if ratio > self.max_ppl_ratio:
            return f"perplexity {ratio:.3g} times the unedited model's"
        return ""
