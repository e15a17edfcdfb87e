"""MEND: a trained network turns the gradient of one edit into an update (2110.11309).

    W <- W + alpha lr_scale sum_t x~_t d~_t^T,    (x~_t, d~_t) = g(x_t, d_t)          (eq. 2 and 3)

for every weight W (in x out) of the MLPs of `layers`: x_t is what W reads at token t, d_t the
gradient of -log p(target | prompt), the mean over the targets' tokens, with respect to what W puts
out, and g the network of `jaxedit.mend.network`. Tokens where x_t or d_t is 0 are left out; the
others are a column of the edit's factors each, and columns of zeros make their number a multiple of
eight. g and alpha are trained by `jaxedit train-mend`, or read from a published archive. An
untrained network ascends the loss.

Released code differs in lr_scale, which MEND's own does not have, and in the ROME repository, which
multiplies a weight's update by the step size of the weight at its place in the model's order, not
in that of the settings.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import jax
import numpy as np

from jaxedit.editors._base import Editor, Info
from jaxedit.edits.edit import Edit, LowRank, delta_norm, make_edit
from jaxedit.edits.request import Request
from jaxedit.edits.spaces import check_leading_space
from jaxedit.mend.hypernetwork import Hypernetwork, is_token, transform_factors
from jaxedit.mend.load import load_hypernetwork
from jaxedit.mend.places import mlp_places, mlp_weights
from jaxedit.mesh import replicate, shard_batch, to_host
from jaxedit.models.model import Model
from jaxedit.models.output_gradients import Factors, inputs_and_output_gradients
from jaxedit.models.target_loss import TargetRows
from jaxedit.rounding import round_up
from jaxedit.solving.finite import check_finite, check_finite_delta
from jaxedit.solving.ranges import POSITIVE, check_ranges
from jaxedit.solving.target_rows import pad_targets, padded_shape, tokenise_target

# Ranks and the positions that the loss reads are multiples of these: few shapes are compiled.
RANK_STEP = 8
READ_STEP = 4


@dataclasses.dataclass(frozen=True)
class Hyper:
    """MEND's hyper-parameters; those of its network are the network's own.

    Attributes:
      layers: whose MLP weights are changed; empty: those published for the model.
      network: the file of `jaxedit train-mend`, or a torch archive of the MEND, MEMIT or EasyEdit
        repository (`jaxedit.mend.archive`).
      lr_scale: multiplies the learned step sizes.
      leading_space: of requests that say nothing of it: one of `jaxedit.edits.spaces.SPACES`.
    """

    layers: tuple[int, ...] = ()
    network: str = ""
    lr_scale: Annotated[float, POSITIVE] = 1.0
    leading_space: str = "joined"

    anchor: ClassVar[str | None] = None  # no begin-of-text token is put in front


class Updates(NamedTuple):
    """The updates of requests, a row each, on the host.

    Attributes:
      loss: before the edit.
      factors: place -> u [B, T, in] and v [B, T, out].
      is_token: place -> the tokens that count, [B, T].
    """

    loss: float
    factors: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]
    is_token: dict[tuple[str, int], np.ndarray]


def make(hyper: Hyper) -> Editor:
    """Make the MEND editor of these hyper-parameters."""
    layers = tuple(hyper.layers)
    return Editor(
        name="mend",
        hyper=hyper,
        slots=lambda model: dict.fromkeys(mlp_weights(model), layers),
        init=functools.partial(init, hyper),
        edit=functools.partial(edit, hyper),
        restore=lambda state, edit: state,
        edit_each=functools.partial(edit_each, hyper),
    )


def init(hyper: Hyper, model: Model, stats: object) -> Hypernetwork:
    """Read the network: the state, which no edit changes.

    Raises:
      ValueError: on a value that cannot be meant, or a network of another model or other layers.
    """
    check_ranges(hyper)
    check_leading_space(hyper.leading_space)
    places = mlp_places(model, hyper.layers)
    if not hyper.network:
        raise ValueError(
            "mend edits with a trained network: give network=FILE, which `jaxedit train-mend` "
            "writes, or a published archive"
        )
    return load_hypernetwork(Path(hyper.network), model, places)


def edit(
    hyper: Hyper, model: Model, requests: list[Request], state: Hypernetwork
) -> tuple[Edit, Hypernetwork, Info]:
    """Make one update out of the gradient of all requests together."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    updates = _updates(hyper, model, requests, state, are_apart=False)
    made, info = _to_edit(model, updates, range(len(requests)))
    return made, state, info | {"loss": updates.loss}


