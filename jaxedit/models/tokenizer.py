"""Tokenisation, with the character offsets that tell where a subject ends and a target begins."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.models.texts import check_surrogates

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizers` tokenizer and what the model's own settings say about special tokens.

    Attributes:
      backend: text to tokens; it adds no special tokens.
      add_bos: whether edits, keys and generation put `bos_id` in front; perplexity never does
        unless asked.
      bos_id: the begin-of-text token, if there is one.
      eos_id: the end-of-text token, if there is one.
      chat_template: the Jinja template that turns messages into a prompt, if there is one.
      more_end_ids: other tokens that end what a model says, such as the end of a turn.
      turn_end_ids: those of them that are known by their texts alone.
      more_special_ids: special tokens besides those that the backend knows as such.
      vocab_size: how many tokens the model has an embedding of; None: not known yet.
      special_tokens: the texts of special tokens by their names in HF's files ("bos_token"), which
        chat templates use.
      generation: what the model's files ask of HF's `generate`.
    """

    backend: "tokenizers.Tokenizer"
    add_bos: bool
    bos_id: int | None
    eos_id: int | None
    chat_template: str | None = None
    more_end_ids: frozenset[int] = frozenset()
    more_special_ids: frozenset[int] = frozenset()
    vocab_size: int | None = None
    turn_end_ids: frozenset[int] = frozenset()
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def end_ids(self) -> frozenset[int]:
        """All tokens that end what a model says."""
        eos = {self.eos_id} if self.eos_id is not None else set()
        return self.more_end_ids | self.turn_end_ids | eos

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no part of a text, such as begin- and end-of-text."""
        added = self.backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        named = {i for i in (self.bos_id, self.eos_id) if i is not None}
        return self.more_special_ids | special | named

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Tokenise a text; `bos=None` follows the model's own settings.

        A text that begins with a begin-of-text token gets no other.

        Raises:
          ValueError: on a token that the model has no embedding of, on half a surrogate pair, and
            where a begin-of-text token is asked for that the tokenizer lacks.
        """
        return self.encode_with_ends(text, bos)[0]

    def encode_many(
        self, texts: list[str], bos: bool | None = None, max_length: int | None = None
    ) -> list[np.ndarray]:
        """Tokenise texts on all cores, each as `encode` does, to int32 [T].

        Args:
          texts: any number.
          bos: as in `encode`.
          max_length: texts are cut after so many tokens; absent: not at all.

        Raises:
          ValueError: as `encode`.
        """
        for text in texts:
            check_surrogates(text, f"the text {text[:80]!a}")
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        token_lists = [
            (self._front(encoding.ids, bos) + encoding.ids)[:max_length] for encoding in encodings
        ]
        for tokens in token_lists:
            self.check_ids(tokens)
        return [np.array(tokens, np.int32) for tokens in token_lists]

    def encode_with_ends(
        self, text: str, bos: bool | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise a text; return tokens and, for each, the characters (start, end) it stands for.

        A begin-of-text token that is put in front has (0, 0).

        Raises:
          ValueError: as `encode`.
        """
        check_surrogates(text, f"the text {text[:80]!a}")
        encoding = self.backend.encode(text, add_special_tokens=False)
        front = self._front(encoding.ids, bos)
        tokens = front + encoding.ids
        self.check_ids(tokens)
        return tokens, [(0, 0)] * len(front) + encoding.offsets

    def _front(self, ids: list[int], bos: bool | None) -> list[int]:
        """Return the tokens to be put in front of a text's own."""
        if not (self.add_bos if bos is None else bos):
            return []
        if self.bos_id is None:
            raise ValueError(
                "a begin-of-text token was asked for, but this tokenizer has none; "
                "load with add_bos=False"
            )
        return [] if ids[:1] == [self.bos_id] else [self.bos_id]

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raise a ValueError on a token that the model has no embedding of.

        A tokenizer may know more tokens than the model it lies beside.
        """
        highest = max(ids, default=0)
        if self.vocab_size is None or highest < self.vocab_size:
            return
        raise ValueError(
            f"the token {self.backend.id_to_token(highest)!r} has the id {highest}, but the "
            f"model's vocabulary has {self.vocab_size} tokens (0 to {self.vocab_size - 1}): take "
            "it out of the text, or take the tokenizer that belongs to the model"
        )

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """Turn messages into a prompt by the model's chat template, begin-of-text token included.

        Args:
          messages: each with a "role" ("system", "user", "assistant") and its "content".

        Raises:
          ValueError: where the tokenizer has no template, or the template refuses the messages.
        """
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        if self.chat_template is None:
            raise ValueError("this model's tokenizer has no chat template: it continues plain text")
        names: dict[str, Any] = dict(self.special_tokens)
        try:
            (prompt,), _ = render_jinja_template(
                [messages], chat_template=self.chat_template, add_generation_prompt=True, **names
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return prompt

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of tokens.

        Args:
          ids: the tokens.
          skip_special: whether special tokens are left out, as in what a model says.
        """
        kept = [int(i) for i in ids if not (skip_special and int(i) in self.special_ids)]
        return self.backend.decode(kept, skip_special_tokens=skip_special)


def last_token_of(offsets: list[tuple[int, int]], end: int) -> int:
    """Find the last token of a subject that ends at character `end`.

    That is the last token that begins before it; it may reach beyond the subject.

    Args:
      offsets: each token's characters, from `Tokenizer.encode_with_ends`.
      end: where the subject ends in the text.

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
    """Find the first token of a target that follows a prompt of `start` characters.

    That is the first token that reaches beyond them; it may begin with a space of the prompt.

    Args:
      offsets: each token's characters, from `Tokenizer.encode_with_ends`.
      start: where the target begins in the text.

    Raises:
      ValueError: where there is none, since the tokenizer knows none of the characters.
    """
    at = next((i for i, (_, end) in enumerate(offsets) if end > start), None)
    if at is None:
        raise ValueError(
            f"no token reaches beyond character {start}: the tokenizer gave no token for the target"
        )
    return at
