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
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import EDITED_WEIGHT, Array, Dense, Edit, make_edit
from jaxedit.edits.request import Request
from jaxedit.edits.spaces import check_leading_space
from jaxedit.mesh import shard_batch, to_host
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.models.ops import Overlay
from jaxedit.models.target_loss import TargetRows, target_loss
from jaxedit.rounding import round_up
from jaxedit.solving.finite import check_finite, check_finite_delta
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE, check_ranges
from jaxedit.solving.target_rows import pad_targets, padded_shape, tokenise_target

FT_STOP_LOSS = 1e-2
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


class Batches(NamedTuple):
    """Requests in G batches.

    Attributes:
      rows: each array with G in front.
      count_G: requests in a batch.
    """

    rows: TargetRows
    count_G: Array


class PassState(NamedTuple):
    """The carry of the loop over passes.

    Attributes:
      step: passes so far.
      change_EFD: of the layers' weights, since the start of this edit.
      adam: Adam's moments.
      loss: the mean of the last pass.
      first_loss: that of the first one.
    """

    step: jax.Array
    change_EFD: jax.Array
    adam: optax.OptState
    loss: jax.Array
    first_loss: jax.Array


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
    layers, L = list(settings.layers), model.config.L
    if not layers or not all(0 <= layer < L for layer in layers):
        raise ValueError(f"layers={layers}: {model.metadata.source} has layers 0 to {L - 1}")


def edit(
    settings: Settings, model: Model, requests: list[Request], state: None
) -> tuple[Edit, None, dict[str, float]]:
    """Fine-tune on a batch of requests; the edit holds the whole change of each layer."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    model = allocate_deltas(model, EDITED_WEIGHT, settings.layers)
    slots = tuple(int(model.overlay.slot[EDITED_WEIGHT][layer]) for layer in settings.layers)
    batches = to_batches(settings, model, requests)
    end = _fine_tune(model, batches, settings, slots)
    change_EFD = to_host(end.change_EFD)
    deltas = [
        Dense(EDITED_WEIGHT, layer, change_FD)
        for layer, change_FD in zip(settings.layers, change_EFD, strict=True)
    ]
    check_finite("loss", to_host(end.loss))
    for delta in deltas:
        check_finite_delta(delta)
    info = {
        "loss": float(to_host(end.loss)),
        "first_loss": float(to_host(end.first_loss)),
        "n_steps": int(to_host(end.step)),
        "largest_change": float(np.max(np.abs(change_EFD))),
        **{f"norm_layer_{delta.layer}": float(np.linalg.norm(delta.delta_FD)) for delta in deltas},
    }
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

    # G batches of B rows, all as wide as the longest row and target.
    size = min(settings.batch_size, len(targets))
    n_rows, shape = round_up(size, model.mesh.shape["data"]), padded_shape(targets)
    in_batches = [targets[first : first + size] for first in range(0, len(targets), size)]
    batches = [pad_targets(batch, n_rows, shape) for batch in in_batches]
    rows = (
        shard_batch(model.mesh, "_B_", np.stack(arrays)) for arrays in zip(*batches, strict=True)
    )
    count_G = np.array([len(batch) for batch in in_batches], np.float32)
    return Batches(TargetRows(*rows), shard_batch(model.mesh, "_", count_G))


@functools.partial(jax.jit, static_argnames=("settings", "slots"))
def _fine_tune(
    model: Model, batches: Batches, settings: Settings, slots: tuple[int, ...]
) -> PassState:
    """Run the loop over passes and batches; return how it ended, without Adam's moments."""
    slot_E = jnp.array(slots)
    old_EFD = model.overlay.delta[EDITED_WEIGHT][slot_E]
    base_EFD = model.base[EDITED_WEIGHT][jnp.array(settings.layers)].astype(jnp.float32)
    decay, adam = optax.add_decayed_weights(settings.weight_decay), optax.adam(settings.lr)
    decay = decay if settings.weight_decay else optax.identity()

    def loss_of(change_EFD, batch: Batches):
        delta_EFD = model.overlay.delta[EDITED_WEIGHT].at[slot_E].add(change_EFD)
        overlay = Overlay({**model.overlay.delta, EDITED_WEIGHT: delta_EFD}, model.overlay.slot)
        edited = dataclasses.replace(model, overlay=overlay)
        return target_loss(edited, batch.rows, min(settings.layers))

    def one_batch(carry, batch: Batches):
        change_EFD, adam_state = carry
        loss, gradient = jax.value_and_grad(loss_of)(change_EFD, batch)

        # weight decay on the whole weight, Adam's step, the ball
        gradient, _ = decay.update(gradient, decay.init(gradient), base_EFD + old_EFD + change_EFD)
        move, moved_state = adam.update(gradient, adam_state)
        stepped = jnp.clip(change_EFD + move, -settings.eps, settings.eps)

        # none of it where the loss is low enough
        is_due = loss >= FT_STOP_LOSS
        new, old = (stepped, moved_state), (change_EFD, adam_state)
        kept = jax.tree.map(lambda new, old: jnp.where(is_due, new, old), new, old)
        return kept, loss * batch.count_G

    def one_pass(state: PassState) -> PassState:
        (change_EFD, adam_state), loss_G = jax.lax.scan(
            one_batch, (state.change_EFD, state.adam), batches
        )
        loss = jnp.sum(loss_G) / jnp.sum(batches.count_G)
        first_loss = jnp.where(state.step == 0, loss, state.first_loss)
        return PassState(state.step + 1, change_EFD, adam_state, loss, first_loss)

    def is_unfinished(state: PassState) -> jax.Array:
        return (state.step < settings.num_steps) & (state.loss >= FT_STOP_LOSS)

    zero_EFD, infinity = jnp.zeros_like(old_EFD), jnp.float32(jnp.inf)
    start = PassState(jnp.int32(0), zero_EFD, adam.init(zero_EFD), infinity, jnp.float32(0))
    end = jax.lax.while_loop(is_unfinished, one_pass, start)
    return end._replace(adam=())
