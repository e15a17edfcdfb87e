"""Requests as one batch of rows, for tests of what is computed of them."""

from jaxedit.edits.request import Request
from jaxedit.mesh import shard_batch
from jaxedit.models.model import Model
from jaxedit.models.target_loss import TargetRows
from jaxedit.rounding import round_up
from jaxedit.solving.target_rows import pad_targets, padded_shape, tokenise_target


def make_target_rows(
    model: Model, requests: list[Request], leading_space: str = "joined", end_of_text: bool = False
) -> TargetRows:
    """Tokenise requests into one batch on the model's devices; see `tokenise_target`.

    The loss is the mean over requests of the mean over their targets' tokens.

    Raises:
      ValueError: as `tokenise_target`.
    """
    targets = [
        tokenise_target(model, request, leading_space, end_of_text=end_of_text)
        for request in requests
    ]
    n_rows = round_up(len(targets), model.mesh.shape["data"])
    rows = pad_targets(targets, n_rows, padded_shape(targets, model.mesh))
    return TargetRows(*(shard_batch(model.mesh, "B_", array) for array in rows))
