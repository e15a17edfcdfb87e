"""Running moments of the gradient's factors, by which MEND normalises them.

Of each group of weights: the mean and the sum of squared deviations of every entry of x and d, over
the tokens seen in training. A batch is merged at once (Chan's formula); that is Welford's update
token by token, as released, but for rounding. The standard deviation divides by k - 1, and 1e-7 is
added to it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxedit.mend.network import Group, Layout

STD_OFFSET = 1e-7


class Moments(NamedTuple):
    """The moments of one group of weights.

    Attributes:
      count: tokens seen, over all weights of the group.
      x_mean_Y: the mean of x.
      x_deviation_Y: its squared deviations from the mean, summed.
      delta_mean_Y: the mean of d.
      delta_deviation_Y: its squared deviations, summed.
    """

    count: jax.Array
    x_mean_Y: jax.Array
    x_deviation_Y: jax.Array
    delta_mean_Y: jax.Array
    delta_deviation_Y: jax.Array


def init_moments(layout: Layout) -> dict[str, Moments]:
    """Make the moments of no token; group -> moments."""
    return {group.name: _zero(group) for group in layout.groups}


def _zero(group: Group) -> Moments:
    x_Y, delta_Y = jnp.zeros(group.x_size), jnp.zeros(group.delta_size)
    return Moments(jnp.float32(0), x_Y, x_Y, delta_Y, delta_Y)


def add_tokens(
    moments: Moments, x_EBTY: jax.Array, delta_EBTY: jax.Array, is_token_EBT: jax.Array
) -> Moments:
    """Add the tokens of a batch to a group's moments.

    Args:
      moments: so far.
      x_EBTY: what the group's weights read.
      delta_EBTY: the gradients with respect to what they put out.
      is_token_EBT: the tokens that count.
    """
    count, mean, deviation = moments.count, moments.x_mean_Y, moments.x_deviation_Y
    total, x_mean_Y, x_deviation_Y = _merge(count, mean, deviation, x_EBTY, is_token_EBT)
    mean, deviation = moments.delta_mean_Y, moments.delta_deviation_Y
    _, delta_mean_Y, delta_deviation_Y = _merge(count, mean, deviation, delta_EBTY, is_token_EBT)
    return Moments(total, x_mean_Y, x_deviation_Y, delta_mean_Y, delta_deviation_Y)


def _merge(
    count: jax.Array, mean_Y: jax.Array, deviation_Y: jax.Array, new_EBTY, is_token_EBT
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Merge a batch into a count, a mean and a sum of squared deviations."""
    weight_EBT1 = is_token_EBT[..., None].astype(jnp.float32)
    n_new, axes = jnp.sum(weight_EBT1), (0, 1, 2)
    new_mean_Y = jnp.sum(new_EBTY * weight_EBT1, axes) / jnp.maximum(n_new, 1)
    new_deviation_Y = jnp.sum(jnp.square(new_EBTY - new_mean_Y) * weight_EBT1, axes)

    # The two means as one; they lie apart from it, which adds to the deviations.
    total = count + n_new
    share = n_new / jnp.maximum(total, 1)
    apart_Y = new_mean_Y - mean_Y
    between_Y = jnp.square(apart_Y) * count * share
    return total, mean_Y + apart_Y * share, deviation_Y + new_deviation_Y + between_Y


def normalise_factors(
    moments: Moments, x_EBTY: jax.Array, delta_EBTY: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Take the mean from each factor and divide by the standard deviation plus 1e-7."""
    n_less_one = jnp.maximum(moments.count - 1, 1)

    def normalise(new_EBTY, mean_Y, deviation_Y):
        return (new_EBTY - mean_Y) / (jnp.sqrt(deviation_Y / n_less_one) + STD_OFFSET)

    return (
        normalise(x_EBTY, moments.x_mean_Y, moments.x_deviation_Y),
        normalise(delta_EBTY, moments.delta_mean_Y, moments.delta_deviation_Y),
    )
