"""Lifelong editing in closed form: UltraEdit (2505.14679) and StableEdit (2605.11836).

A turn writes a batch of facts into weights W (in x out) anywhere in MLPs, without optimising
anything. H [R, in] is what W reads at the positions that predict the targets' tokens, G [R, out]
the gradients with respect to what it puts out there of the mean loss of the batch that a request is
in. With h~ and g~ normalised by the moments of all turns so far, this one included, the change is
the ridge regression of values that step down the gradient:

    r = -lr |h~|^2 g~,    dW = (H^T H + alpha I)^-1 H^T R = H^T (H H^T + alpha I)^-1 R

so that R is the edit's right factor. Moments are shared by weights of one shape, as released.
UltraEdit divides by standard deviations. StableEdit, once more rows were seen than g has entries,
takes g~ = (g - mean) S^-1/2 with S the covariance of gradients, its eigenvalues at least 1e-6.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.edit import Dense, Edit, LowRank, delta_norm, make_edit, places_of
from jaxedit.edits.request import Request
from jaxedit.edits.spaces import check_leading_space
from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.model import Model
from jaxedit.models.output_gradients import Places, inputs_and_output_gradients
from jaxedit.models.target_loss import TargetRows
from jaxedit.rounding import round_up
from jaxedit.solving.finite import check_finite, check_finite_delta
from jaxedit.solving.hyper import check_places
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE, check_ranges
from jaxedit.solving.running_moments import EPS, Moments, merge_moments, moments_of, zero_moments
from jaxedit.solving.target_rows import TokenisedTarget, pad_targets, padded_shape, tokenise_target

TARGET_STEP = 4  # targets are padded to a multiple of it, so that turns share programs
SMALLEST_EIGENVALUE = 1e-6

Shape = tuple[int, int]  # (in, out)


@dataclasses.dataclass(frozen=True)
class LifelongHyper:
    """Hyper-parameters of both methods under their published names.

    Attributes:
      layers: whose MLP weights are changed; empty: those published for the model.
      weights: which of them; empty: those published, else "mlp/w_down".
      gate_layers: of the layers, those where w_gate is changed; empty: all of them.
      up_layers: the same for w_up.
      lr: how far values step down the gradient.
      alpha: the ridge.
      batch_size: requests whose mean loss gradients are taken of; turns are several such batches.
      leading_space: of requests that say nothing of it: one of `jaxedit.edits.spaces.SPACES`.

    Switches:
      released_variance: see `jaxedit.solving.running_moments.moments_of` (UltraEdit).
      whitens: whether gradients are normalised by their covariance (StableEdit).
      warmup_turns: turns in the beginning that normalise by standard deviations alone (StableEdit).
    """

    layers: tuple[int, ...] = ()
    weights: tuple[str, ...] = ("mlp/w_down",)
    gate_layers: tuple[int, ...] = ()
    up_layers: tuple[int, ...] = ()
    lr: Annotated[float, POSITIVE] = 1e-6
    alpha: Annotated[float, POSITIVE] = 1.0
    batch_size: Annotated[int, AT_LEAST_ONE] = 10
    leading_space: str = "joined"

    released_variance: ClassVar[bool] = False
    whitens: ClassVar[bool] = False
    warmup_turns: ClassVar[int] = 0
    anchor: ClassVar[str | None] = None  # no begin-of-text token is put in front

    @property
    def slots(self) -> dict[str, tuple[int, ...]]:
        """Weight -> layers that an edit changes."""
        own = {"mlp/w_gate": self.gate_layers, "mlp/w_up": self.up_layers}
        return {weight: tuple(own.get(weight) or self.layers) for weight in self.weights}


class LifelongState(NamedTuple):
    """What the methods know of earlier turns.

    Attributes:
      moments: shape of weights (in, out) -> moments of the rows [h, g] of all turns.
      n_turns: how many there were.
    """

    moments: Mapping[Shape, Moments]
    n_turns: int


class Turn(NamedTuple):
    """What is read of a turn's requests.

    Attributes:
      loss: the mean of the batches' losses, in nats.
      batches: place -> for each batch the keys [R, in] and the output gradients [R, out], float32.
    """

    loss: float
    batches: Mapping[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]]


def init(hyper: LifelongHyper, model: Model, stats: object) -> LifelongState:
    """Check the hyper-parameters; return the state before the first turn.

    Raises:
      ValueError: on a value that cannot be meant, or weights and layers that the model lacks.
    """
    check_ranges(hyper)
    check_leading_space(hyper.leading_space)
    check_places(model, hyper.layers, hyper.weights)
    for layers in hyper.slots.values():
        check_places(model, layers, hyper.weights)
    shapes = {_shape_of(model, weight) for weight in hyper.weights}
    moments = {
        shape: zero_moments(sum(shape), shape[1] if hyper.whitens else 0) for shape in shapes
    }
    return LifelongState(moments, 0)


def edit(
    hyper: LifelongHyper, model: Model, requests: list[Request], state: LifelongState
) -> tuple[Edit, LifelongState, dict[str, float]]:
    """Write a turn's facts; the edit's memory is what the moments learn from it."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    turn = _read_turn(hyper, model, requests)
    memory = _memory_of(hyper, model, turn)
    after = _with_memory(state, memory)

    is_warm = state.n_turns >= hyper.warmup_turns
    whiteners = {
        (F, D): _whitener(moments, D) if hyper.whitens and is_warm else None
        for (F, D), moments in after.moments.items()
    }
    deltas, n_rows = [], 0
    for (weight, layer), batches in turn.batches.items():
        h_RF, g_RD = (
            np.concatenate(arrays).astype(np.float64) for arrays in zip(*batches, strict=True)
        )
        check_finite(f"keys of {weight}", h_RF, layer)
        check_finite(f"output gradients of {weight}", g_RD, layer)
        shape = h_RF.shape[1], g_RD.shape[1]
        value_RD = _values(hyper, after.moments[shape], h_RF, g_RD, whiteners[shape])
        deltas.append(_solve(hyper.alpha, weight, layer, h_RF, value_RD))
        check_finite_delta(deltas[-1])
        n_rows = max(n_rows, len(h_RF))
    info = {
        "loss": turn.loss,
        "n_rows": float(n_rows),
        **{
            f"norm_{delta.weight.removeprefix('mlp/')}_{delta.layer}": delta_norm(delta)
            for delta in deltas
        },
    }
    return make_edit(model, deltas, memory), after, info


