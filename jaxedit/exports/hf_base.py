"""The HF model that an export is for: an adapter's base, as `from_pretrained` takes it."""

from pathlib import Path
from typing import NamedTuple

from jaxedit.files import local_path
from jaxedit.models.hf_directory import open_directory
from jaxedit.models.hub import split_revision
from jaxedit.models.load import resolve_path
from jaxedit.models.orbax import is_converted
from jaxedit.remote import is_remote
from jaxedit.study.edited import EditedModel


class HFBase(NamedTuple):
    """The HF model that an edited model is made of.

    Attributes:
      name: a directory or a hub id; None: not known, as of a .gguf file without --base.
      revision: the commit on the hub whose weights were edited; None: not known, or not of the hub.
      is_on_hub: whether the name is a hub id.
      gguf: the .gguf file whose dequantised weights were edited; None: the weights were HF's own.
    """

    name: str | None
    revision: str | None
    is_on_hub: bool
    gguf: Path | None


def find_base(edited: EditedModel, base: str | None) -> HFBase:
    """Find the HF model that an edited model is made of.

    Args:
      edited: the model.
      base: its name where it is given; None: what the edited model was loaded from.

    Raises:
      ValueError: where the base that is given is not there, or of other sizes.
    """
    path = resolve_path(edited.source)
    gguf = path if path.suffix == ".gguf" else None
    if base is not None:
        if local_path(base).is_dir():
            _check_sizes(edited, base)
            return HFBase(str(local_path(base).resolve()), None, False, gguf)
        hub_id, revision = split_revision(base)
        if hub_id.count("/") != 1 or base.startswith((".", "~", "/")):
            raise ValueError(f"--base={base} is neither a directory here nor a hub id (owner/name)")
        return HFBase(hub_id, revision or None, True, gguf)
    if gguf is not None or is_converted(path) or is_remote(edited.source):
        return HFBase(None, None, False, gguf)
    if local_path(edited.source).is_dir():
        return HFBase(str(path.resolve()), None, False, None)
    hub_id, revision = split_revision(edited.source)
    commit = path.name if path.parent.name == "snapshots" else None
    return HFBase(hub_id, commit or revision or None, True, None)


def require_base(edited: EditedModel, base: str | None, format: str) -> HFBase:
    """Find the HF model as `find_base` does, for a format that is of no use without one.

    Args:
      edited: the model.
      base: as in `find_base`.
      format: what is to be written, for the message.

    Raises:
      ValueError: where it is not known; the message says what else can be done.
    """
    found = find_base(edited, base)
    if found.name is not None:
        return found
    if found.gguf is not None:
        raise ValueError(
            f"{edited.source} was read from a .gguf file, and --format={format} is for an HF "
            "model: give the one the file was made of by --base=DIR or --base=OWNER/NAME (the "
            "edits are approximate there), or export with --format=gguf-lora for llama.cpp, or "
            "with --format=hf the dequantised model as a whole"
        )
    raise ValueError(
        f"{edited.source} is no HF directory here and no hub id, and --format={format} is for an "
        "HF model: give the one it was made of by --base=DIR or --base=OWNER/NAME"
    )


def _check_sizes(edited: EditedModel, base: str) -> None:
    """Check that a directory's model has the layers and widths of the edited one."""
    given = open_directory(local_path(base)).config
    here = edited.model.config
    if (given.L, given.F, given.D) != (here.L, here.F, here.D):
        raise ValueError(
            f"--base={base} has {given.L} layers of {given.F} x {given.D}, {edited.source} has "
            f"{here.L} of {here.F} x {here.D}: it is another model"
        )
