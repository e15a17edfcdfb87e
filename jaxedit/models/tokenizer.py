"""Text to tokens and back, with the character offsets that tell where a subject ends."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizers` tokenizer and what the model's own settings say about special tokens.

    `add_bos` is whether edits, keys and generation put `bos_id` in front; perplexity never does
    unless asked."""

    backend: "tokenizers.Tokenizer"
    add_bos: bool
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Tokens of a text; `bos=None` follows the model's own settings."""
        return self.encode_with_ends(text, bos)[0]

    def encode_many(
        self, texts: list[str], bos: bool | None = None, max_length: int | None = None
    ) -> list[np.ndarray]:
        """What `encode` gives for each text, cut after max_length tokens, as int32 [T]; on all
        cores.
        """
        front = self._front(bos)
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array((front + encoding.ids)[:max_length], np.int32) for encoding in encodings]

    def encode_with_ends(
        self, text: str, bos: bool | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens and, for each, the characters (start, end) it stands for; a begin-of-text token
        has (0, 0).
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        front = self._front(bos)
        return front + encoding.ids, [(0, 0)] * len(front) + encoding.offsets

    def _front(self, bos: bool | None) -> list[int]:
        if not (self.add_bos if bos is None else bos):
            return []
        if self.bos_id is None:
            raise ValueError(
                "a begin-of-text token was asked for, but this tokenizer has none; load with add_bos=False"
            )
        return [self.bos_id]

    def decode(self, ids) -> str:
        """Text of tokens, special ones included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def last_token_of(offsets: list[tuple[int, int]], end: int) -> int:
    """The index of the last token that begins before character `end`: the last token of a subject
    that ends there.

    Raises:
      ValueError: where there is none, since the tokenizer knows none of the characters.
    """
    at = max((i for i, (start, _) in enumerate(offsets) if start < end), default=None)
    if at is None:
        raise ValueError(
            f"no token begins before character {end}: the tokenizer gave no token for the subject"
        )
    return at


def first_token_after(offsets: list[tuple[int, int]], start: int) -> int:
    """The index of the first token that reaches beyond character `start`: the first token of a
    target after a prompt.

    Raises:
      ValueError: where there is none, since the tokenizer knows none of the characters.
    """
    at = next((i for i, (_, end) in enumerate(offsets) if end > start), None)
    if at is None:
        raise ValueError(
            f"no token reaches beyond character {start}: the tokenizer gave no token for the target"
        )
    return at


_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))


def read_tokenizer(directory: Path) -> Tokenizer:
    """Reads the tokenizer files of an HF directory (tokenizer.json, vocab and merges, or a
    sentencepiece model).

    Raises:
      ValueError: where the directory holds no tokenizer that transformers can read.
    """
    import tokenizers
    from transformers import AutoTokenizer  # slow to import; GGUF files do without

    # Without files transformers makes an empty tokenizer and says nothing.
    if not any(all((directory / name).is_file() for name in names) for names in _FILES):
        raise ValueError(
            f"no tokenizer in {directory}: expected {' or '.join(map(' with '.join, _FILES))} beside the weights"
        )
    written = directory / "tokenizer.json"
    try:
        hf = AutoTokenizer.from_pretrained(str(directory))
        # Some classes of transformers rebuild the splitting of words from code (GPT2Tokenizer
        # forgets that SmolLM2 splits digits), so where there is a tokenizer.json it is taken as
        # written.
        backend = (
            tokenizers.Tokenizer.from_file(str(written))
            if written.is_file()
            else _dummy_prefix(hf.backend_tokenizer)
        )
    except Exception as error:
        raise ValueError(f"no usable tokenizer in {directory}: {error}") from error
    # Through the text: a class's default token that the vocabulary lacks would have an id that the
    # model lacks.
    bos_id, eos_id = (
        None if token is None else backend.token_to_id(token)
        for token in (hf.bos_token, hf.eos_token)
    )
    probe = hf("a")["input_ids"]
    add_bos = bos_id is not None and len(probe) > 1 and probe[0] == bos_id
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, add_bos, bos_id, eos_id)


def _dummy_prefix(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """Puts a space before a text that begins with one, too, as sentencepiece does and transformers
    5 does not.
    """
    from tokenizers import normalizers, pre_tokenizers

    step = backend.pre_tokenizer
    if (
        isinstance(step, pre_tokenizers.Metaspace)
        and step.prepend_scheme != "never"
        and not step.split
    ):
        held = [] if backend.normalizer is None else [backend.normalizer]
        replace = normalizers.Replace(" ", step.replacement)
        backend.normalizer = normalizers.Sequence(
            [*held, normalizers.Prepend(step.replacement), replace]
        )
        backend.pre_tokenizer = None
    return backend
