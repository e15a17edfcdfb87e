"""The records of a training of MEND: an edit and a locality text each, as rows of tokens.

    edit       the request's prompt and its target; the loss reads the target (as in EasyEdit, the
               edited model is asked what it was edited with; MEND's own code can ask a paraphrase)
    locality   a neighbour and its own answer, at most 40 tokens: of ZsRE the record's question out
               of Natural Questions, of CounterFact one of the neighbourhood prompts

The layers below the edited ones never change, so what they make of every record is computed once
and kept while there is room.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxedit.edits.request import Request
from jaxedit.edits.spaces import tokenise_answer
from jaxedit.mesh import shard_batch, to_host
from jaxedit.models.model import Model
from jaxedit.models.packing import pad_tokens
from jaxedit.models.target_loss import TargetRows, run_below
from jaxedit.rounding import round_up
from jaxedit.solving.target_rows import TokenisedTarget, pad_targets, tokenise_target

MAX_LOCALITY_TOKENS = 40  # as EasyEdit's max_length
KEPT_BYTES = 2**31  # of the residual stream of all records, on the host
ROWS_STEP = 8  # rows are as wide as a multiple of this


class Record(NamedTuple):
    """A record as tokens.

    Attributes:
      edit: the request.
      localities: its neighbours with their answers.
    """

    edit: TokenisedTarget
    localities: tuple[list[int], ...]


class Batch(NamedTuple):
    """Edits with a locality text each, on the devices.

    Attributes:
      edits: rows whose loss is the mean loss a token of its own target; weight 0: padding.
      edit_h_BTD: the residual stream before the lowest edited layer.
      locality_BT: the locality texts.
      locality_h_BTD: as for the edits.
      n_tokens_B: how many tokens a locality text has.
      weight_B: 1 for an edit, 0 for a row that fills the batch up.
    """

    edits: TargetRows
    edit_h_BTD: Any
    locality_BT: Any
    locality_h_BTD: Any
    n_tokens_B: Any
    weight_B: Any


def tokenise_records(model: Model, requests: Sequence[Request]) -> list[Record]:
    """Tokenise requests that have a neighbour.

    Raises:
      ValueError: as `tokenise_target` and `tokenise_answer`; where no request has a neighbour.
    """
    with_neighbours = [request for request in requests if request.neighbours]
    if not with_neighbours:
        raise ValueError(
            f"none of {len(requests)} records has a neighbour: MEND's locality loss needs one with "
            "its own answer, as ZsRE in MEND's form and CounterFact have them"
        )
    records = []
    for request in with_neighbours:
        localities = tuple(
            tokenise_answer(model.tokenizer, prompt, answer).tokens[:MAX_LOCALITY_TOKENS]
            for prompt, answer in request.neighbours
        )
        records.append(Record(tokenise_target(model, request, "joined"), localities))
    return records


class Batches:
    """Batches out of records, each with what the unedited layers make of it.

    Args:
      model: without edits.
      records: to be drawn from.
      lowest: the lowest edited layer.
      size: edits of a batch.
    """

    def __init__(self, model: Model, records: Sequence[Record], lowest: int, size: int):
        self.model, self.records, self.lowest = model, records, lowest
        self.n_rows = round_up(size, model.mesh.shape["data"])
        self.edit_width = _width([record.edit.tokens for record in records])
        self.locality_width = _width([row for record in records for row in record.localities])
        self.n_reads = max(len(record.edit.target) for record in records)
        # Texts of much the same length are run in groups, which do not depend on who asks first:
        # the same bits every time.
        texts = [
            (i, k) for i, record in enumerate(records) for k in range(-1, len(record.localities))
        ]
        self.texts = sorted(texts, key=lambda text: len(self._tokens(text)))  # stable
        n_tokens = sum(len(self._tokens(text)) for text in texts)
        self.is_kept = 4 * n_tokens * model.config.D <= KEPT_BYTES
        self.group_of = {text: n // self.n_rows for n, text in enumerate(self.texts)}
        self.hidden: dict[tuple[int, int], np.ndarray] = {}

    def make(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        """Make the batch of some records, (its index, the index of its locality text) each."""
        edits = [self.records[i].edit for i, _ in chosen]
        rows = pad_targets(edits, self.n_rows, (self.edit_width, self.n_reads))
        rows = rows._replace(weight_BQ=rows.weight_BQ * len(edits))
        localities = [self.records[i].localities[k] for i, k in chosen]
        padding = [0] * (self.n_rows - len(chosen))
        n_tokens_B = np.array([*map(len, localities), *padding], np.int32)
        weight_B = np.array([1] * len(chosen) + padding, np.float32)
        mesh = self.model.mesh
        return Batch(
            edits=TargetRows(*(shard_batch(mesh, "B_", array) for array in rows)),
            edit_h_BTD=self._hidden([(i, -1) for i, _ in chosen], self.edit_width),
            locality_BT=self._rows(list(chosen), self.locality_width),
            locality_h_BTD=self._hidden(list(chosen), self.locality_width),
            n_tokens_B=shard_batch(mesh, "B", n_tokens_B),
            weight_B=shard_batch(mesh, "B", weight_B),
        )

    def _tokens(self, text: tuple[int, int]) -> list[int]:
        i, k = text
        return self.records[i].edit.tokens if k < 0 else self.records[i].localities[k]

    def _rows(self, texts: list[tuple[int, int]], width: int) -> jax.Array:
        token_BT = pad_tokens(list(map(self._tokens, texts)), self.n_rows, width)
        return shard_batch(self.model.mesh, "B_", token_BT)

    def _hidden(self, texts: list[tuple[int, int]], width: int) -> jax.Array:
        """Return the residual stream of texts before the lowest edited layer."""
        if not self.is_kept:
            return _run_below(self.model, self._rows(texts, width), self.lowest)
        h_BTD = np.zeros((self.n_rows, width, self.model.config.D), np.float32)
        for b, text in enumerate(texts):
            if text not in self.hidden:
                self._keep_group(self.group_of[text])
            own_TD = self.hidden[text]
            h_BTD[b, : len(own_TD)] = own_TD
        return shard_batch(self.model.mesh, "B__", h_BTD)

    def _keep_group(self, group: int) -> None:
        """Run the texts of a group, and keep what comes out."""
        texts = self.texts[group * self.n_rows :][: self.n_rows]
        width = _width(list(map(self._tokens, texts)))
        h_BTD = to_host(_run_below(self.model, self._rows(texts, width), self.lowest))
        for text, h_TD in zip(texts, h_BTD, strict=False):
            self.hidden[text] = h_TD[: len(self._tokens(text))].copy()


def _width(rows: list[list[int]]) -> int:
    return round_up(max(map(len, rows)), ROWS_STEP)


def _run_below_on(model: Model, token_BT, lowest: int) -> jax.Array:
    return run_below(model, token_BT, lowest)[0]


_run_below = jax.jit(_run_below_on, static_argnames="lowest")
