"""One decoder for every family: Flax NNX modules of a layer.

The modules hold parameters under the names of `jaxedit.axes.PARAMETERS`. A model's arrays live in a
flat dictionary `base` (name -> array, layers stacked on a leading L axis); `jaxedit.models.layers`
merges one layer's slices with the block's graph definition and runs it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from flax import nnx

from jaxedit import axes
from jaxedit.models.attention import Attention, AttentionContext, KeysAndValues
from jaxedit.models.config import DecoderConfig
from jaxedit.models.embed_and_head import EmbedAndHead
from jaxedit.models.norms import normalise, to_residual
from jaxedit.models.ops import (
    Overlay,
    activation,
    add_delta,
    linear,
    parameter,
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
        if config.pre_norm and not config.shared_norm:
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
        if config.post_norm:
            self.post_norm_scale = parameter(config, "mlp/post_norm_scale")

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
        """Compute the second layer's output [B, T, D], before a post-norm."""
        out_BTD = linear("BTF,FD->BTD", key_BTF, self.w_down, getattr(self, "b_down", None))
        out_BTD = add_delta(overlay, "mlp/w_down", layer, key_BTF, out_BTD, self.w_down.dtype)
        return _add_offset(offset, "mlp/w_down", out_BTD)


def _add_offset(offset: Offsets | None, name: str, out: jax.Array) -> jax.Array:
    return out + offset[name] if offset and name in offset else out


class Block(nnx.Module):
    """One layer: attention and MLP around the residual stream h.

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

    Above every norm stands before what it feeds (pre-norm), so that adding a vector to the MLP's
    output and adding it to the layer's output is the same thing. It is not in Gemma 2 and 3, whose
    sequential layers have a norm after attention and MLP as well, nor in OLMo 2, where only those
    are; `jaxedit.models.norms` has what stands between.
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
        attn_BTD, new_kv = self.attn(normed_BTD, attn_context, cached_kv, layer)
        attn_BTD = to_residual(self.config, self.attn, attn_BTD)
        if not self.config.parallel:
            h_BTD = h_BTD + attn_BTD
        if not self.config.shared_norm:
            normed_BTD = normalise(self.config, self.mlp, h_BTD)
        key_BTF = self.mlp.key(normed_BTD, overlay, layer, offset)
        value_BTD = self.mlp.value(key_BTF, overlay, layer, offset)
        if self.config.parallel:
            h_BTD = h_BTD + attn_BTD
        value_BTD = to_residual(self.config, self.mlp, value_BTD)
        return h_BTD + value_BTD, MLPInputs(normed_BTD, key_BTF), new_kv


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
