"""Texts that edits are not to harm, read once: what their loss depends on at the edited weights.

They are cut into parts, some of which are taken: in the same time more and shorter texts tell more
of where keys and gradients lie than few long ones.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import EDITED_WEIGHT
from jaxedit.mesh import to_host
from jaxedit.models.loss_probe import LossProbe, read_loss_probe
from jaxedit.models.model import Model
from jaxedit.models.output_gradients import Places
from jaxedit.models.packing import pack
from jaxedit.models.score import lowest_layer, prefill
from jaxedit.models.texts import list_texts
from jaxedit.solving.hyper import HarmHyper
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.solve import whiten

HARM_DRAWS = 4  # of labels: in the same time more texts tell more than more draws
PART_TOKENS = 64  # texts are cut into parts of so many tokens, each a text of its own
LEAST_TOKENS = 16  # shorter parts (headings, remainders) are left out


class HarmTexts(NamedTuple):
    """What the harm projection knows of its texts.

    Attributes:
      weight: w, per nat.
      probe: of the texts, at the edited layers.
      white_QM: layer -> the inputs of its weight in the coordinates of its whitener, float32.
    """

    weight: float
    probe: LossProbe
    white_QM: dict[int, np.ndarray]


def read_harm_texts(
    hyper: HarmHyper,
    model: Model,
    texts: list[str],
    regularisers: Mapping[int, KeyRegulariser],
) -> HarmTexts:
    """Read what the texts' loss depends on at the edited layers, and whiten it.

    Args:
      hyper: w, and how many tokens.
      model: that is to be edited, with the edits it has.
      texts: verbatim.
      regularisers: layer -> M without past keys.

    Raises:
      ValueError: on texts that are none, or all too short.
    """
    places = tuple((EDITED_WEIGHT, layer) for layer in sorted(regularisers))
    probe = read_parts(model, texts, hyper.harm_tokens, places)
    white_QM = {
        layer: to_host(whiten(regularisers[layer].whitener_MF, probe.input_of[weight, layer].T)).T
        for weight, layer in places
    }
    return HarmTexts(hyper.harm_projection, probe, white_QM)


def read_parts(model: Model, texts: list[str], n_tokens: int, places: Places) -> LossProbe:
    """Read what the loss of parts of texts depends on, each part by itself.

    Args:
      model: that is to be edited, with the edits it has.
      texts: verbatim.
      n_tokens: that are read at most (`choose_parts`).
      places: (weight, layer).

    Raises:
      ValueError: as `choose_parts`.
    """
    packed = pack(choose_parts(model, texts, n_tokens), model.mesh.shape["data"])
    lowest = lowest_layer(model, [layer for _, layer in places])
    return read_loss_probe(model, prefill(model, packed, lowest), places, HARM_DRAWS)


def check_not_evaluated(harm_texts: list[str], texts: list[str]) -> None:
    """Check that no text that edits are not to harm is one that they are evaluated on.

    Texts of fewer than LEAST_TOKENS words, such as headings, do not count.

    Raises:
      ValueError: where one is; the evaluation would not show what happens to other texts.
    """
    one, other = (
        {text.strip() for text in each if len(text.split()) >= LEAST_TOKENS}
        for each in (harm_texts, texts)
    )
    shared = one & other
    if shared:
        example = min(shared)
        raise ValueError(
            f"harm_texts: {len(shared)} of them are texts that edits are evaluated on, e.g. "
            f"{example[:60]!r}; give others, such as another part of the corpus"
        )


def choose_parts(model: Model, texts: list[str], n_tokens: int) -> list[list[int]]:
    """Cut texts into parts of PART_TOKENS tokens, and take some, evenly spread over all.

    Where the model's tokenizer always adds a begin-of-text token, each part has one in front.

    Args:
      model: gives the tokenizer.
      texts: verbatim.
      n_tokens: of the parts that are taken, at most.

    Raises:
      ValueError: on texts that are none, or all too short.
    """
    texts = list_texts(texts, "harm_texts")
    parts = []
    for tokens in model.tokenizer.encode_many(texts, bos=False):
        cut = [tokens[i : i + PART_TOKENS].tolist() for i in range(0, len(tokens), PART_TOKENS)]
        parts += [part for part in cut if len(part) >= LEAST_TOKENS]
    n_parts = min(len(parts), n_tokens // PART_TOKENS)
    if not n_parts:
        raise ValueError(
            f"harm_texts hold {len(parts)} parts of {LEAST_TOKENS} tokens or more, and "
            f"harm_tokens={n_tokens}: expected at least one part, and {PART_TOKENS} tokens"
        )
    tokenizer = model.tokenizer
    front = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    return [front + parts[i * len(parts) // n_parts] for i in range(n_parts)]
