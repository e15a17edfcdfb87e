"""Whether a model's losses are finite before anything is compared with them.

A ratio, a difference or a limit beside a perplexity that is infinite says nothing, and whatever
follows would be blamed for it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.axes import PARAMETERS
from jaxedit.mesh import to_host
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.models.model import Model
from jaxedit.models.score import PrefilledTexts

SHOWN_TEXTS, SHOWN_LETTERS = 3, 40


def check_baseline(
    model: Model, score: Perplexity, texts: Sequence[str] | PrefilledTexts
) -> Perplexity:
    """Return the perplexity that edits are compared with, if there is one.

    Args:
      model: before the edits.
      score: its perplexity.
      texts: that were scored.

    Raises:
      ValueError: where a text's perplexity is not finite; the message names the texts, and the
        weights where these are not finite.
    """
    bad = np.flatnonzero(~np.isfinite(score.per_text))
    if not len(bad):
        return score
    broken = non_finite_weights(model)
    remedy = "leave them out of the texts, or take another model"
    if broken:
        remedy = f"these weights hold numbers that are not finite: {', '.join(broken)}"
    which = "all" if len(bad) == len(score.n_tokens) else f"{len(bad)}"
    n_edits = len(model.metadata.history)
    edited = f" with {n_edits} edits" if n_edits else ""
    raise ValueError(
        f"the perplexity of {model.metadata.source}{edited} itself is not finite on these texts, "
        f"{which} of {len(score.n_tokens)} ({name_texts(model, texts, bad)}): there is nothing to "
        f"compare with; {remedy}"
    )


def name_texts(
    model: Model, texts: Sequence[str] | PrefilledTexts, numbers: Sequence[int] | np.ndarray
) -> str:
    """Name texts by number, from 0 on, and their first letters; only the first few of them.

    Args:
      model: whose tokenizer prepared texts are read with.
      texts: as they were scored.
      numbers: which of them.
    """
    shown = []
    for i in numbers[:SHOWN_TEXTS]:
        text = _read_text(model, texts, i) if isinstance(texts, PrefilledTexts) else texts[i]
        cut = text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."
        shown.append(f"text {i}: {cut!r}")
    n_more = len(numbers) - len(shown)
    return ", ".join(shown) + (f" and {n_more} more" if n_more else "")


def _read_text(model: Model, texts: PrefilledTexts, number: int) -> str:
    """Read a text back from its tokens."""
    packed = texts.packed
    for token_BT, segment_BT in zip(packed.token_GBT, packed.segment_GBT, strict=True):
        is_text_BT = segment_BT == number + 1
        if is_text_BT.any():
            return model.tokenizer.decode(token_BT[is_text_BT].tolist())
    return ""


def non_finite_weights(model: Model) -> list[str]:
    """Name the parameters of a model that hold NaN or infinity, with their layers."""
    found = []
    for name, parameter in model.base.items():
        if bool(_is_finite(parameter)):
            continue
        where = ""
        if PARAMETERS.get(name, "").startswith("L"):
            axes = tuple(range(1, parameter.ndim))
            bad_L = ~to_host(jnp.all(jnp.isfinite(parameter), axis=axes))
            layers = ", ".join(map(str, np.flatnonzero(bad_L)))
            where = f" (layer {layers})"
        found.append(f"{name}{where}")
    return found


@jax.jit
def _is_finite(parameter: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(parameter))
