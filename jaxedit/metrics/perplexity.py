"""Perplexity of short texts: the surrogate that tells after every edit whether the model still
works.

As the code of arXiv 2402.09656 computes it: ppl(d) = exp(-(1/n) sum_i log p(x_i | x_<i)) for each
text, no begin-of-text token, the first token not scored, n = length - 1; the reported score is the
arithmetic mean over texts, so one broken text dominates. Texts are taken verbatim: a leading space
matters."""

import dataclasses
import functools
import math

import numpy as np

from jaxedit.edits.edit import Edit, with_per_row_edits
from jaxedit.models.model import Model
from jaxedit.models.packing import BATCH_TOKENS, Packed, pack
from jaxedit.models.score import PrefilledTexts, prefill, tile_batches, token_losses


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Losses of a list of texts, in the order given.

    `nll_nats` is the summed loss of each text and `n_tokens` how many tokens were scored. A text
    whose loss is not finite (NaN counts as that) has infinite perplexity."""

    nll_nats: np.ndarray
    n_tokens: np.ndarray

    @property
    def mean_nll(self) -> np.ndarray:
        """Nats a token, for each text."""
        return np.where(np.isnan(self.nll_nats), np.inf, self.nll_nats) / self.n_tokens

    @property
    def per_text(self) -> np.ndarray:
        """The perplexity of each text."""
        with np.errstate(over="ignore"):
            return np.exp(self.mean_nll)

    @property
    def mean(self) -> float:
        """The paper's number: the arithmetic mean of `per_text`."""
        return float(np.mean(self.per_text))

    @property
    def pooled(self) -> float:
        """exp of the loss a token over all texts together."""
        with np.errstate(over="ignore"):
            return float(np.exp(np.sum(self.mean_nll * self.n_tokens) / np.sum(self.n_tokens)))

    @property
    def n_non_finite(self) -> int:
        """Texts whose loss is not finite."""
        return int(np.sum(~np.isfinite(self.nll_nats)))

    def paired_difference(self, base: "Perplexity") -> tuple[float, float]:
        """The paired difference to another model on the same texts: mean nats a text, and its
        standard error.

        A text counts by its loss a token. With a single text, or a loss that is not finite, the
        error is NaN.

        Raises:
          ValueError: where the two do not belong to the same texts.
        """
        if not np.array_equal(self.n_tokens, base.n_tokens):
            raise ValueError(
                "a paired difference needs two scores of the same texts under the same tokenizer"
            )
        difference = self.mean_nll - base.mean_nll
        if len(difference) < 2 or not np.all(np.isfinite(difference)):
            return float(np.mean(difference)), math.nan
        return float(np.mean(difference)), float(
            np.std(difference, ddof=1) / math.sqrt(len(difference))
        )


def prepare(
    model: Model, texts: list[str], bos: bool = False, start_layer: int = 0
) -> PrefilledTexts:
    """Tokenises and packs texts once, for repeated scoring of edited versions of a model.

    Args:
      model: gives the tokenizer and, without its edits, what lies below them.
      texts: verbatim.
      bos: as in `perplexity`.
      start_layer: the lowest layer that edits will change; what is below is computed here.

    Raises:
      ValueError: on an empty list, a text of fewer than two tokens, or one longer than a model's
        learned positions.
    """
    return prefill(model, _packed(model, texts, bos), start_layer)


def perplexity(model: Model, texts: list[str] | PrefilledTexts, bos: bool = False) -> Perplexity:
    """Perplexity of texts (or of what `prepare` made of them) under a model with its edits.

    Args:
      model: with or without edits.
      texts: verbatim, leading spaces included.
      bos: whether a begin-of-text token is put in front; the paper does not.

    Raises:
      ValueError: as `prepare`, or where what was prepared does not belong to this model.
    """
    return _summed(
        token_losses(
            model, texts if isinstance(texts, PrefilledTexts) else _packed(model, texts, bos)
        ).nll_nats
    )


def perplexity_each(model: Model, texts: PrefilledTexts, edits: list[Edit]) -> list[Perplexity]:
    """The perplexities of a model with each of several low-rank edits by itself, as many at a time
    as a batch has room for.

    Args:
      model: with the edits that all of them come after.
      texts: from `prepare`.
      edits: of the same weights and layers.

    Raises:
      ValueError: as `jaxedit.edits.edit.with_per_row_edits`, or where what was prepared does not
        belong to this model.
    """
    largest = max(token_BT.size for token_BT in texts.packed.token_GBT)
    at_once = min(len(edits), max(1, BATCH_TOKENS * model.mesh.shape["data"] // largest))
    many, n_texts = tile_batches(texts, at_once), texts.packed.n_texts
    found = []
    for first in range(0, len(edits), at_once):
        lot = edits[first : first + at_once]
        lot += lot[-1:] * (at_once - len(lot))  # the same shape for the last of them
        losses = token_losses(
            model, many, functools.partial(with_per_row_edits, model, lot)
        ).nll_nats
        found += [_summed(losses[k * n_texts : (k + 1) * n_texts]) for k in range(at_once)]
    return found[: len(edits)]


def _summed(losses: list[np.ndarray]) -> Perplexity:
    return Perplexity(
        np.array([loss.sum() for loss in losses]), np.array([len(loss) for loss in losses])
    )


def _packed(model: Model, texts: list[str], bos: bool) -> Packed:
    if isinstance(texts, str) or not texts:
        raise ValueError("perplexity needs a list of at least one text")
    token_lists = model.tokenizer.encode_many(texts, bos=bos)
    for i, tokens in enumerate(token_lists):
        if len(tokens) < 2:
            raise ValueError(
                f"text {i} ({texts[i]!r}) has {len(tokens)} tokens; perplexity needs at least two"
            )
        model.config.check_length(len(tokens), f"text {i} ({texts[i][:40]!r}...)")
    return pack(token_lists, model.mesh.shape["data"])
