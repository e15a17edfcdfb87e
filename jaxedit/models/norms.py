"""The norms of a decoder: before a module, and between a module's output and the residual stream.

What attention or an MLP puts out, m, reaches the residual stream as `to_residual`(m): m itself in
most families; g m / rms(m) behind a post-norm (Gemma 2 and 3, OLMo 2); a multiple of m in Granite.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxedit.models.config import DecoderConfig


def normalise(config: DecoderConfig, module, h_BTD) -> jax.Array:
    """Apply the norm before a module over D; of a module without one (OLMo 2) nothing."""
    if not hasattr(module, "norm_scale"):
        return h_BTD
    if config.norm == "rms":
        return rms_norm(h_BTD, module.norm_scale, config.norm_offset, config.eps)
    return layer_norm(h_BTD, module.norm_scale, module.norm_bias, config.eps)


def to_residual(config: DecoderConfig, module, out_BTD) -> jax.Array:
    """Compute what a module's output adds to the residual stream.

    Args:
      config: of the decoder.
      module: attention or MLP.
      out_BTD: its output.
    """
    if config.post_norm:
        out_BTD = rms_norm(out_BTD, module.post_norm_scale, config.norm_offset, config.eps)
    return out_BTD if config.residual_scale == 1 else out_BTD * config.residual_scale


def rms_norm(x, scale, offset: float, eps: float) -> jax.Array:
    """Apply a root-mean-square norm over the last axis, times scale + offset."""
    scale = jnp.asarray(scale).astype(jnp.float32)
    if offset:
        scale += offset
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale


def layer_norm(x, scale, bias, eps: float) -> jax.Array:
    """Apply a layer norm over the last axis."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)
    return normed * jnp.asarray(scale).astype(jnp.float32) + jnp.asarray(bias).astype(jnp.float32)
