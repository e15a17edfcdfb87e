"""How far an edited model's predictions are from the unedited one's, whatever the right answer: KL
on given texts.

    KL = mean over tokens of sum_v p_0(v) (log p_0(v) - log p(v)),   p_0 the unedited model

The first token of a text counts as well: what follows it is predicted like everything else.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers
from jaxedit.models.model import Model
from jaxedit.models.score import PrefilledTexts, batch_to_device

ROWS_AT_ONCE = 1  # of a batch: two times their positions' logits are held at once


def kl_divergence(model: Model, unedited: Model, texts: PrefilledTexts) -> float:
    """KL(unedited || model) in nats a token; infinite where it is not finite.

    Args:
      model: with edits at or above the layer from which the texts were begun.
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
    """KL at every position."""
    attending = causal_attention(position_BT, segment_BT)

    def last(of: Model):
        h, lowest = (embed(of, token_BT, position_BT), 0) if h_BTD is None else (h_BTD, layer)
        return run_layers(of, h, attending, lowest, of.config.L)

    def kl_of_row(pair):
        logp_0TV, logp_TV = (
            jax.nn.log_softmax(embedding_and_head(of).unembed(h_TD[None])[0])
            for of, h_TD in zip((unedited, model), pair, strict=True)
        )
        return jnp.sum(jnp.exp(logp_0TV) * (logp_0TV - logp_TV), axis=-1)

    kl_BT = jax.lax.map(kl_of_row, (last(unedited), last(model)), batch_size=ROWS_AT_ONCE)
    return replicate(model.mesh, kl_BT)
