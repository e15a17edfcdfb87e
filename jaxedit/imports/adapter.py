"""`jaxedit.import_edit` and `import_adapter`: what other programs changed, put into a model.

Changes of the weight that edits change (the MLP's second) become an `Edit`. All others are added to
a copy of the base weights, an *imported base*, whose fingerprint is its own.
"""

from pathlib import Path
from typing import NamedTuple

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit, make_edit
from jaxedit.files import local_path
from jaxedit.imports.array_files import SUFFIXES, read_changes_file
from jaxedit.imports.changes import ORIENTATIONS, WeightChange, in_hf_order
from jaxedit.imports.checkpoints import read_difference
from jaxedit.imports.peft import read_peft
from jaxedit.imports.places import (
    Place,
    add_to_base,
    canonical_names,
    find_places,
    to_delta,
    weight_norm,
)
from jaxedit.models.hf_directory import ADAPTER
from jaxedit.models.model import Model

DELTA = "delta.safetensors"  # of `jaxedit export --format=delta`: each as its HF weight lies
EXPECTED = (
    "a PEFT LoRA adapter's folder, an HF checkpoint's folder, or a file of changes by HF weight "
    f"names ({', '.join(SUFFIXES)})"
)


class ChangedWeight(NamedTuple):
    """What an adapter does to one weight.

    Attributes:
      name: HF's.
      pattern: the name with {l} for the layer.
      layer: None: it belongs to none.
      rank: of the factors; None: written out.
      norm: the Frobenius norm of the change.
      relative_norm: that over the weight's own.
      is_edit: whether the change is an edit; else it is in the imported base.
    """

    name: str
    pattern: str
    layer: int | None
    rank: int | None
    norm: float
    relative_norm: float
    is_edit: bool


class ImportedAdapter(NamedTuple):
    """A model with all that an adapter changes.

    Attributes:
      model: with everything.
      base: its base: the model that was given, or an imported base.
      edit: what became an edit of that base; None: nothing did.
      weights: what is changed, and by how much.
    """

    model: Model
    base: Model
    edit: Edit | None
    weights: tuple[ChangedWeight, ...]

    @property
    def added_to_base(self) -> tuple[str, ...]:
        """The HF names of the weights whose changes are in the base."""
        return tuple(weight.name for weight in self.weights if not weight.is_edit)


def import_adapter(
    model: Model, path: str | Path, orientation: str | None = None
) -> ImportedAdapter:
    """Put into a model what an adapter, a file of changes or another checkpoint changes.

    Args:
      model: the base; unchanged.
      path: a PEFT LoRA adapter's folder; a .safetensors or .npz file of {HF weight name: change}; a
        torch file of such changes or of pairs (left, right), as the ROME and MEMIT repositories'
        `deltas`; or the folder of an HF checkpoint whose difference to the model's is taken.
      orientation: how the square matrices of a file lie, which their shape cannot tell: "hf" (as
        the weight lies in an HF checkpoint) or "transposed".

    Raises:
      ValueError: where the file is not there, not whole, not one of these or another model's.
    """
    path, places = local_path(path), find_places(model)
    changes = _read(model, path, places, orientation)
    edited = {name: change for name, change in changes.items() if places[name].is_edited}
    others = {name: change for name, change in changes.items() if name not in edited}
    weights = tuple(_describe(model, name, places[name], changes[name]) for name in changes)

    base = model
    if others:
        base = add_to_base(model, others, places, f"{model.metadata.source} with {path}")
    if not edited:
        return ImportedAdapter(base, base, None, weights)
    deltas = [to_delta(places[name], change, model.config) for name, change in edited.items()]
    edit = make_edit(base, deltas)
    return ImportedAdapter(apply(base, edit), base, edit, weights)


def import_edit(model: Model, path: str | Path, orientation: str | None = None) -> Edit:
    """Read an adapter, a file of changes or the difference to another checkpoint as an edit.

    Args:
      model: that is to be edited.
      path: see `import_adapter`.
      orientation: see `import_adapter`.

    Raises:
      ValueError: as `import_adapter`, and where a weight is changed that edits do not change.
    """
    path, places = local_path(path), find_places(model)
    changes = _read(model, path, places, orientation)
    others = [name for name in changes if not places[name].is_edited]
    if others:
        raise ValueError(
            f"{path} changes {others[0]!r} (and {len(others) - 1} more), which is no weight that "
            "edits change: jaxedit.import_adapter adds such changes to a copy of the base"
        )
    return make_edit(
        model, [to_delta(places[name], each, model.config) for name, each in changes.items()]
    )


def _read(
    model: Model, path: Path, places: dict[str, Place], orientation: str | None
) -> dict[str, WeightChange]:
    """Read the changes under canonical names, each as it lies in an HF checkpoint."""
    if orientation not in (None, *ORIENTATIONS):
        raise ValueError(f"orientation {orientation!r}: expected {' or '.join(ORIENTATIONS)}")
    source = model.metadata.source
    if path.is_dir():
        changes = _read_folder(path, source, places)
    elif not path.exists():
        raise ValueError(f"{path} does not exist; expected {EXPECTED}")
    elif path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is of an unknown kind; expected {EXPECTED}")
    else:
        changes = read_changes_file(path)
    if not changes:
        raise ValueError(f"{path} is empty: it changes no weight")
    named = canonical_names(changes, places, model)
    return {
        name: in_hf_order(name, change, places[name].shape, places[name].is_in_out, orientation)
        for name, change in named.items()
    }


def _read_folder(path: Path, source: str, places: dict[str, Place]) -> dict[str, WeightChange]:
    if (path / ADAPTER).is_file():
        return read_peft(path, source)
    if (path / "config.json").is_file():
        return read_difference(path, source, list(places))
    if (path / DELTA).is_file():
        found = read_changes_file(path / DELTA)
        return {name: change._replace(order="hf") for name, change in found.items()}
    raise ValueError(f"{path} holds neither {ADAPTER} nor config.json; expected {EXPECTED}")


def _describe(model: Model, name: str, place: Place, change: WeightChange) -> ChangedWeight:
    norm, whole = change.norm, weight_norm(model, place)
    return ChangedWeight(
        name=name,
        pattern=place.pattern,
        layer=place.layer,
        rank=change.rank,
        norm=norm,
        relative_norm=norm / whole if whole else float("inf"),
        is_edit=place.is_edited,
    )