def restore(state: LifelongState, made: Edit) -> LifelongState:
    """Return the state after a turn made before."""
    return _with_memory(state, made.memory)


def _whitener(moments: Moments, D: int) -> np.ndarray | None:
    """Compute S^-1/2 [D, D] of the gradients' covariance; None while there are too few rows."""
    if moments.product_sum_DD is None or moments.n <= D + 1:
        return None
    covariance_DD = moments.product_sum_DD / (moments.n - D - 1 + EPS)
    eigenvalue_D, eigenvector_DD = np.linalg.eigh(covariance_DD)
    scale_D = np.maximum(eigenvalue_D, SMALLEST_EIGENVALUE) ** -0.5
    return (eigenvector_DD * scale_D) @ eigenvector_DD.T


def _values(
    hyper: LifelongHyper,
    moments: Moments,
    h_RF: np.ndarray,
    g_RD: np.ndarray,
    whitener_DD: np.ndarray | None,
) -> np.ndarray:
    """Compute the values to write: -lr |h~|^2 g~ [R, out]."""
    F = h_RF.shape[1]
    mean_F, mean_D = np.split(moments.mean, [F])
    std_F, std_D = np.split(moments.std, [F])
    normed_RF = (h_RF - mean_F) / (std_F + EPS)
    if whitener_DD is None:
        normed_RD = (g_RD - mean_D) / (std_D + EPS)
    else:
        normed_RD = (g_RD - mean_D) @ whitener_DD
    return -hyper.lr * np.sum(normed_RF**2, axis=1, keepdims=True) * normed_RD


def _solve(
    alpha: float, weight: str, layer: int, h_RF: np.ndarray, value_RD: np.ndarray
) -> LowRank | Dense:
    """Solve the ridge regression; as factors, or written out where that is smaller."""
    gram_RR = h_RF @ h_RF.T
    gram_RR.flat[:: len(gram_RR) + 1] += alpha
    # R right sides are as wide as the weight: the inverse and one product are twice as fast.
    u_FR = (np.linalg.inv(gram_RR) @ h_RF).T
    R, F, D = len(h_RF), h_RF.shape[1], value_RD.shape[1]
    if R * (F + D) >= F * D:
        return Dense(weight, layer, (u_FR @ value_RD).astype(np.float32))
    return LowRank(weight, layer, u_FR.astype(np.float32), value_RD.astype(np.float32))


