"""Tokenisation, with the character offsets that tell where a subject ends and a target begins."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxedit.files import read_json, shorten_json
from jaxedit.models.family import reject_custom_code

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
    """

    backend: "tokenizers.Tokenizer"
    add_bos: bool
    bos_id: int | None
    eos_id: int | None
    chat_template: str | None = None

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Tokenise a text; `bos=None` follows the model's own settings."""
        return self.encode_with_ends(text, bos)[0]

    def encode_many(
        self, texts: list[str], bos: bool | None = None, max_length: int | None = None
    ) -> list[np.ndarray]:
        """Tokenise texts on all cores, each as `encode` does, to int32 [T].

        Args:
          texts: any number.
          bos: as in `encode`.
          max_length: texts are cut after so many tokens; absent: not at all.
        """
        front = self._front(bos)
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array((front + encoding.ids)[:max_length], np.int32) for encoding in encodings]

    def encode_with_ends(
        self, text: str, bos: bool | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise a text; return tokens and, for each, the characters (start, end) it stands for.

        A begin-of-text token has (0, 0).
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        front = self._front(bos)
        return front + encoding.ids, [(0, 0)] * len(front) + encoding.offsets

    def _front(self, bos: bool | None) -> list[int]:
        """Return the tokens to be put in front of a text."""
        if not (self.add_bos if bos is None else bos):
            return []
        if self.bos_id is None:
            raise ValueError(
                "a begin-of-text token was asked for, but this tokenizer has none; "
                "load with add_bos=False"
            )
        return [self.bos_id]

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
        ends = ["" if i is None else self.decode([i]) for i in (self.bos_id, self.eos_id)]
        try:
            (prompt,), _ = render_jinja_template(
                [messages],
                chat_template=self.chat_template,
                add_generation_prompt=True,
                bos_token=ends[0],
                eos_token=ends[1],
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return prompt

    def decode(self, ids) -> str:
        """Return the text of tokens, special ones included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


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


def _check_settings(path: Path, has_backend: bool) -> None:
    """Check that a tokenizer_config.json asks for no code and no class that is not there.

    Args:
      path: of the file.
      has_backend: whether there is a tokenizer.json, which needs no class.

    Raises:
      ValueError: where it does, or is no JSON object.
    """
    import transformers

    settings = read_json(path)
    reject_custom_code(settings, str(path))
    name = settings.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{path} has tokenizer_class={shorten_json(name)}; expected a string")
    if name and not has_backend and not hasattr(transformers, name):
        raise ValueError(
            f"{path} has tokenizer_class={name[:80]!r}, which transformers has not, and there is "
            "no tokenizer.json; write one with the model's own code (save_pretrained)"
        )


_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer files of an HF directory.

    They are tokenizer.json, vocab.json with merges.txt, or a sentencepiece model.

    Raises:
      ValueError: where the directory holds no tokenizer that transformers can read.
    """
    import tokenizers
    from transformers import AutoTokenizer  # slow to import; GGUF files do without

    settings = directory / "tokenizer_config.json"
    if settings.is_file():
        _check_settings(settings, has_backend=(directory / "tokenizer.json").is_file())

    # Without files transformers makes an empty tokenizer and says nothing.
    if not any(all((directory / name).is_file() for name in names) for names in _FILES):
        expected = " or ".join(map(" with ".join, _FILES))
        raise ValueError(f"no tokenizer in {directory}: expected {expected} beside the weights")

    # Some classes of transformers rebuild the splitting of words from code (GPT2Tokenizer forgets
    # that SmolLM2 splits digits), so where there is a tokenizer.json it is taken as written.
    written = directory / "tokenizer.json"
    try:
        hf = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
        if written.is_file():
            backend = tokenizers.Tokenizer.from_file(str(written))
        else:
            backend = _with_dummy_prefix(hf.backend_tokenizer)
        # Ids through the text: a class's default token that the vocabulary lacks would have an id
        # that the model lacks.
        bos_id, eos_id = (
            None if token is None else backend.token_to_id(token)
            for token in (hf.bos_token, hf.eos_token)
        )
        # Whether texts begin with a begin-of-text token is tried: the settings say it in several
        # ways.
        probe = hf("a")["input_ids"]
        backend.no_truncation()
        backend.no_padding()
    except Exception as error:  # whatever the files lead transformers and tokenizers into
        reason = f"{type(error).__name__}: {str(error)[:300] or 'no message'}"
        raise ValueError(f"no usable tokenizer in {directory}: {reason}") from error

    add_bos = bos_id is not None and len(probe) > 1 and probe[0] == bos_id
    template = hf.chat_template if isinstance(hf.chat_template, str) else None
    return Tokenizer(backend, add_bos, bos_id, eos_id, template)


def _with_dummy_prefix(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """Have a tokenizer put a space before texts that begin with one, too.

    Sentencepiece does, transformers 5 does not.
    """
    from tokenizers import normalizers, pre_tokenizers

    step = backend.pre_tokenizer
    is_metaspace = isinstance(step, pre_tokenizers.Metaspace)
    if not is_metaspace or step.prepend_scheme == "never" or step.split:
        return backend
    first = [] if backend.normalizer is None else [backend.normalizer]
    prepend = normalizers.Prepend(step.replacement)
    replace = normalizers.Replace(" ", step.replacement)
    backend.normalizer = normalizers.Sequence([*first, prepend, replace])
    backend.pre_tokenizer = None
    return backend
