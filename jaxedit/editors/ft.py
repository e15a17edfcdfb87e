"""Fine-tuning of one or several MLP weights on the facts, the baseline of the editing papers.

    W <- Adam steps on the loss, then each entry clamped to [W_0 - eps, W_0 + eps]
                                                          (FT-L: 2012.00363; 2202.05262, 4.1)

objective "last_position" is FT-L as released: every target token is scored at the prompt's last
position, -1/|o| sum_t log p(o_t | prompt); "teacher_forced" (FT-M) is the usual loss of the target
after the prompt. eps is norm_constraint, around the weights at the start of this edit; False: no
ball. A step is skipped where a batch's loss is below 0.01, and the edit ends where the mean loss of
a pass over the requests is.
"""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import EDITED_WEIGHT, Edit, make_edit
from jaxedit.edits.request import Request
from jaxedit.edits.spaces import check_leading_space
from jaxedit.models.model import Model
from jaxedit.solving.fine_tuning import (
    Batches,
    Changes,
    Training,
    batch_targets,
    check_and_describe,
    keep_sharded,
    run_epoch,
    to_deltas,
    train,
    zero_changes,
)
from jaxedit.solving.hyper import check_places
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE, check_ranges
from jaxedit.solving.target_rows import tokenise_target

OBJECTIVES = ("last_position", "teacher_forced")


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Fine-tuning's hyper-parameters under their published names.

    Attributes:
      layers: whose second MLP weight is changed; empty: the one published for the model.
      norm_constraint: eps, or False.
      weight_decay: torch's: added to the gradient as weight_decay W.
      kl_factor: accepts only the published 0 (`jaxedit.solving.hyper`).
      objective: "last_position" (FT-L) or "teacher_forced" (FT-M).
      batch_size: requests a step.
      leading_space: of requests that say nothing of it: one of `jaxedit.edits.spaces.SPACES`.
    """

    layers: tuple[int, ...] = ()
    lr: Annotated[float, POSITIVE] = 5e-4
    num_steps: Annotated[int, AT_LEAST_ONE] = 25
    norm_constraint: Annotated[float | bool, POSITIVE] = False
    weight_decay: float = 0.0
    kl_factor: float = 0.0
    objective: str = "last_position"
    batch_size: Annotated[int, AT_LEAST_ONE] = 1
    leading_space: str = "joined"

    anchor: ClassVar[str | None] = None  # no begin-of-text token is put in front


class Settings(NamedTuple):
    """What decides the loop; all of it is static. `eps` is infinite where there is no ball."""

    layers: tuple[int, ...]
    lr: float
    num_steps: int
    eps: float
    weight_decay: float
    teacher_forced: bool
    batch_size: int
    leading_space: str


def make(hyper: Hyper) -> Editor:
    """Make the fine-tuning editor of these hyper-parameters."""
    settings = settings_of(hyper)
    return Editor(
        name="ft",
        hyper=hyper,
        slots=lambda model: {EDITED_WEIGHT: settings.layers},
        init=functools.partial(init, hyper, settings),
        edit=functools.partial(edit, settings),
        restore=lambda state, edit: state,
        dense=True,
    )


def settings_of(hyper: Hyper) -> Settings:
    """Return what the loop needs of the hyper-parameters."""
    return Settings(
        layers=tuple(hyper.layers),
        lr=hyper.lr,
        num_steps=hyper.num_steps,
        eps=float("inf") if hyper.norm_constraint is False else float(hyper.norm_constraint),
        weight_decay=hyper.weight_decay,
        teacher_forced=hyper.objective == "teacher_forced",
        batch_size=hyper.batch_size,
        leading_space=hyper.leading_space,
    )


def init(hyper: Hyper, settings: Settings, model: Model, stats: object) -> None:
    """Check the hyper-parameters; there is no state.

    Raises:
      ValueError: on a value that cannot be meant.
    """
    if hyper.objective not in OBJECTIVES:
        names = "'last_position' (FT-L) or 'teacher_forced' (FT-M)"
        raise ValueError(f"objective={hyper.objective!r}: expected {names}")
    check_leading_space(hyper.leading_space)
    if hyper.kl_factor:
        raise ValueError(f"kl_factor={hyper.kl_factor}: the released code has none; expected 0")
    if hyper.norm_constraint is True:
        raise ValueError(
            "norm_constraint=True: expected the size of the ball, e.g. 5e-4, or False for none"
        )
    check_ranges(hyper)
    check_places(model, settings.layers, (EDITED_WEIGHT,))


def edit(
    settings: Settings, model: Model, requests: list[Request], state: None
) -> tuple[Edit, None, dict[str, float]]:
    """Fine-tune on a batch of requests; the edit holds the whole change of each layer."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    batches = to_batches(settings, model, requests)
    zero = zero_changes(model, (EDITED_WEIGHT,), len(settings.layers))
    start = Training(zero, optax.adam(settings.lr).init(zero))
    end = train(
        model,
        {EDITED_WEIGHT: settings.layers},
        start,
        [batches] * settings.num_steps,
        functools.partial(_run_pass, settings=settings),
    )
    deltas = to_deltas(end.trained, settings.layers)
    largest = max(float(np.max(np.abs(delta.delta_FD))) for delta in deltas)
    info = check_and_describe(end, deltas) | {"largest_change": largest}
    return make_edit(model, deltas), None, info


def to_batches(settings: Settings, model: Model, requests: list[Request]) -> Batches:
    """Tokenise requests and lay them into batches of `batch_size`.

    The last one is filled up with rows of weight 0.
    """
    targets = [
        tokenise_target(
            model, request, settings.leading_space, last_position=not settings.teacher_forced
        )
        for request in requests
    ]
    return batch_targets(model, targets, settings.batch_size, min(settings.layers))


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="training")
def _run_pass(
    model: Model, training: Training, batches: Batches, settings: Settings
) -> tuple[Training, jax.Array]:
    """Pass once over the batches; return the training after it, and its mean loss."""
    adam, decay = optax.adam(settings.lr), settings.weight_decay
    layer_E = jnp.array(settings.layers)
    slot_E = jnp.array([model.overlay.slot[EDITED_WEIGHT][layer] for layer in settings.layers])
    base_EFD = model.base[EDITED_WEIGHT][layer_E].astype(jnp.float32)
    old_EFD = model.overlay.delta[EDITED_WEIGHT][slot_E]

    # torch's weight decay, on the whole weight, in front of Adam
    def add_decay(gradient: Changes, change: Changes) -> Changes:
        weight_EFD = base_EFD + old_EFD + change[EDITED_WEIGHT]
        return {EDITED_WEIGHT: gradient[EDITED_WEIGHT] + decay * weight_EFD}

    def update(updates: Any, state: optax.OptState, params: Any = None):
        return adam.update(add_decay(updates, params) if decay else updates, state)

    def clamp(change: Changes) -> Changes:
        clamped_EFD = jnp.clip(change[EDITED_WEIGHT], -settings.eps, settings.eps)
        return keep_sharded(model, {EDITED_WEIGHT: clamped_EFD})

    return run_epoch(
        model,
        training,
        batches,
        settings.layers,
        optax.GradientTransformation(adam.init, update),
        lambda change: change,
        clamp,
    )
