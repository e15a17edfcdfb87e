"""What weights of MLPs read, and the gradients with respect to what they put out, without hooks.

The gradient of a loss with respect to a weight is sum_t x_t g_t^T, x_t what it reads at position t
and g_t the gradient with respect to its output there. MEND (2110.11309, section 3.1) and UltraEdit
(2505.14679) edit with these factors. A zero added to an output (`MLP`'s `offset`) has the output's
gradient, so one backward pass gives all of them.
"""

import functools

import jax
import jax.numpy as jnp

from jaxedit.models.attention import AttentionContext
from jaxedit.models.layers import run_layer, run_layers
from jaxedit.models.model import Model
from jaxedit.models.target_loss import TargetRows, loss_of_residual, run_below

Places = tuple[tuple[str, int], ...]  # (weight, layer)
Factors = dict[tuple[str, int], tuple[jax.Array, jax.Array]]  # place -> x [B, T, in], g [B, T, out]


@functools.partial(jax.jit, static_argnames="places")
def inputs_and_output_gradients(
    model: Model, places: Places, rows: TargetRows
) -> tuple[jax.Array, Factors]:
    """Compute inputs of weights and the gradients of the loss with respect to their outputs.

    Args:
      model: with its edits.
      places: (weight, layer), each one of `jaxedit.edits.edit.EDITABLE_WEIGHTS`.
      rows: whose loss it is. Rows do not see each other: a row's gradients are those of its own
        part of the sum.

    Returns:
      The loss, and for each place float32 x [B, T, in] and g [B, T, out] at every position. g is 0
      behind the last position that the loss reads in a row.
    """
    lowest = min(layer for _, layer in places)
    h_BTD, attn_context = run_below(model, rows.token_BT, lowest)
    return factors_above(model, places, h_BTD, attn_context, rows)


def factors_above(
    model: Model, places: Places, h_BTD, attn_context: AttentionContext, rows: TargetRows
) -> tuple[jax.Array, Factors]:
    """Compute the same from the residual stream before the lowest of the places [B, T, D].

    Args:
      model: with its edits.
      places: as in `inputs_and_output_gradients`.
      h_BTD: of the rows.
      attn_context: the rows' positions and mask.
      rows: whose loss it is.
    """
    layers = sorted({layer for _, layer in places})
    end = model.config.L
    size_of = {
        "mlp/w_down": model.config.D,
        "mlp/w_up": model.config.F,
        "mlp/w_gate": model.config.F,
    }

    def loss_of(offset_of):
        out_BTD, inputs_of = h_BTD, {}
        for layer, next_layer in zip(layers, [*layers[1:], end], strict=True):
            offset = {weight: offset_of[weight, at] for weight, at in places if at == layer}
            out_BTD, inputs_of[layer] = run_layer(model, out_BTD, attn_context, layer, offset)
            out_BTD = run_layers(model, out_BTD, attn_context, layer + 1, next_layer)
        return loss_of_residual(model, out_BTD, rows), inputs_of

    zero_of = {place: jnp.zeros((*h_BTD.shape[:2], size_of[place[0]])) for place in places}
    (loss, inputs_of), gradient_of = jax.value_and_grad(loss_of, has_aux=True)(zero_of)
    factors = {}
    for weight, layer in places:
        inputs = inputs_of[layer]
        x = inputs.key_BTF if weight == "mlp/w_down" else inputs.x_BTD
        factors[weight, layer] = x.astype(jnp.float32), gradient_of[weight, layer]
    return loss, factors
