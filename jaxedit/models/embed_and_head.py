"""The decoder's modules before the first layer and after the last one."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxedit.models.config import DecoderConfig
from jaxedit.models.norms import normalise
from jaxedit.models.ops import linear, parameter, softcap


class Final(nnx.Module):
    """The norm before the head."""

    def __init__(self, config: DecoderConfig):
        self.norm_scale = parameter(config, "final/norm_scale")
        if config.norm == "layer":
            self.norm_bias = parameter(config, "final/norm_bias")


class Embed(nnx.Module):
    """Token and, where the family has them, learned position embeddings."""

    def __init__(self, config: DecoderConfig):
        self.tokens = parameter(config, "embed/tokens")
        if config.learned_positions:
            self.positions = parameter(config, "embed/positions")


class Head(nnx.Module):
    """The output projection; absent where it is tied to the embedding."""

    def __init__(self, config: DecoderConfig):
        self.w = parameter(config, "head/w")
        if config.head_bias:
            self.b = parameter(config, "head/b")


class EmbedAndHead(nnx.Module):
    """The modules before the first layer and after the last one."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.embed = Embed(config)
        self.final = Final(config)
        if not config.tied:
            self.head = Head(config)

    def embed_tokens(self, token_BT, position_BT) -> jax.Array:
        """Embed tokens: the residual stream before the first layer, float32 [B, T, D]."""
        h_BTD = self.embed.tokens[token_BT].astype(jnp.float32)
        if self.config.embed_scale != 1:
            h_BTD *= self.config.embed_scale
        if self.config.learned_positions:
            h_BTD += self.embed.positions[position_BT].astype(jnp.float32)
        return h_BTD

    def final_norm(self, h_BTD) -> jax.Array:
        """Normalise the residual stream after the last layer, in the weights' dtype."""
        return normalise(self.config, self.final, h_BTD).astype(self.embed.tokens.dtype)

    def unembed(self, h_BTD) -> jax.Array:
        """Turn the residual stream after the last layer into float32 logits [B, T, V]."""
        x_BTD = self.final_norm(h_BTD)
        if self.config.tied:
            return self._capped(linear("BTD,VD->BTV", x_BTD, self.embed.tokens, None))
        return self._capped(
            linear("BTD,DV->BTV", x_BTD, self.head.w, getattr(self.head, "b", None))
        )

    def unembed_slice(self, x_BTD, n_shards: int, first, width: int) -> jax.Array:
        """Compute the logits of a slice of the vocabulary out of each of its shards.

        Args:
          x_BTD: from `final_norm`.
          n_shards: equal parts of the vocabulary, as it is split over the mesh axis `model`.
          first: the first entry of the slice within each shard, possibly traced.
          width: the slice's entries.

        Returns:
          float32 logits [B, T, Z, W].
        """
        config = self.config
        per_shard = config.V // n_shards
        if config.tied:
            w_ZVD = jnp.asarray(self.embed.tokens).reshape(n_shards, per_shard, config.D)
            w_ZWD = lax.dynamic_slice_in_dim(w_ZVD, first, width, 1)
            return self._capped(linear("BTD,ZWD->BTZW", x_BTD, w_ZWD, None))
        w_DZV = jnp.asarray(self.head.w).reshape(config.D, n_shards, per_shard)
        b_ZW = None
        if config.head_bias:
            b_ZV = jnp.asarray(self.head.b).reshape(n_shards, per_shard)
            b_ZW = lax.dynamic_slice_in_dim(b_ZV, first, width, 1)
        w_DZW = lax.dynamic_slice_in_dim(w_DZV, first, width, 2)
        return self._capped(linear("BTD,DZW->BTZW", x_BTD, w_DZW, b_ZW))

    def _capped(self, logit) -> jax.Array:
        """Scale logits (Granite) and keep them below a cap (Gemma 2), where the family does."""
        config = self.config
        logit = logit if config.logit_scale == 1 else logit * config.logit_scale
        return softcap(logit, config.logit_softcap)
