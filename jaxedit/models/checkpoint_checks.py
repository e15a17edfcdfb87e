"""A checkpoint's tensors against its configuration, before anything is allocated or read."""

import numpy as np

from jaxedit.models.checkpoint import Checkpoint, expand_name
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.weight_layout import tensor_shape

ROWS = 4096  # of the head and the embedding that are compared at a time


def check_tensors(source: Checkpoint) -> None:
    """Check that a checkpoint's tensors are those of its configuration, with their shapes.

    Raises:
      ValueError: on more layers than tensors; on a tensor that is unmapped, missing, or of another
        shape than the configuration says; on a head that differs from the embedding it is tied to.
    """
    # Lists are made of so many layers: first whether there can be so many.
    if len(source.names) < source.config.L:
        raise ValueError(
            f"{source.place} holds {len(source.names)} tensors, which are not enough for the "
            f"configuration's {source.config.L} layers. Is the download complete?"
        )
    _check_names(source)
    for pattern, entry in source.weights.items():
        for name in expand_name(pattern, source.config.L):
            if entry is not None and name in source.names:
                _check_shape(source, name, entry)
    _check_tied_head(source)


def _check_tied_head(source: Checkpoint) -> None:
    """Check that a head's tensor is the embedding where the configuration says so.

    transformers 5 computes with the head where they differ, transformers 4 with the embedding.
    """
    of = {entry[0]: name for name, entry in source.weights.items() if entry is not None}
    head, embedding = of.get("head/w"), of["embed/tokens"]
    if not source.config.tied or head not in source.names:
        return
    for first in range(0, source.config.V, ROWS):
        rows = (slice(first, min(first + ROWS, source.config.V)), slice(None))
        if not np.array_equal(source.read(head, rows), source.read(embedding, rows)):
            raise ValueError(
                f"{source.place} holds {head!r}, which differs from {embedding!r}, and by its "
                "configuration the two are one (tie_word_embeddings). Set that to false where the "
                "model has a head of its own, or take the tensor out"
            )


def _check_names(source: Checkpoint) -> None:
    """Check that the tensors there are exactly those that the configuration's parameters need."""
    shapes = parameter_shapes(source.config)
    known = {
        name: entry
        for pattern, entry in source.weights.items()
        for name in expand_name(pattern, source.config.L)
    }

    # Tensors that the family's table does not have.
    unmapped = sorted(source.names - set(known))
    if unmapped:
        raise ValueError(
            f"{source.place} holds tensors that the {source.config.family} family does not know: "
            f"{unmapped[:5]} (of {len(unmapped)}). Another architecture, "
            f"or more layers than the configuration's {source.config.L}?"
        )

    # Tensors of parameters that this configuration lacks, but for the copy of a tied head.
    for name in sorted(source.names):
        entry = known[name]
        parameters = entry[0].split() if entry else []
        surplus = [parameter for parameter in parameters if parameter not in shapes]
        if surplus and not (source.config.tied and surplus == ["head/w"]):
            raise ValueError(
                f"{source.place} holds {name!r}, "
                f"but by its configuration the model has no {surplus[0]}"
            )

    # Parameters whose tensors are not there.
    needed = [
        name
        for name, entry in known.items()
        if entry is not None and set(entry[0].split()) & set(shapes)
    ]
    missing = [name for name in needed if name not in source.names]
    if missing:
        raise ValueError(
            f"{source.place} lacks {len(missing)} tensors, the first: {missing[:5]}. "
            "Is the download complete?"
        )


def _check_shape(source: Checkpoint, name: str, entry: tuple[str, str]) -> None:
    expected, found = tensor_shape(source.config, entry), source.shape(name)
    if found != expected:
        layout = entry[1].split(" -> ")[0]
        sizes = source.config.sizes()
        known = {letter: size for letter, size in sizes.items() if letter in entry[1]}
        raise ValueError(
            f"tensor {name!r} of {source.place} has shape {found}; "
            f"its layout {layout!r} with {known} needs {expected}"
        )
