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
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxedit.files import shorten_json
from jaxedit.models.config import DecoderConfig
from jaxedit.models.fields import Fields

LAYERS_MOST = 10_000  # more than any model has; a count is checked before lists are made of it
WIDEST_HEAD = 2**16

# HF tensor name -> (parameter names, "HF layout -> our layout"), with the letters of jaxedit.axes
# and, for fused tensors, `c` for the parts. Several parameters are the entries of the result's
# leading axis, in order.
Weights = dict[str, tuple[str, str] | None]


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


def window_width(fields: Fields, default: int | None = 4096) -> int | None:
    """Read the width of the sliding window; None: there is none.

    Args:
      fields: the configuration.
      default: where the attribute is absent, as in transformers; where it is null there is none.
    """
    if "sliding_window" not in fields.values:
        return default
    return fields.count("sliding_window", None)


def windowed_layers(fields: Fields, default: Collection[int]) -> tuple[int, ...] | None:
    """Read which layers have the sliding window; None: all.

    Args:
      fields: the configuration.
      default: those that have it where `layer_types` does not say.

    Raises:
      ValueError: on a layer type that attends in another way, and where there are not as many types
        as layers.
    """
    n_layers = fields.count("num_hidden_layers", most=LAYERS_MOST)
    layers, kinds = default, fields.sequence("layer_types", str, default=None)
    if kinds:
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ValueError(
                f"the configuration has layer_types {unknown[:9]}; "
                "the decoder supports full and sliding attention"
            )
        if len(kinds) != n_layers:
            raise ValueError(
                f"the configuration has {len(kinds)} layer_types for {n_layers} layers"
            )
        layers = [l for l, kind in enumerate(kinds) if kind == "sliding_attention"]
    return None if len(layers) == n_layers else tuple(layers)


def read_windows(fields: Fields, default: Collection[int], width: int | None) -> dict[str, Any]:
    """Read the sliding window and its layers, as arguments of `DecoderConfig`.

    Args:
      fields: the configuration.
      default: the layers that have it where `layer_types` does not say.
      width: of the window; None where none is in use.

    Raises:
      ValueError: as `windowed_layers`, and on a windowed layer without a width.
    """
    layers = windowed_layers(fields, default)
    if width is None and layers != () and fields.values.get("layer_types"):
        raise ValueError(
            "the configuration's layer_types ask for sliding attention, "
            "but no sliding window is in use"
        )
    if width is None or layers == ():
        return {}
    return {"window": width, "window_layers": layers}


# Attributes that count experts, and the model types (besides those with "moe" in their name) that
# always have some.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MIXTURES = {"mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "dbrx", "jamba"}


# Model types whose layers keep no keys and values of every position.
_LINEAR_ATTENTION = (
    *("qwen3_5", "qwen35", "qwen3_next", "qwen3next"),  # in a checkpoint, in a GGUF file
    *("mamba", "jamba", "rwkv", "falcon_h1", "falcon-h1", "lfm2", "granitemoehybrid"),
)


def reject_linear_attention(values: dict[str, Any]) -> None:
    """Raise a ValueError on a model some of whose layers have linear attention or none."""
    kind = str(values.get("model_type"))
    layer_kinds = values.get("layer_types")
    every_layer_attends = (
        isinstance(layer_kinds, list) and layer_kinds.count("attention") == len(layer_kinds) > 0
    )
    if kind.startswith(_LINEAR_ATTENTION) and not every_layer_attends:
        raise ValueError(
            f"model_type {kind[:80]!r} has layers of linear attention (a state for all positions "
            "before, instead of their keys and values), which the decoder does not compute. Choose "
            "a model whose every layer attends, such as one of Qwen 3"
        )


def reject_moe(values: dict[str, Any]) -> None:
    """Raise a ValueError on the configuration of a mixture of experts."""
    counts = {name: values[name] for name in _EXPERTS if values.get(name)}
    kind = str(values.get("model_type"))
    # Where a count says 0, a name with "moe" in it only says what others of its kind have.
    is_counted = any(name in values for name in _EXPERTS)
    if counts or kind in _MIXTURES or ("moe" in kind and not is_counted):
        with_counts = f" with {str(counts)[:200]}" if counts else ""
        raise ValueError(
            f"model_type {kind!r}{with_counts} is a mixture of experts: its layers have no single "
            "MLP whose second weight could be edited. Each expert's second weight is an ordinary "
            "matrix, but a decoder that routes tokens and a rule for which experts a fact is "
            "written to would be needed. Choose a dense model"
        )


def reject_custom_code(
    values: dict[str, Any], name: str, own: Collection[str] = frozenset()
) -> None:
    """Raise a ValueError where a file names Python code of its own; none is run here.

    Args:
      values: what the file holds.
      name: the file's, for the message.
      own: names of code that is what transformers and the decoder compute, and may be left aside.
    """
    code = values.get("auto_map")
    if isinstance(code, dict) and all(
        isinstance(each, str) and each in own for each in code.values()
    ):
        return
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
        part = f"{model_type}_text"
        hint = (
            f". The text part of such a model is {part!r}: give a checkpoint of it alone"
            if part in names
            else ""
        )
        raise ValueError(
            f"model_type {str(model_type)[:80]!r} is not supported; "
            f"the families are {', '.join(names)}{hint}"
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
        kind = values.get("model_type", "(none)")
        own = getattr(find(kind), "OWN_CODE", ()) if kind in family_names() else ()
        reject_custom_code(values, "it", own)
        reject_moe(values)
        reject_linear_attention(values)
        return find(kind).config(Fields(values))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
