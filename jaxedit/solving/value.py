"""The value to write: v* of ROME (2202.05262, eq. 4) and z* of MEMIT (2210.07229, eq. 16), for many
requests at once.

For each request a vector delta is optimised, added at the subject's last token to what leaves the
edited layer, so that the model says the target:

    L = mean over templates of -(1/|o|) sum_t log p(o_t | ...)                       the target
        + kl_factor KL(p_delta || p_0) at the subject's last token of "{} is a"       what the subject is
        + v_weight_decay |delta| / |init|^2                                           (|delta| is not squared)

with Adam, at most v_num_grad_steps - 1 updates, a stop before the step where L < 0.05, and after
each step the projection |delta| <= clamp_norm_factor |init|. In pre-norm blocks adding to the MLP's
output or to the layer's output is the same, so ROME and MEMIT differ in `init` alone: the MLP's
output or the residual stream of the first template.

PMET (2308.08742) has two vectors, added to the MLP's and to the attention's output, each with its
own decay and projection. In sequential blocks the second one also passes through the layer's own
MLP. As released, the target's term is weighted by nll_loss_factor, and by a tenth of it in a pass
after one in which every target token was the most likely one in every template; such a pass is the
last where in addition kl_factor KL <= 0.01.

The vector changes only positions from the subject's last token on, and only layers above. So the
rest is run once, its keys and values kept, and a step computes a rectangle of suffixes and the
logits that the loss reads."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit.edits.edit import without_edits
from jaxedit.edits.request import Request
from jaxedit.mesh import constrain, replicate, shard_batch
from jaxedit.models.decoder import AttentionContext, normalise
from jaxedit.models.layers import (
    block_at,
    causal_attention,
    embed,
    embedding_and_head,
    run_layer_at_positions,
    run_layers,
    run_layers_with_kv,
)
from jaxedit.models.model import Model
from jaxedit.solving.hyper import TargetHyper
from jaxedit.solving.prompts import (
    PaddedShape,
    PromptBatch,
    TokenisedRequest,
    common_shape,
    equal_chunks,
    to_batch,
    tokenise_request,
)

STOP_LOSS = 5e-2
REDUCED_NLL_SHARE = 0.1  # PMET's share of nll_loss_factor once the target is said
REDUCED_NLL_STOP_KL = 1e-2  # ... and the KL term at which it then stops
NUMERIC_HYPERS = (
    "v_num_grad_steps",
    "v_lr",
    "v_weight_decay",
    "kl_factor",
    "clamp_norm_factor",
    "nll_loss_factor",
)
SAVED_BYTES = (
    2**30
)  # what a device keeps of the forward passes of the requests that are optimised together
# make a device's products large; with more requests, more would be padded to the longest suffix
ENOUGH_POSITIONS = 384


class LossVariant(NamedTuple):
    """What the compiled loop is specialised for, besides shapes."""

    residual: bool
    attention: bool
    argmax_passes: (
        int  # after so many passes with the target the likeliest it stops; 0: at the loss
    )
    reduce_nll_when_correct: bool


class OptimisedValues(NamedTuple):
    """What the optimisation found, for N requests in R templates. Keys and values are those before
    the edit.
    """

    delta_ND: np.ndarray
    init_ND: np.ndarray
    key_NRF: np.ndarray  # MLP keys at the subject's last token
    value_NRD: np.ndarray  # MLP outputs there
    bare_key_NF: np.ndarray  # the same for the bare prompt
    bare_value_ND: np.ndarray
    nll_N: np.ndarray
    kl_N: np.ndarray  # times kl_factor
    decay_N: np.ndarray
    n_steps_N: np.ndarray  # forward passes, the published count


def optimise_values(
    model: Model,
    requests: list[Request],
    templates: tuple[str, ...],
    layer: int,
    hyper: TargetHyper,
    residual: bool,
    attention: bool = False,
) -> OptimisedValues:
    """Finds the vectors for requests, each independent of the others.

    Args:
      model: with the edits so far.
      requests: at least one.
      templates: context templates with one `{}` each; the first gives `init`.
      layer: the vector is added to this layer's output.
      hyper: published names and values.
      residual: init is the residual stream after the layer (MEMIT), not the MLP's output (ROME).
      attention: a second vector is found along with it, for the attention's output (PMET), and not
        returned.
    """
    tokenised = [
        tokenise_request(model, request, templates, hyper.leading_space, hyper.fact_token)
        for request in requests
    ]
    # Requests of like length together: a rectangle is as long as its longest suffix.
    shapes = [common_shape([each]) for each in tokenised]
    order = sorted(
        range(len(requests)), key=lambda i: (shapes[i].suffix, shapes[i].n_read, shapes[i].prefix)
    )
    parts, n_requests = equal_chunks(
        [tokenised[i] for i in order],
        requests_per_batch(model, common_shape(tokenised), len(templates), layer),
    )
    kind = LossVariant(
        residual, attention, -(hyper.prob_cutoff or 0), hyper.reduce_nll_when_correct
    )

    def run(model: Model, hyper: TargetHyper) -> OptimisedValues:
        found = [
            _optimise_chunk(model, part, common_shape(part), layer, hyper, kind) for part in parts
        ]
        return OptimisedValues(
            *(
                np.concatenate(arrays)[:n_requests][np.argsort(order)]
                for arrays in zip(*found, strict=True)
            )
        )

    found = run(model, hyper)
    if not hyper.norm_anchor:
        return found
    anchor_ND = run(without_edits(model), dataclasses.replace(hyper, v_num_grad_steps=1)).init_ND
    wanted_ND = found.init_ND + found.delta_ND
    scale_N = np.linalg.norm(anchor_ND, axis=1) / np.linalg.norm(wanted_ND, axis=1)
    return found._replace(delta_ND=scale_N[:, None] * wanted_ND - found.init_ND)


def requests_per_batch(model: Model, shape: PaddedShape, n_templates: int, layer: int) -> int:
    """How many requests are optimised together: a power of two with ENOUGH_POSITIONS, if their
    products fit SAVED_BYTES.
    """
    config = model.config
    enough = -(-ENOUGH_POSITIONS * model.mesh.shape["data"] // ((n_templates + 1) * shape.suffix))
    enough = 1 << (enough - 1).bit_length()
    floats = 2 * config.D + config.H * (config.N + 2 * config.K) + config.F * (1 + config.gated)
    request_bytes = 4 * floats * (n_templates + 1) * shape.suffix * (config.L - 1 - layer)
    return max(1, min(enough, SAVED_BYTES * model.mesh.shape["data"] // request_bytes))


def _optimise_chunk(
    model: Model,
    tokenised: list[TokenisedRequest],
    shape: PaddedShape,
    layer: int,
    hyper: TargetHyper,
    kind: LossVariant,
) -> OptimisedValues:
    rows = to_batch(tokenised, shape, model.mesh.shape["data"])
    by_row = ("BT", "B", "B")  # the rows lie over `data`; what says where to read is everywhere
    letters = [*by_row, *["_"] * (len(rows) - len(by_row))]
    arrays = PromptBatch(
        *(
            shard_batch(model.mesh, word, np.asarray(array))
            for word, array in zip(letters, rows, strict=True)
        )
    )
    numbers = {name: jnp.float32(getattr(hyper, name)) for name in NUMERIC_HYPERS}
    found = jax.device_get(
        optimise_batch(model, arrays, layer, numbers, shape, len(tokenised), kind)
    )
    of_template = np.arange(len(tokenised[0].templates)) + rows.first_row_N[:, None]
    return OptimisedValues(
        found["delta_ND"],
        found["init_ND"],
        found["key_BF"][of_template],
        found["value_BD"][of_template],
        found["key_BF"][rows.bare_row_N],
        found["value_BD"][rows.bare_row_N],
        found["nll_N"],
        found["kl_N"],
        found["decay_N"],
        found["n_steps_N"],
    )


@functools.partial(jax.jit, static_argnames=("layer", "shape", "n_requests", "kind"))
def optimise_batch(
    model: Model,
    rows: PromptBatch,
    layer: int,
    hyper,
    shape: PaddedShape,
    n_requests: int,
    kind: LossVariant,
):
    """The whole optimisation of one batch of requests, compiled once for each shape."""
    prefixed = _prefill(model, rows, layer, shape)
    subject = prefixed.subject
    init_ND = (subject.residual_BD if kind.residual else subject.value_BD)[rows.first_row_N]
    inits = (init_ND, subject.attn_BD[rows.first_row_N]) if kind.attention else (init_ND,)
    init_norm_PN = jnp.linalg.norm(jnp.stack(inits), axis=-1)

    def losses(delta_PND, initial_NV, first, factor_N):
        nll_N, missed_N, logp_NV = _target_losses(model, rows, layer, prefixed, delta_PND)
        initial_NV = jnp.where(first, jax.lax.stop_gradient(logp_NV), initial_NV)
        kl_N = hyper["kl_factor"] * jnp.sum(jnp.exp(logp_NV) * (logp_NV - initial_NV), axis=-1)
        decay_N = hyper["v_weight_decay"] * jnp.sum(_norm(delta_PND) / init_norm_PN**2, axis=0)
        total_N = factor_N * nll_N + kl_N + decay_N
        return jnp.sum(total_N), (total_N, initial_NV, missed_N, (nll_N, kl_N, decay_N))

    adam = optax.adam(hyper["v_lr"])

    def going_on(carry):
        step, active_N = carry[0], carry[5]
        return (step < hyper["v_num_grad_steps"] - 1) & jnp.any(active_N)

    def update(carry):
        step, delta_PND, adam_state, initial_NV, factor_N, active_N, n_steps_N, n_said_N = carry
        found, gradient = jax.value_and_grad(losses, has_aux=True)(
            delta_PND, initial_NV, step == 0, factor_N
        )
        total_N, initial_NV, missed_N, (_, kl_N, _) = found[1]
        n_steps_N += active_N
        n_said_N += ~missed_N
        active_N &= n_said_N < kind.argmax_passes if kind.argmax_passes else total_N >= STOP_LOSS
        if kind.reduce_nll_when_correct:
            active_N &= missed_N | (kl_N > REDUCED_NLL_STOP_KL)
            factor_N = hyper["nll_loss_factor"] * jnp.where(missed_N, 1.0, REDUCED_NLL_SHARE)
        change, adam_state = adam.update(gradient, adam_state)
        moved_PND = _clamp(delta_PND + change, hyper["clamp_norm_factor"] * init_norm_PN)
        delta_PND = jnp.where(active_N[:, None], moved_PND, delta_PND)
        return step + 1, delta_PND, adam_state, initial_NV, factor_N, active_N, n_steps_N, n_said_N

    zero_PND, zero_N = jnp.zeros((len(inits), *init_ND.shape)), jnp.zeros(n_requests, jnp.int32)
    active_N = jnp.ones(n_requests, bool)
    no_initial_NV = jnp.zeros((n_requests, model.config.V))
    factor_N = jnp.full(n_requests, hyper["nll_loss_factor"])
    carry = (
        jnp.int32(0),
        zero_PND,
        adam.init(zero_PND),
        no_initial_NV,
        factor_N,
        active_N,
        zero_N,
        zero_N,
    )
    step, delta_PND, _, initial_NV, factor_N, active_N, n_steps_N, _ = jax.lax.while_loop(
        going_on, update, carry
    )
    _, (_, _, _, (nll_N, kl_N, decay_N)) = losses(delta_PND, initial_NV, step == 0, factor_N)
    found = {
        "delta_ND": delta_PND[0],
        "init_ND": init_ND,
        "key_BF": subject.key_BF,
        "value_BD": subject.value_BD,
        "nll_N": nll_N,
        "kl_N": kl_N,
        "decay_N": decay_N,
        "n_steps_N": n_steps_N + active_N,
    }
    return replicate(model.mesh, found)


def _target_losses(
    model: Model, rows: PromptBatch, layer: int, prefixed: "PrefillState", delta_PND
):
    """With the vectors added: -log p of each request's target, whether some token is not the
    likeliest, KL positions' log p.
    """
    added_PBD = delta_PND[:, rows.request_B]
    h = prefixed.h_BUD.at[:, 0].add(added_PBD[0])
    if len(delta_PND) > 1:
        h = h.at[:, 0].add(
            _attention_delta_effect(model, layer, prefixed.subject.after_attn_BD, added_PBD[1])
        )
    last = model.config.L - 1
    h = run_layers(model, constrain(model.mesh, "BTD", h), prefixed.attending, layer + 1, last)
    read = (
        jnp.concatenate([rows.read_row_Q, rows.kl_row_N]),
        jnp.pad(rows.read_offset_Q, (0, len(rows.kl_row_N))),
    )
    read_QD = run_layer_at_positions(model, h, prefixed.attending, last, read)[0]
    logp_QV = jax.nn.log_softmax(embedding_and_head(model).unembed(read_QD[None])[0])
    n_read, n_requests = rows.read_row_Q.shape[0], delta_PND.shape[1]
    request_Q = rows.request_B[rows.read_row_Q]
    chosen_Q = jnp.take_along_axis(logp_QV[:n_read], rows.read_target_Q[:, None], axis=1)[:, 0]
    nll_N = jax.ops.segment_sum(-chosen_Q * rows.read_weight_Q, request_Q, n_requests)
    missed_Q = (chosen_Q < jnp.max(logp_QV[:n_read], axis=1)) & (rows.read_weight_Q > 0)
    missed_N = jax.ops.segment_max(missed_Q.astype(jnp.int32), request_Q, n_requests) > 0
    return nll_N, missed_N, logp_QV[n_read:]


class SubjectActivations(NamedTuple):
    """What the edited layer holds at each row's subject, before any vector is added."""

    key_BF: jax.Array
    value_BD: jax.Array  # the MLP's output
    residual_BD: jax.Array  # after the layer
    attn_BD: jax.Array  # the attention's output
    after_attn_BD: jax.Array  # the residual stream with it


