"""The value to write: v* of ROME (2202.05262, eq. 4) and z* of MEMIT (2210.07229, eq. 16), for many requests at once.

For each request a vector delta is optimised, added at the subject's last token to what leaves the edited layer, so that
the model says the target:

    L = mean over templates of -(1/|o|) sum_t log p(o_t | ...)                       the target
        + kl_factor KL(p_delta || p_0) at the subject's last token of "{} is a"       what the subject is
        + v_weight_decay |delta| / |init|^2                                           (|delta| is not squared)

with Adam, at most v_num_grad_steps - 1 updates, a stop before the step where L < 0.05, and after each step the
projection |delta| <= clamp_norm_factor |init|. In pre-norm blocks adding to the MLP's output or to the layer's output is
the same, so ROME and MEMIT differ in `init` alone: the MLP's output or the residual stream of the first template.

The vector changes only positions from the subject's last token on, and only layers above. So the rest is run once, its
keys and values kept, and a step computes a rectangle of suffixes and the logits that the loss reads.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit.edits.request import Request
from jaxedit.mesh import constrain, place
from jaxedit.models.decoder import Attending
from jaxedit.models.layers import block_at, causal, ends, run_collecting, run_layers, start
from jaxedit.models.model import Model
from jaxedit.solving.rows import Rows, Shape, Tokenised, common_shape, in_parts, lay_out, tokenise

STOP_LOSS = 5e-2
REQUESTS_AT_ONCE = 32  # bounds memory; requests do not influence each other


@dataclasses.dataclass(frozen=True)
class TargetHyper:
    """Hyper-parameters of the optimisation, under their published names."""

    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp_norm_factor: float = 4.0
    stop_at_argmax: bool = False  # stop once every target token is the most likely one in every template (ENCORE)

    def check(self) -> None:
        """Raises a ValueError on a number that cannot be meant."""
        if self.v_num_grad_steps < 1 or self.v_lr <= 0 or self.clamp_norm_factor <= 0:
            raise ValueError(
                f"v_num_grad_steps={self.v_num_grad_steps}, v_lr={self.v_lr} and clamp_norm_factor={self.clamp_norm_factor} "
                "must be positive"
            )


class Targets(NamedTuple):
    """What the optimisation found, for N requests in R templates. Keys and values are those before the edit."""

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


def optimise(
    model: Model, requests: list[Request], templates: tuple[str, ...], layer: int, hyper: TargetHyper, residual: bool
) -> Targets:
    """Finds the vectors for requests, each independent of the others.

    Args:
      model: with the edits so far.
      requests: at least one.
      templates: context templates with one `{}` each; the first gives `init`.
      layer: the vector is added to this layer's output.
      hyper: published names and values.
      residual: init is the residual stream after the layer (MEMIT), not the MLP's output (ROME).
    """
    tokenised = [tokenise(model, request, templates) for request in requests]
    parts, n_requests = in_parts(tokenised, REQUESTS_AT_ONCE)
    shape = common_shape(tokenised)
    found = [_optimise_part(model, part, shape, layer, hyper, residual) for part in parts]
    return Targets(*(np.concatenate(arrays)[:n_requests] for arrays in zip(*found, strict=True)))


def _optimise_part(
    model: Model, tokenised: list[Tokenised], shape: Shape, layer: int, hyper: TargetHyper, residual: bool
) -> Targets:
    rows = lay_out(tokenised, shape, model.mesh.shape["data"])
    by_row = ("BT", "B", "B")  # the rows lie over `data`; what says where to read is everywhere
    letters = [*by_row, *["_"] * (len(rows) - len(by_row))]
    arrays = Rows(*(place(model.mesh, word, np.asarray(array)) for word, array in zip(letters, rows, strict=True)))
    numbers = {name: value for name, value in dataclasses.asdict(hyper).items() if name != "stop_at_argmax"}
    found = jax.device_get(
        _optimise(
            model, arrays, layer, jax.tree.map(jnp.float32, numbers), shape, len(tokenised), residual, hyper.stop_at_argmax
        )
    )
    of_template = np.arange(len(tokenised[0].templates)) + rows.first_row_N[:, None]
    return Targets(
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


@functools.partial(jax.jit, static_argnames=("layer", "shape", "n_requests", "residual", "stop_at_argmax"))
def _optimise(model: Model, rows: Rows, layer: int, hyper, shape: Shape, n_requests: int, residual: bool, stop_at_argmax: bool):
    h_BUD, attending, key_BF, value_BD, residual_BD = _prefix(model, rows, layer, shape)
    init_ND = (residual_BD if residual else value_BD)[rows.first_row_N]
    init_norm_N = jnp.linalg.norm(init_ND, axis=-1)
    request_Q = rows.request_B[rows.read_row_Q]

    def terms(delta_ND):
        """The loss terms of each request and the log-probabilities at its KL position."""
        h = h_BUD.at[:, 0].add(delta_ND[rows.request_B])
        h = run_layers(model, constrain(model.mesh, "BTD", h), attending, layer + 1, model.config.L)
        read_QD = jnp.concatenate([h[rows.read_row_Q, rows.read_offset_Q], h[rows.kl_row_N, 0]])
        logp_QV = jax.nn.log_softmax(ends(model).logits(read_QD[None])[0])
        n_read = rows.read_row_Q.shape[0]
        chosen_Q = jnp.take_along_axis(logp_QV[:n_read], rows.read_target_Q[:, None], axis=1)[:, 0]
        nll_N = jax.ops.segment_sum(-chosen_Q * rows.read_weight_Q, request_Q, n_requests)
        decay_N = hyper["v_weight_decay"] * _norm(delta_ND) / init_norm_N**2
        missed_Q = (chosen_Q < jnp.max(logp_QV[:n_read], axis=1)) & (rows.read_weight_Q > 0)
        missed_N = jax.ops.segment_max(missed_Q.astype(jnp.int32), request_Q, n_requests) > 0
        return nll_N, decay_N, logp_QV[n_read:], missed_N

    def losses(delta_ND, initial_NV, first):
        nll_N, decay_N, logp_NV, missed_N = terms(delta_ND)
        initial_NV = jnp.where(first, jax.lax.stop_gradient(logp_NV), initial_NV)
        kl_N = hyper["kl_factor"] * jnp.sum(jnp.exp(logp_NV) * (logp_NV - initial_NV), axis=-1)
        total_N = nll_N + kl_N + decay_N
        return jnp.sum(total_N), (total_N, initial_NV, missed_N, (nll_N, kl_N, decay_N))

    adam = optax.adam(hyper["v_lr"])

    def going_on(carry):
        step, _, _, _, active_N, _ = carry
        return (step < hyper["v_num_grad_steps"] - 1) & jnp.any(active_N)

    def update(carry):
        step, delta_ND, adam_state, initial_NV, active_N, n_steps_N = carry
        found, gradient = jax.value_and_grad(losses, has_aux=True)(delta_ND, initial_NV, step == 0)
        total_N, initial_NV, missed_N, _ = found[1]
        n_steps_N += active_N
        active_N &= missed_N if stop_at_argmax else total_N >= STOP_LOSS
        change, adam_state = adam.update(gradient, adam_state)
        moved_ND = delta_ND + change
        most_N = hyper["clamp_norm_factor"] * init_norm_N
        norm_N = _norm(moved_ND)
        moved_ND = jnp.where(norm_N > most_N, most_N / jnp.where(norm_N == 0, 1, norm_N), 1.0)[:, None] * moved_ND
        return step + 1, jnp.where(active_N[:, None], moved_ND, delta_ND), adam_state, initial_NV, active_N, n_steps_N

    zero_ND = jnp.zeros_like(init_ND)
    active_N, n_steps_N = jnp.ones(n_requests, bool), jnp.zeros(n_requests, jnp.int32)
    no_initial_NV = jnp.zeros((n_requests, model.config.V))
    carry = (jnp.int32(0), zero_ND, adam.init(zero_ND), no_initial_NV, active_N, n_steps_N)
    step, delta_ND, _, initial_NV, active_N, n_steps_N = jax.lax.while_loop(going_on, update, carry)
    _, (_, _, _, (nll_N, kl_N, decay_N)) = losses(delta_ND, initial_NV, step == 0)
    names = ("delta_ND", "init_ND", "key_BF", "value_BD", "nll_N", "kl_N", "decay_N", "n_steps_N")
    return dict(zip(names, (delta_ND, init_ND, key_BF, value_BD, nll_N, kl_N, decay_N, n_steps_N + active_N), strict=True))


def _prefix(model: Model, rows: Rows, layer: int, shape: Shape):
    """All that the added vector does not change: suffixes after the edited layer, and what they attend to above it."""
    B, T = rows.token_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    attending = causal(position_BT)
    h_BTD = run_layers(model, start(model, rows.token_BT, position_BT), attending, 0, layer)
    block = block_at(model, layer)
    h_BTD, key_BTF, _ = block(h_BTD, attending, None, model.overlay, layer)
    at_subject = rows.subject_B[:, None, None]
    key_B1F = jnp.take_along_axis(key_BTF, at_subject, axis=1)
    value_BD = block.mlp.value(key_B1F, model.overlay, layer)[:, 0]
    residual_BD = jnp.take_along_axis(h_BTD, at_subject, axis=1)[:, 0]

    prefix_BP = position_BT[:, : shape.prefix]
    _, cache = run_collecting(model, h_BTD[:, : shape.prefix], causal(prefix_BP), layer + 1, model.config.L)
    position_BU = jnp.asarray(rows.subject_B)[:, None] + jnp.arange(shape.suffix)
    h_BUD = jnp.take_along_axis(h_BTD, jnp.minimum(position_BU, T - 1)[..., None], axis=1)
    sees_prefix_BUP = jnp.broadcast_to((prefix_BP < rows.subject_B[:, None])[:, None], (B, shape.suffix, shape.prefix))
    mask_BUS = jnp.concatenate([sees_prefix_BUP, causal(position_BU).mask_BTS], axis=-1)
    return h_BUD, Attending(position_BU, mask_BUS, cache), key_B1F[:, 0], value_BD, residual_BD


def _norm(x_ND):
    """Norms whose gradient at zero is zero, as torch's is."""
    square_N = jnp.sum(x_ND**2, axis=-1)
    return jnp.where(square_N > 0, jnp.sqrt(jnp.where(square_N > 0, square_N, 1.0)), 0.0)
