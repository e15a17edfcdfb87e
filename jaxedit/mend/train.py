"""The training of MEND's hypernetwork: steps, validations, early stopping, checkpoints.

A training's folder holds

    checkpoints/N         Orbax checkpoints after N edits: parameters, moments, Adam's state, and as
                          JSON what the training is of and what its validations found
    network.safetensors   the hypernetwork with the lowest loss in a validation so far
    training.json         the validations

Which records a step takes is a function of the seed and its number alone, so a training that goes
on from a checkpoint gives the same bits as one that was never interrupted.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxedit.distributed import is_first_process
from jaxedit.files import write_atomic
from jaxedit.mend.checkpoints import Checkpoints
from jaxedit.mend.data import Data
from jaxedit.mend.hypernetwork import Hypernetwork, init_hypernetwork, place_on_mesh
from jaxedit.mend.network import Layout
from jaxedit.mend.network_file import write_network
from jaxedit.mend.progress import NO_EDITS, Progress, Validation
from jaxedit.mend.records import Batch, Batches, Record
from jaxedit.mend.training_config import Training
from jaxedit.mend.training_step import make_optimiser, train_step, validation_step
from jaxedit.models.model import Model

NETWORK_FILE = "network.safetensors"


def train(
    data: Data,
    layout: Layout,
    training: Training,
    folder: Path,
    on_step: Callable[[Progress], None],
) -> Progress:
    """Train a hypernetwork, or go on with it; return where it ended.

    Args:
      data: what it is trained with.
      layout: which weights it edits.
      training: the hyper-parameters.
      folder: of the training.
      on_step: called after every step and validation.

    Raises:
      ValueError: where the folder holds another training.
    """
    lowest, size = min(layer for _, layer in layout.places), training.accumulate_bs
    batches = Batches(data.model, data.training, lowest, size)
    validation = Batches(data.model, data.validation, lowest, size)
    with Checkpoints(folder, data.made_from) as checkpoints:
        progress = checkpoints.restore(_begin(data.model, layout, training))
        try:
            while not progress.is_over(training):
                if progress.is_due(training):
                    progress = _validate(data, validation, training, progress)
                    _write(folder, data, progress)
                    checkpoints.save(progress)
                    on_step(progress)
                    if progress.is_over(training):
                        break
                batch = batches.make(choose(data.training, training, progress.iteration))
                progress = _step(data.model, training, batch, progress)
                on_step(progress)
        except KeyboardInterrupt:
            checkpoints.save(progress)
            raise
    return progress


def _begin(model: Model, layout: Layout, training: Training) -> Progress:
    """Begin with networks that are the identity."""
    made = init_hypernetwork(layout, training.edit_lr, training.seed)
    hypernetwork = place_on_mesh(model.mesh, made)
    optimiser_state = make_optimiser(training.step).init(hypernetwork.parameters)
    return Progress(0, hypernetwork, place_on_mesh(model.mesh, optimiser_state))


def choose(records: Sequence[Record], training: Training, iteration: int) -> list[tuple[int, int]]:
    """Choose the records of a step and their locality texts.

    Records come in an order drawn anew for each pass over them.
    """
    chosen = []
    n_edits = min(training.accumulate_bs, training.max_iters - iteration)
    for number in range(iteration, iteration + n_edits):
        epoch, place = divmod(number, len(records))
        order = np.random.default_rng([training.seed, epoch]).permutation(len(records))
        i = int(order[place])
        drawn = np.random.default_rng([training.seed, epoch, place])
        chosen.append((i, int(drawn.integers(len(records[i].localities)))))
    return chosen


def _step(model: Model, training: Training, batch: Batch, progress: Progress) -> Progress:
    hypernetwork, optimiser_state, measured = train_step(
        model, progress.hypernetwork, progress.optimiser_state, batch, training.step
    )
    # Spelled as at the beginning, or the second step would be compiled anew.
    moved = place_on_mesh(model.mesh, (hypernetwork, optimiser_state))
    measured = jax.device_get(measured)
    since = jax.tree.map(np.add, progress.since, measured)
    iteration = progress.iteration + int(measured.n)
    return progress._replace(
        iteration=iteration,
        hypernetwork=moved[0],
        optimiser_state=moved[1],
        since=since,
    )


def _validate(data: Data, batches: Batches, training: Training, progress: Progress) -> Progress:
    """Edit with the first records of the validation, each with its first locality text."""
    n = min(training.val_steps, len(data.validation))
    chosen = [(i, 0) for i in range(n)]
    found = validate(data.model, batches, training, progress.hypernetwork, chosen)
    since = progress.since
    validation = Validation(
        iteration=progress.iteration,
        **found,
        training_loss=float(since.total_loss / since.n) if since.n else None,
        training_success=float(since.n_successes / since.n) if since.n else None,
    )
    return progress._replace(validations=(*progress.validations, validation), since=NO_EDITS)


def validate(
    model: Model,
    batches: Batches,
    training: Training,
    hypernetwork: Hypernetwork,
    chosen: Sequence[tuple[int, int]],
) -> dict[str, float]:
    """Measure single edits of records; return the means, by their names in `Validation`."""
    sums = [
        jax.device_get(validation_step(model, hypernetwork, batch, training.step))
        for batch in _in_batches(batches, training, chosen)
    ]
    total = jax.tree.map(lambda *values: float(np.sum(values)), *sums)
    return {
        "total_loss": total.total_loss / total.n,
        "edit_loss": total.edit_loss / total.n,
        "locality_loss": total.locality_loss / total.n,
        "success": total.n_successes / total.n,
        "drawdown": float(np.expm1((total.nll_after - total.nll_before) / total.n_tokens)),
    }


def _in_batches(
    batches: Batches, training: Training, chosen: Sequence[tuple[int, int]]
) -> Iterator[Batch]:
    for first in range(0, len(chosen), training.accumulate_bs):
        yield batches.make(chosen[first : first + training.accumulate_bs])


def _write(folder: Path, data: Data, progress: Progress) -> None:
    """Write the validations, and the network where it is the best so far."""
    last = progress.validations[-1]
    if progress.best is last:
        described = {"made_from": dict(data.made_from), "validation": last._asdict()}
        write_network(folder / NETWORK_FILE, progress.hypernetwork, data.model, described)
    if is_first_process():
        content = [each._asdict() for each in progress.validations]
        write_atomic(folder / "training.json", json.dumps(content, indent=1) + "\n")
