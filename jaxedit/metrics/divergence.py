"""KL divergence of an edited model's predictions from the unedited one's, on given texts.

    KL = mean over tokens of sum_v p_0(v) (log p_0(v) - log p(v)),   p_0 the unedited model

It does not depend on the right answers. The first token of a text counts as well: what follows it
is predicted like everything else.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers
from jaxedit.models.model import Model
from jaxedit.models.score import PrefilledTexts, batch_to_device

ROWS_AT_ONCE = 1  # of a batch; the logits of their positions are held twice


def kl_divergence(model: Model, unedited: Model, texts: PrefilledTexts) -> float:
    """Compute KL(unedited || model) in nats a token; infinite where it is not finite.

    Args:
      model: with edits at or above the layer below which the texts are prefilled.
      unedited: the same model without them.
      texts: from `jaxedit.metrics.perplexity.prepare`.
    """
    total, n_tokens = 0.0, 0
    for g, segment_BT in enumerate(texts.packed.segment_GBT):
        batch = *batch_to_device(model, texts.packed, g), texts.hidden_G[g], jnp.int32(texts.layer)
        kl_BT = np.asarray(_kl_of_batch(model, unedited, *batch))
        total += float(np.sum(kl_BT[segment_BT > 0], dtype=np.float64))
        n_tokens += int(np.sum(segment_BT > 0))
    mean = total / n_tokens
    return mean if np.isfinite(mean) else float("inf")


@jax.jit
def _kl_of_batch(model: Model, unedited: Model, token_BT, position_BT, segment_BT, h_BTD, layer):
    """Compute KL at every position of a batch [B, T]."""
    attn_context = causal_attention(position_BT, segment_BT)

    def last_hidden(of: Model) -> jax.Array:
        if h_BTD is None:
            return run_layers(of, embed(of, token_BT, position_BT), attn_context, 0, of.config.L)
        return run_layers(of, h_BTD, attn_context, layer, of.config.L)

    def log_softmax(of: Model, h_TD) -> jax.Array:
        return jax.nn.log_softmax(embedding_and_head(of).unembed(h_TD[None])[0])

    def kl_of_row(rows) -> jax.Array:
        unedited_TD, edited_TD = rows
        unedited_TV, edited_TV = log_softmax(unedited, unedited_TD), log_softmax(model, edited_TD)
        return jnp.sum(jnp.exp(unedited_TV) * (unedited_TV - edited_TV), axis=-1)

    # Row by row: of a whole batch the logits would not fit.
    hidden = (last_hidden(unedited), last_hidden(model))
    kl_BT = jax.lax.map(kl_of_row, hidden, batch_size=ROWS_AT_ONCE)
    return replicate(model.mesh, kl_BT)
