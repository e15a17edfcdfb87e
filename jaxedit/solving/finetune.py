"""Gradient steps on MLP weights, as a change in the overlay: fine-tuning's compiled loop."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit.edits.edit import Array, Dense, Edit, make_edit
from jaxedit.edits.request import Request
from jaxedit.mesh import fetch, place
from jaxedit.models.decoder import Overlay
from jaxedit.models.layers import causal, ends, run_layers, start
from jaxedit.models.model import Model, with_slots
from jaxedit.models.score import round_up
from jaxedit.solving.rows import PREFIX_STEP, fill, pad_tokens

WEIGHT = "mlp/w_down"
STOP_LOSS = 1e-2


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
    """Requests in G batches: rows of tokens, and for each the positions read, their targets and weights (0: padding)."""

    token_GBT: Array
    read_GBQ: Array
    target_GBQ: Array
    weight_GBQ: Array
    count_G: Array  # requests in a batch


def edit(settings: Settings, model: Model, requests: list[Request], state: None) -> tuple[Edit, None, dict[str, float]]:
    """Fine-tunes on a batch of requests; the edit holds the whole change of each layer."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    model = with_slots(model, WEIGHT, settings.layers)
    slots = [int(model.overlay.slot[WEIGHT][layer]) for layer in settings.layers]
    batches = lay_out(settings, model, requests)
    n_steps, loss, first_loss, change_EFD = map(fetch, _run(model, batches, settings, tuple(slots)))
    deltas = [Dense(WEIGHT, layer, change_FD) for layer, change_FD in zip(settings.layers, change_EFD, strict=True)]
    info = {
        "loss": float(loss),
        "first_loss": float(first_loss),
        "n_steps": int(n_steps),
        "largest_change": float(np.max(np.abs(change_EFD))),
        **{f"norm_layer_{delta.layer}": float(np.linalg.norm(delta.delta_FD)) for delta in deltas},
    }
    return make_edit(model, deltas), None, info


def lay_out(settings: Settings, model: Model, requests: list[Request]) -> Batches:
    """Tokenises requests and lays them into batches of `batch_size`, the last one filled up with rows of weight 0."""
    rows, reads, targets = [], [], []
    for request in requests:
        target = request.target_new.strip()
        row = fill(model.tokenizer, "{}", request.prompt, request.subject, target, settings.leading_space)
        model.config.check_length(len(row.tokens), f"the request {request.name[:80]!r}")
        targets.append(row.tokens[row.first_target :])
        if settings.teacher_forced:
            reads.append(list(range(row.first_target - 1, len(row.tokens) - 1)))
            rows.append(row.tokens[:-1])
        else:
            reads.append([row.first_target - 1] * len(targets[-1]))
            rows.append(row.tokens[: row.first_target])
    size = min(settings.batch_size, len(rows))
    n_batches = -(-len(rows) // size)
    n_data = model.mesh.shape["data"]
    B, Q = round_up(size, n_data), max(map(len, targets))
    arrays = [np.zeros((n_batches, B, width), dtype) for width, dtype in ((Q, np.int32), (Q, np.int32), (Q, np.float32))]
    token_GBT = np.zeros((n_batches, B, round_up(max(map(len, rows)), PREFIX_STEP)), np.int32)
    for g in range(n_batches):
        part = range(g * size, min((g + 1) * size, len(rows)))
        token_GBT[g] = pad_tokens([rows[i] for i in part], B, token_GBT.shape[2])
        for b, i in enumerate(part):
            n = len(targets[i])
            arrays[0][g, b, :n], arrays[1][g, b, :n], arrays[2][g, b, :n] = reads[i], targets[i], 1 / (n * len(part))
    count_G = np.array([min(size, len(rows) - g * size) for g in range(n_batches)], np.float32)
    letters = (*["_B_"] * 4, "_")
    return Batches(*map(functools.partial(place, model.mesh), letters, (token_GBT, *arrays, count_G)))


@functools.partial(jax.jit, static_argnames=("settings", "slots"))
def _run(model: Model, batches: Batches, settings: Settings, slots: tuple[int, ...]):
    """The loop over passes and batches: (passes, last mean loss, first mean loss, change of the layers [E, F, D])."""
    at = jnp.array(slots)
    old_EFD = model.overlay.delta[WEIGHT][at]
    base_EFD = model.base[WEIGHT][jnp.array(settings.layers)].astype(jnp.float32)
    decay = optax.add_decayed_weights(settings.weight_decay) if settings.weight_decay else optax.identity()
    steps = optax.adam(settings.lr)

    def loss_of(change_EFD, batch):
        delta_EFD = model.overlay.delta[WEIGHT].at[at].add(change_EFD)
        overlay = Overlay({**model.overlay.delta, WEIGHT: delta_EFD}, model.overlay.slot)
        token_BT, read_BQ, target_BQ, weight_BQ = batch
        edited = dataclasses.replace(model, overlay=overlay)
        return _loss(edited, token_BT, read_BQ, target_BQ, weight_BQ, min(settings.layers))

    def one_batch(carry, batch):
        change_EFD, adam_state = carry
        *rows, count = batch
        loss, gradient = jax.value_and_grad(loss_of)(change_EFD, rows)
        gradient, _ = decay.update(gradient, decay.init(gradient), base_EFD + old_EFD + change_EFD)
        move, moved_state = steps.update(gradient, adam_state)
        stepped = jnp.clip(change_EFD + move, -settings.eps, settings.eps)
        due = loss >= STOP_LOSS
        keep = lambda new, old: jnp.where(due, new, old)  # noqa: E731
        return (keep(stepped, change_EFD), jax.tree.map(keep, moved_state, adam_state)), loss * count

    def one_pass(carry):
        step, change_EFD, adam_state, _, first = carry
        (change_EFD, adam_state), loss_G = jax.lax.scan(one_batch, (change_EFD, adam_state), tuple(batches))
        loss = jnp.sum(loss_G) / jnp.sum(batches.count_G)
        return step + 1, change_EFD, adam_state, loss, jnp.where(step == 0, loss, first)

    zero_EFD = jnp.zeros_like(old_EFD)
    carry = (jnp.int32(0), zero_EFD, steps.init(zero_EFD), jnp.float32(jnp.inf), jnp.float32(0))
    going_on = lambda carry: (carry[0] < settings.num_steps) & (carry[3] >= STOP_LOSS)  # noqa: E731
    step, change_EFD, _, loss, first = jax.lax.while_loop(going_on, one_pass, carry)
    return step, loss, first, change_EFD


def _loss(model: Model, token_BT, read_BQ, target_BQ, weight_BQ, lowest: int):
    """The weighted loss of the targets, in nats."""
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    attending = causal(position_BT)
    h_BTD = run_layers(model, start(model, token_BT, position_BT), attending, 0, lowest)
    h_BTD = run_layers(model, h_BTD, attending, lowest, model.config.L)
    read_BQD = jnp.take_along_axis(h_BTD, read_BQ[..., None], axis=1)
    logp_BQV = jax.nn.log_softmax(ends(model).logits(read_BQD))
    chosen_BQ = jnp.take_along_axis(logp_BQV, target_BQ[..., None], axis=2)[..., 0]
    return -jnp.sum(chosen_BQ * weight_BQ)