def _memory_of(hyper: LifelongHyper, model: Model, turn: Turn) -> dict[str, np.ndarray]:
    """Return the moments of a turn alone, by shape, as an edit's memory.

    For StableEdit the gradients themselves: they are fewer numbers than their covariance.
    """
    memory: dict[str, np.ndarray] = {}
    of_shape: dict[Shape, list[tuple[np.ndarray, np.ndarray]]] = {}
    for (weight, _), batches in turn.batches.items():
        of_shape.setdefault(_shape_of(model, weight), []).extend(batches)
    for (F, D), batches in of_shape.items():
        rows = [np.concatenate([h_RF, g_RD], axis=1) for h_RF, g_RD in batches]
        found = [moments_of(each, unbiased=hyper.released_variance) for each in rows]
        merged = functools.reduce(merge_moments, found)
        name = f"{F}x{D}"
        memory[f"{name}/n"] = np.array([merged.n])
        memory[f"{name}/mean"], memory[f"{name}/square_sum"] = merged.mean, merged.square_sum
        if hyper.whitens:
            memory[f"{name}/gradients"] = np.concatenate([g_RD for _, g_RD in batches])
    return memory


def _shape_of(model: Model, weight: str) -> Shape:
    _, n_in, n_out = model.base[weight].shape
    return n_in, n_out


def _with_memory(state: LifelongState, memory: Mapping[str, np.ndarray]) -> LifelongState:
    """Merge a turn's moments into those of the turns before."""
    moments = dict(state.moments)
    for F, D in moments:
        name = f"{F}x{D}"
        turn = Moments(
            int(memory[f"{name}/n"][0]), memory[f"{name}/mean"], memory[f"{name}/square_sum"]
        )
        if f"{name}/gradients" in memory:
            products = moments_of(memory[f"{name}/gradients"], n_products=D).product_sum_DD
            turn = turn._replace(product_sum_DD=products)
        moments[F, D] = merge_moments(moments[F, D], turn)
    return LifelongState(moments, state.n_turns + 1)


def _read_turn(hyper: LifelongHyper, model: Model, requests: list[Request]) -> Turn:
    """Read keys and output gradients of a turn, batch by batch of `batch_size` requests."""
    places = places_of(hyper.slots)
    targets = [tokenise_target(model, request, hyper.leading_space) for request in requests]
    T, Q = padded_shape(targets, model.mesh)
    shape = T, round_up(Q, TARGET_STEP)
    found: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {p: [] for p in places}
    starts = range(0, len(targets), hyper.batch_size)
    batches = [targets[start : start + hyper.batch_size] for start in starts]
    # The next batch is under way before one is waited for: an accelerator never waits for the host.
    rows_of = (_mean_over_tokens(hyper, model, batch, shape) for batch in batches)
    computed = (_read_at_targets(model, places, rows) for rows in rows_of)
    losses, following = [], next(computed)
    for batch in batches:
        current, following = following, next(computed, None)
        loss, read = jax.device_get(current)
        losses.append(float(loss))
        is_read_BQ = np.arange(shape[1]) < np.array([[len(each.target)] for each in batch])
        for place, (h_BQF, g_BQD) in read.items():
            n = len(batch)
            found[place].append((h_BQF[:n][is_read_BQ], g_BQD[:n][is_read_BQ]))
    check_finite("loss", np.array(losses))
    return Turn(float(np.mean(losses)), found)


def _mean_over_tokens(
    hyper: LifelongHyper, model: Model, batch: list[TokenisedTarget], shape: tuple[int, int]
) -> TargetRows:
    """Lay a batch into rows whose loss is the mean over all of its targets' tokens."""
    rows = pad_targets(batch, round_up(hyper.batch_size, model.mesh.shape["data"]), shape)
    is_read_BQ = rows.weight_BQ > 0
    rows = rows._replace(weight_BQ=(is_read_BQ / is_read_BQ.sum()).astype(np.float32))
    return TargetRows(*(shard_batch(model.mesh, "B_", array) for array in rows))


@functools.partial(jax.jit, static_argnames="places")
def _read_at_targets(model: Model, places: Places, rows: TargetRows):
    """Compute the loss, and keys [B, Q, in] and output gradients [B, Q, out] where it is read."""
    loss, factors = inputs_and_output_gradients(model, places, rows)
    at_BQ1 = rows.read_BQ[..., None]
    read = {
        place: tuple(jnp.take_along_axis(array, at_BQ1, axis=1) for array in pair)
        for place, pair in factors.items()
    }
    return replicate(model.mesh, (loss, read))
