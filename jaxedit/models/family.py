"""Model families: the parts of a family file, and finding a family by name.

A family is `families/<hf model_type>.py` with

    config(fields) -> DecoderConfig   every attribute taken, expected or ignored by name;
                                      an unknown one raises
    PREFIX                            what HF tensor names begin with, but for the head's; files of
                                      the model without its head leave it out
    WEIGHTS                           HF tensor name with {l} -> (parameters, einops pattern);
                                      None: known, dropped
    TINY                              a small HF configuration for parity tests

and, where llama.cpp has the architecture, `GGUF` (its tensor names) and
`from_gguf(fields) -> HF configuration`.
"""

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxedit.files import shorten_json
from jaxedit.models.config import DecoderConfig
from jaxedit.models.fields import Fields
from jaxedit.models.rope import Rope, scaling_factors

LAYERS_MOST = 10_000  # more than any model has; a count is checked before lists are made of it
WIDEST_HEAD = 2**16

# HF tensor name -> (parameter names, "HF layout -> our layout"), with the letters of jaxedit.axes
# and, for fused tensors, `c` for the parts. Several parameters are the entries of the result's
# leading axis, in order.
Weights = dict[str, tuple[str, str] | None]


def rotary(
    fields: Fields,
    H: int,
    *,
    thetas: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
    share: float = 1.0,
) -> Rope:
    """Read rotary positions from an HF configuration.

    transformers 4 writes them as rope_theta and rope_scaling, transformers 5 as rope_parameters.
    `rope_factors` are the frequencies' divisors that a GGUF file holds.

    Args:
      fields: the configuration.
      H: the width of a head.
      thetas: further names of rope_theta.
      shares: names of the share of a head that is rotated; where there are none the whole head is.
      share: that share where the configuration does not say.

    Raises:
      ValueError: on a scaling that is not supported or given twice, and where an attribute's names
        contradict each other.
    """
    scaling = {**fields.mapping("rope_scaling"), **fields.mapping("rope_parameters")}
    theta = _agreed(fields, scaling, ("rope_theta", *thetas), 10000.0, most=1e38)
    dims = int(H * _agreed(fields, scaling, shares, share, most=1.0))
    check_rotary(H, dims)
    factors, from_file = scaling_factors(theta, dims, scaling), _factors_of_file(fields, dims)
    if factors is not None and from_file is not None:
        raise ValueError(
            f"the file scales rotary frequencies twice: by rope_freqs.weight and by {scaling}"
        )
    return Rope(theta, dims, factors=factors if from_file is None else from_file)


def check_rotary(H: int, dims: int) -> None:
    """Check that so many entries of a head of width H can be rotated in pairs.

    Raises:
      ValueError: where there are none, or no room for the last pair.
    """
    if not 1 <= dims <= H - dims % 2:
        raise ValueError(
            f"{dims} of a head's {H} entries would be rotated in pairs, which cannot be"
        )


def _factors_of_file(fields: Fields, dims: int) -> tuple[float, ...] | None:
    """Take the frequencies' divisors that a GGUF file holds.

    Raises:
      ValueError: where they are no positive numbers, or not one for each pair.
    """
    factors = fields.sequence("rope_factors", float, default=None)
    if factors is None:
        return None
    if len(factors) != (dims + 1) // 2 or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(
            f"rope_freqs.weight holds {len(factors)} divisors of rotary frequencies; expected "
            f"{(dims + 1) // 2} finite numbers above 0"
        )
    return tuple(factors)


def _agreed(
    fields: Fields, scaling: dict, aliases: tuple[str, ...], default: float, most: float
) -> float:
    """Take an attribute by all its names from the configuration and from its rotary entry.

    Raises:
      ValueError: where they contradict each other, or are no numbers above 0 and at most `most`.
    """
    given = []
    entry = Fields(dict(scaling), "the configuration's rotary entry")
    for name in aliases:
        given += [each.number(name, None, most=most) for each in (entry, fields)]
        scaling.pop(name, None)
    distinct = sorted({value for value in given if value is not None})
    if len(distinct) > 1:
        raise ValueError(
            f"the configuration gives {' or '.join(aliases)} as {distinct}: "
            "only one of these can be meant"
        )
    return distinct[0] if distinct else default


