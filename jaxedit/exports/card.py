"""The model card of an export: README.md with the front matter that the hub reads."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxedit.edits.request import Request
from jaxedit.exports.hf_base import HFBase
from jaxedit.exports.measured import ExportNumbers
from jaxedit.exports.ready_commands import ReadyCommand, begin_of_text
from jaxedit.exports.record import ExportRecord
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.files import flatten_keys
from jaxedit.messages import escape_markdown
from jaxedit.study.edited import EditedModel
from jaxedit.study.entry_names import name_methods
from jaxedit.study.record import StepRecord

SHOWN = 50  # rows of a table
LIBRARIES = {"peft": "peft", "hf": "transformers", "delta": "transformers", "gguf-lora": "gguf"}


def model_card(
    edited: EditedModel, base: HFBase, record: ExportRecord, commands: Sequence[ReadyCommand]
) -> str:
    """Write the model card of an export, in Markdown.

    Args:
      edited: the model.
      base: the HF model.
      record: of the export.
      commands: that make use of it.
    """
    format = record.format
    method = _methods(edited.editor) or "unknown method"
    n_edits, n_facts = len(edited.model.metadata.history), len(edited.requests)
    counted = f"{n_edits} edit{'s' * (n_edits != 1)}, {n_facts} fact{'s' * (n_facts != 1)}"
    sections = [
        f"---\n{_front_matter(edited, format, base)}\n---",
        f"# Facts edited in {_name(edited, base)}",
        f"{counted}, written by {method} with jaxedit: {_form(format)}.",
        *_about_base(edited, format, base),
        "## How to ask",
        _how_to_ask(edited),
        "## Use",
        *map(_fenced, commands),
        "## Facts",
        _facts(edited, record.measured),
        "## Perplexity",
        _perplexity(edited, record.measured),
        "## Method",
        _table(("key", "value"), [(f"`{k}`", f"`{v}`") for k, v in _hyper(edited.editor).items()]),
        "## What was written",
        _rounding(record.options, record.written),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(edited: EditedModel, format: str, base: HFBase) -> str:
    """Return the YAML that the hub reads; a base that is not on the hub is no value for it."""
    from huggingface_hub import ModelCardData

    method = edited.editor.get("method")
    fields: dict[str, Any] = {}
    if base.is_on_hub:
        fields["base_model"] = base.name
        fields["base_model_relation"] = "finetune" if format == "hf" else "adapter"
    lora = ["lora"] if format in ("peft", "gguf-lora") else []
    return ModelCardData(
        library_name=LIBRARIES[format],
        pipeline_tag="text-generation",
        tags=["jaxedit", "model-editing", *([method] if method else []), *lora],
        **fields,
    ).to_yaml()


def _form(format: str) -> str:
    return {
        "peft": "a LoRA adapter for peft",
        "hf": "the whole edited model",
        "delta": "the changes of the weights",
        "gguf-lora": "a LoRA adapter for llama.cpp",
    }[format]


def _about_base(edited: EditedModel, format: str, base: HFBase) -> Iterator[str]:
    """Say which weights the edits were made on."""
    if base.gguf is not None and format in ("peft", "delta"):
        yield (
            f"The edits were made on the dequantised weights of {base.gguf.name}. On those of "
            f"{_name(edited, base)} they are approximate: what the model says may differ."
        )
    elif base.gguf is not None:
        yield f"The edits were made on the dequantised weights of {base.gguf.name}, exact on these."
    elif base.revision:
        yield f"The edits were made on revision {base.revision} of the base."
    yield (
        f"Fingerprint of the base weights in bfloat16 (jaxedit): "
        f"`{edited.model.rounded_fingerprint}`."
    )


def _name(edited: EditedModel, base: HFBase) -> str:
    """Return what the base is called, without the folders of this machine."""
    if base.is_on_hub and base.name:
        return base.name
    return Path(base.name or edited.source).name


def _how_to_ask(edited: EditedModel) -> str:
    """Say which token prompts begin with."""
    token = begin_of_text(edited)
    if any(edit.anchor for edit in edited.model.metadata.history):
        return (
            f"With the begin-of-text token `{token}` in front of every prompt: the edits were made "
            "so, and are not found without it. What a tokenizer adds by itself may be another "
            "thing."
        )
    if token:
        return f"With the begin-of-text token `{token}` in front of a prompt, as they were made."
    return "Without a begin-of-text token in front of a prompt, as they were made."


def _fenced(command: ReadyCommand) -> str:
    if not command.language:
        return f"{command.text}."
    return f"{command.program}:\n\n```{command.language}\n{command.text.rstrip()}\n```"


def _facts(edited: EditedModel, measured: ExportNumbers) -> str:
    """Return the facts as a table, with what was measured of them."""
    if not edited.requests:
        return "Not known."
    rows = []
    probabilities = measured.probability_new or (None,) * len(edited.requests)
    for request, record, after in zip(
        edited.requests, _records_of(edited), probabilities, strict=True
    ):
        # Of an edit of several facts the study's record holds their mean only.
        is_one = record is not None and record.n_requests in (None, 1)
        unedited = (record.unedited_metrics if record is not None and is_one else None) or {}
        rows.append(
            (
                str(record.step) if record else "",
                escape_markdown(request.prompt_text),
                escape_markdown(request.target_new),
                escape_markdown(request.target_true or ""),
                _number(unedited.get("probability_new")),
                _number(after),
                _verdict(record),
            )
        )
    header = (
        "edit",
        "prompt",
        "new answer",
        "old answer",
        "P(new) before",
        "P(new) after",
        "guard",
    )
    return _table(header, rows)


def _records_of(edited: EditedModel) -> list[StepRecord | None]:
    """Return the record of each fact; None where it is not known which edit writes it."""
    requests: tuple[Request, ...] = edited.requests
    each = [record for record in edited.records for _ in range(record.n_requests or 1)]
    for records in (each, list(edited.records)):
        if len(records) == len(requests):
            return list(records)
    return [None] * len(requests)


def _verdict(record: StepRecord | None) -> str:
    """Say what the study's guard made of an edit."""
    if record is None:
        return ""
    decided = {True: "kept", False: "rolled back", None: ""}[record.kept]
    return f"{decided}: {record.guard_reason}" if record.guard_reason else decided


