"""Whether an export is the edited model: what torch computes of it beside what is computed here.

The model to compare with is made again from the run or the edit that the export's account names.
Where neither is there it is read from the export itself; then only the decoder is compared, and the
recorded answers. What the export has lost by rounding, or by a cut to a rank, is no error as long
as it is what the account says: the model to compare with loses it too.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import einops
import numpy as np

from jaxedit.edits.apply import apply, replay_edits
from jaxedit.edits.edit import Dense, make_edit
from jaxedit.exports.hf import rounded_model
from jaxedit.exports.measured import measure_as
from jaxedit.exports.record import MOST_TEXTS, ExportRecord, read_export_record
from jaxedit.exports.torch_model import (
    TorchModel,
    load_torch,
    torch_changes,
    torch_logits,
    torch_perplexity,
)
from jaxedit.files import expand_home, local_path
from jaxedit.metrics.perplexity import perplexity
from jaxedit.models.built_in import BUILT_IN
from jaxedit.models.layers import logits
from jaxedit.models.load import load
from jaxedit.models.model import Model
from jaxedit.study.edited import EditedModel, open_edit, open_run

TOLERANCE = 1e-4  # of logits, in float32
RELATIVE_TOLERANCE = 1e-5  # of the largest logit: float32 holds no more of it over many layers
PERPLEXITY_TOLERANCE = 1e-3  # relative
EXACT = 1e-5  # the error of a change up to which nothing was lost but float32's last bits
LAST_BITS = 2.0**-22  # of a float32 weight: so much of it is lost in a difference of two
MOST_PROMPTS, MOST_SENTENCES, MOST_TOKENS = 20, 4, 64
SENTENCES = ("The sun rises in the east.", "Bread is baked in an oven, and eaten by people.")


class Check(NamedTuple):
    """One comparison.

    Attributes:
      name: of what is compared.
      found: the difference, or the size of what is lost.
      allowed: how large it may be.
    """

    name: str
    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is no larger than allowed; NaN is not."""
        return self.found <= self.allowed


class VerifiedExport(NamedTuple):
    """What came out.

    Attributes:
      record: the export's account of itself.
      compared_with: where the model came from that it was compared with.
      checks: all comparisons.
      perplexity: in torch and here, on the export's texts; None: it has none.
    """

    record: ExportRecord
    compared_with: str
    checks: tuple[Check, ...]
    perplexity: tuple[float, float] | None

    @property
    def passed(self) -> bool:
        """Whether all comparisons did."""
        return all(check.passed for check in self.checks)


def verify_export(
    folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None
) -> VerifiedExport:
    """Compare an export, run by transformers in torch, with the edited model here.

    Args:
      folder: that `jaxedit export` wrote.
      base: the base's HF directory or hub id, where it is not where it was.

    Raises:
      ValueError: where the folder is no export, its base is not there or another, or a package is
        missing.
    """
    # The model in torch, and the one here: made again, or read from the export.
    folder, base = local_path(folder), None if base is None else expand_home(base)
    record = read_export_record(folder)
    theirs = load_torch(folder, record, base or record.options.base or record.base)
    remade = _make_again(record, base)
    edited = remade or _read_export(folder, record, base)

    # What torch computes. An adapter is merged last.
    rows_BT, is_text_BT = _prompt_rows(edited.model, record)
    theirs_QV = torch_logits(theirs, rows_BT)[is_text_BT]
    texts = [edited.model.tokenizer.encode(text, bos=record.bos) for text in record.texts]
    theirs_ppl = torch_perplexity(theirs, texts) if texts else None
    changes = torch_changes(theirs)

    # The same here, of the model with what the export says it has lost.
    checks = [] if remade is None else _compare_changes(record, edited.model, theirs, changes)
    expected = _as_written(record, edited, changes, is_remade=remade is not None)
    ours_QV = np.asarray(logits(expected, rows_BT))[is_text_BT]
    checks.append(_compare_logits(ours_QV, theirs_QV, len(rows_BT)))
    ppl = None
    if theirs_ppl is not None:
        ppl = theirs_ppl, perplexity(expected, list(record.texts), record.bos).mean
        name = f"perplexity of {len(texts)} texts in torch and here, relative"
        checks.append(Check(name, _relative(*ppl), PERPLEXITY_TOLERANCE))
    if remade is None:
        # On another base, such as the one a .gguf file was made of, answers are others.
        if record.format == "hf" or edited.model.rounded_fingerprint == record.fingerprint:
            checks += _compare_recorded(record, edited._replace(model=expected), ppl)
        return VerifiedExport(
            record, "the export itself, read here (its origin is not)", tuple(checks), ppl
        )
    return VerifiedExport(record, f"the model of {record.path}, made again", tuple(checks), ppl)


def _make_again(record: ExportRecord, base: str | None) -> EditedModel | None:
    """Make the edited model again from the run or edit it comes from, where that can be."""
    path = Path(record.path) if record.path else None
    if path is None or not path.exists():
        return None
    # Dequantised weights are others than those of the HF base that an adapter is put on.
    is_gguf = record.base in BUILT_IN or record.base.endswith(".gguf")
    if is_gguf and record.format != "hf":
        return None
    if path.is_file():
        return open_edit(path, source=base or record.base, dtype="float32")
    run_steps = list(record.run_steps) if record.after_step is None else None
    return None if base else open_run(path, run_steps, record.after_step, dtype="float32")