def head_width(fields: Fields, D: int, N: int, K: int, H: int | None = None) -> int:
    """Return the width of a head.

    Args:
      fields: the configuration, for the message.
      D: the width of the residual stream.
      N: query heads.
      K: key-value heads.
      H: the width where the configuration says it; absent: D / N.

    Raises:
      ValueError: where the heads do not divide what they share, or are wider than any are.
    """
    if N % K:
        raise ValueError(
            f"{fields.what} has {N} query heads for {K} key-value heads; expected a multiple"
        )
    if H is None and D % N:
        raise ValueError(f"{fields.what} has a width of {D} for {N} heads; expected a multiple")
    width = D // N if H is None else H
    if width > WIDEST_HEAD:
        raise ValueError(f"{fields.what} has heads of width {width}; {WIDEST_HEAD} is the most")
    return width


def window(fields: Fields, *, layers: range | None = None, active: bool = True) -> int | None:
    """Read the sliding window; None where no layer has one.

    A text up to its length sees no difference between layers.

    Args:
      fields: the configuration.
      layers: those that have a window where `layer_types` does not say; absent: all, whatever it
        says (Mistral).
      active: whether windows are in use at all.

    Raises:
      ValueError: on a layer type that attends in another way, and on a windowed layer without a
        width.
    """
    # Where the attribute is absent transformers takes 4096; where it is null there is no window.
    is_given = "sliding_window" in fields.values
    width = fields.count("sliding_window", None) if is_given else 4096
    if not active:
        width = None
    kinds = fields.sequence("layer_types", str, default=None) or []
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"the configuration has layer_types {unknown[:9]}; "
            "the decoder supports full and sliding attention"
        )
    if "sliding_attention" in kinds and width is None:
        raise ValueError(
            "the configuration's layer_types ask for sliding attention, "
            "but no sliding window is in use"
        )
    slides = layers is None or ("sliding_attention" in kinds if kinds else len(layers) > 0)
    return width if slides else None


# Attributes that count experts, and the model types (besides those with "moe" in their name) that
# always have some.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MIXTURES = {"mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "dbrx", "jamba"}


def reject_moe(values: dict[str, Any]) -> None:
    """Raise a ValueError on the configuration of a mixture of experts."""
    counts = {name: values[name] for name in _EXPERTS if values.get(name)}
    kind = str(values.get("model_type"))
    if counts or kind in _MIXTURES or "moe" in kind:
        with_counts = f" with {str(counts)[:200]}" if counts else ""
        raise ValueError(
            f"model_type {kind!r}{with_counts} is a mixture of experts: its layers have no single "
            "MLP whose second weight could be edited. Choose a dense model"
        )


def reject_custom_code(values: dict[str, Any], name: str) -> None:
    """Raise a ValueError where a file names Python code of its own; none is run here.

    Args:
      values: what the file holds.
      name: the file's, for the message.
    """
    code = values.get("auto_map")
    if code:
        raise ValueError(
            f"{name} has auto_map={shorten_json(code)}: Python code that came with the checkpoint, "
            "which is never run here. If the model is one of the families "
            f"({', '.join(family_names())}) without it, take the entry out"
        )


def family_names() -> list[str]:
    """Return the families there are, by their HF model_type."""
    return sorted(path.stem for path in (Path(__file__).parent / "families").glob("[a-z]*.py"))


def find(model_type: str) -> ModuleType:
    """Import the family of an HF model_type.

    Raises:
      ValueError: where there is none.
    """
    names = family_names()
    if model_type not in names:
        raise ValueError(
            f"model_type {str(model_type)[:80]!r} is not supported; "
            f"the families are {', '.join(names)}"
        )
    return importlib.import_module(f"jaxedit.models.families.{model_type}")


def read_config(values: dict[str, Any], source: object) -> DecoderConfig:
    """Read an HF configuration as the decoder it describes.

    Args:
      values: what config.json holds, or what other files' metadata amount to.
      source: its path, for messages.

    Raises:
      ValueError: where the decoder cannot compute the model, or the configuration is not one.
    """
    try:
        reject_custom_code(values, "it")
        reject_moe(values)
        return find(values.get("model_type", "(none)")).config(Fields(values))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