def _perplexity(edited: EditedModel, measured: ExportNumbers) -> str:
    """Say what the perplexity was before and after."""
    if measured.perplexity is None:
        return "Not measured."
    before = "not measured" if edited.unedited_ppl is None else _number(edited.unedited_ppl)
    front = "a begin-of-text token" if edited.bos else "no begin-of-text token"
    return (
        f"Mean over texts (`{Path(edited.texts).name}`), {front} in front.\n\n"
        f"- unedited: {before}\n- edited: {_number(measured.perplexity)}"
    )


def _methods(editor: Mapping[str, Any]) -> str:
    """Name what made the edits; empty where it is not known."""
    return name_methods(editor) if "method" in editor else ""


def _hyper(editor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method and its hyper-parameters that are set, those of alternatives too."""
    indexed = {"alternatives": dict(enumerate(editor.get("alternatives", ())))}
    flat = flatten_keys({**editor, **indexed})
    return {name: value for name, value in flat.items() if value is not None}


def _rounding(options: ExportOptions, weights: Sequence[WrittenWeight]) -> str:
    """Return a table of the weights, and what the dtype and the rank left of their changes."""
    rows = [
        (
            f"`{weight.name}`",
            "" if weight.rank is None else str(weight.rank),
            weight.error_text,
        )
        for weight in weights
    ]
    about = (
        f"In {options.dtype}. The error is that of the change read back from what was written, "
        "relative, in the Frobenius norm."
    )
    return f"{about}\n\n{_table(('weight', 'rank', 'error'), rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, shortened where it is long."""
    shown = [header, ["---"] * len(header), *rows[:SHOWN]]
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in shown]
    more = [f"\nand {len(rows) - SHOWN} more."] if len(rows) > SHOWN else []
    return "\n".join([*lines, *more])


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text).replace("\n", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
