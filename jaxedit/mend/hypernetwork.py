"""A hypernetwork as a value, and the updates that it makes of gradients.

The update of weight W, in x out, from the tokens t of an edit whose x_t and d_t are not 0:

    W <- W + alpha lr_scale sum_t x~_t d~_t^T,    (x~_t, d~_t) = g(normalised x_t, d_t)

alpha is the weight's learned step size. Nothing makes it negative at first: an untrained network
ascends the loss.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit.mend.moments import Moments, add_tokens, init_moments, normalise_factors
from jaxedit.mend.network import Layout, Place, init_parameters, run_networks
from jaxedit.mesh import device_put_global, parameter_sharding
from jaxedit.models.output_gradients import Factors

STEP_SIZES = "step_sizes"  # a parameter beside those of the networks


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters", "moments"],
    meta_fields=["layout"],
)
@dataclasses.dataclass(frozen=True)
class Hypernetwork:
    """What MEND learns.

    Attributes:
      parameters: those of the networks (`jaxedit.mend.network.init_parameters`), and `step_sizes`,
        alpha of each of the layout's places.
      moments: group -> moments.
      layout: which weights it edits, and how.
    """

    parameters: dict[str, jax.Array]
    moments: dict[str, Moments]
    layout: Layout


def init_hypernetwork(layout: Layout, edit_lr: float, seed: int) -> Hypernetwork:
    """Make an untrained hypernetwork: the identity, no moments, and each step size `edit_lr`."""
    step_sizes = jnp.full(len(layout.places), edit_lr, jnp.float32)
    parameters = init_parameters(layout, seed) | {STEP_SIZES: step_sizes}
    return Hypernetwork(parameters, init_moments(layout), layout)


def place_on_mesh(mesh: Mesh, tree: Any) -> Any:
    """Put a hypernetwork or Adam's state on a mesh: what is wide is split over `data`.

    Of an array whose last axis is as wide as the factors, that axis is split; others are whole on
    every device.
    """

    def place(array: Any) -> jax.Array:
        shape = np.shape(array)
        letters = "_" * (len(shape) - 1) + "Y" if shape else ""
        sharding = parameter_sharding(mesh, letters, shape)
        if isinstance(array, jax.Array) and array.sharding.device_set == sharding.device_set:
            return jax.device_put(array, sharding)
        return device_put_global(sharding, np.asarray(array))

    return jax.tree.map(place, tree)


def is_token(x, delta) -> jax.Array:
    """Return where neither of the factors [..., width] is 0 throughout."""
    return jnp.any(x != 0, axis=-1) & jnp.any(delta != 0, axis=-1)


def add_to_moments(hypernetwork: Hypernetwork, factors: Factors) -> Hypernetwork:
    """Return the hypernetwork that has seen these tokens too; for training.

    Args:
      hypernetwork: so far.
      factors: place -> x [B, T, in] and d [B, T, out].
    """
    moments = dict(hypernetwork.moments)
    for group in hypernetwork.layout.groups:
        x_EBTY, delta_EBTY = _stack(group.places, factors)
        is_token_EBT = is_token(x_EBTY, delta_EBTY)
        moments[group.name] = add_tokens(moments[group.name], x_EBTY, delta_EBTY, is_token_EBT)
    return dataclasses.replace(hypernetwork, moments=moments)


def transform_factors(hypernetwork: Hypernetwork, factors: Factors) -> Factors:
    """Turn factors of the gradient into those of the update, its step size in the second.

    Args:
      hypernetwork: trained, or in training.
      factors: place -> x [B, T, in] and d [B, T, out].

    Returns:
      Place -> u [B, T, in] and v [B, T, out]; both are 0 where x or d is.
    """
    layout = hypernetwork.layout
    step_sizes = hypernetwork.parameters[STEP_SIZES]
    of_networks = {k: v for k, v in hypernetwork.parameters.items() if k != STEP_SIZES}
    networks = run_networks(layout, of_networks)
    found: Factors = {}
    for group in layout.groups:
        x_EBTY, delta_EBTY = _stack(group.places, factors)
        is_token_EBT1 = is_token(x_EBTY, delta_EBTY)[..., None]
        if layout.switches.norm:
            x_EBTY, delta_EBTY = normalise_factors(
                hypernetwork.moments[group.name], x_EBTY, delta_EBTY
            )
        u_EBTY, v_EBTY = networks[group.name](x_EBTY, delta_EBTY)
        u_EBTY, v_EBTY = u_EBTY * is_token_EBT1, v_EBTY * is_token_EBT1
        for e, place in enumerate(group.places):
            found[place] = u_EBTY[e], v_EBTY[e] * step_sizes[layout.places.index(place)]
    return found


def _stack(places: tuple[Place, ...], factors: Factors) -> tuple[jax.Array, jax.Array]:
    """Stack the factors of the weights of a group, each [E, B, T, width], as constants.

    The gradient of training does not pass through them: it is of first order, as released.
    """
    x_EBTY = jnp.stack([factors[place][0] for place in places])
    delta_EBTY = jnp.stack([factors[place][1] for place in places])
    return jax.lax.stop_gradient((x_EBTY, delta_EBTY))
