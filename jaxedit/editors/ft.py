"""Fine-tuning of one or several MLP weights on the facts, the baseline of the editing papers.

    W <- Adam steps on the loss, then each entry clamped to [W_0 - eps, W_0 + eps]        (FT-L: 2012.00363; 2202.05262, 4.1)

objective "last_position" is FT-L as released: every target token is scored at the prompt's last position,
-1/|o| sum_t log p(o_t | prompt); "teacher_forced" (FT-M) is the usual loss of the target after the prompt. eps is
norm_constraint, around the weights at the start of this edit; False: no ball. A step is skipped where a batch's loss is
below 0.01, and the edit ends where the mean loss of a pass over the requests is.
"""

import dataclasses
import functools

from jaxedit.editors import Editor
from jaxedit.solving import finetune
from jaxedit.solving.rows import check_space


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Fine-tuning's hyper-parameters under their published names.

    Attributes:
      layers: whose second MLP weight is changed.
      norm_constraint: eps, or False.
      weight_decay: torch's: added to the gradient as weight_decay W.
      kl_factor: published as 0 and not used by the released code; anything else raises.
      objective: "last_position" (FT-L) or "teacher_forced" (FT-M).
      batch_size: requests a step.
      leading_space: between prompt and target: "joined", "separate" or "none" (`jaxedit.solving.rows.fill`).
    """

    layers: tuple[int, ...]
    lr: float = 5e-4
    num_steps: int = 25
    norm_constraint: float | bool = False
    weight_decay: float = 0.0
    kl_factor: float = 0.0
    objective: str = "last_position"
    batch_size: int = 1
    leading_space: str = "joined"


def make(hyper: Hyper) -> Editor:
    """Fine-tuning with these hyper-parameters."""
    settings = finetune.Settings(
        layers=tuple(hyper.layers),
        lr=hyper.lr,
        num_steps=hyper.num_steps,
        eps=float("inf") if hyper.norm_constraint is False else float(hyper.norm_constraint),
        weight_decay=hyper.weight_decay,
        teacher_forced=hyper.objective == "teacher_forced",
        batch_size=hyper.batch_size,
        leading_space=hyper.leading_space,
    )
    return Editor(
        name="ft",
        hyper=hyper,
        slots={finetune.WEIGHT: settings.layers},
        init=functools.partial(init, hyper, settings),
        edit=functools.partial(finetune.edit, settings),
        absorb=lambda state, edit: state,
        dense=True,
    )


def init(hyper: Hyper, settings: finetune.Settings, model, stats) -> None:
    """Checks the hyper-parameters; there is no state.

    Raises:
      ValueError: on a value that cannot be meant.
    """
    if hyper.objective not in ("last_position", "teacher_forced"):
        raise ValueError(f"objective={hyper.objective!r}: expected 'last_position' (FT-L) or 'teacher_forced' (FT-M)")
    check_space(hyper.leading_space)
    if hyper.kl_factor:
        raise ValueError(f"kl_factor={hyper.kl_factor}: the released code has no such term; expected 0")
    if hyper.norm_constraint is True:
        raise ValueError("norm_constraint=True: expected the size of the ball, e.g. 5e-4, or False for none")
    if min(hyper.lr, hyper.num_steps, hyper.batch_size, settings.eps) <= 0:
        raise ValueError(
            f"lr={hyper.lr}, num_steps={hyper.num_steps}, batch_size={hyper.batch_size} and "
            f"norm_constraint={hyper.norm_constraint} must be positive"
        )
    if not settings.layers or not all(0 <= layer < model.config.L for layer in settings.layers):
        raise ValueError(f"layers={list(settings.layers)}: {model.companion.source} has layers 0 to {model.config.L - 1}")
