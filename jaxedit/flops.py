"""The useful FLOPs of a study's phases: what a dense decoder has to multiply.

2 per multiply-add of every product with weights. Attention's scores and their sums, which depend on
lengths, are left out; so are padding and what is computed twice."""

from typing import NamedTuple

import numpy as np

from jaxedit.edits.request import Request
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.solving.prompts import tokenise_request


def attention_flops(config: DecoderConfig) -> int:
    """Return the FLOPs of one token in one layer's attention: its four projections."""
    return 2 * config.D * config.H * (2 * config.N + 2 * config.K)


def layer_flops(config: DecoderConfig) -> int:
    """Return the FLOPs of one token in one layer."""
    return attention_flops(config) + 2 * config.D * config.F * (2 + config.gated)


def head_flops(config: DecoderConfig) -> int:
    """Return the FLOPs of the logits at one position."""
    return 2 * config.D * config.V


def scoring_flops(config: DecoderConfig, lengths: np.ndarray, n_layers: int) -> float:
    """Return the FLOPs of scoring texts: some layers, and the logits of all but the last tokens.

    Args:
      config: the model's.
      lengths: the tokens of each text.
      n_layers: how many layers they go through.
    """
    in_layers = lengths.sum() * n_layers * layer_flops(config)
    return float(in_layers + (lengths - 1).sum() * head_flops(config))


class Positions(NamedTuple):
    """What is run for the values of requests, as `optimisation_flops` takes it.

    Attributes:
      n_prefix: positions before the subjects' last tokens, run once.
      n_suffix: those from there on, run in each pass.
      n_read: those whose logits a pass reads.
    """

    n_prefix: int
    n_suffix: int
    n_read: int


def count_positions(model: Model, request: Request, templates: tuple[str, ...]) -> Positions:
    """Count the positions of a value's optimisation for one request.

    Args:
      model: gives the tokenizer.
      request: the fact to write.
      templates: context templates with one `{}` each.
    """
    tokenised = tokenise_request(model, request, templates)
    # In each template the last target token is only predicted; the KL term's prompt runs whole.
    rows = [(len(row.tokens) - 1, row.fact_position) for row in tokenised.templates]
    rows.append((len(tokenised.kl.tokens), tokenised.kl.fact_position))
    # The loss reads the logits of every target token, and those at the KL term's subject.
    return Positions(
        n_prefix=sum(fact_position for _, fact_position in rows),
        n_suffix=sum(n_tokens - fact_position for n_tokens, fact_position in rows),
        n_read=sum(len(row.tokens) - row.first_target for row in tokenised.templates) + 1,
    )


def value_flops(
    model: Model, request: Request, templates: tuple[str, ...], layer: int, n_steps: int
) -> float:
    """Return the FLOPs of a value's optimisation for one request.

    The prefixes (before the subject's last token) run once, through all layers. The suffixes (from
    there on) run once up to the edited layer, and through the layers above in each of `n_steps`
    passes, all but the last with a gradient. A gradient with respect to activations costs as much
    as the pass itself: the weights need none.

    Args:
      model: gives the tokenizer and the sizes.
      request: the fact to write.
      templates: context templates with one `{}` each.
      layer: the edited one.
      n_steps: forward passes, as `edit` counts them.
    """
    positions = count_positions(model, request, templates)
    return optimisation_flops(model.config, *positions, layer, n_steps)


def optimisation_flops(
    config: DecoderConfig, n_prefix: int, n_suffix: int, n_read: int, layer: int, n_steps: int
) -> float:
    """Return the FLOPs of an optimisation of values, as `value_flops` describes it.

    Args:
      config: the model's.
      n_prefix: positions that run once, through all layers.
      n_suffix: those that run once up to the edited layer, and above it in each pass.
      n_read: positions whose logits a pass reads.
      layer: the edited one.
      n_steps: passes, all but the last with a gradient.
    """
    n_above = config.L - 1 - layer
    once = (n_prefix + n_suffix) * (layer + 1) + n_prefix * n_above
    forward = n_suffix * n_above * layer_flops(config) + n_read * head_flops(config)
    return float(once * layer_flops(config) + (2 * n_steps - 1) * forward)
