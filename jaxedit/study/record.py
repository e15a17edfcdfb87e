"""One line of a study's journal, typed: the only place where its keys are spelled.

A field that is None was not measured, or does not apply; it is not written. `SCHEMA` grows when a
key changes its name or meaning, and `jaxedit.study.upgrade` then learns to read the one before.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, TypedDict

from jaxedit.edits.request import Request
from jaxedit.files import shorten_json
from jaxedit.metrics.generated import GeneratedAnswer

SCHEMA = 3

Measurement = float | bool | None  # what a mapping of a record holds

# The unedited model, before all steps; an edit; edits taken out again.
Kind = Literal["baseline", "step", "undo"]


class BaselinePerplexity(TypedDict):
    """Perplexity of the unedited model on the study's texts."""

    mean: float  # the paper's: the arithmetic mean over texts
    pooled: float  # exp of the loss a token, over all texts
    n_non_finite: int  # texts whose loss is not finite
    # The logarithms of both, finite where they overflow; lines of schema 2 may lack them.
    log_mean_nats: NotRequired[float]
    log_pooled_nats: NotRequired[float]
    # exp of the median over texts of the loss a token, and that median.
    median: NotRequired[float]
    log_median_nats: NotRequired[float]


class PerplexityRecord(BaselinePerplexity):
    """Perplexity after an edit, also beside the unedited model's."""

    ratio: float  # mean / the unedited model's mean
    delta_nll_nats: float  # mean over texts of the change of the loss a token
    delta_nll_stderr_nats: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What was asked in a step, what was measured and what was decided.

    Attributes:
      kind: "baseline", "step" or "undo".
      step: its number; the baseline's is 0, an undo's that of the last edit made before it.
      case_id: of the (first) request, in its data set; so the next four.
      leading_space: before the answers of the (first) request, where it says so itself.
      n_requests: how many requests the edit writes.
      contradictions: the prompts for which these requests want different answers, with the answers.
      kept: whether the model has the edit from here on; never in a study of single edits.
      skipped: why the edit was not tried on purpose: "screening".
      error: why it could not be made or measured.
      guard_code: what the guard found: "ppl_ratio", "non_finite_loss", "non_finite_edit".
      guard_reason: the same in a sentence.
      predicted_perturbation: the relative perturbation predicted before the edit.
      batch_first_step: the first step of those that were made and measured together.
      perplexity: where it was due; the baseline's is a `BaselinePerplexity`.
      metrics: `jaxedit.metrics.facts.FactMetrics` of the model with the edit, means over requests.
      unedited_metrics: the same of the unedited model.
      n_requests_by_metric: how many requests have a metric, where others lack it.
      continuation: what the model with the edit says to the (first) request's prompt.
      unedited_continuation: what the unedited model says to it.
      prompt_continuations: what the model says to each of the study's own prompts.
      optimisation: the editor's numbers: losses, norms, the solver's denominator and residual.
      edit_norm: the Frobenius norm of the edit.
      edit_norm_ratio: that over the norm of the edited weights.
      relative_perturbation: of the edit (`jaxedit.metrics.perturbation`).
      total_relative_perturbation: of all kept edits and this one together.
      predicted_change: of the mean loss by the edit, in a sequence by all kept ones with it, in
        nats a token: `mean_nats` with its `stderr_nats`, its orders `first_nats` and
        `second_nats`, the `curvature_share` of the second in the sum, the change of the logarithm
        of the guard's statistic, `log_ratio_nats`, and `gradients_step`, after which edit the
        gradients were read (`jaxedit.edits.predicted_change`).
      kl_nats: KL(unedited || edited) a token of the texts.
      ngram_entropy_bits: fluency of what is generated (GE).
      reference_score: its consistency with reference texts (RS).
      generated_metrics: of what the model says about the edit's facts
        (`jaxedit.metrics.generated.generated_metrics`).
      generated_answers: each answer.
      retention: step of a kept edit -> how its facts hold now.
      snapshot: whether the arrays hold the whole change since the unedited model.
      time_s: seconds of each phase.
      arrays: the file of the step's arrays, from the work directory on.
      undone: of an undo, the steps whose edits the model lacks from here on.
      written_at: of an undo, when it was written, in ISO 8601, UTC.
      undone_after: of an edit taken out again, the last step before that. Its own line does not
        hold it: it is read from the undo's.
      undone_reason: the guard's, of such an edit that it undid; likewise.
    """

    kind: Kind = "step"
    step: int
    case_id: int | str | None = None
    prompt: str | None = None
    subject: str | None = None
    target_new: str | None = None
    target_true: str | None = None
    leading_space: str | None = None
    n_requests: int | None = None
    contradictions: list[str] | None = None
    kept: bool | None = None
    skipped: str | None = None
    error: str | None = None
    guard_code: str | None = None
    guard_reason: str | None = None
    predicted_perturbation: float | None = None
    batch_first_step: int | None = None
    perplexity: PerplexityRecord | None = None
    metrics: Mapping[str, Any] | None = None
    unedited_metrics: Mapping[str, Any] | None = None
    n_requests_by_metric: Mapping[str, int] | None = None
    continuation: str | None = None
    unedited_continuation: str | None = None
    prompt_continuations: list[str] | None = None
    optimisation: Mapping[str, float] | None = None
    edit_norm: float | None = None
    edit_norm_ratio: float | None = None
    relative_perturbation: float | None = None
    total_relative_perturbation: float | None = None
    predicted_change: Mapping[str, float] | None = None
    kl_nats: float | None = None
    ngram_entropy_bits: float | None = None
    reference_score: float | None = None
    generated_metrics: Mapping[str, float] | None = None
    generated_answers: list[GeneratedAnswer] | None = None
    retention: Mapping[str, Mapping[str, Any]] | None = None
    snapshot: bool | None = None
    time_s: Mapping[str, float] | None = None
    arrays: str | None = None
    undone: list[int] | None = None
    written_at: str | None = None
    undone_after: int | None = None
    undone_reason: str | None = None

    @property
    def was_kept(self) -> bool:
        """Whether the study kept the edit when it was made; it may have been undone since."""
        return bool(self.kept) or self.undone_after is not None

    def was_in_model_at(self, step: int) -> bool:
        """Tell whether this edit, which was undone since, was in the model that a step measured."""
        return self.undone_after is not None and self.step < step <= self.undone_after

    @property
    def is_made(self) -> bool:
        """Whether this is an edit that was made and measured."""
        return self.kind == "step" and self.error is None and self.skipped is None

    @property
    def request_summary(self) -> str:
        """The request in one line, and how many others the edit writes.

        Raises:
          ValueError: where the record lacks a part of it.
        """
        if self.prompt is None or self.subject is None or self.target_new is None:
            raise ValueError(
                f"the line of step {self.step} lacks prompt, subject or target_new; restore the "
                "journal from a copy"
            )
        summary = Request(self.prompt, self.subject, self.target_new).summary
        n_more = (self.n_requests or 1) - 1
        return f"{summary} and {n_more} more" if n_more else summary

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None, in their order."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StepRecord":
        """Read what `to_dict` gave, through JSON: "inf" and "nan" are numbers again.

        Raises:
          ValueError: on a key that is not of this schema, a value of another type, or a line
            without what every one of its kind has.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"the unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
        if type(values.get("step")) is not int:
            raise ValueError("no number under 'step'")
        fields = {name: _numbers(name, value) for name, value in values.items()}
        hints = _hints(cls)
        for name, value in fields.items():
            if not _fits(value, hints[name]):
                raise ValueError(f"{name!r} has the wrong type: {shorten_json(value)}")
        needed = {"step": "kept", "undo": "undone"}.get(fields.get("kind", "step"))
        if needed is not None and fields.get(needed) is None:
            raise ValueError(f"nothing under {needed!r}")
        perplexity = fields.get("perplexity")
        if perplexity is not None and "mean" not in perplexity:
            raise ValueError("no 'mean' under 'perplexity'")
        return cls(**fields)


