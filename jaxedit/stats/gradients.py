"""Second moments E[g g^T] of output gradients, summed in the same pass as those of keys.

g is the gradient of -sum log p(token | those before it) of a text with respect to what the second
MLP weight puts out at one of its positions. With C = E[k k^T] they are the two factors of K-FAC's
curvature C (x) B (1503.05671), which CrispEdit (2602.15823) projects by.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxedit.edits.edit import EDITED_WEIGHT
from jaxedit.mesh import constrain
from jaxedit.models.layers import (
    causal_attention,
    embed,
    embedding_and_head,
    run_layer,
    run_layers,
)
from jaxedit.models.model import Model
from jaxedit.models.ops import float32_product, linear
from jaxedit.models.packing import ROW_TOKENS
from jaxedit.stats.sums import Sums, add_exactly

MOST_CHUNKS = 8  # parts of a row whose logits are held one after the other


@functools.partial(jax.jit, static_argnames="layers")
def add_batch_with_gradients(
    model: Model, token_BT, position_BT, segment_BT, layers: tuple[int, ...], sums: Sums
) -> Sums:
    """Add k k^T and g g^T of a batch's tokens to the sums, for each layer asked for.

    Args:
      model: with its edits.
      token_BT: packed rows.
      position_BT: each token's position in its text.
      segment_BT: which text it belongs to; 0: padding, which does not count.
      layers: ascending.
      sums: so far, with those of gradients.
    """
    assert sums.of_gradients is not None
    attn_context = causal_attention(position_BT, segment_BT)
    h_BTD = embed(model, token_BT, position_BT)
    h_BTD = jax.lax.stop_gradient(run_layers(model, h_BTD, attn_context, 0, layers[0]))

    # A zero added to an output has the output's gradient.
    def loss_of(offset_EBTD):
        out_BTD, keys = h_BTD, []
        for e, next_layer in enumerate([*layers[1:], model.config.L]):
            offset = {EDITED_WEIGHT: offset_EBTD[e]}
            out_BTD, inputs = run_layer(model, out_BTD, attn_context, layers[e], offset)
            out_BTD = run_layers(model, out_BTD, attn_context, layers[e] + 1, next_layer)
            keys.append(inputs.key_BTF)
        return next_token_loss(model, out_BTD, token_BT, segment_BT), jnp.stack(keys)

    zero_EBTD = jnp.zeros((len(layers), *h_BTD.shape))
    gradient_EBTD, key_EBTF = jax.grad(loss_of, has_aux=True)(zero_EBTD)

    # Padding has neither keys nor gradients: no loss reads it.
    key_EBTF = key_EBTF.astype(jnp.float32) * (segment_BT > 0)[..., None]
    key_EMF = linear("EBTM,EBTF->EMF", key_EBTF, key_EBTF.astype(model.dtype), None)
    gradient_EMD = float32_product("EBTM,EBTD->EMD", gradient_EBTD, gradient_EBTD, model.dtype)
    of_keys = add_exactly(sums, key_EMF)
    of_gradients = add_exactly(sums.of_gradients, gradient_EMD)
    return of_keys._replace(of_gradients=of_gradients)


def next_token_loss(model: Model, h_BTD, token_BT, segment_BT) -> jax.Array:
    """Sum -log p of each text's tokens after the first, from the residual stream; traced."""
    head = embedding_and_head(model)
    next_BT = jnp.roll(token_BT, -1, axis=1)
    is_text_BT = (segment_BT == jnp.roll(segment_BT, -1, axis=1)) & (segment_BT > 0)
    is_text_BT = is_text_BT.at[:, -1].set(False)

    # The logits of one part of the rows at a time, and again in the backward pass.
    @jax.checkpoint
    def of_chunk(total, chunk):
        h_BTD, next_BT, is_text_BT = chunk
        logp_BTV = jax.nn.log_softmax(constrain(model.mesh, "BTV", head.unembed(h_BTD)))
        chosen_BT = jnp.take_along_axis(logp_BTV, next_BT[..., None], axis=2)[..., 0]
        return total - jnp.sum(chosen_BT * is_text_BT), None

    T = token_BT.shape[1]
    n_chunks = math.gcd(max(1, T // ROW_TOKENS), MOST_CHUNKS) if T % ROW_TOKENS == 0 else 1

    def in_chunks(array):
        B, T, *rest = array.shape
        return jnp.moveaxis(array.reshape(B, n_chunks, T // n_chunks, *rest), 1, 0)

    chunks = jax.tree.map(in_chunks, (h_BTD, next_BT, is_text_BT))
    total, _ = jax.lax.scan(of_chunk, jnp.float32(0), chunks)
    return total
