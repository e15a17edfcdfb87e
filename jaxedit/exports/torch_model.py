"""An export as those run it who get it: transformers and peft, in torch, float32, on the CPU."""

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.exports.record import ExportRecord
from jaxedit.models.load import resolve_path

PACKAGES = {"hf": ("torch",), "peft": ("torch", "peft"), "delta": ("torch",)}  # by format
MOST_NATS = 700  # a token, whose exponential float64 still holds


class TorchModel(NamedTuple):
    """An export loaded in torch.

    Attributes:
      module: the model with the edits.
      base_weights: HF's name -> the base's weight, of those that the export changes; empty for a
        whole checkpoint.
    """

    module: Any
    base_weights: Mapping[str, np.ndarray]


def load_torch(folder: Path, record: ExportRecord, base: str) -> TorchModel:
    """Load an export with transformers, an adapter with peft.

    Args:
      folder: of the export.
      record: its account of itself.
      base: the base's HF directory or hub id; not used for a whole checkpoint.

    Raises:
      ValueError: where a package is missing, the base is not an HF directory, or the format is none
        that transformers reads.
    """
    _check_packages(record.format)
    import torch
    from transformers import AutoModelForCausalLM

    place = folder if record.format == "hf" else _hf_directory(base)
    module: Any = AutoModelForCausalLM.from_pretrained(
        str(place), dtype=torch.float32, trust_remote_code=False
    )
    changed = [weight.name for weight in record.written if record.format != "hf"]
    weights = {name: module.get_parameter(name).detach().numpy().copy() for name in changed}
    if record.format == "peft":
        from peft import PeftModel

        module = PeftModel.from_pretrained(module, str(folder))
    if record.format == "delta":
        _add_changes(module, folder)
    return TorchModel(module.eval(), weights)


def torch_logits(model: TorchModel, tokens_BT: np.ndarray) -> np.ndarray:
    """Compute float32 logits [B, T, V] of rows of tokens."""
    import torch

    with torch.no_grad():
        return model.module(torch.from_numpy(tokens_BT)).logits.float().numpy()


def torch_perplexity(model: TorchModel, token_lists: Sequence[Sequence[int]]) -> float:
    """Compute the mean over texts of exp(mean loss a token), the first token not scored."""
    per_text = []
    for tokens in token_lists:
        logits_TV = torch_logits(model, np.array([tokens]))[0, :-1].astype(np.float64)
        largest_T = logits_TV.max(axis=-1)
        log_sum_T = np.log(np.exp(logits_TV - largest_T[:, None]).sum(axis=-1)) + largest_T
        nll_nats = (log_sum_T - logits_TV[np.arange(len(tokens) - 1), tokens[1:]]).mean()
        per_text.append(math.exp(nll_nats) if nll_nats < MOST_NATS else math.inf)
    return float(np.mean(per_text))


def torch_changes(model: TorchModel) -> dict[str, np.ndarray]:
    """Compute what an export adds to the base's weights: HF's name -> change.

    An adapter is merged for that: ask for it last.
    """
    module = model.module
    if hasattr(module, "merge_and_unload"):
        module = module.merge_and_unload()
    return {
        name: module.get_parameter(name).detach().numpy() - weight
        for name, weight in model.base_weights.items()
    }


def _check_packages(format: str) -> None:
    """Check that what reads a format is installed."""
    if format not in PACKAGES:
        raise ValueError(
            f"transformers and peft do not read the format {format!r}; verify compares exports of "
            f"the formats {', '.join(PACKAGES)}"
        )
    for name in PACKAGES[format]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"{name} is not installed ({error}): pip install 'jaxedit[verify]'"
            ) from error


def _hf_directory(base: str) -> Path:
    """Find the HF directory of a base."""
    path = resolve_path(base)
    if path.suffix == ".gguf":
        raise ValueError(
            f"the base {base} is a .gguf file, which these programs do not read exactly: name the "
            "HF one by --base=DIR or --base=OWNER/NAME"
        )
    return path


def _add_changes(module: Any, folder: Path) -> None:
    """Add the arrays of a folder to the weights of a torch model that have their names."""
    import torch
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        for name, change in load_file(file).items():
            with torch.no_grad():
                module.get_parameter(name).add_(change.float())