def _read_export(folder: Path, record: ExportRecord, base: str | None) -> EditedModel:
    """Load what can be had without the run: the whole checkpoint, or the base of an adapter.

    Raises:
      ValueError: where the base is another one than was edited.
    """
    base_name = base or record.options.base or record.base
    name = str(folder) if record.format == "hf" else base_name
    model = load(name, dtype="float32", add_bos=record.add_bos)
    is_same = model.rounded_fingerprint == record.fingerprint
    if record.format != "hf" and record.options.base is None and not is_same:
        raise ValueError(
            f"the edits were made on weights with the fingerprint {record.fingerprint}, those of "
            f"{base_name} have {model.rounded_fingerprint}: name the base by --base"
        )
    about = EditedModel(model, base_name, record.editor, (), record.requests, None, "")
    return about._replace(bos=record.bos)


def _prompt_rows(model: Model, record: ExportRecord) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise what is asked: the facts' prompts and the beginnings of a few texts.

    Returns:
      Rows of tokens, and where they hold text; both [B, T]. What follows a text's end does not
      change what stands before.
    """
    asked = [request.prompt_text for request in record.requests[:MOST_PROMPTS]]
    asked += [*record.texts[:MOST_SENTENCES], *SENTENCES]
    most = min(MOST_TOKENS, model.config.P)
    lists = [model.tokenizer.encode(text, bos=record.add_bos)[:most] for text in asked]
    lengths = np.array([len(tokens) for tokens in lists])
    rows_BT = np.zeros((len(lists), lengths.max()), np.int64)
    for row, tokens in zip(rows_BT, lists, strict=True):
        row[: len(tokens)] = tokens
    return rows_BT, np.arange(lengths.max()) < lengths[:, None]


def _as_written(
    record: ExportRecord, edited: EditedModel, changes: Mapping[str, np.ndarray], is_remade: bool
) -> Model:
    """Return the model that the export should be, with what its account says it has lost.

    Args:
      record: the account.
      edited: made again, or read from the export.
      changes: what the export adds to the base in torch.
      is_remade: whether it was made again.
    """
    if record.format == "hf":
        return rounded_model(edited, record.options.dtype) if is_remade else edited.model
    if is_remade and all(weight.error < EXACT for weight in record.written):
        return edited.model
    unedited = replay_edits(edited.model, [])
    by_name = {weight.name: weight.layer for weight in record.written}
    deltas = []
    for name, change in changes.items():
        weight, layout = _weight_of(unedited, name, by_name[name])
        hf_side, our_side = layout.split(" -> ")
        delta_FD = einops.rearrange(change, f"{hf_side} -> {our_side}")
        deltas.append(Dense(weight, by_name[name], delta_FD))
    return apply(unedited, make_edit(unedited, deltas))


def _weight_of(model: Model, name: str, layer: int) -> tuple[str, str]:
    """Find the weight that has a name in HF checkpoints: its own name, and its layout there."""
    for weight, (pattern, layout) in model.metadata.tensor_names.items():
        if pattern.format(l=layer) == name:
            return weight, layout
    raise ValueError(f"the export changes {name}, which this model does not have")


def _compare_changes(
    record: ExportRecord,
    model: Model,
    theirs: TorchModel,
    changes: Mapping[str, np.ndarray],
) -> list[Check]:
    """Compare what the export adds to the base with the edits: no more is lost than it says.

    Args:
      record: the export's account.
      model: made again.
      theirs: the export in torch, with the base's weights.
      changes: of `torch_changes`.
    """
    expected: dict[str, np.ndarray] = {}
    for edit in model.metadata.history:
        for name, delta in edit.dense().items():
            expected[name] = expected.get(name, 0.0) + delta.astype(np.float64)
    checks = []
    for weight in record.written if record.format != "hf" else ():
        exact = expected[weight.name]
        size = np.linalg.norm(exact)
        lost = np.linalg.norm(changes[weight.name] - exact) / size
        last_bits = LAST_BITS * np.linalg.norm(theirs.base_weights[weight.name]) / size
        name = f"edit of layer {weight.layer}, the share that is lost"
        checks.append(Check(name, float(lost), float(1.01 * weight.error + last_bits)))
    return checks


def _compare_logits(ours_QV: np.ndarray, theirs_QV: np.ndarray, n_prompts: int) -> Check:
    """Compare logits at every token."""
    difference = np.abs(ours_QV - theirs_QV).max()
    allowed = max(TOLERANCE, RELATIVE_TOLERANCE * float(np.abs(ours_QV).max()))
    return Check(f"logits of {n_prompts} prompts in torch and here", float(difference), allowed)


def _compare_recorded(
    record: ExportRecord, edited: EditedModel, ppl: tuple[float, float] | None
) -> list[Check]:
    """Compare what an export answers with what was recorded before it was written.

    Rounding may change the answers: where there was any they are compared as they are, within the
    perplexity's and the probabilities' usual change.
    """
    is_exact = all(weight.error < EXACT for weight in record.written)
    allowed = PERPLEXITY_TOLERANCE if is_exact and record.options.dtype == "float32" else 0.1
    found = measure_as(edited.model, edited).probability_new
    checks = []
    if found:
        differences = np.abs(np.subtract(found, record.measured.probability_new))
        checks.append(Check("P(target) and as recorded", float(differences.max()), allowed))
    recorded = record.measured.perplexity
    if ppl is not None and recorded is not None and len(record.texts) < MOST_TEXTS:
        checks.append(
            Check("perplexity and as recorded, relative", _relative(ppl[1], recorded), allowed)
        )
    return checks


def _relative(found: float, expected: float) -> float:
    """Return the relative difference; 0 where both are infinite."""
    return 0.0 if found == expected else abs(found - expected) / abs(expected)
