"""A LoRA adapter of the peft library: adapter_config.json and adapter_model.safetensors or .bin.

peft adds s B A x to what a module makes of x, with A [r, in], B [out, r] and s = lora_alpha / r, or
lora_alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern give r and lora_alpha to single
modules. So the change is s Aᵀ Bᵀ, in x out, whichever way the weight lies in the checkpoint:
`fan_in_fan_out` only tells peft that it lies in x out, and peft puts a wrong one right.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.files import read_json
from jaxedit.imports.array_files import read_arrays
from jaxedit.imports.changes import WeightChange, change_of_factors
from jaxedit.models.fields import Fields
from jaxedit.models.hf_directory import ADAPTER

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # the first that is there is read

# base_model.model.MODULE.lora_A.weight; a PeftModel's own state has the adapter's name before
# "weight".
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
OTHER_TENSORS = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_embedding_": "a LoRA of an embedding",
    "lora_B.bias": "a bias of LoRA's own (lora_bias)",
}

# What changes what an adapter computes, beyond s B A, by the key that turns it on.
REFUSED = {
    "use_dora": "DoRA, which also scales the columns of the weights",
    "modules_to_save": "whole modules that were trained beside the LoRA",
    "lora_bias": "biases of the LoRA's own",
    "trainable_token_indices": "trained rows of an embedding",
    "target_parameters": "LoRA of parameters that are no module's weight",
    "layer_replication": "layers that are there several times",
    "use_qalora": "QALoRA, whose A reads pooled inputs",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA, which begins in the middle of a text",
    "arrow_config": "Arrow, which chooses among several adapters",
    "kasa_config": "KaSA, which also changes the base weights",
    "monteclora_config": "MonteCLoRA, which samples its weights",
    "megatron_config": "Megatron's parallel modules",
    "ensure_weight_tying": "a LoRA of the embedding that is also one of the head",
}
# Ways of starting that take something out of the base weights, which peft takes out again.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
# What says nothing about a finished adapter, or is read below.
KNOWN = {
    *("alpha_pattern", "base_model_name_or_path", "bias", "fan_in_fan_out", "init_lora_weights"),
    *("layers_pattern", "layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern"),
    *("revision", "target_modules", "task_type", "use_rslora"),
    *("auto_mapping", "corda_config", "eva_config", "exclude_modules", "inference_mode"),
    *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version"),
    *("qalora_group_size", "runtime_config", "velora_config"),
}


class _Pair(NamedTuple):
    """The factors of one module."""

    a: np.ndarray | None = None
    b: np.ndarray | None = None


def read_peft(folder: Path, source: str) -> dict[str, WeightChange]:
    """Read an adapter as changes by the names of their weights.

    Args:
      folder: with the adapter's two files.
      source: the base, as `jaxedit.load` took it; another one than the adapter names is logged.

    Raises:
      ValueError: where a file is missing or cut short, or the adapter is more than a plain LoRA.
    """
    config = _read_config(folder / ADAPTER)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} holds {ADAPTER}, but neither {' nor '.join(WEIGHTS)}")
    _compare_base(folder, config, source)
    pairs = _pairs_of(path)
    _check_layers(path, config, list(pairs))
    return {
        f"{module}.weight": _change(path, config, module, pair) for module, pair in pairs.items()
    }


def _read_config(path: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what is more than a plain LoRA."""
    try:
        config = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{path} has peft_type {str(kind)[:80]!r}; of peft's adapters jaxedit reads LORA. "
            "Merge it into its base with peft (merge_and_unload) and give the merged checkpoint"
        )

    refused = [f"{key} ({why})" for key, why in REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append(f"bias={str(config['bias'])[:80]!r} (trained biases of the base)")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        refused.append(f"init_lora_weights={start!r} (which changes the base weights)")
    unknown = sorted(key for key in set(config) - KNOWN - set(REFUSED) if config[key])
    refused += [f"{key} (unknown here)" for key in unknown]
    if refused:
        raise ValueError(
            f"{path} has {', '.join(refused)}: more than the plain LoRA that jaxedit reads. Merge "
            "it into its base with peft (merge_and_unload) and give the merged checkpoint"
        )
    _check_types(path, config)
    return config


def _check_types(path: Path, config: dict[str, Any]) -> None:
    """Check the values that say how large an adapter's change is, and where.

    Raises:
      ValueError: where one of them is of another type, not finite or out of range.
    """
    fields = Fields(config, str(path))
    fields.count("r", None)
    fields.number("lora_alpha", None)
    fields.flag("use_rslora", False)
    fields.text("base_model_name_or_path", None)
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = Fields(fields.mapping(name), f"{name} of {path}")
        for key in pattern.values:
            pattern.count(key) if name == "rank_pattern" else pattern.number(key)
            try:
                re.compile(key)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"{name} of {path} has {key[:80]!r}, which is no regular expression: {error}"
                ) from error
    layers = config.get("layers_to_transform")
    if isinstance(layers, list):
        fields.sequence("layers_to_transform", int)
    elif layers is not None:
        fields.count("layers_to_transform", least=0)


