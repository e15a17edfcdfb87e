"""One decoder for every family: Flax NNX modules of a layer, and of the embedding and head.

The modules hold parameters under the names of `jaxedit.axes.PARAMETERS`. A model's arrays live in a
flat dictionary `base` (name -> array, layers stacked on a leading L axis); `jaxedit.models.layers`
merges one layer's slices with the block's graph definition and runs it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxedit import axes
from jaxedit.models.attention import Attention, AttentionContext, KeysAndValues
from jaxedit.models.config import DecoderConfig
from jaxedit.models.ops import (
    Overlay,
    activation,
    add_delta,
    layer_norm,
    linear,
    parameter,
    rms_norm,
)

Offsets = Mapping[str, jax.Array]  # weight of an MLP, e.g. "mlp/w_up" -> added to its output


class MLPInputs(NamedTuple):
    """What the weights of an MLP read.

    Attributes:
      x_BTD: the input of "mlp/w_up" and "mlp/w_gate", the normalised residual stream.
      key_BTF: the input of "mlp/w_down": the key k of the editing literature.
    """

    x_BTD: jax.Array
    key_BTF: jax.Array


class MLP(nnx.Module):
    """The two-layer network whose second layer the editing methods treat as a key-value memory.

    Every weight has a term of the overlay: what edits add to its output, in float32. A weight's
    `offset`, where there is one, is added to its output as well; the gradient with respect to it is
    that with respect to the output.
    """

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

    def key(self, x_BTD, overlay: Overlay, layer, offset: Offsets | None = None) -> jax.Array:
        """Compute the second layer's input [B, T, F]: the key k of the editing literature."""
        up_BTF = linear("BTD,DF->BTF", x_BTD, self.w_up, getattr(self, "b_up", None))
        up_BTF = add_delta(overlay, "mlp/w_up", layer, x_BTD, up_BTF, self.w_up.dtype)
        up_BTF = _add_offset(offset, "mlp/w_up", up_BTF)
        if not self.config.gated:
            return activation(self.config.activation, up_BTF)
        gate_BTF = linear("BTD,DF->BTF", x_BTD, self.w_gate, None)
        gate_BTF = add_delta(overlay, "mlp/w_gate", layer, x_BTD, gate_BTF, self.w_gate.dtype)
        gate_BTF = _add_offset(offset, "mlp/w_gate", gate_BTF)
        return activation(self.config.activation, gate_BTF) * up_BTF

    def value(self, key_BTF, overlay: Overlay, layer, offset: Offsets | None = None) -> jax.Array:
        """Compute the second layer's output [B, T, D]."""
        out_BTD = linear("BTF,FD->BTD", key_BTF, self.w_down, getattr(self, "b_down", None))
        out_BTD = add_delta(overlay, "mlp/w_down", layer, key_BTF, out_BTD, self.w_down.dtype)
        return _add_offset(offset, "mlp/w_down", out_BTD)


def _add_offset(offset: Offsets | None, name: str, out: jax.Array) -> jax.Array:
    return out + offset[name] if offset and name in offset else out


class Block(nnx.Module):
    """One layer: attention and MLP around the residual stream h.

    Every norm stands before what it feeds (pre-norm), so that adding a vector to the MLP's output
    and adding it to the layer's output is the same thing.

        sequential              parallel residual       parallel residual,
        (Llama, GPT-2, Qwen)    (GPT-NeoX)              shared norm (GPT-J, Phi)

        h ---.                  h ---.---------.        h ---.
        |    |                  |    |         |        |    |
        |    attn norm          |    attn norm mlp norm |    attn norm
        |    |                  |    |         |        |    |---------.
        |    attention          |    attention MLP      |    attention MLP
        |    |                  |    |         |        |    |         |
        + <--'                  + <--'         |        + <--'         |
        |---.                   |              |        |              |
        |    |                  + <------------'        + <------------'
        |    mlp norm           |                       |
        |    |                  v                       v
        |    MLP
        |    |
        + <--'
        |
        v
    """

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def __call__(
        self,
        h_BTD,
        attn_context: AttentionContext,
        cached_kv: KeysAndValues | None,
        overlay: Overlay,
        layer,
        offset: Offsets | None = None,
    ) -> tuple[jax.Array, MLPInputs, KeysAndValues]:
        """Run the layer on the residual stream.

        Args:
          h_BTD: the residual stream before the layer.
          attn_context: positions and mask.
          cached_kv: k_BKSH and v_BKSH of earlier positions in this layer, if there are any.
          overlay: the model's edits.
          layer: which this is, possibly traced.
          offset: of the MLP's weights, see `MLP`.

        Returns:
          The residual stream after the layer [B, T, D], what the MLP's weights read, and this
          call's own keys and values [B, K, T, H].
        """
        normed_BTD = normalise(self.config, self.attn, h_BTD)
        attn_BTD, new_kv = self.attn(normed_BTD, attn_context, cached_kv)
        if not self.config.parallel:
            h_BTD = h_BTD + attn_BTD
        if not self.config.shared_norm:
            normed_BTD = normalise(self.config, self.mlp, h_BTD)
        key_BTF = self.mlp.key(normed_BTD, overlay, layer, offset)
        value_BTD = self.mlp.value(key_BTF, overlay, layer, offset)
        if self.config.parallel:
            h_BTD = h_BTD + attn_BTD
        return h_BTD + value_BTD, MLPInputs(normed_BTD, key_BTF), new_kv


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
            return linear("BTD,VD->BTV", x_BTD, self.embed.tokens, None)
        return linear("BTD,DV->BTV", x_BTD, self.head.w, getattr(self.head, "b", None))

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
            return linear("BTD,ZWD->BTZW", x_BTD, w_ZWD, None)
        w_DZV = jnp.asarray(self.head.w).reshape(config.D, n_shards, per_shard)
        b_ZW = None
        if config.head_bias:
            b_ZV = jnp.asarray(self.head.b).reshape(n_shards, per_shard)
            b_ZW = lax.dynamic_slice_in_dim(b_ZV, first, width, 1)
        w_DZW = lax.dynamic_slice_in_dim(w_DZV, first, width, 2)
        return linear("BTD,DZW->BTZW", x_BTD, w_DZW, b_ZW)


def normalise(config: DecoderConfig, module, h_BTD) -> jax.Array:
    """Apply a module's norm over D: layer norm or root-mean-square norm, as the family has it."""
    if config.norm == "rms":
        return rms_norm(h_BTD, module.norm_scale, config.norm_offset, config.eps)
    return layer_norm(h_BTD, module.norm_scale, module.norm_bias, config.eps)


@functools.cache
def definition(
    config: DecoderConfig, module: Callable[[DecoderConfig], nnx.Module]
) -> nnx.GraphDef:
    """Return the graph definition of a module, made without allocating its parameters."""
    return nnx.split(nnx.eval_shape(lambda: module(config)))[0]


@functools.cache
def module_paths(
    config: DecoderConfig, module: Callable[[DecoderConfig], nnx.Module]
) -> tuple[str, ...]:
    """Return the names of a module's parameters, e.g. "mlp/w_down"."""
    state = nnx.split(nnx.eval_shape(lambda: module(config)))[1]
    return tuple("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of exactly the parameters that a decoder has."""
    names = {*module_paths(config, Block), *module_paths(config, EmbedAndHead)}
    sizes = config.sizes()
    return {
        name: tuple(sizes[a] for a in word)
        for name, word in axes.PARAMETERS.items()
        if name in names
    }
