"""Tiny HF checkpoints whose tokenizer has a token for each byte, and special ones."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS, TURN = "<|bos|>", "<|eos|>", "<|turn|>"  # tokens 256, 257 and 258
N_TOKENS = 259
IDS = {"vocab_size": N_TOKENS, "bos_token_id": 256, "eos_token_id": 257}


def write_byte_model(
    source: Path,
    folder: Path,
    *,
    special: Sequence[int] = (),
    beyond: Sequence[str] = (),
    generation: dict | None = None,
    add_bos: bool = True,
) -> Path:
    """Copy a checkpoint of N_TOKENS tokens and give it a byte tokenizer.

    Args:
      source: an HF directory, made with IDS.
      folder: to be made.
      special: bytes whose tokens are special.
      beyond: texts of tokens that the tokenizer has behind the model's.
      generation: what generation_config.json is to hold; None: there is none.
      add_bos: whether every text begins with the begin-of-text token.

    Returns:
      The folder.
    """
    shutil.copytree(source, folder)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, TURN, *(tokens[i] for i in special)])
    tokenizer.add_tokens(list(beyond))
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 256)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
