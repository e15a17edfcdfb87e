"""Losses of answers after their prompts: only the logits that an answer needs are computed.

Prompts with their answers are packed as all texts are (`jaxedit.models.packing`). An answer's last
token is only predicted, so answers of one token to one prompt are read off one text, the prompt,
which runs once for all of them:

    text       The capital of Italy is              (answers: Rome, Paris)
    reads                            ^ ^            position 4: Rome; position 4: Paris
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.layers import causal_attention, embed, run_layers
from jaxedit.models.model import Model
from jaxedit.models.ops import GPU_OPTIONS
from jaxedit.models.packing import Packed, pack
from jaxedit.models.score import TokenLosses, batch_to_device, next_token_losses
from jaxedit.rounding import next_power_of_two

FEW_READS = 32  # of a row; their number is rounded up to a power of two, at least to this


class Read(NamedTuple):
    """One token of an answer: where it is predicted.

    Attributes:
      answer: whose token it is.
      n: which of the answer's tokens.
      position: in the answer's text, the one before it.
      token: the token.
    """

    answer: int
    n: int
    position: int
    token: int


def answer_losses(
    model: Model,
    answers: Sequence[tuple[list[int], int]],
    groups: list[int] | None = None,
    model_of: Callable[[np.ndarray], Model] | None = None,
) -> TokenLosses:
    """Compute the loss of every token of answers, each given the tokens before it.

    Args:
      model: for all answers.
      answers: a prompt's and its answer's tokens, and the index of the answer's first token.
      groups: of each answer a number; texts of one row have one number.
      model_of: the groups of a batch's rows -> the model for this batch, where it is another for
        each.

    Returns:
      For each answer the losses of its tokens, as `TokenLosses` has them for texts.
    """
    groups = groups or [0] * len(answers)
    texts: dict[tuple[int, tuple[int, ...]], list[Read]] = {}  # (group, tokens) -> reads
    for answer, (group, (tokens, first)) in enumerate(zip(groups, answers, strict=True)):
        reads = texts.setdefault((group, tuple(tokens[:-1])), [])
        reads += [Read(answer, at - first, at - 1, tokens[at]) for at in range(first, len(tokens))]
    of_group = [group for group, _ in texts]
    packed = pack([list(tokens) for _, tokens in texts], model.mesh.shape["data"], of_group)
    batches = _reads_of_rows(packed, list(texts.values()))
    n_most = max(len(reads) for rows in batches for reads in rows)
    n_reads = next_power_of_two(max(n_most, FEW_READS))

    nll_nats = [np.zeros(len(tokens) - first) for tokens, first in answers]
    is_argmax = [np.zeros(len(tokens) - first, bool) for tokens, first in answers]
    for g, rows in enumerate(batches):
        batch_model = model if model_of is None else model_of(packed.group_GB[g])
        # A row's reads are mostly as many as its positions; more where answers share a text.
        n_columns = min(n_reads, max(n_most, packed.token_GBT[g].shape[1]))
        read_BQ, target_BQ = np.zeros((2, len(rows), n_columns), np.int32)
        for b, reads in enumerate(rows):
            read_BQ[b, : len(reads)] = [read.position for read in reads]
            target_BQ[b, : len(reads)] = [read.token for read in reads]
        on_devices = [shard_batch(model.mesh, "B_", array) for array in (read_BQ, target_BQ)]
        batch = batch_to_device(model, packed, g)
        nll_BQ, is_argmax_BQ = jax.device_get(_losses_at(batch_model, *batch, *on_devices))

        for b, reads in enumerate(rows):
            for q, read in enumerate(reads):
                nll_nats[read.answer][read.n] = nll_BQ[b, q]
                is_argmax[read.answer][read.n] = is_argmax_BQ[b, q]
    return TokenLosses(nll_nats, is_argmax)


def _reads_of_rows(packed: Packed, reads_of_text: list[list[Read]]) -> list[list[list[Read]]]:
    """Return for each batch and row its texts' reads, their positions those in the row."""
    batches = []
    for segment_BT in packed.segment_GBT:
        rows = []
        for segment_T in segment_BT:
            reads = []
            for text in np.unique(segment_T[segment_T > 0]) - 1:
                start = int(np.argmax(segment_T == text + 1))
                reads += [
                    read._replace(position=start + read.position) for read in reads_of_text[text]
                ]
            rows.append(reads)
        batches.append(rows)
    return batches


@functools.partial(jax.jit, compiler_options=GPU_OPTIONS)
def _losses_at(model: Model, token_BT, position_BT, segment_BT, read_BQ, target_BQ):
    """Compute -log p(target) in nats [B, Q] at chosen positions, and target == argmax [B, Q]."""
    h_BTD = embed(model, token_BT, position_BT)
    attn_context = causal_attention(position_BT, segment_BT)
    h_BTD = run_layers(model, h_BTD, attn_context, 0, model.config.L)
    h_BQD = jnp.take_along_axis(h_BTD, read_BQ[..., None], axis=1)
    return replicate(model.mesh, next_token_losses(model, h_BQD, target_BQ))