def mark_undone(records: Iterable[StepRecord]) -> list[StepRecord]:
    """Return the records of edits as they stand after all undos; those of the undos are left out.

    An edit that was undone is not kept, and knows after which step that was.

    Args:
      records: the lines of a journal, in their order.

    Raises:
      ValueError: where an undo names an edit that is not kept there.
    """
    steps: dict[int, StepRecord] = {}
    for record in records:
        if record.kind != "undo":
            steps[record.step] = record
            continue
        for number in record.undone or ():
            if number not in steps or not steps[number].kept:
                raise ValueError(f"an undo names edit {number}, which is not kept there")
            made = steps[number]
            steps[number] = dataclasses.replace(
                made,
                kept=False,
                undone_after=record.step,
                undone_reason=record.guard_reason,
            )
    return list(steps.values())


@functools.cache  # once, not for each of thousands of lines
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a value out of JSON is of the type that a field declares."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in inner
    if inner and origin is types.UnionType:
        return any(_fits(value, each) for each in inner)
    if typing.is_typeddict(kind):
        hints = _hints(kind)
        return isinstance(value, Mapping) and all(
            _fits(each, hints.get(name, float)) for name, each in value.items()
        )
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(each, inner[1] if typing.get_origin(inner[1]) is Mapping else Measurement)
            for each in value.values()
        )
    if kind is float:
        return isinstance(value, float) or type(value) is int
    return type(value) is kind


# Fields of text; in all others a text stands for a number that is not finite.
_TEXTS = frozenset(
    {
        "kind",
        "case_id",
        "prompt",
        "subject",
        "target_new",
        "target_true",
        "generated_answers",
        "leading_space",
        "contradictions",
        "skipped",
        "error",
        "guard_code",
        "guard_reason",
        "undone_reason",
        "continuation",
        "unedited_continuation",
        "prompt_continuations",
        "arrays",
        "written_at",
    }
)


def _numbers(name: str, value: Any) -> Any:
    """Turn texts that stand for numbers that are not finite into numbers, in one field's value."""
    if name in _TEXTS:
        return value
    if isinstance(value, Mapping):
        return {key: _numbers("", inner) for key, inner in value.items()}
    return float(value) if isinstance(value, str) else value
