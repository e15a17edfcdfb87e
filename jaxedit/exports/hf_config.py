"""The files beside the weights of an HF checkpoint: its configuration and its tokenizer.

They are the base's own, with the dtype of the weights set. Those of a .gguf file are written from
its metadata.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from jaxedit.files import read_json, write_atomic
from jaxedit.models.gguf.checkpoint import describe_gguf
from jaxedit.models.orbax import FILES
from jaxedit.models.tokenizer import Tokenizer

COPIED = (*FILES, "generation_config.json", "chat_template*")
_GGUF_TOKEN = "tokenizer.ggml.{}_token_id"


def write_config(path: Path, tokenizer: Tokenizer, dtype: str, folder: Path) -> None:
    """Write configuration and tokenizer files.

    Args:
      path: the base's directory or .gguf file.
      tokenizer: the base's, for a .gguf file.
      dtype: of the weights.
      folder: to write to.

    Raises:
      ValueError: where a .gguf file's configuration cannot be said in HF's form.
    """
    if path.suffix == ".gguf":
        metadata, config = describe_gguf(path)
        config = _for_transformers(config, metadata)
        _write_generation_config(folder, config)
        _write_tokenizer(folder, tokenizer, metadata)
    else:
        for file in sorted({file for pattern in COPIED for file in path.glob(pattern)}):
            shutil.copyfile(file, folder / file.name)  # without its rights: it may be read-only
        config = read_json(path / "config.json")
    # The older name is the one that every version of transformers reads.
    names = ["torch_dtype", "dtype"] if "dtype" in config else ["torch_dtype"]
    _write_json(folder / "config.json", {**config, **dict.fromkeys(names, dtype)})


def _for_transformers(config: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Complete the configuration of a .gguf file."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    # Transformers 5 reads the older names of rotary positions too, 4 only these.
    unset = {"rope_scaling"} if config.get("rope_scaling") == {"rope_type": "default"} else set()
    known = {
        name: value for name, value in config.items() if value is not None and name not in unset
    }
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]
    return {"architectures": [architecture], **known, **_special_ids(metadata)}


def _special_ids(metadata: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of special tokens under HF's names."""
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    ids = {f"{hf}_token_id": metadata.get(_GGUF_TOKEN.format(n)) for n, hf in names.items()}
    return {name: int(number) for name, number in ids.items() if number is not None}


def _write_generation_config(folder: Path, config: dict[str, Any]) -> None:
    ids = {name: config[name] for name in config if name.endswith("_token_id")}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json as `AutoTokenizer` reads them."""
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    # Special tokens by their text; a begin-of-text token that every text gets is a step of the
    # tokenizer itself.
    texts = metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    ids = {hf: metadata.get(_GGUF_TOKEN.format(name)) for name, hf in names.items()}
    tokens = {f"{hf}_token": texts[number] for hf, number in ids.items() if number is not None}
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    if tokenizer.add_bos:
        bos = tokens["bos_token"]
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.bos_id)],
        )
    backend.save(str(folder / "tokenizer.json"))

    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    architecture = metadata["general.architecture"]
    if f"{architecture}.context_length" in metadata:
        about["model_max_length"] = metadata[f"{architecture}.context_length"]
    if "tokenizer.chat_template" in metadata:
        about["chat_template"] = metadata["tokenizer.chat_template"]
    _write_json(folder / "tokenizer_config.json", about)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    write_atomic(path, f"{text}\n".encode())
