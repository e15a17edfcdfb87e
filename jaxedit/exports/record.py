"""What an export says of itself: `jaxedit.json` in its folder.

It holds what `jaxedit verify` needs: which base, which edits, what was asked of the format, and
what the edited model answers.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.edits.request import Request, request_from_json
from jaxedit.exports.measured import ExportNumbers, texts_of
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.files import read_json, shorten_json, to_json, write_atomic
from jaxedit.study.edited import EditedModel

RECORD = "jaxedit.json"
NONE = type(None)
KINDS = {
    "format": (str,),
    "base": (str,),
    "path": (str, NONE),
    "run_steps": (list,),
    "after_step": (int, NONE),
    "options": (dict,),
    "fingerprint": (str,),
    "add_bos": (bool,),
    "editor": (dict,),
    "requests": (list,),
    "texts": (list,),
    "bos": (bool,),
    "measured": (dict,),
    "written": (list,),
}
OPTION_KINDS = {"dtype": (str,), "max_rank": (int,), "base": (str, NONE)}
# An error that is not finite is a text.
WRITTEN_KINDS = {"name": (str,), "layer": (int,), "rank": (int, NONE), "error": (int, float, str)}
MOST_TEXTS = 100  # are kept in the folder; the papers' perplexity is measured on 50


class ExportRecord(NamedTuple):
    """An export's account of itself.

    Attributes:
      format: "peft", "hf", "gguf-lora" or "delta".
      base: the model that was edited, as `jaxedit.load` takes it.
      path: the study's work directory or the saved edit that it comes from; None: neither.
      run_steps: of a study, the steps whose edits it has, in order.
      after_step: of a study that holds no edit by itself, the step after which the model was.
      options: what was asked of the format.
      fingerprint: the base's `Model.rounded_fingerprint`.
      add_bos: whether the edited model is asked behind a begin-of-text token.
      editor: "method" and its hyper-parameters.
      requests: the facts of the edits.
      texts: the first of those whose perplexity was measured.
      bos: whether a begin-of-text token stands before each of them then.
      measured: what the edited model gave here, before it was written; its perplexity is of all
        the texts there were.
      written: each changed weight, and how much of its change was lost.
    """

    format: str
    base: str
    path: str | None
    run_steps: tuple[int, ...]
    after_step: int | None
    options: ExportOptions
    fingerprint: str
    add_bos: bool
    editor: Mapping[str, Any]
    requests: tuple[Request, ...]
    texts: tuple[str, ...]
    bos: bool
    measured: ExportNumbers
    written: tuple[WrittenWeight, ...]


def export_record(
    edited: EditedModel,
    format: str,
    options: ExportOptions,
    measured: ExportNumbers,
    written: Sequence[WrittenWeight],
) -> ExportRecord:
    """Make the account of an export.

    Args:
      edited: what is exported.
      format: the format's name.
      options: what is asked of it.
      measured: of `measure_edited(edited)`.
      written: what the format's writer returned.
    """
    return ExportRecord(
        format=format,
        base=edited.source,
        path=edited.path,
        run_steps=edited.run_steps,
        after_step=edited.after_step,
        options=options,
        fingerprint=edited.model.rounded_fingerprint,
        add_bos=edited.model.tokenizer.add_bos,
        editor=dict(edited.editor),
        requests=edited.requests,
        texts=tuple(texts_of(edited)[:MOST_TEXTS]),
        bos=edited.bos,
        measured=measured,
        written=tuple(written),
    )


def write_export_record(folder: Path, record: ExportRecord) -> None:
    """Write an export's account into its folder."""
    values = {
        **record._asdict(),
        "options": record.options._asdict(),
        "requests": [dataclasses.asdict(request) for request in record.requests],
        "measured": record.measured._asdict(),
        "written": [weight._asdict() for weight in record.written],
    }
    text = json.dumps(to_json(values), indent=2, ensure_ascii=False)
    write_atomic(folder / RECORD, f"{text}\n".encode())


def read_export_record(folder: Path) -> ExportRecord:
    """Read an export's account out of its folder.

    Raises:
      ValueError: where the folder is not an export of jaxedit.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: expected a folder that `jaxedit export` wrote, which holds it"
        )
    try:
        values = {"bos": False} | read_json(path)  # earlier exports knew no other way
        _check_types(values, KINDS, "the account")
        measured, options = values["measured"], ExportOptions(**values["options"])
        ppl = measured["perplexity"]
        _check_types(options._asdict(), OPTION_KINDS, "options")
        for weight in values["written"]:
            _check_types(weight, WRITTEN_KINDS, "a weight of 'written'")
        for name, kind in (("run_steps", int), ("texts", str), ("requests", dict)):
            if not all(type(each) is kind for each in values[name]):
                raise TypeError(f"{name!r} is {shorten_json(values[name])}")
        return ExportRecord(
            **{
                **values,
                "run_steps": tuple(values["run_steps"]),
                "options": options,
                "requests": tuple(map(request_from_json, values["requests"])),
                "texts": tuple(values["texts"]),
                "measured": ExportNumbers(
                    None if ppl is None else float(ppl),
                    tuple(map(float, measured["probability_new"])),
                ),
                "written": tuple(
                    WrittenWeight(**{**weight, "error": float(weight["error"])})
                    for weight in values["written"]
                ),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the account of an export ({error!r}); export the model again"
        ) from error


def _check_types(values: Any, kinds: Mapping[str, tuple[type, ...]], what: str) -> None:
    """Raise a TypeError or KeyError where an entry is missing or of another type."""
    if not isinstance(values, dict):
        raise TypeError(f"{what} is {shorten_json(values)}")
    for name, kind in kinds.items():
        if type(values[name]) not in kind:
            raise TypeError(f"{name!r} of {what} is {shorten_json(values[name])}")