def _compare_base(folder: Path, config: Mapping[str, Any], source: str) -> None:
    """Warn where an adapter names another base; of paths and hub ids their last part counts."""
    named = config.get("base_model_name_or_path")
    if named and Path(str(named)).name.lower() != Path(source).name.lower():
        logging.getLogger("jaxedit").warning(
            "%s was made for %s; it is put on %s", folder, named, source
        )


def _pairs_of(path: Path) -> dict[str, _Pair]:
    """Read the factors, by module; every module has both."""
    pairs: dict[str, _Pair] = {}
    for name, array in read_arrays(path).items():
        found = TENSOR.fullmatch(name)
        if found is None:
            what = next((what for key, what in OTHER_TENSORS.items() if key in name), "no LoRA")
            raise ValueError(
                f"{path} holds {name!r}: {what}, which jaxedit does not read. Merge the adapter "
                "into its base with peft (merge_and_unload) and give the merged checkpoint"
            )
        module, which = found[1], found[2].lower()
        pairs[module] = pairs.get(module, _Pair())._replace(**{which: array})
    lacking = [module for module, pair in pairs.items() if pair.a is None or pair.b is None]
    if lacking:
        raise ValueError(
            f"{path} has one factor of {lacking[0]!r} without the other; is it complete?"
        )
    if not pairs:
        raise ValueError(f"{path} is empty: an adapter holds lora_A and lora_B of its modules")
    return pairs


def _check_layers(path: Path, config: Mapping[str, Any], modules: list[str]) -> None:
    """Check the layers there are against layers_to_transform, where it is given."""
    expected = config.get("layers_to_transform")
    if expected is None:
        return
    layers = {expected} if isinstance(expected, int) else set(expected)
    numbers = (re.search(r"\.(\d+)\.", module) for module in modules)
    found = {int(number[1]) for number in numbers if number}
    if found != layers:
        raise ValueError(
            f"{path} changes layers {sorted(found)}, but {ADAPTER} has "
            f"layers_to_transform={sorted(layers)}"
        )


def _change(path: Path, config: Mapping[str, Any], module: str, pair: _Pair) -> WeightChange:
    """Make a module's change of its factors: s Aᵀ Bᵀ, in x out."""
    assert pair.a is not None
    assert pair.b is not None
    r = _of_module(config, "rank_pattern", module, config.get("r"))
    alpha = _of_module(config, "alpha_pattern", module, config.get("lora_alpha"))
    if r is None or alpha is None:
        raise ValueError(f"{path}: {ADAPTER} has no r or no lora_alpha for {module!r}")
    if pair.a.ndim != 2 or pair.b.ndim != 2 or not pair.a.shape[0] == pair.b.shape[1] == r:
        raise ValueError(
            f"{path}: the factors of {module!r} have shapes {pair.a.shape} and {pair.b.shape}; "
            f"expected ({r}, in) and (out, {r}) by {ADAPTER}"
        )
    scale = alpha / (r**0.5 if config.get("use_rslora") else r)
    return change_of_factors(pair.a.T, np.float32(scale) * pair.b.T, order="in_out")


def _of_module(config: Mapping[str, Any], pattern: str, module: str, default: Any) -> Any:
    """Look a module up in rank_pattern or alpha_pattern, whose keys are ends of names or regexes.

    The first that matches counts, as in peft.
    """
    for key, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
