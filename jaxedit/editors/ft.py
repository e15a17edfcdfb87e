"""Fine-tuning of one or several MLP weights on the facts, the baseline of the editing papers.

    W <- Adam steps on the loss, then each entry clamped to [W_0 - eps, W_0 + eps]        (FT-L: 2012.00363; 2202.05262, 4.1)

objective "last_position" is FT-L as released: every target token is scored at the prompt's last
position, -1/|o| sum_t log p(o_t | prompt); "teacher_forced" (FT-M) is the usual loss of the target
after the prompt. eps is norm_constraint, around the weights at the start of this edit; False: no
ball. A step is skipped where a batch's loss is below 0.01, and the edit ends where the mean loss of
a pass over the requests is."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import Array, Dense, Edit, make_edit
from jaxedit.edits.request import Request
from jaxedit.mesh import shard_batch, to_host
from jaxedit.models.decoder import Overlay
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.models.packing import pad_tokens, round_up
from jaxedit.solving.prompts import PREFIX_STEP, check_leading_space, tokenise_prompt

WEIGHT = "mlp/w_down"
STOP_LOSS = 1e-2


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Fine-tuning's hyper-parameters under their published names.

    Attributes:
      layers: whose second MLP weight is changed; empty: the one published for the model.
      norm_constraint: eps, or False.
      weight_decay: torch's: added to the gradient as weight_decay W.
      kl_factor: published as 0 and not used by the released code; anything else raises.
      objective: "last_position" (FT-L) or "teacher_forced" (FT-M).
      batch_size: requests a step.
      leading_space: between prompt and target: "joined", "separate" or "none"
        (`jaxedit.solving.prompts.tokenise_prompt`).
    """

    layers: tuple[int, ...] = ()
    lr: float = 5e-4
    num_steps: int = 25
    norm_constraint: float | bool = False
    weight_decay: float = 0.0
    kl_factor: float = 0.0
    objective: str = "last_position"
    batch_size: int = 1
    leading_space: str = "joined"


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
    """Requests in G batches: rows of tokens, and for each the positions read, their targets and
    weights (0: padding).
    """

    token_GBT: Array
    read_GBQ: Array
    target_GBQ: Array
    weight_GBQ: Array
    count_G: Array  # requests in a batch


def make(hyper: Hyper) -> Editor:
    """Fine-tuning with these hyper-parameters."""
    settings = Settings(
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
        slots=lambda model: {WEIGHT: settings.layers},
        init=functools.partial(init, hyper, settings),
        edit=functools.partial(edit, settings),
        restore=lambda state, edit: state,
        dense=True,
    )


def init(hyper: Hyper, settings: Settings, model, stats) -> None:
    """Checks the hyper-parameters; there is no state.

    Raises:
      ValueError: on a value that cannot be meant.
    """
    if hyper.objective not in ("last_position", "teacher_forced"):
        raise ValueError(
            f"objective={hyper.objective!r}: expected 'last_position' (FT-L) or 'teacher_forced' (FT-M)"
        )
    check_leading_space(hyper.leading_space)
    if hyper.kl_factor:
        raise ValueError(
            f"kl_factor={hyper.kl_factor}: the released code has no such term; expected 0"
        )
    if hyper.norm_constraint is True:
        raise ValueError(
            "norm_constraint=True: expected the size of the ball, e.g. 5e-4, or False for none"
        )
    if min(hyper.lr, hyper.num_steps, hyper.batch_size, settings.eps) <= 0:
        raise ValueError(
            f"lr={hyper.lr}, num_steps={hyper.num_steps}, batch_size={hyper.batch_size} and "
            f"norm_constraint={hyper.norm_constraint} must be positive"
        )
    if not settings.layers or not all(0 <= layer < model.config.L for layer in settings.layers):
        raise ValueError(
            f"layers={list(settings.layers)}: {model.metadata.source} has layers 0 to {model.config.L - 1}"
        )


