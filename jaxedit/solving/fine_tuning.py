"""Fine-tuning on the targets of requests: the loop of FT, LocFT-BF and LoRA.

    c <- project(c + optimiser(d loss(batch, W + write(c)) / d c))      for each batch of an epoch

c is what is trained, `write` makes the change of each weight of it. The loss of a batch is the mean
over its requests of the mean of -log p over the target's tokens. As in the released code of FT
(2202.05262, 4.1) and LocFT-BF (2509.22072) a step is skipped where its batch's loss is below 0.01,
and an epoch whose mean loss is below it is the last.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit import axes
from jaxedit.edits.edit import Array, Dense, LowRank, delta_norm
from jaxedit.edits.request import Request
from jaxedit.mesh import device_put_global, parameter_sharding, shard_batch, to_host
from jaxedit.models.model import Model, allocate_deltas, with_overlay
from jaxedit.models.ops import Overlay
from jaxedit.models.target_loss import TargetRows, loss_above, run_below
from jaxedit.rounding import round_up
from jaxedit.solving.finite import check_finite, check_finite_delta
from jaxedit.solving.hyper import BreadthFirstHyper
from jaxedit.solving.target_rows import (
    TokenisedTarget,
    pad_targets,
    padded_shape,
    tokenise_target,
)

STOP_LOSS = 1e-2
KEPT_BYTES = 2**31  # of what layers below put out, on the host

Changes = dict[str, jax.Array]  # weight -> float32 changes of its edited layers [E, in, out]


class Batches(NamedTuple):
    """Requests in G batches.

    Attributes:
      rows: each array with G in front.
      h_GBTD: the residual stream before the lowest layer that is trained, which no step changes.
      count_G: requests in a batch.
    """

    rows: TargetRows
    h_GBTD: Array
    count_G: Array


class Training(NamedTuple):
    """What an epoch begins and ends with.

    Attributes:
      trained: c, a pytree of arrays.
      optimiser: the optimiser's state.
    """

    trained: Any
    optimiser: optax.OptState


class Trained(NamedTuple):
    """How a loop ended.

    Attributes:
      trained: c, on the devices.
      loss: the mean of the last epoch, in nats.
      first_loss: that of the first one.
      n_epochs: how many there were.
    """

    trained: Any
    loss: float
    first_loss: float
    n_epochs: int


def batch_targets(model: Model, targets: list[TokenisedTarget], size: int, lowest: int) -> Batches:
    """Lay tokenised targets into batches of `size`, in this order.

    All batches are as wide as the longest row and target; the last one is filled up with rows of
    weight 0.

    Args:
      model: with its edits.
      targets: at least one.
      size: requests of a batch.
      lowest: the lowest layer that is trained.
    """
    return next(_batch_in_orders(model, targets, size, lowest, [range(len(targets))]))


def shuffled_epochs(
    hyper: BreadthFirstHyper, model: Model, requests: list[Request], rng: np.random.Generator
) -> Iterator[Batches]:
    """Yield the batches of each epoch, the requests in an order of its own."""
    targets = [
        tokenise_target(model, request, hyper.leading_space, end_of_text=hyper.end_of_text)
        for request in requests
    ]
    orders = (rng.permutation(len(targets)).tolist() for _ in range(hyper.epochs))
    return _batch_in_orders(model, targets, hyper.minibatch, min(hyper.layers), orders)


def _batch_in_orders(
    model: Model,
    targets: list[TokenisedTarget],
    size: int,
    lowest: int,
    orders: Iterable[Sequence[int]],
) -> Iterator[Batches]:
    """Lay targets into batches in each of some orders, as `batch_targets` does."""
    size = min(size, len(targets))
    n_rows, shape = round_up(size, model.mesh.shape["data"]), padded_shape(targets, model.mesh)

    def below(chosen: Sequence[int]) -> np.ndarray:
        rows = pad_targets([targets[i] for i in chosen], n_rows, shape)
        h_BTD = _run_below(model, shard_batch(model.mesh, "BT", rows.token_BT), lowest)
        return to_host(h_BTD)[: len(chosen)]

    # What the layers below put out is the same in every epoch: kept, unless it is too much.
    all_in_order = _in_batches(range(len(targets)), size)
    is_kept = len(targets) * shape[0] * model.config.D * 4 <= KEPT_BYTES
    kept_ITD = np.concatenate([below(batch) for batch in all_in_order]) if is_kept else None
    for order in orders:
        batches = _in_batches(order, size)
        rows = [pad_targets([targets[i] for i in batch], n_rows, shape) for batch in batches]
        h_GBTD = np.zeros((len(batches), n_rows, shape[0], model.config.D), np.float32)
        for g, batch in enumerate(batches):
            h_GBTD[g, : len(batch)] = below(batch) if kept_ITD is None else kept_ITD[batch]
        count_G = np.array(list(map(len, batches)), np.float32)
        arrays = (np.stack(each) for each in zip(*rows, strict=True))
        yield Batches(
            TargetRows(*(shard_batch(model.mesh, "_B_", array) for array in arrays)),
            shard_batch(model.mesh, "_BTD", h_GBTD),
            shard_batch(model.mesh, "_", count_G),
        )


def _in_batches(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[first : first + size]) for first in range(0, len(order), size)]


@functools.partial(jax.jit, static_argnames="lowest")
def _run_below(model: Model, token_BT, lowest: int) -> jax.Array:
    return run_below(model, token_BT, lowest)[0]


def generator_of(seed: int, requests: list[Request]) -> np.random.Generator:
    """Make the generator of an edit: chunks differ, and a study that goes on draws the same again.

    It depends on nothing that a study would have to keep.
    """
    texts = "\0".join(f"{request.prompt_text}\0{request.target_new}" for request in requests)
    digest = hashlib.blake2b(texts.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest)])


def zero_changes(model: Model, weights: Sequence[str], n_layers: int) -> Changes:
    """Make changes of nothing, split over the devices as the weights are."""
    shapes = {weight: (n_layers, *model.base[weight].shape[1:]) for weight in weights}
    return {
        weight: device_put_global(_sharding(model, weight, shape), np.zeros(shape, np.float32))
        for weight, shape in shapes.items()
    }


def keep_sharded(model: Model, changes: Changes) -> Changes:
    """Constrain changes inside jit to be split as the weights are; nothing on one device."""
    if model.mesh.size == 1:
        return changes
    return {
        weight: jax.lax.with_sharding_constraint(
            change_EFD, _sharding(model, weight, change_EFD.shape)
        )
        for weight, change_EFD in changes.items()
    }


def _sharding(model: Model, weight: str, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    letters = axes.PARAMETERS[weight].removeprefix("L")
    return parameter_sharding(model.mesh, f"E{letters}", shape)


def train(
    model: Model,
    slots: dict[str, tuple[int, ...]],
    start: Training,
    epochs: Iterable[Batches],
    run: Callable[[Model, Training, Batches], tuple[Training, jax.Array]],
) -> Trained:
    """Run epochs until the mean loss of one is below STOP_LOSS, or not a number.

    Args:
      model: with its edits.
      slots: weight -> layers that are trained.
      start: before the first epoch.
      epochs: the batches of each, at least one.
      run: (model, training, batches) -> training after an epoch, and its mean loss: `run_epoch`
        with all that is a method's own, jitted. It may write over the training it is given.
    """
    for weight, layers in slots.items():
        model = allocate_deltas(model, weight, layers)
    training, losses = start, []
    for batches in epochs:
        training, loss = run(model, training, batches)
        losses.append(float(to_host(loss)))
        if not losses[-1] >= STOP_LOSS:
            break
    return Trained(training.trained, losses[-1], losses[0], len(losses))


def run_epoch(
    model: Model,
    training: Training,
    batches: Batches,
    layers: tuple[int, ...],
    optimiser: optax.GradientTransformation,
    write: Callable[[Any], Changes],
    project: Callable[[Any], Any],
) -> tuple[Training, jax.Array]:
    """Take a step for each batch whose loss is not low enough; traced.

    Args:
      model: with its edits, and room in its overlay for the layers.
      training: before.
      batches: on the devices.
      layers: whose weights are trained.
      optimiser: gets c as its parameters.
      write: makes the changes of these layers of c.
      project: what becomes of c after a step.

    Returns:
      The training after it, and the mean loss over the requests, each before its step.
    """

    def loss_of(trained, batch: Batches):
        delta = dict(model.overlay.delta)
        for weight, change_EFD in write(trained).items():
            slot_E = jnp.array([model.overlay.slot[weight][layer] for layer in layers])
            delta[weight] = delta[weight].at[slot_E].add(change_EFD)
        edited = with_overlay(model, Overlay(delta, model.overlay.slot))
        return loss_above(edited, batch.h_GBTD, batch.rows, min(layers))

    # The scan takes G away: of one batch h_GBTD is [B, T, D].
    def one_batch(old: Training, batch: Batches):
        loss, gradient = jax.value_and_grad(loss_of)(old.trained, batch)
        move, state = optimiser.update(gradient, old.optimiser, old.trained)
        new = Training(project(optax.apply_updates(old.trained, move)), state)

        # nothing of the step where the loss is low enough, the optimiser's moments neither
        is_due = loss >= STOP_LOSS
        kept = jax.tree.map(lambda new, old: jnp.where(is_due, new, old), new, old)
        return kept, loss * batch.count_G

    training, loss_G = jax.lax.scan(one_batch, training, batches)
    return training, jnp.sum(loss_G) / jnp.sum(batches.count_G)


def to_deltas(changes: Changes, layers: Sequence[int]) -> list[Dense]:
    """Take changes apart into a dense delta for each weight and layer, on the host."""
    return [
        Dense(weight, layer, change_FD)
        for weight, change_EFD in changes.items()
        for layer, change_FD in zip(layers, to_host(change_EFD), strict=True)
    ]


def check_and_describe(end: Trained, deltas: Sequence[Dense | LowRank]) -> dict[str, float]:
    """Check that an edit is finite; return its losses and the norm of each layer's change.

    Raises:
      ValueError: where the loss or a change is not finite.
    """
    check_finite("loss", end.loss)
    for delta in deltas:
        check_finite_delta(delta)
    squares: dict[int, float] = {}
    for delta in deltas:
        squares[delta.layer] = squares.get(delta.layer, 0.0) + delta_norm(delta) ** 2
    norms = {f"norm_layer_{layer}": float(np.sqrt(square)) for layer, square in squares.items()}
    return {"loss": end.loss, "first_loss": end.first_loss, "n_steps": end.n_epochs, **norms}
