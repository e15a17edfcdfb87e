"""Edited models written for other programs: what all formats have in common.

A format is a file of this folder with a function of its name,

    write_NAME(edited: EditedModel, folder: Path, options: ExportOptions) -> list[WrittenWeight]

and "-" for "_". It runs in every process of a run, which may have to gather arrays together; only
the first one writes, and only there is the folder, new and empty. What is written lies under its
final name whole or not at all.
"""

import contextlib
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from jaxedit.did_you_mean import did_you_mean
from jaxedit.distributed import is_first_process
from jaxedit.exports.card import model_card
from jaxedit.exports.hf import default_dtype, measure_written
from jaxedit.exports.hf_base import HFBase, find_base, require_base
from jaxedit.exports.measured import ExportNumbers, measure_edited
from jaxedit.exports.ready_commands import ReadyCommand, ready_commands
from jaxedit.exports.record import RECORD, export_record, write_export_record
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.files import expand_home, local_path, partial_path, write_atomic
from jaxedit.messages import first_line
from jaxedit.study.edited import EditedModel

DTYPES = ("float32", "bfloat16", "float16")
FOR_A_BASE = ("peft", "delta")  # of no use to somebody who has not the base


class Exported(NamedTuple):
    """What was written.

    Attributes:
      folder: where it lies.
      weights: the changes, one by one.
      measured: the edited model, before it was written.
      after: of a whole checkpoint, what was written, after rounding; None: another format.
      dtype: of what is written.
      commands: that make use of it.
      url: of its repository on the hub; None: not uploaded.
    """

    folder: Path
    weights: list[WrittenWeight]
    measured: ExportNumbers
    after: ExportNumbers | None
    dtype: str
    commands: list[ReadyCommand]
    url: str | None