def edit(
    settings: Settings, model: Model, requests: list[Request], state: None
) -> tuple[Edit, None, dict[str, float]]:
    """Fine-tunes on a batch of requests; the edit holds the whole change of each layer."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    model = allocate_deltas(model, WEIGHT, settings.layers)
    slots = [int(model.overlay.slot[WEIGHT][layer]) for layer in settings.layers]
    batches = lay_out(settings, model, requests)
    n_steps, loss, first_loss, change_EFD = map(
        to_host, _run(model, batches, settings, tuple(slots))
    )
    deltas = [
        Dense(WEIGHT, layer, change_FD)
        for layer, change_FD in zip(settings.layers, change_EFD, strict=True)
    ]
    info = {
        "loss": float(loss),
        "first_loss": float(first_loss),
        "n_steps": int(n_steps),
        "largest_change": float(np.max(np.abs(change_EFD))),
        **{f"norm_layer_{delta.layer}": float(np.linalg.norm(delta.delta_FD)) for delta in deltas},
    }
    return make_edit(model, deltas), None, info


def lay_out(settings: Settings, model: Model, requests: list[Request]) -> Batches:
    """Tokenises requests and lays them into batches of `batch_size`, the last one filled up with
    rows of weight 0.
    """
    rows, reads, targets = [], [], []
    for request in requests:
        target = request.target_new.strip()
        row = tokenise_prompt(
            model.tokenizer, "{}", request.prompt, request.subject, target, settings.leading_space
        )
        model.config.check_length(len(row.tokens), f"the request {request.summary[:80]!r}")
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
    arrays = [
        np.zeros((n_batches, B, width), dtype)
        for width, dtype in ((Q, np.int32), (Q, np.int32), (Q, np.float32))
    ]
    token_GBT = np.zeros((n_batches, B, round_up(max(map(len, rows)), PREFIX_STEP)), np.int32)
    for g in range(n_batches):
        part = range(g * size, min((g + 1) * size, len(rows)))
        token_GBT[g] = pad_tokens([rows[i] for i in part], B, token_GBT.shape[2])
        for b, i in enumerate(part):
            n = len(targets[i])
            arrays[0][g, b, :n], arrays[1][g, b, :n], arrays[2][g, b, :n] = (
                reads[i],
                targets[i],
                1 / (n * len(part)),
            )
    count_G = np.array([min(size, len(rows) - g * size) for g in range(n_batches)], np.float32)
    letters = (*["_B_"] * 4, "_")
    return Batches(
        *map(functools.partial(shard_batch, model.mesh), letters, (token_GBT, *arrays, count_G))
    )


@functools.partial(jax.jit, static_argnames=("settings", "slots"))
def _run(model: Model, batches: Batches, settings: Settings, slots: tuple[int, ...]):
    """The loop over passes and batches: (passes, last mean loss, first mean loss, change of the
    layers [E, F, D]).
    """
    at = jnp.array(slots)
    old_EFD = model.overlay.delta[WEIGHT][at]
    base_EFD = model.base[WEIGHT][jnp.array(settings.layers)].astype(jnp.float32)
    decay = (
        optax.add_decayed_weights(settings.weight_decay)
        if settings.weight_decay
        else optax.identity()
    )
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
        return (
            keep(stepped, change_EFD),
            jax.tree.map(keep, moved_state, adam_state),
        ), loss * count

    def one_pass(carry):
        step, change_EFD, adam_state, _, first = carry
        (change_EFD, adam_state), loss_G = jax.lax.scan(
            one_batch, (change_EFD, adam_state), tuple(batches)
        )
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
    attn_context = causal_attention(position_BT)
    h_BTD = run_layers(model, embed(model, token_BT, position_BT), attn_context, 0, lowest)
    h_BTD = run_layers(model, h_BTD, attn_context, lowest, model.config.L)
    read_BQD = jnp.take_along_axis(h_BTD, read_BQ[..., None], axis=1)
    logp_BQV = jax.nn.log_softmax(embedding_and_head(model).unembed(read_BQD))
    chosen_BQ = jnp.take_along_axis(logp_BQV, target_BQ[..., None], axis=2)[..., 0]
    return -jnp.sum(chosen_BQ * weight_BQ)
