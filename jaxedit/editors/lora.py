"""LoRA (Hu et al. 2021, arXiv 2106.09685): fine-tuning of low-rank factors of chosen MLP weights.

    W <- W + alpha / r A B,     A [in, r], B [r, out], both trained by Adam, B = 0 at first

trained on the requests as LocFT-BF trains a whole weight (`jaxedit.solving.fine_tuning`): in epochs
of minibatches. As in the peft library A is drawn uniformly from +-1 / sqrt(in) (Kaiming's bounds
with a = sqrt(5)), and alpha is `lora_alpha`. Dropout, which is off in peft too, is left out.
Every edit draws its own A and is a low-rank change, so a sequence of edits is a sum of adapters.
"""

import dataclasses
import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import EDITED_WEIGHT, Array, Edit, LowRank, make_edit
from jaxedit.edits.request import Request
from jaxedit.mesh import device_put_global, replicate, to_host
from jaxedit.models.model import Model
from jaxedit.models.ops import PRECISION
from jaxedit.solving.fine_tuning import (
    Batches,
    Changes,
    Training,
    check_and_describe,
    generator_of,
    run_epoch,
    shuffled_epochs,
    train,
)
from jaxedit.solving.hyper import BreadthFirstHyper
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE


@dataclasses.dataclass(frozen=True)
class Hyper(BreadthFirstHyper):
    """LoRA's hyper-parameters under peft's names.

    Attributes:
      weights: those of a layer that are changed, of `jaxedit.edits.edit.EDITABLE_WEIGHTS`.
      lr: Adam's learning rate; B has a long way to go from 0.
      r: the rank.
      lora_alpha: alpha, over r the factor of A B.
    """

    weights: tuple[str, ...] = (EDITED_WEIGHT,)
    lr: Annotated[float, POSITIVE] = 5e-3
    r: Annotated[int, AT_LEAST_ONE] = 8
    lora_alpha: Annotated[float, POSITIVE] = 16.0


class Factors(NamedTuple):
    """Factors of the changes of a weight's layers, without alpha / r.

    Attributes:
      a_EFR: float32, in x rank; the letters are those of "mlp/w_down", as in `LowRank`.
      b_ERD: rank x out.
    """

    a_EFR: Array
    b_ERD: Array


def make(hyper: Hyper) -> Editor:
    """Make the LoRA editor of these hyper-parameters."""
    return Editor(
        name="lora",
        hyper=hyper,
        slots=lambda model: hyper.slots,
        init=lambda model, stats: hyper.check(model),
        edit=functools.partial(edit, hyper),
        restore=lambda state, made: state,
    )


def edit(
    hyper: Hyper, model: Model, requests: list[Request], state: None
) -> tuple[Edit, None, dict[str, float]]:
    """Train an adapter on a batch of requests.

    Raises:
      ValueError: where there is no request, a request cannot be tokenised, or the loss is no longer
        finite.
    """
    if not requests:
        raise ValueError("an edit needs at least one request")
    layers, scale = tuple(hyper.layers), hyper.lora_alpha / hyper.r
    rng = generator_of(hyper.seed, requests)
    factors = draw_factors(hyper, model, rng)
    end = train(
        model,
        hyper.slots,
        Training(factors, optax.adam(hyper.lr).init(factors)),
        shuffled_epochs(hyper, model, requests, rng),
        functools.partial(_run_epoch, layers=layers, lr=hyper.lr, scale=scale),
    )
    deltas = [
        LowRank(weight, layer, a_FR, np.float32(scale) * b_RD)
        for weight, (a_EFR, b_ERD) in end.trained.items()
        for layer, a_FR, b_RD in zip(layers, to_host(a_EFR), to_host(b_ERD), strict=True)
    ]
    info = check_and_describe(end, deltas)
    return make_edit(model, deltas), None, info


def draw_factors(hyper: Hyper, model: Model, rng: np.random.Generator) -> dict[str, Factors]:
    """Draw A of each weight and layer, and make B = 0; whole on every device."""
    whole = NamedSharding(model.mesh, PartitionSpec())
    factors = {}
    for weight in hyper.weights:
        E, (n_in, n_out) = len(hyper.layers), model.base[weight].shape[1:]
        a_EFR = rng.uniform(-1, 1, (E, n_in, hyper.r)).astype(np.float32) / np.sqrt(n_in)
        b_ERD = np.zeros((E, hyper.r, n_out), np.float32)
        put = functools.partial(device_put_global, whole)
        factors[weight] = Factors(put(a_EFR.astype(np.float32)), put(b_ERD))
    return factors


@functools.partial(jax.jit, static_argnames=("layers", "lr", "scale"), donate_argnames="training")
def _run_epoch(
    model: Model,
    training: Training,
    batches: Batches,
    layers: tuple[int, ...],
    lr: float,
    scale: float,
) -> tuple[Training, jax.Array]:
    """Go once through the minibatches; return the training after it, and its mean loss."""

    def write(factors: dict[str, Factors]) -> Changes:
        multiply = functools.partial(jnp.einsum, "EFR,ERD->EFD", precision=PRECISION)
        return {weight: scale * multiply(*pair) for weight, pair in factors.items()}

    whole = functools.partial(replicate, model.mesh)
    return run_epoch(model, training, batches, layers, optax.adam(lr), write, whole)
