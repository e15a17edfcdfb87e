"""MEND's hypernetwork in Flax: the gradient's factors in, those of the update out (2110.11309).

The gradient of a loss with respect to a weight is sum_t x_t d_t^T: x_t is what the weight reads at
token t, d_t the gradient with respect to what it puts out. A network g turns the normalised factors
of each token into those of the update, in blocks (eq. 3)

    z <- z + max(0, scale_e * (U V z + b) + shift_e)

U, b and shift begin at 0 and scale at 1, so g begins as the identity. Weights of one shape share g;
scale_e and shift_e are each weight's own (`shared`). V is drawn from a normal distribution.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxedit.models.ops import PRECISION

Place = tuple[str, int]  # (weight, layer)


class Switches(NamedTuple):
    """What a network is like, under the published names.

    Attributes:
      n_hidden: blocks, less one.
      rank: of U V, at most as wide as what the block reads.
      norm: whether the factors are normalised.
      combine: one network reads x and d side by side; else each has one of its own.
      shared: weights of one shape share a network.
      one_sided: only the narrower of x and d has a network; x where they are equally wide.
      x_only: only x has a network.
      delta_only: only d has one.
    """

    n_hidden: int = 1
    rank: int = 1920
    norm: bool = True
    combine: bool = True
    shared: bool = True
    one_sided: bool = False
    x_only: bool = False
    delta_only: bool = False


class Group(NamedTuple):
    """Weights that share a network.

    Attributes:
      name: of the network.
      x_size: the width of what the weights read.
      delta_size: the width of what they put out.
      places: in the order of their scales and shifts.
    """

    name: str
    x_size: int
    delta_size: int
    places: tuple[Place, ...]


class Layout(NamedTuple):
    """The networks of a hypernetwork; all of it is static.

    Attributes:
      switches: what they are like.
      places: the weights that are edited, in the order of their step sizes.
      groups: which of them share a network.
    """

    switches: Switches
    places: tuple[Place, ...]
    groups: tuple[Group, ...]


def make_layout(
    switches: Switches, places: tuple[Place, ...], sizes: dict[str, tuple[int, int]]
) -> Layout:
    """Find which weights share a network.

    Args:
      switches: what the networks are like.
      places: the weights that are edited.
      sizes: weight -> how much it reads and puts out.

    Raises:
      ValueError: on switches that exclude each other, or a rank or number of blocks below one.
    """
    one_side = [name for name in ("one_sided", "x_only", "delta_only") if getattr(switches, name)]
    if len(one_side) > 1 or (one_side and switches.combine):
        named = ", ".join(["combine"] * switches.combine + one_side)
        raise ValueError(f"{named} exclude each other: set all but one of them to false")
    if switches.rank < 1 or switches.n_hidden < 0:
        raise ValueError(
            f"rank={switches.rank}, n_hidden={switches.n_hidden}: expected a rank of at least 1, "
            "and 0 or more hidden layers"
        )
    members: dict[str, list[Place]] = {}
    for weight, layer in places:
        name = (
            "{}x{}".format(*sizes[weight])
            if switches.shared
            else f"{weight}.{layer}".replace("/", ".")
        )
        members.setdefault(name, []).append((weight, layer))
    groups = tuple(
        Group(name, *sizes[of_group[0][0]], tuple(of_group)) for name, of_group in members.items()
    )
    return Layout(switches, tuple(places), groups)


def sides_of(switches: Switches, group: Group) -> dict[str, int]:
    """Return which parts of the factors have a network, and how wide these are.

    Returns:
      "both" of x and d side by side, or "x", "delta" or both of these.
    """
    x_size, delta_size = group.x_size, group.delta_size
    if switches.combine:
        return {"both": x_size + delta_size}
    has_delta = switches.delta_only or (switches.one_sided and x_size > delta_size)
    has_x = switches.x_only or (switches.one_sided and not has_delta)
    is_one = switches.one_sided or switches.x_only or switches.delta_only
    sides = {"x": x_size} if has_x or not is_one else {}
    return sides | ({"delta": delta_size} if has_delta or not is_one else {})


def clamp_min_0(x: jax.Array) -> jax.Array:
    """Compute max(0, x), with the gradient 1 at 0, as torch's clamp has it.

    `jax.nn.relu` has 0 there: U, b, scale and shift of a network that begins as the identity would
    never get a gradient.
    """
    return jnp.where(x >= 0, x, 0)


class Block(nnx.Module):
    """A low-rank residual block."""

    def __init__(self, width: int, rank: int, n_weights: int | None, rngs: nnx.Rngs):
        rank = min(rank, width)
        self.v_YR = nnx.Param(jax.random.normal(rngs.params(), (width, rank)))
        self.u_RY = nnx.Param(jnp.zeros((rank, width)))
        self.bias_Y = nnx.Param(jnp.zeros(width))
        self.has_scale = n_weights is not None
        if n_weights is not None:
            self.scale_EY = nnx.Param(jnp.ones((n_weights, width)))
            self.shift_EY = nnx.Param(jnp.zeros((n_weights, width)))

    def __call__(self, z_EBTY: jax.Array) -> jax.Array:
        """Run the block on the factors of E weights."""
        low_EBTR = jnp.matmul(z_EBTY, jnp.asarray(self.v_YR), precision=PRECISION)
        out_EBTY = jnp.matmul(low_EBTR, jnp.asarray(self.u_RY), precision=PRECISION)
        out_EBTY += jnp.asarray(self.bias_Y)
        if self.has_scale:
            scale_EY, shift_EY = jnp.asarray(self.scale_EY), jnp.asarray(self.shift_EY)
            out_EBTY = out_EBTY * scale_EY[:, None, None] + shift_EY[:, None, None]
        return z_EBTY + clamp_min_0(out_EBTY)


class FactorNetwork(nnx.Module):
    """The network of weights of one shape, or of one weight."""

    def __init__(self, switches: Switches, group: Group, rngs: nnx.Rngs):
        n_weights = len(group.places) if switches.shared else None
        self.x_size = group.x_size
        self.sides = nnx.Dict(
            {
                side: nnx.Dict(
                    {
                        str(i): Block(width, switches.rank, n_weights, rngs)
                        for i in range(switches.n_hidden + 1)
                    }
                )
                for side, width in sides_of(switches, group).items()
            }
        )

    def __call__(self, x_EBTY: jax.Array, delta_EBTY: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Turn normalised factors of the gradient into those of the update."""
        if "both" in self.sides:
            both_EBTY = self._run("both", jnp.concatenate([x_EBTY, delta_EBTY], axis=-1))
            return both_EBTY[..., : self.x_size], both_EBTY[..., self.x_size :]
        return self._run("x", x_EBTY), self._run("delta", delta_EBTY)

    def _run(self, side: str, z_EBTY: jax.Array) -> jax.Array:
        """Run the blocks of a side; without any it stays as it is."""
        blocks = self.sides.get(side, {})
        for i in range(len(blocks)):
            z_EBTY = blocks[str(i)](z_EBTY)
        return z_EBTY


