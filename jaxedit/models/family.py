"""What a family file is made of: a checked reading of the HF configuration and the form of a weight table.

A family is `families/<hf model_type>.py` with

    config(fields) -> DecoderConfig   every attribute taken, expected or ignored by name; an unknown one raises
    WEIGHTS                           HF tensor name with {l} -> (parameters, einops pattern); None: known, dropped
    TINY                              a small HF configuration for parity tests

and, where llama.cpp has the architecture, `GGUF` (its tensor names) and `from_gguf(metadata) -> HF configuration`.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

# HF tensor name -> (parameter names, "HF layout -> our layout"), with the letters of jaxedit.axes and, for fused
# tensors, `c` for the parts. Several parameters are the entries of the result's leading axis, in order.
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
    """A configuration being read: each attribute must be taken, expected or ignored."""

    def __init__(self, values: dict[str, Any]):
        self.values = values
        self.seen: set[str] = set()

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The attribute's value, or the default (also where the file says null).

        Raises:
          ValueError: where it is missing and has no default.
        """
        self.seen.add(name)
        value = self.values.get(name)
        if value is None:
            if default is REQUIRED:
                raise ValueError(f"the configuration has no {name!r}, which {self.values.get('model_type')} models need")
            return default
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Accepts an attribute only with one of these values (the first is the default).

        Raises:
          ValueError: on any other value, since the decoder would compute something else.
        """
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"the configuration has {name}={value!r}; the decoder supports {', '.join(map(repr, allowed))}")

    def finish(self, **ignored: str) -> None:
        """Checks that nothing is left over; `ignored` names attributes with the reason for leaving them.

        Raises:
          ValueError: on attributes that nobody knows.
        """
        unknown = sorted(set(self.values) - self.seen - set(IGNORED) - set(ignored))
        if unknown:
            raise ValueError(
                f"unknown attributes {unknown} in the configuration of model_type {self.values.get('model_type')!r}: they may "
                "change what the model computes. Handle them in its families/ file, or ignore them there with a reason"
            )


def names() -> list[str]:
    """The families there are, by their HF model_type."""
    return sorted(path.stem for path in (Path(__file__).parent / "families").glob("[a-z]*.py"))


def find(model_type: str) -> ModuleType:
    """The family of an HF model_type.

    Raises:
      ValueError: where there is none.
    """
    if model_type not in names():
        raise ValueError(f"model_type {model_type!r} is not supported; the families are {', '.join(names())}")
    return importlib.import_module(f"jaxedit.models.families.{model_type}")
