"""A configuration that came from outside: each attribute is read with its type and its range.

What is accepted is what the decoder computes. An attribute that nobody asks for is an error unless
it is known to say nothing about the next token's probabilities.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

from jaxedit.files import shorten_json

REQUIRED: Any = object()
LARGEST = 3e38  # of a finite float32

# Attributes of HF configurations that say nothing about inference, whatever their value.
IGNORED = {
    "architectures": "the model_type decides",
    "model_type": "already used to find the family",
    "_name_or_path": "provenance",
    "name_or_path": "provenance",
    "_commit_hash": "provenance",
    "transformers_version": "provenance",
    "unsloth_fixed": "provenance",
    "unsloth_version": "provenance",
    "torch_dtype": "the loader's dtype decides",
    "dtype": "the loader's dtype decides",
    "_attn_implementation": "how attention is computed, not what",
    "_attn_implementation_autoset": "how attention is computed, not what",
    "attn_implementation": "how attention is computed, not what",
    "use_cache": "generation always caches",
    "bos_token_id": "the tokenizer decides",
    "eos_token_id": "the tokenizer decides",
    "sep_token_id": "the tokenizer decides",
    "pad_token_id": "nothing is padded with a token",
    "tokenizer_class": "the tokenizer's own files decide",
    "initializer_range": "training only",
    "attention_dropout": "training only",
    "gradient_checkpointing": "training only",
    "use_bfloat16": "training on TPUs only",
    "task_specific_params": "generation defaults of the hub",
    "chunk_size_feed_forward": "memory only",
    "return_dict": "what transformers' modules return",
    "output_attentions": "what transformers' modules return",
    "output_hidden_states": "what transformers' modules return",
    "output_past": "what old versions of transformers returned; GPT-2 XL has it",
    "torchscript": "what transformers' modules return",
    "is_decoder": "attention is causal either way",
    "id2label": "classification heads only",
    "label2id": "classification heads only",
    "num_labels": "classification heads only",
    "_num_labels": "classification heads only",
    "problem_type": "classification heads only",
    "finetuning_task": "classification heads only",
    "tf_legacy_loss": "training in TensorFlow only",
    "transformers.js_config": "for browsers; SmolLM2 has it",
}
# Attributes of transformers' PretrainedConfig that change the computation, and the values that do
# not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "prefix": (None, ""),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False, None),
}


class Fields:
    """A configuration being read: each attribute must be taken, expected or ignored.

    Args:
      values: attribute -> value, of any type.
      what: the configuration's name in messages.
      hint: follows the name of an attribute that is missing.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        what: str = "the configuration",
        hint: str = ", which such models need",
    ):
        self.values, self.what, self.hint = values, what, hint
        self.seen: set[str] = set()

    def _take(self, name: str, default: Any) -> Any:
        """Return the attribute's value, or the default where it is absent.

        Raises:
          ValueError: where it has no default and is absent or null.
        """
        self.seen.add(name)
        value: Any = self.values.get(name)
        if value is None and default is REQUIRED:
            raise ValueError(f"{self.what} has no {name!r}{self.hint}")
        return value if name in self.values else default

    def _refuse(self, name: str, expected: str) -> ValueError:
        given = shorten_json(self.values.get(name))
        return ValueError(f"{self.what} has {name}={given}; expected {expected}")

    def count(
        self, name: str, default: Any = REQUIRED, *, least: int = 1, most: int = 2**31 - 1
    ) -> Any:
        """Take a whole number.

        Args:
          name: the attribute's.
          default: where it is absent; None: null is the same as absent.
          least: the smallest value there can be.
          most: the largest.

        Raises:
          ValueError: where it is missing, no whole number or outside of these.
        """
        value = self._take(name, default)
        if value is None and default is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise self._refuse(name, f"a whole number from {least} to {most}")
        return value

    def number(
        self, name: str, default: Any = REQUIRED, *, above: float = 0.0, most: float = math.inf
    ) -> Any:
        """Take a finite number.

        Args:
          name: the attribute's.
          default: as in `count`.
          above: the number must be larger.
          most: the largest there can be.

        Raises:
          ValueError: where it is missing, no number, not finite or outside of these.
        """
        value: Any = self._take(name, default)
        if value is None and default is None:
            return None
        # Compared, not converted: a whole number of hundreds of digits is no float.
        largest = min(most, LARGEST)
        if isinstance(value, int | float) and value is not True and above < value <= largest:
            return float(value)
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise self._refuse(name, f"a finite number above {above:g}{upper}")

    def flag(self, name: str, default: Any = REQUIRED) -> Any:
        """Take true or false.

        Raises:
          ValueError: where it is missing or something else, null and "false" among it.
        """
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self._refuse(name, "true or false")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> Any:
        """Take a string.

        Raises:
          ValueError: where it is missing or something else.
        """
        value = self._take(name, default)
        if value is None and default is None:
            return None
        if not isinstance(value, str):
            raise self._refuse(name, "a string")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Take an object; an empty one where it is absent or null.

        Raises:
          ValueError: where it is something else.
        """
        value = self._take(name, None)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._refuse(name, "an object")
        return dict(value)

    def sequence(self, name: str, *kinds: type, default: Any = REQUIRED) -> Any:
        """Take a list whose entries are all of these types.

        Args:
          name: the attribute's.
          kinds: of the entries; no bool passes for an int.
          default: as in `count`.

        Raises:
          ValueError: where it is missing, no list, or an entry is of another type.
        """
        value = self._take(name, default)
        if value is None and default is None:
            return None
        if not isinstance(value, list) or not all(type(each) in kinds for each in value):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise self._refuse(name, f"a list of {names}")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Accept an attribute only where it is absent or has one of these values.

        Raises:
          ValueError: on any other value, since the decoder would compute something else.
        """
        value = self._take(name, allowed[0])
        if not any(type(value) is type(each) and value == each for each in allowed):
            supported = ", ".join(map(repr, allowed))
            given = repr(value) if isinstance(value, str | bool | int) else shorten_json(value)
            raise ValueError(f"{self.what} has {name}={given}; the decoder supports {supported}")

    def finish(self, **ignored: str) -> None:
        """Check that no attribute is left over; one that is null says nothing.

        Args:
          ignored: further attributes, each with the reason for ignoring it.

        Raises:
          ValueError: on attributes that nobody knows.
        """
        for name in NEUTRAL.keys() - self.seen:
            self.expect(name, *NEUTRAL[name])
        known = {*self.seen, *IGNORED, *ignored}
        left = {name for name, value in self.values.items() if value is not None} - known
        unknown = sorted(left - generation_attributes() if left else left)
        if unknown:
            raise ValueError(
                f"unknown attributes {unknown[:9]} in the configuration of model_type "
                f"{self.values.get('model_type')!r}: "
                "they may change what the model computes. "
                "Handle them in its families/ file, or ignore them there with a reason"
            )


@functools.cache
def generation_attributes() -> frozenset[str]:
    """Return the attributes that say how transformers generates, which old configurations hold."""
    from transformers import GenerationConfig  # slow to import; few configurations need it

    return frozenset(GenerationConfig().to_dict())
