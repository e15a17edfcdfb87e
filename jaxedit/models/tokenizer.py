"""Text to tokens and back, with the character offsets that tell where a subject ends."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizers` tokenizer and what the model's own settings say about special tokens.

    `add_bos` is whether edits, keys and generation put `bos_id` in front; perplexity never does unless asked.
    """

    backend: "tokenizers.Tokenizer"
    add_bos: bool
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Tokens of a text; `bos=None` follows the model's own settings."""
        return self.encode_with_ends(text, bos)[0]

    def encode_with_ends(self, text: str, bos: bool | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens and, for each, the characters (start, end) it stands for; a begin-of-text token has (0, 0)."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        with_bos = self.add_bos if bos is None else bos
        if not with_bos:
            return encoding.ids, encoding.offsets
        if self.bos_id is None:
            raise ValueError("a begin-of-text token was asked for, but this tokenizer has none; load with add_bos=False")
        return [self.bos_id, *encoding.ids], [(0, 0), *encoding.offsets]

    def decode(self, ids) -> str:
        """Text of tokens, special ones included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def last_token_of(offsets: list[tuple[int, int]], end: int) -> int:
    """The index of the last token that begins before character `end`: the last token of a subject that ends there."""
    return max(i for i, (start, _) in enumerate(offsets) if start < end)


def first_token_after(offsets: list[tuple[int, int]], start: int) -> int:
    """The index of the first token that reaches beyond character `start`: the first token of a target after a prompt."""
    return next(i for i, (_, end) in enumerate(offsets) if end > start)


def from_directory(directory: Path) -> Tokenizer:
    """Reads the tokenizer files of an HF directory (tokenizer.json, vocab and merges, or a sentencepiece model).

    Raises:
      ValueError: where the directory holds no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer  # slow to import; GGUF files do without

    try:
        hf = AutoTokenizer.from_pretrained(str(directory), use_fast=True)
        backend = hf.backend_tokenizer
    except Exception as error:
        raise ValueError(
            f"no usable tokenizer in {directory}: {error}. Expected tokenizer.json, or vocab.json with merges.txt, or "
            "tokenizer.model beside the weights"
        ) from error
    if backend.get_vocab_size() == 0:
        raise ValueError(f"the tokenizer in {directory} has no vocabulary; is tokenizer.json (or vocab.json) there?")
    probe = hf("a")["input_ids"]
    add_bos = hf.bos_token_id is not None and len(probe) > 1 and probe[0] == hf.bos_token_id
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, add_bos, hf.bos_token_id, hf.eos_token_id)