def format_names() -> list[str]:
    """List the formats: the files of this folder that define a function of their name."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return [
        path.stem.replace("_", "-")
        for path in files
        if f"def write_{path.stem}(" in path.read_text(encoding="utf-8")
    ]


def export(
    edited: EditedModel,
    out: str | os.PathLike[str],
    format: str = "peft",
    *,
    dtype: str | None = None,
    rank: int = 512,
    base: str | os.PathLike[str] | None = None,
    push: str | None = None,
) -> Exported:
    """Write a model's edits, or the edited model, for other programs, with a model card.

    Args:
      edited: of `open_run` or `open_edit`.
      out: the folder to write; new, or empty.
      format: "peft", "hf", "gguf-lora" or "delta".
      dtype: of what is written: "float32", "bfloat16" or "float16"; None: of a whole checkpoint
        the base's own, else float32.
      rank: the highest of a low-rank factorisation.
      base: the HF base's directory or hub id, where the model was not loaded from one, or others
        find it under another name.
      push: OWNER/NAME on the hub to upload the folder to.

    Raises:
      ValueError: on a format, dtype, rank, base or folder that cannot be, a model without edits, or
        an upload without a token; nothing is written then.
      OSError: where the folder cannot be written; nothing of it is left then.
    """
    out, base = local_path(out), None if base is None else expand_home(base)
    check_options(out, format, dtype=dtype, rank=rank, push=push)
    about = _check_model(edited, format, base, push)
    if dtype is None:
        dtype = default_dtype(edited) if format == "hf" else "float32"
    options = ExportOptions(dtype, rank, base)

    # What the edited model gives here, then the format's files, then what they say of themselves.
    measured = measure_edited(edited)
    with _whole_folder(out) as partial:
        weights = _writer(format)(edited, partial, options)
        after = measure_written(partial, edited) if format == "hf" else None
        files = sorted(path.name for path in partial.glob("*"))

        def commands_for(place: str, base: HFBase) -> list[ReadyCommand]:
            return ready_commands(edited, format, place, base, weights, files)

        if is_first_process():
            # Without the folders of this machine, but for a base that is nowhere else.
            file, name = about.gguf and Path(about.gguf.name), about.name
            if name and not about.is_on_hub and format not in FOR_A_BASE:
                name = Path(name).name
            commands = commands_for(push or out.name, about._replace(gguf=file, name=name))
            record = export_record(edited, format, options, measured, weights)
            write_export_record(partial, record)
            card = model_card(edited, about, record, commands)
            write_atomic(partial / "README.md", card.encode())
    url = _upload(out, push) if push is not None and is_first_process() else None
    commands = commands_for(push or str(out), about)
    return Exported(out, weights, measured, after, dtype, commands, url)


def check_options(
    out: str | os.PathLike[str], format: str, *, dtype: str | None, rank: int, push: str | None
) -> None:
    """Check what `export` is asked for, as far as it can be said without the model.

    Args:
      out: as in `export`; so the others.
      format: its name.
      dtype: of what is written; None: not asked for.
      rank: the highest.
      push: where to upload it.

    Raises:
      ValueError: on what cannot be.
    """
    names = format_names()
    if format not in names:
        hint = did_you_mean(format, names)
        raise ValueError(f"unknown format {format!r}{hint} Formats: {', '.join(names)}")
    if dtype is not None and dtype not in DTYPES:
        hint = did_you_mean(dtype, DTYPES)
        raise ValueError(f"--dtype={dtype}{hint} What is written is {', '.join(DTYPES)}")
    if rank < 1:
        raise ValueError(f"--rank={rank}: the rank of a factorisation is at least 1")
    out = local_path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out={out} is there and not empty; give a new folder")
    if partial_path(out).exists():
        raise ValueError(
            f"{partial_path(out)} is there: another export to {out} is running, or was ended while "
            "it wrote; remove it"
        )
    if push is not None:
        _check_push(push)


def _check_model(edited: EditedModel, format: str, base: str | None, push: str | None) -> HFBase:
    """Check that there is something to export, and that others can use it; return its HF base.

    Raises:
      ValueError: where not.
    """
    if not edited.model.metadata.history:
        raise ValueError(
            f"this model of {edited.source} has no edits, so there is nothing to export; of a "
            "study of single edits, or one that kept none, name them by --run_steps"
        )
    if format not in FOR_A_BASE:
        return find_base(edited, base)
    about = require_base(edited, base, format)
    if push is not None and not about.is_on_hub:
        raise ValueError(
            f"--push={push}: others do not have {about.name}; name the base on the hub by "
            "--base=OWNER/NAME"
        )
    return about


def _writer(format: str) -> Callable[[EditedModel, Path, ExportOptions], list[WrittenWeight]]:
    """Find the function that writes a format."""
    name = format.replace("-", "_")
    return getattr(importlib.import_module(f"jaxedit.exports.{name}"), f"write_{name}")


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a new folder beside the final one, which gets its name only once it is whole.

    It is made in the first process only. Whatever interrupts the writing, it is removed.

    Raises:
      OSError: where it cannot be written.
    """
    partial = partial_path(out)
    if not is_first_process():
        yield partial
        return
    try:
        partial.mkdir(parents=True)
    except OSError as error:  # another export's folder, maybe: nothing of it is removed
        raise OSError(f"{out} could not be written ({error.strerror})") from error
    try:
        yield partial
        if out.is_dir():
            out.rmdir()  # it is empty; not every system renames onto a folder
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"{out} could not be written, and nothing of it is left ({reason})"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_push(push: str) -> None:
    """Check that a folder can be uploaded, before it is written.

    Raises:
      ValueError: where it cannot.
    """
    import huggingface_hub

    if push.count("/") != 1 or not all(push.split("/")):
        raise ValueError(f"--push={push}: expected OWNER/NAME, a repository on the hub")
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"--push={push} needs a token of the hub: set HF_TOKEN, or log in by `hf auth login`"
        )


def _upload(folder: Path, push: str) -> str:
    """Upload a folder to the hub and return its address there.

    Raises:
      OSError: where the hub refuses; the folder is whole.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(push, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=push,
            folder_path=folder,
            commit_message="Edits written by jaxedit",
            ignore_patterns=[RECORD],  # it names folders of this machine
        )
    except Exception as error:  # of whichever library carries it
        reason = first_line(error)
        raise OSError(f"{folder} is written, but not uploaded to {push}: {reason}") from error
    return str(commit.repo_url)
