"""One decoder for every family: Flax NNX modules that describe its blocks and its ends.

The modules hold parameters under the names of `jaxedit.axes.PARAMETERS`. A model's arrays live in a
flat dictionary `base` (name -> array, layers stacked on a leading L axis); `jaxedit.models.layers`
merges one layer's slices with the block's graph definition and runs it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxedit import axes
from jaxedit.models.config import DecoderConfig
from jaxedit.models.ops import (
    PRECISION,
    Overlay,
    activation,
    add_delta,
    layer_norm,
    linear,
    rms_norm,
)
from jaxedit.models.rope import rotate


class AttentionContext(NamedTuple):
    """Which positions the queries stand at and what they may attend to.

    `mask_BTS` covers the cached positions first (if any), then the queries' own.
    """

    position_BT: jax.Array
    mask_BTS: jax.Array
    cache: tuple[jax.Array, jax.Array] | None = None  # k_LBKSH, v_LBKSH of earlier positions


def parameter(config: DecoderConfig, name: str) -> nnx.Param:
    """A parameter by its name in the alphabet; only shapes are made, the values come from a
    checkpoint.
    """
    sizes = config.sizes()
    return nnx.Param(jnp.zeros(tuple(sizes[a] for a in axes.PARAMETERS[name])))


class Attention(nnx.Module):
    """Multi-head attention with grouped keys and values and optional rotary positions."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.norm_scale = parameter(config, "attn/norm_scale")
        if config.norm == "layer":
            self.norm_bias = parameter(config, "attn/norm_bias")
        self.w_q, self.w_k, self.w_v = (parameter(config, f"attn/w_{part}") for part in "qkv")
        if config.qkv_bias:
            self.b_q, self.b_k, self.b_v = (parameter(config, f"attn/b_{part}") for part in "qkv")
        if config.qk_norm:
            self.q_norm_scale, self.k_norm_scale = (
                parameter(config, f"attn/{part}_norm_scale") for part in "qk"
            )
        self.w_o = parameter(config, "attn/w_o")
        if config.out_bias:
            self.b_o = parameter(config, "attn/b_o")

    def __call__(
        self, x_BTD, attending: AttentionContext, cache_l
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the output [B, T, D] and this call's own keys and values [B, K, T, H]."""
        config, dtype = self.config, self.w_q.dtype
        q_BTNH, k_BTKH, v_BTKH = (self._heads(x_BTD, part) for part in "qkv")
        if config.qk_norm:
            q_BTNH = rms_norm(q_BTNH, self.q_norm_scale, config.norm_offset, config.eps)
            k_BTKH = rms_norm(k_BTKH, self.k_norm_scale, config.norm_offset, config.eps)
        if config.rope is not None:
            q_BTNH = rotate(config.rope, q_BTNH, attending.position_BT)
            k_BTKH = rotate(config.rope, k_BTKH, attending.position_BT)
        B, T, N, H = q_BTNH.shape
        q_BKGTH = (
            q_BTNH.reshape(B, T, config.K, N // config.K, H).transpose(0, 2, 3, 1, 4) * H**-0.5
        )
        own = (k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
        # The cached and the call's own keys and values are never joined: that would copy the cache
        # for every call.
        sources = [own] if cache_l is None else [cache_l, own]
        scores = [
            jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, precision=PRECISION)
            for k_BKSH, _ in sources
        ]
        score = jnp.where(
            attending.mask_BTS[:, None, None],
            jnp.concatenate(scores, -1),
            jnp.finfo(jnp.float32).min,
        )
        n_cached = score.shape[-1] - T
        weight = jax.nn.softmax(score, axis=-1)
        parts = [weight] if cache_l is None else [weight[..., :n_cached], weight[..., n_cached:]]
        mixed = [
            jnp.einsum("BKGTS,BKSH->BKGTH", part, v_BKSH, precision=PRECISION)
            for part, (_, v_BKSH) in zip(parts, sources, strict=True)
        ]
        mixed_BTNH = (
            functools.reduce(jnp.add, mixed)
            .transpose(0, 3, 1, 2, 4)
            .reshape(B, T, N, H)
            .astype(dtype)
        )
        w_XD = jnp.asarray(self.w_o).reshape(N * H, config.D)
        return linear(
            "BTX,XD->BTD", mixed_BTNH.reshape(B, T, N * H), w_XD, getattr(self, "b_o", None)
        ), own

    def _heads(self, x_BTD, part: str) -> jax.Array:
        """Queries, keys or values [B, T, heads, H], by a product of matrices: of anything else XLA
        copies the weight first.
        """
        w_DNH = jnp.asarray(getattr(self, f"w_{part}"))
        heads_BTX = linear("BTD,DX->BTX", x_BTD, w_DNH.reshape(self.config.D, -1), None)
        heads_BTNH = heads_BTX.reshape(*x_BTD.shape[:2], *w_DNH.shape[1:])
        bias = getattr(self, f"b_{part}", None)
        return heads_BTNH if bias is None else heads_BTNH + jnp.asarray(bias).astype(jnp.float32)


class MLP(nnx.Module):
    """The two-layer network whose second layer the editing methods treat as a key-value memory."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        if not config.shared_norm:
            self.norm_scale = parameter(config, "mlp/norm_scale")
            if config.norm == "layer":
                self.norm_bias = parameter(config, "mlp/norm_bias")
        if config.gated:
            self.w_gate = parameter(config, "mlp/w_gate")
        self.w_up = parameter(config, "mlp/w_up")
        self.w_down = parameter(config, "mlp/w_down")
        if config.mlp_bias:
            self.b_up = parameter(config, "mlp/b_up")
            self.b_down = parameter(config, "mlp/b_down")

    def key(self, x_BTD) -> jax.Array:
        """The input of the second layer [B, T, F]: the key k of the editing literature."""
        up_BTF = linear("BTD,DF->BTF", x_BTD, self.w_up, getattr(self, "b_up", None))
        if self.config.gated:
            return (
                activation(self.config.activation, linear("BTD,DF->BTF", x_BTD, self.w_gate, None))
                * up_BTF
            )
        return activation(self.config.activation, up_BTF)

    def value(self, key_BTF, overlay: Overlay, layer) -> jax.Array:
        """The second layer's output [B, T, D], with the overlay's term added in float32."""
        out_BTD = linear("BTF,FD->BTD", key_BTF, self.w_down, getattr(self, "b_down", None))
        return add_delta(overlay, "mlp/w_down", layer, key_BTF, out_BTD)


class Block(nnx.Module):
    """One layer: attention and MLP around the residual stream."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def __call__(self, h_BTD, attending: AttentionContext, cache_l, overlay: Overlay, layer):
        """Returns the residual stream after the layer, the MLP key, and this call's keys and
        values.
        """
        normed_BTD = normalise(self.config, self.attn, h_BTD)
        attn_BTD, own = self.attn(normed_BTD, attending, cache_l)
        if not self.config.parallel:
            h_BTD = h_BTD + attn_BTD
        if not self.config.shared_norm:
            normed_BTD = normalise(self.config, self.mlp, h_BTD)
        key_BTF = self.mlp.key(normed_BTD)
        value_BTD = self.mlp.value(key_BTF, overlay, layer)
        if self.config.parallel:
            h_BTD = h_BTD + attn_BTD
        return h_BTD + value_BTD, key_BTF, own


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
    """What stands before the first and after the last layer."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.embed = Embed(config)
        self.final = Final(config)
        if not config.tied:
            self.head = Head(config)

    def embed_tokens(self, token_BT, position_BT) -> jax.Array:
        """Tokens to the residual stream, float32 [B, T, D]."""
        h_BTD = self.embed.tokens[token_BT].astype(jnp.float32)
        if self.config.embed_scale != 1:
            h_BTD *= self.config.embed_scale
        if self.config.learned_positions:
            h_BTD += self.embed.positions[position_BT].astype(jnp.float32)
        return h_BTD

    def final_norm(self, h_BTD) -> jax.Array:
        """What the head reads: the residual stream after the last layer, normalised, in the
        weights' dtype.
        """
        return normalise(self.config, self.final, h_BTD).astype(self.embed.tokens.dtype)

    def unembed(self, h_BTD) -> jax.Array:
        """Residual stream after the last layer to float32 logits [..., V]."""
        x_D = self.final_norm(h_BTD)
        if self.config.tied:
            return linear("...D,VD->...V", x_D, self.embed.tokens, None)
        return linear("...D,DV->...V", x_D, self.head.w, getattr(self.head, "b", None))

    def unembed_slice(self, x_D, shards: int, first, width: int) -> jax.Array:
        """Logits [..., shards, width] of `width` vocabulary entries from `first` on within each of
        `shards` equal parts.
        """
        config = self.config
        if config.tied:
            w_MVD = jnp.asarray(self.embed.tokens).reshape(shards, config.V // shards, config.D)
            return linear(
                "...D,MVD->...MV", x_D, lax.dynamic_slice_in_dim(w_MVD, first, width, 1), None
            )
        w_DMV = jnp.asarray(self.head.w).reshape(config.D, shards, config.V // shards)
        bias = None
        if config.head_bias:
            bias = lax.dynamic_slice_in_dim(
                jnp.asarray(self.head.b).reshape(shards, config.V // shards), first, width, 1
            )
        return linear(
            "...D,DMV->...MV", x_D, lax.dynamic_slice_in_dim(w_DMV, first, width, 2), bias
        )


def normalise(config: DecoderConfig, module, h_BTD) -> jax.Array:
    """Layer norm or root-mean-square norm over D with the module's scale and bias."""
    if config.norm == "rms":
        return rms_norm(h_BTD, module.norm_scale, config.norm_offset, config.eps)
    return layer_norm(h_BTD, module.norm_scale, module.norm_bias, config.eps)


@functools.cache
def definition(
    config: DecoderConfig, module: Callable[[DecoderConfig], nnx.Module]
) -> nnx.GraphDef:
    """The graph definition of a module, made without allocating its parameters."""
    return nnx.split(nnx.eval_shape(lambda: module(config)))[0]


@functools.cache
def module_paths(
    config: DecoderConfig, module: Callable[[DecoderConfig], nnx.Module]
) -> tuple[str, ...]:
    """The names of a module's parameters, e.g. "mlp/w_down"."""
    state = nnx.split(nnx.eval_shape(lambda: module(config)))[1]
    return tuple("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape, for exactly the parameters a decoder has."""
    names, sizes = (
        {*module_paths(config, Block), *module_paths(config, EmbedAndHead)},
        config.sizes(),
    )
    return {
        name: tuple(sizes[a] for a in word)
        for name, word in axes.PARAMETERS.items()
        if name in names
    }