class PrefillState(NamedTuple):
    """All that the vectors do not change: suffixes after the edited layer, what they attend to
    above, the subjects.
    """

    h_BUD: jax.Array
    attending: AttentionContext
    subject: SubjectActivations


def _attention_delta_effect(model: Model, layer: int, after_attn_BD, added_BD):
    """What a vector added to the attention's output adds to the layer's: itself, and what it makes
    the MLP put out.
    """
    if model.config.parallel:
        return added_BD
    block = block_at(model, layer)

    def mlp(h_BD):
        key_B1F = block.mlp.key(normalise(model.config, block.mlp, h_BD[:, None]))
        return block.mlp.value(key_B1F, model.overlay, layer)[:, 0]

    return added_BD + mlp(after_attn_BD + added_BD) - mlp(after_attn_BD)


def _prefill(model: Model, rows: PromptBatch, layer: int, shape: PaddedShape) -> PrefillState:
    B, T = rows.token_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    attending = causal_attention(position_BT)
    before_BTD = run_layers(model, embed(model, rows.token_BT, position_BT), attending, 0, layer)
    block = block_at(model, layer)
    h_BTD, key_BTF, _ = block(before_BTD, attending, None, model.overlay, layer)
    attn_BTD, _ = block.attn(normalise(model.config, block.attn, before_BTD), attending, None)
    at_subject = rows.fact_position_B[:, None, None]
    key_B1F, residual_B1D, attn_B1D, after_attn_B1D = (
        jnp.take_along_axis(array, at_subject, axis=1)
        for array in (key_BTF, h_BTD, attn_BTD, before_BTD + attn_BTD)
    )
    value_B1D = block.mlp.value(key_B1F, model.overlay, layer)
    subject = SubjectActivations(
        *(array[:, 0] for array in (key_B1F, value_B1D, residual_B1D, attn_B1D, after_attn_B1D))
    )

    prefix_BP = position_BT[:, : shape.prefix]
    _, cache = run_layers_with_kv(
        model, h_BTD[:, : shape.prefix], causal_attention(prefix_BP), layer + 1, model.config.L
    )
    position_BU = jnp.asarray(rows.fact_position_B)[:, None] + jnp.arange(shape.suffix)
    h_BUD = jnp.take_along_axis(h_BTD, jnp.minimum(position_BU, T - 1)[..., None], axis=1)
    sees_prefix_BUP = jnp.broadcast_to(
        (prefix_BP < rows.fact_position_B[:, None])[:, None], (B, shape.suffix, shape.prefix)
    )
    mask_BUS = jnp.concatenate([sees_prefix_BUP, causal_attention(position_BU).mask_BTS], axis=-1)
    return PrefillState(h_BUD, AttentionContext(position_BU, mask_BUS, cache), subject)


def _clamp(x_PND, most_PN):
    """Shortens what is longer than `most`."""
    norm_PN = _norm(x_PND)
    return (
        jnp.where(norm_PN > most_PN, most_PN / jnp.where(norm_PN == 0, 1, norm_PN), 1.0)[..., None]
        * x_PND
    )


def _norm(x_ND):
    """Norms whose gradient at zero is zero, as torch's is."""
    square_N = jnp.sum(x_ND**2, axis=-1)
    return jnp.where(square_N > 0, jnp.sqrt(jnp.where(square_N > 0, square_N, 1.0)), 0.0)
