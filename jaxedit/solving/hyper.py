"""The hyper-parameters that methods share, under their published names."""

import dataclasses

from jaxedit.models.model import Model
from jaxedit.solving.prompts import check_fact_token, check_leading_space


@dataclasses.dataclass(frozen=True)
class TargetHyper:
    """Hyper-parameters of the optimisation, under their published names."""

    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp_norm_factor: float = 4.0
    nll_loss_factor: float = 1.0  # the weight of the target's term (PMET)
    prob_cutoff: int | None = (
        # -k: stop at the k-th pass in which the target is the likeliest in every template (ENCORE)
        None
    )
    norm_anchor: bool = (
        False  # give v* the norm of the value that the unedited model holds there (NAS, 2602.02543)
    )
    reduce_nll_when_correct: bool = (
        False  # weigh the target's term less once it is the likeliest (PMET)
    )
    leading_space: str = (
        "joined"  # between prompt and target: `jaxedit.solving.prompts.tokenise_prompt`
    )
    fact_token: str = (
        "subject_last"  # where the vector is added: `jaxedit.solving.prompts.fact_token_of`
    )

    def check(self) -> None:
        """Raises a ValueError on a number that cannot be meant."""
        if (
            self.v_num_grad_steps < 1
            or min(self.v_lr, self.clamp_norm_factor, self.nll_loss_factor) <= 0
        ):
            raise ValueError(
                f"v_num_grad_steps={self.v_num_grad_steps}, v_lr={self.v_lr}, clamp_norm_factor={self.clamp_norm_factor} and "
                f"nll_loss_factor={self.nll_loss_factor} must be positive"
            )
        if self.prob_cutoff is not None and self.prob_cutoff >= 0:
            raise ValueError(
                f"prob_cutoff={self.prob_cutoff}: expected -k, to stop at the k-th pass with the target the likeliest"
            )
        check_leading_space(self.leading_space)
        check_fact_token(self.fact_token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHyper:
    """What all methods that optimise a value to write have in common, under the published names.

    Attributes:
      fact_token: where keys and values are read: "subject_last"; the prompt's "last" token; or
        "auto", that one where the subject's is at position 0, and else the subject's.
      anchor: "bos" puts a begin-of-text token in front of every prompt, when the edit is made and
        when the edited model is asked; the edit remembers it.
      v_loss_layer: the layer whose output the loss reads; the last one (None).
      norm_anchor: NAS: the value gets the norm of what the unedited model holds there.
      leading_space: between prompt and target: "joined", "separate" or "none"
        (`jaxedit.solving.prompts.tokenise_prompt`).
      target_cache: a folder; values found on a model without edits are kept there
        (`jaxedit.solving.value_cache`).
      seed: of context templates that are sampled.
    """

    fact_token: str = "subject_last"
    anchor: str | None = None
    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_loss_layer: int | None = None
    v_weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp_norm_factor: float = 4.0
    norm_anchor: bool = False
    leading_space: str = "joined"
    target_cache: str | None = None
    seed: int = 0

    def target(self) -> TargetHyper:
        """The part that the optimisation takes."""
        names = [
            field.name for field in dataclasses.fields(TargetHyper) if hasattr(self, field.name)
        ]
        return TargetHyper(**{name: getattr(self, name) for name in names})

    def check(self, model: Model) -> None:
        """Raises a ValueError on a value that cannot be meant for this model."""
        self.target().check()
        last = model.config.L - 1
        if self.anchor not in (None, "bos"):
            raise ValueError(f"anchor={self.anchor!r}: expected 'bos', or nothing")
        if self.v_loss_layer not in (None, last):
            raise ValueError(
                f"v_loss_layer={self.v_loss_layer}: the reference reads the logits of the last layer, here {last}"
            )
