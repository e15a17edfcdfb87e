"""Model families: the parts of a family file, and finding a family by name.

A family is `families/<hf model_type>.py` with

    config(fields) -> DecoderConfig   every attribute taken, expected or ignored by name;
                                      an unknown one raises
    WEIGHTS                           HF tensor name with {l} -> (parameters, einops pattern);
                                      None: known, dropped
    TINY                              a small HF configuration for parity tests

and, where llama.cpp has the architecture, `GGUF` (its tensor names) and
`from_gguf(metadata) -> HF configuration`.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxedit.models.rope import Rope, scaling_factors

# HF tensor name -> (parameter names, "HF layout -> our layout"), with the letters of jaxedit.axes
# and, for fused tensors, `c` for the parts. Several parameters are the entries of the result's
# leading axis, in order.
Weights = dict[str, tuple[str, str] | None]

REQUIRED = object()

# Attributes of every HF configuration that say nothing about inference.
IGNORED = {
    "architectures": "the model_type decides",
    "model_type": "already used to find the family",
    "_name_or_path": "provenance",
    "transformers_version": "provenance",
    "torch_dtype": "the loader's dtype decides",
    "dtype": "the loader's dtype decides",
    "use_cache": "generation always caches",
    "bos_token_id": "the tokenizer decides",
    "eos_token_id": "the tokenizer decides",
    "pad_token_id": "nothing is padded with a token",
    "initializer_range": "training only",
    "attention_dropout": "training only",
    "gradient_checkpointing": "training only",
    "task_specific_params": "generation defaults of the hub",
    "chunk_size_feed_forward": "memory only",
    "output_past": "what old versions of transformers returned; GPT-2 XL has it",
    "transformers.js_config": "for browsers; SmolLM2 has it",
}


class Fields:
    """An HF configuration being read: each attribute must be taken, expected or ignored."""

    def __init__(self, values: dict[str, Any]):
        self.values = values
        self.seen: set[str] = set()

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """Return the attribute's value, or the default (also where the file says null).

        Raises:
          ValueError: where it is missing and has no default.
        """
        self.seen.add(name)
        value = self.values.get(name)
        if value is None:
            if default is REQUIRED:
                family = self.values.get("model_type")
                raise ValueError(f"the configuration has no {name!r}, which {family} models need")
            return default
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Accept an attribute only with one of these values (the first is the default).

        Raises:
          ValueError: on any other value, since the decoder would compute something else.
        """
        value = self.take(name, allowed[0])
        if value not in allowed:
            supported = ", ".join(map(repr, allowed))
            raise ValueError(
                f"the configuration has {name}={value!r}; the decoder supports {supported}"
            )

    def finish(self, **ignored: str) -> None:
        """Check that no attribute is left over.

        Args:
          ignored: further attributes, each with the reason for ignoring it.

        Raises:
          ValueError: on attributes that nobody knows.
        """
        unknown = sorted(set(self.values) - self.seen - set(IGNORED) - set(ignored))
        if unknown:
            family = self.values.get("model_type")
            raise ValueError(
                f"unknown attributes {unknown} in the configuration of model_type {family!r}: "
                "they may change what the model computes. "
                "Handle them in its families/ file, or ignore them there with a reason"
            )


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
    scaling = {**fields.take("rope_scaling", {}), **fields.take("rope_parameters", {})}
    theta = _agreed(fields, scaling, ("rope_theta", *thetas), 10000.0)
    dims = int(H * _agreed(fields, scaling, shares, share))
    factors, from_file = scaling_factors(theta, dims, scaling), fields.take("rope_factors", None)
    if factors is not None and from_file is not None:
        raise ValueError(
            f"the file scales rotary frequencies twice: by rope_freqs.weight and by {scaling}"
        )
    return Rope(theta, dims, factors=factors if from_file is None else tuple(from_file))


def _agreed(fields: Fields, scaling: dict, aliases: tuple[str, ...], default: float) -> float:
    """Take an attribute by all its names from the configuration and from its rotary entry.

    Raises:
      ValueError: where they contradict each other.
    """
    given = []
    for name in aliases:
        given += [scaling.pop(name, None), fields.take(name, None)]
    distinct = sorted({float(value) for value in given if value is not None})
    if len(distinct) > 1:
        raise ValueError(
            f"the configuration gives {' or '.join(aliases)} as {distinct}: "
            "only one of these can be meant"
        )
    return distinct[0] if distinct else default


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
    width = fields.take("sliding_window", None if "sliding_window" in fields.values else 4096)
    if not active:
        width = None
    kinds = fields.take("layer_types", [])
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"the configuration has layer_types {unknown}; "
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
        with_counts = f" with {counts}" if counts else ""
        raise ValueError(
            f"model_type {kind!r}{with_counts} is a mixture of experts: its layers have no single "
            "MLP whose second weight could be edited. Choose a dense model"
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
            f"model_type {model_type!r} is not supported; the families are {', '.join(names)}"
        )
    return importlib.import_module(f"jaxedit.models.families.{model_type}")