class Networks(nnx.Module):
    """The networks of all groups."""

    def __init__(self, layout: Layout, rngs: nnx.Rngs):
        self.groups = nnx.Dict(
            {group.name: FactorNetwork(layout.switches, group, rngs) for group in layout.groups}
        )


@functools.cache
def _definition(layout: Layout) -> nnx.GraphDef:
    """Return the graph definition, made without allocating parameters."""
    return nnx.split(nnx.eval_shape(lambda: Networks(layout, nnx.Rngs(0))))[0]


def init_parameters(layout: Layout, seed: int) -> dict[str, jax.Array]:
    """Make the parameters of networks that are the identity.

    Returns:
      Name, e.g. "576x1536:both:0:u_RY" -> array.
    """
    state = nnx.split(Networks(layout, nnx.Rngs(seed)))[1]
    flat = nnx.to_flat_state(state)
    return {_name_of(path): jnp.asarray(param[...]) for path, param in flat}


def parameter_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the parameters that networks have."""
    state = nnx.split(nnx.eval_shape(lambda: Networks(layout, nnx.Rngs(0))))[1]
    return {_name_of(path): param.shape for path, param in nnx.to_flat_state(state)}


def _name_of(path: tuple[Any, ...]) -> str:
    """Return a parameter's name: group, side, block and what it is of the block."""
    _, group, _, *rest = map(str, path)  # without the names of the modules' dictionaries
    return ":".join([group, *rest])


def run_networks(layout: Layout, parameters: dict[str, jax.Array]) -> dict[str, FactorNetwork]:
    """Put networks together out of their parameters; group -> network."""
    paths = {name: name.split(":") for name in parameters}
    state = nnx.from_flat_state(
        [
            (("groups", group, "sides", side, block, kind), nnx.Param(parameters[name]))
            for name, (group, side, block, kind) in paths.items()
        ]
    )
    return dict(nnx.merge(_definition(layout), state).groups)
