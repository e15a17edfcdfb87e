"""LocFT-BF (Yang et al. 2025, arXiv 2509.22072): localised fine-tuning, breadth first.

    min over one place W of 1/N sum_i mean over tokens of -log p(y_i + end of text | x_i)

Adam in epochs over all requests of an edit, in minibatches that are drawn anew in each epoch: no
request is fitted to its end before the next is looked at, as `ft` does where requests come one by
one. The place is searched for each model: a layer and a weight of its MLP (`weights`), or a block's
whole MLP. A minibatch whose loss is below 0.01 is skipped, and an epoch whose mean is ends the
edit, both as released. A sequence is one such run a batch of requests. The edit holds whole
matrices.

One of the published places is not an MLP's: for Mistral-7B-v0.1 the block 23, attention and norms
too.
"""

import dataclasses
import functools

import jax
import optax

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import EDITED_WEIGHT, Edit, make_edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving.fine_tuning import (
    Batches,
    Training,
    check_and_describe,
    generator_of,
    keep_sharded,
    run_epoch,
    shuffled_epochs,
    to_deltas,
    train,
    zero_changes,
)
from jaxedit.solving.hyper import BreadthFirstHyper


@dataclasses.dataclass(frozen=True)
class Hyper(BreadthFirstHyper):
    """LocFT-BF's hyper-parameters; the defaults are those released.

    Attributes:
      weights: those of a layer that are changed, of `jaxedit.edits.edit.EDITABLE_WEIGHTS`; all that
        the model has are a block's whole MLP.
    """

    weights: tuple[str, ...] = (EDITED_WEIGHT,)


def make(hyper: Hyper) -> Editor:
    """Make the LocFT-BF editor of these hyper-parameters."""
    return Editor(
        name="locft-bf",
        hyper=hyper,
        slots=lambda model: hyper.slots,
        init=lambda model, stats: hyper.check(model),
        edit=functools.partial(edit, hyper),
        restore=lambda state, made: state,
        dense=True,
    )


def edit(
    hyper: Hyper, model: Model, requests: list[Request], state: None
) -> tuple[Edit, None, dict[str, float]]:
    """Fine-tune on a batch of requests; the edit holds the whole change of each weight.

    Raises:
      ValueError: where there is no request, a request cannot be tokenised, or the loss is no longer
        finite.
    """
    if not requests:
        raise ValueError("an edit needs at least one request")
    layers = tuple(hyper.layers)
    zero = zero_changes(model, hyper.weights, len(layers))
    epochs = shuffled_epochs(hyper, model, requests, generator_of(hyper.seed, requests))
    end = train(
        model,
        hyper.slots,
        Training(zero, optax.adam(hyper.lr).init(zero)),
        epochs,
        functools.partial(_run_epoch, layers=layers, lr=hyper.lr),
    )
    deltas = to_deltas(end.trained, layers)
    info = check_and_describe(end, deltas)
    return make_edit(model, deltas), None, info


@functools.partial(jax.jit, static_argnames=("layers", "lr"), donate_argnames="training")
def _run_epoch(
    model: Model, training: Training, batches: Batches, layers: tuple[int, ...], lr: float
) -> tuple[Training, jax.Array]:
    """Go once through the minibatches; return the training after it, and its mean loss."""
    return run_epoch(
        model,
        training,
        batches,
        layers,
        optax.adam(lr),
        lambda change: change,
        functools.partial(keep_sharded, model),
    )