def edit_each(
    hyper: Hyper, model: Model, requests: list[Request], state: Hypernetwork
) -> list[tuple[Edit, Info]]:
    """Make the update of each request by itself, side by side."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    updates = _updates(hyper, model, requests, state, are_apart=True)
    return [_to_edit(model, updates, [i]) for i in range(len(requests))]


def _updates(
    hyper: Hyper, model: Model, requests: list[Request], state: Hypernetwork, are_apart: bool
) -> Updates:
    """Compute the updates of requests.

    Args:
      hyper: the hyper-parameters.
      model: with its edits.
      requests: a row each.
      state: the network.
      are_apart: whether each row has a loss of its own; else there is one, the mean over all
        targets' tokens.
    """
    targets = [tokenise_target(model, request, hyper.leading_space) for request in requests]
    n_rows = round_up(len(targets), model.mesh.shape["data"])
    T, Q = padded_shape(targets, model.mesh)
    rows = pad_targets(targets, n_rows, (T, round_up(Q, READ_STEP)))
    is_read_BQ = rows.weight_BQ > 0
    n_read = is_read_BQ.sum(axis=1, keepdims=True) if are_apart else is_read_BQ.sum()
    rows = rows._replace(weight_BQ=(is_read_BQ / np.maximum(n_read, 1)).astype(np.float32))
    on_devices = TargetRows(*(shard_batch(model.mesh, "B_", array) for array in rows))

    loss, gradients = inputs_and_output_gradients(model, state.layout.places, on_devices)
    check_finite("loss", to_host(loss))
    factors, tokens = jax.tree.map(to_host, _transform(model, state, gradients))
    scaled = {place: (u, v * np.float32(hyper.lr_scale)) for place, (u, v) in factors.items()}
    return Updates(float(to_host(loss)), scaled, tokens)


@jax.jit
def _transform(
    model: Model, state: Hypernetwork, gradients: Factors
) -> tuple[Factors, dict[tuple[str, int], jax.Array]]:
    """Transform the gradients' factors; also say which tokens count."""
    tokens = {place: is_token(x, delta) for place, (x, delta) in gradients.items()}
    return replicate(model.mesh, (transform_factors(state, gradients), tokens))


def _to_edit(model: Model, updates: Updates, rows: Sequence[int]) -> tuple[Edit, Info]:
    """Make an edit of the tokens of some rows, a column each."""
    deltas, squares, ranks = [], {}, []
    for (weight, layer), (u, v) in updates.factors.items():
        is_own = updates.is_token[weight, layer][list(rows)]
        u, v = u[list(rows)][is_own], v[list(rows)][is_own]
        ranks.append(len(u))
        padding = ((0, round_up(max(len(u), 1), RANK_STEP) - len(u)), (0, 0))
        u_FR, v_RD = np.pad(u, padding).T, np.pad(v, padding)
        deltas.append(LowRank(weight, layer, u_FR, v_RD))
        check_finite_delta(deltas[-1])
        squares[layer] = squares.get(layer, 0.0) + delta_norm(deltas[-1]) ** 2
    norms = {f"norm_layer_{layer}": math.sqrt(square) for layer, square in squares.items()}
    return make_edit(model, deltas), {"n_tokens": max(ranks), **norms}
