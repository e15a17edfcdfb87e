"""Multi-head attention: the module, and the positions and mask that it is given."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxedit.models.config import DecoderConfig
from jaxedit.models.norms import rms_norm
from jaxedit.models.ops import float32_product, linear, parameter, softcap
from jaxedit.models.rope import rotate, rotation_at

KeysAndValues = tuple[jax.Array, jax.Array]


class AttentionContext(NamedTuple):
    """The positions the queries stand at, and what they may attend to.

    Attributes:
      position_BT: the queries' positions.
      mask_BTS: what each query may see, but for sliding windows: the cached positions first (if
        any), then the queries' own.
      cache: k_LBKSH and v_LBKSH of earlier positions.
      cached_position_BS: these positions.
    """

    position_BT: jax.Array
    mask_BTS: jax.Array
    cache: KeysAndValues | None = None
    cached_position_BS: jax.Array | None = None


def visible(config: DecoderConfig, attn_context: AttentionContext, layer) -> jax.Array:
    """Return what each query may see in a layer [B, T, S].

    Args:
      config: of the decoder.
      attn_context: positions and mask.
      layer: which, possibly traced.
    """
    position_BT, mask_BTS = attn_context.position_BT, attn_context.mask_BTS
    if config.window is None or mask_BTS.shape[-1] <= config.window:
        return mask_BTS  # no position is so far from another
    key_position_BS = position_BT
    if attn_context.cached_position_BS is not None:
        key_position_BS = jnp.concatenate([attn_context.cached_position_BS, position_BT], axis=1)
    is_near_BTS = position_BT[:, :, None] - key_position_BS[:, None] < config.window
    has_window_L = [config.has_window(l) for l in range(config.L)]
    if not all(has_window_L):
        is_near_BTS |= ~jnp.array(has_window_L)[layer]
    return mask_BTS & is_near_BTS


class Attention(nnx.Module):
    """Multi-head attention with grouped keys and values and optional rotary positions."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        if config.pre_norm:
            self.norm_scale = parameter(config, "attn/norm_scale")
            if config.norm == "layer":
                self.norm_bias = parameter(config, "attn/norm_bias")
        self.w_q, self.w_k, self.w_v = (parameter(config, f"attn/w_{part}") for part in "qkv")
        if config.qkv_bias:
            self.b_q, self.b_k, self.b_v = (parameter(config, f"attn/b_{part}") for part in "qkv")
        if config.qk_norm:
            self.q_norm_scale = parameter(config, "attn/q_norm_scale")
            self.k_norm_scale = parameter(config, "attn/k_norm_scale")
        if config.qk_norm_all_heads:
            self.q_all_heads_norm_scale = parameter(config, "attn/q_all_heads_norm_scale")
            self.k_all_heads_norm_scale = parameter(config, "attn/k_all_heads_norm_scale")
        self.w_o = parameter(config, "attn/w_o")
        if config.out_bias:
            self.b_o = parameter(config, "attn/b_o")
        if config.post_norm:
            self.post_norm_scale = parameter(config, "attn/post_norm_scale")

    def __call__(
        self, x_BTD, attn_context: AttentionContext, cached_kv: KeysAndValues | None, layer
    ) -> tuple[jax.Array, KeysAndValues]:
        """Attend from every position of x to what the context lets it see.

        Args:
          x_BTD: the normalised residual stream.
          attn_context: positions and mask.
          cached_kv: k_BKSH and v_BKSH of earlier positions in this layer, if there are any.
          layer: which this is, possibly traced.

        Returns:
          The output [B, T, D] before a post-norm, and this call's own keys and values [B, K, T, H].
        """
        config, dtype = self.config, self.w_q.dtype

        # Queries, keys and values; in some families normalised; then turned by position.
        q_BTNH, k_BTKH, v_BTKH = (self._heads(x_BTD, part) for part in "qkv")
        q_BTNH, k_BTKH = self._normalise_heads(q_BTNH, "q"), self._normalise_heads(k_BTKH, "k")
        rotation = rotation_at(config.ropes(), layer)
        if rotation is not None:
            q_BTNH = rotate(rotation, q_BTNH, attn_context.position_BT)
            k_BTKH = rotate(rotation, k_BTKH, attn_context.position_BT)

        # Grouped-query attention (arXiv 2305.13245): A = N / K query heads share a key-value head.
        B, T, N, H = q_BTNH.shape
        q_BTKAH = q_BTNH.reshape(B, T, config.K, N // config.K, H)
        q_BKATH = q_BTKAH.transpose(0, 2, 3, 1, 4) * (config.attn_scale or H**-0.5)
        new_kv = (k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))

        # Scores of the cached positions, then of the call's own. The two are never joined as keys
        # and values: that would copy the cache for every call.
        sources = [new_kv] if cached_kv is None else [cached_kv, new_kv]
        scores = [
            float32_product("BKATH,BKSH->BKATS", q_BKATH, k_BKSH, dtype) for k_BKSH, _ in sources
        ]
        lowest = jnp.finfo(jnp.float32).min
        score_BKATS = softcap(jnp.concatenate(scores, -1), config.attn_softcap)
        mask_BTS = visible(config, attn_context, layer)
        score_BKATS = jnp.where(mask_BTS[:, None, None], score_BKATS, lowest)
        n_cached = score_BKATS.shape[-1] - T
        weight_BKATS = jax.nn.softmax(score_BKATS, axis=-1)

        # The values' mean by these weights, again source by source, summed.
        weights = [weight_BKATS]
        if cached_kv is not None:
            weights = [weight_BKATS[..., :n_cached], weight_BKATS[..., n_cached:]]
        mixed = [
            float32_product("BKATS,BKSH->BKATH", part_BKATS, v_BKSH, dtype)
            for part_BKATS, (_, v_BKSH) in zip(weights, sources, strict=True)
        ]
        mixed_BKATH = functools.reduce(jnp.add, mixed)

        # Heads side by side, through the output projection as one product of matrices.
        mixed_BTX = mixed_BKATH.transpose(0, 3, 1, 2, 4).reshape(B, T, N * H).astype(dtype)
        w_XD = jnp.asarray(self.w_o).reshape(N * H, config.D)
        return linear("BTX,XD->BTD", mixed_BTX, w_XD, getattr(self, "b_o", None)), new_kv

    def _heads(self, x_BTD, part: str) -> jax.Array:
        """Project to queries, keys or values [B, T, N or K, H].

        One product of matrices: for anything else XLA copies the weight first.
        """
        w_DNH = jnp.asarray(getattr(self, f"w_{part}"))
        heads_BTX = linear("BTD,DX->BTX", x_BTD, w_DNH.reshape(self.config.D, -1), None)
        heads_BTNH = heads_BTX.reshape(*x_BTD.shape[:2], *w_DNH.shape[1:])
        bias = getattr(self, f"b_{part}", None)
        return heads_BTNH if bias is None else heads_BTNH + jnp.asarray(bias).astype(jnp.float32)

    def _normalise_heads(self, heads_BTNH, part: str) -> jax.Array:
        """Normalise queries or keys, head by head or over all heads; not at all in most families.

        Copies of key-value heads change no mean.
        """
        config = self.config
        if config.qk_norm:
            scale_H = getattr(self, f"{part}_norm_scale")
            return rms_norm(heads_BTNH, scale_H, config.norm_offset, config.eps)
        if config.qk_norm_all_heads:
            scale_X = jnp.asarray(getattr(self, f"{part}_all_heads_norm_scale")).reshape(-1)
            heads_BTX = heads_BTNH.reshape(*heads_BTNH.shape[:2], -1)
            normed_BTX = rms_norm(heads_BTX, scale_X, config.norm_offset, config.eps)
            return normed_BTX.reshape(heads_BTNH.shape)
        return heads_BTNH
