"""Checkpoints of a training of MEND, by Orbax: what it takes to go on with the same bits."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxedit.files import to_json
from jaxedit.mend.progress import Progress, Validation
from jaxedit.mend.training_step import BatchSums
from jaxedit.messages import first_line

KEPT = 2  # one is whole while another is written
STATE, ABOUT = "state", "about"  # of a checkpoint: arrays, and a JSON object


class Checkpoints:
    """The checkpoints in a training's folder; to be used in a `with` statement.

    Args:
      folder: of the training.
      made_from: a description of the training, by which those of another one are told.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]):
        import orbax.checkpoint as ocp  # slow to import

        self.folder = folder / "checkpoints"
        self.made_from = to_json(made_from)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.folder.resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.manager.close()

    def save(self, progress: Progress) -> None:
        """Save a training; one that is saved already is left as it is."""
        import orbax.checkpoint as ocp

        about = {
            "made_from": self.made_from,
            "validations": [each._asdict() for each in progress.validations],
        }
        if progress.iteration in self.manager.all_steps():
            return
        self.manager.save(
            progress.iteration,
            args=ocp.args.Composite(
                **{STATE: ocp.args.StandardSave(_state(progress)), ABOUT: ocp.args.JsonSave(about)}
            ),
        )

    def restore(self, begun: Progress) -> Progress:
        """Return the training of the latest checkpoint, or the one that begins where there is none.

        Raises:
          ValueError: where the checkpoint is another training's, or not whole.
        """
        import orbax.checkpoint as ocp

        iteration = self.manager.latest_step()
        if iteration is None:
            return begun
        path = self.folder / str(iteration)
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _state(begun))
        try:
            about = self.manager.restore(
                iteration, args=ocp.args.Composite(**{ABOUT: ocp.args.JsonRestore()})
            )[ABOUT]
            self._check(path, about["made_from"])
            state = self.manager.restore(
                iteration, args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(wanted)})
            )[STATE]
            validations = tuple(Validation(**each) for each in about["validations"])
        except (KeyError, TypeError, OSError, ValueError) as error:
            if isinstance(error, OtherTrainingError):
                raise
            raise ValueError(
                f"{path} is not a whole checkpoint of a training of MEND ({first_line(error)}); "
                "remove it to go on from the one before"
            ) from error
        hypernetwork = dataclasses.replace(
            begun.hypernetwork, parameters=state["parameters"], moments=state["moments"]
        )
        return Progress(
            iteration, hypernetwork, state["optimiser"], validations, jax.device_get(state["since"])
        )

    def _check(self, path: Path, theirs: Mapping[str, Any]) -> None:
        """Raise an error where a checkpoint is of another training."""
        differing = [
            f"{key}: {theirs.get(key)!r} there, {ours!r} now"
            for key, ours in self.made_from.items()
            if theirs.get(key) != ours
        ]
        if differing:
            raise OtherTrainingError(
                f"{path} is of another training. {'; '.join(differing)}. Give another --workdir"
            )


class OtherTrainingError(ValueError):
    """A checkpoint is of another training."""


def _state(progress: Progress) -> dict[str, Any]:
    """Return the arrays of a training."""
    return {
        "parameters": progress.hypernetwork.parameters,
        "moments": progress.hypernetwork.moments,
        "optimiser": progress.optimiser_state,
        "since": BatchSums(*(np.asarray(value, np.float32) for value in progress.since)),
    }
