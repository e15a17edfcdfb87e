"""Perplexity of short texts: the surrogate that tells whether an edited model still works.

As the code of arXiv 2402.09656 computes it: ppl(d) = exp(-(1/n) sum_i log p(x_i | x_<i)) for each
text, no begin-of-text token, the first token not scored, n = length - 1; the reported score is the
arithmetic mean over texts, so one broken text dominates. Texts are taken verbatim: a leading space
matters.
"""

import dataclasses
import functools
import math

import numpy as np
from scipy.special import logsumexp

from jaxedit.edits.edit import Edit
from jaxedit.edits.per_row import with_per_row_edits
from jaxedit.models.model import Model
from jaxedit.models.packing import BATCH_TOKENS, Packed, pack
from jaxedit.models.score import PrefilledTexts, prefill, tile_batches, token_losses
from jaxedit.models.texts import list_texts


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Losses of a list of texts, in the order given.

    A text whose loss is not finite (NaN counts as that) has infinite perplexity.

    Attributes:
      nll_nats: the summed loss of each text.
      n_tokens: how many of its tokens were scored.
    """

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
            return float(np.exp(self.log_pooled_nats))

    @property
    def median(self) -> float:
        """exp of the median over texts of the loss a token: single broken texts do not count."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.log_median_nats))

    @property
    def log_median_nats(self) -> float:
        """The logarithm of `median`."""
        return float(np.median(self.mean_nll))

    @property
    def log_mean_nats(self) -> float:
        """The logarithm of `mean`, finite also where that is more than a number holds."""
        return float(logsumexp(self.mean_nll) - np.log(len(self.mean_nll)))

    @property
    def log_pooled_nats(self) -> float:
        """The logarithm of `pooled`: the loss a token over all texts together."""
        return float(np.sum(self.mean_nll * self.n_tokens) / np.sum(self.n_tokens))

    @property
    def non_finite_texts(self) -> list[int]:
        """The numbers, from 0 on, of texts whose loss is not finite."""
        return np.flatnonzero(~np.isfinite(self.nll_nats)).tolist()

    @property
    def n_non_finite(self) -> int:
        """How many texts have a loss that is not finite."""
        return len(self.non_finite_texts)

    def paired_difference(self, base: "Perplexity") -> tuple[float, float]:
        """Compute the paired difference to another model on the same texts.

        A text counts by its loss a token. With a single text, or a loss that is not finite, the
        standard error is NaN.

        Returns:
          The mean over texts of the difference of the loss in nats a token, and its standard error.

        Raises:
          ValueError: where the two do not belong to the same texts.
        """
        if not np.array_equal(self.n_tokens, base.n_tokens):
            raise ValueError(
                "a paired difference needs two scores of the same texts under the same tokenizer"
            )
        difference = self.mean_nll - base.mean_nll
        mean = float(np.mean(difference))
        if len(difference) < 2 or not np.all(np.isfinite(difference)):
            return mean, math.nan
        return mean, float(np.std(difference, ddof=1) / math.sqrt(len(difference)))


def prepare(
    model: Model, texts: list[str], bos: bool = False, start_layer: int = 0
) -> PrefilledTexts:
    """Tokenise and pack texts once, for repeated scoring of edited versions of a model.

    Args:
      model: gives the tokenizer and, without its edits, the layers below them.
      texts: verbatim.
      bos: as in `perplexity`.
      start_layer: the lowest layer that edits will change; those below it are computed here.

    Raises:
      ValueError: on an empty list, a text of fewer than two tokens, or one longer than a model's
        learned positions.
    """
    return prefill(model, _packed(model, texts, bos), start_layer)


def perplexity(model: Model, texts: list[str] | PrefilledTexts, bos: bool = False) -> Perplexity:
    """Compute the perplexity of texts under a model with its edits.

    Args:
      model: with or without edits.
      texts: verbatim, leading spaces included; or what `prepare` made of them.
      bos: whether a begin-of-text token is put in front; the paper does not.

    Raises:
      ValueError: as `prepare`, or where prepared texts do not belong to this model.
    """
    if not isinstance(texts, PrefilledTexts):
        return _summed(token_losses(model, _packed(model, texts, bos)).nll_nats)
    return _summed(token_losses(model, texts).nll_nats)


def scores_with_bos(model: Model) -> bool:
    """Return whether studies of a model put a begin-of-text token in front of each text.

    They do where the model's tokenizer always adds one: it was trained behind it, and Gemma 3 says
    nothing sensible without it.
    """
    return model.metadata.tokenizer.add_bos


def perplexity_each(model: Model, texts: PrefilledTexts, edits: list[Edit]) -> list[Perplexity]:
    """Compute the perplexities of a model with each of several low-rank edits by itself.

    As many edits are measured at a time as a batch has room for.

    Args:
      model: with the edits that all of them come after.
      texts: from `prepare`.
      edits: of the same weights and layers.

    Raises:
      ValueError: as `jaxedit.edits.per_row.with_per_row_edits`, or where prepared texts do not
        belong to this model.
    """
    # Every batch is tiled, one copy for each edit that is measured with the others.
    n_texts, n_data = texts.packed.n_texts, model.mesh.shape["data"]
    largest = max(token_BT.size for token_BT in texts.packed.token_GBT)
    n_copies = min(len(edits), max(1, BATCH_TOKENS * n_data // largest))
    tiled = tile_batches(texts, n_copies)

    found = []
    for first in range(0, len(edits), n_copies):
        chunk = edits[first : first + n_copies]
        chunk += chunk[-1:] * (n_copies - len(chunk))  # the same shape for the last chunk
        model_of = functools.partial(with_per_row_edits, model, chunk)
        losses = token_losses(model, tiled, model_of).nll_nats
        found += [_summed(losses[k * n_texts : (k + 1) * n_texts]) for k in range(n_copies)]
    return found[: len(edits)]


def _summed(losses: list[np.ndarray]) -> Perplexity:
    nll_nats = np.array([loss.sum() for loss in losses])
    return Perplexity(nll_nats, np.array([len(loss) for loss in losses]))


def _packed(model: Model, texts: list[str], bos: bool) -> Packed:
    texts = list_texts(texts, "perplexity")
    if not texts:
        raise ValueError("perplexity needs a list of at least one text")
    token_lists = model.tokenizer.encode_many(texts, bos=bos)
    for i, tokens in enumerate(token_lists):
        if len(tokens) < 2:
            raise ValueError(
                f"text {i} ({texts[i]!r}) has {len(tokens)} tokens; perplexity needs at least two"
            )
        model.config.check_length(len(tokens), f"text {i} ({texts[i][:40]!r}...)")
    return pack(token_lists, model.mesh.shape["data"])
