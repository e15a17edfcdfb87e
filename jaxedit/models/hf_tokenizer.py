"""The tokenizer of an HF directory, as transformers has it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxedit.models.tokenizer import Tokenizer
from jaxedit.models.tokenizer_settings import (
    add_missing_tokens,
    check_settings,
    find_ids,
    read_generation,
    with_dummy_prefix,
)

if TYPE_CHECKING:
    import tokenizers

FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))


def read_tokenizer(directory: Path, vocab_size: int | None = None) -> Tokenizer:
    """Read the tokenizer files of an HF directory.

    They are tokenizer.json, vocab.json with merges.txt, or a sentencepiece model.

    Args:
      directory: where they are.
      vocab_size: how many tokens the model has an embedding of; None: not known.

    Raises:
      ValueError: where the directory holds no tokenizer that transformers can read, or one that
        puts several tokens in front of a text.
    """
    settings = directory / "tokenizer_config.json"
    if settings.is_file():
        check_settings(settings, has_backend=(directory / "tokenizer.json").is_file())

    # Without files transformers makes an empty tokenizer and says nothing.
    if not any(all((directory / name).is_file() for name in names) for names in FILES):
        expected = " or ".join(map(" with ".join, FILES))
        raise ValueError(f"no tokenizer in {directory}: expected {expected} beside the weights")
    generation, end_ids = read_generation(directory)
    try:
        hf, backend = _read_both(directory, vocab_size)
        front = _tokens_in_front(hf)
        # Ids through the text: a class's default token that the vocabulary lacks would have an id
        # that the model lacks.
        special_tokens = {
            name: text
            for name, text in hf.special_tokens_map.items()
            if backend.token_to_id(text) is not None
        }
    except Exception as error:  # whatever the files lead transformers and tokenizers into
        reason = f"{type(error).__name__}: {str(error)[:300] or 'no message'}"
        raise ValueError(f"no usable tokenizer in {directory}: {reason}") from error
    if len(front) > 1:
        raise ValueError(
            f"the tokenizer in {directory} puts {len(front)} tokens in front of a text "
            f"({', '.join(repr(backend.id_to_token(i)) for i in front)}); expected one, "
            "begin-of-text: change the post_processor of its tokenizer.json"
        )
    bos_id, eos_id = (
        backend.token_to_id(special_tokens[name]) if name in special_tokens else None
        for name in ("bos_token", "eos_token")
    )
    return Tokenizer(
        backend,
        add_bos=bool(front),
        bos_id=front[0] if front else bos_id,
        eos_id=eos_id,
        chat_template=_default_template(hf.chat_template),
        more_end_ids=end_ids - {eos_id},
        more_special_ids=find_ids(backend, hf.all_special_tokens),
        special_tokens=special_tokens,
        generation=generation,
    )


def _read_both(directory: Path, vocab_size: int | None) -> "tuple[Any, tokenizers.Tokenizer]":
    """Read what transformers makes of a tokenizer's files, and its backend with all tokens."""
    import tokenizers
    from transformers import AutoTokenizer  # slow to import; GGUF files do without

    hf = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    # Some classes of transformers rebuild the splitting of words from code (GPT2Tokenizer forgets
    # that SmolLM2 splits digits), so where there is a tokenizer.json it is taken as written.
    written = directory / "tokenizer.json"
    if written.is_file():
        backend = tokenizers.Tokenizer.from_file(str(written))
        add_missing_tokens(backend, hf.added_tokens_decoder, vocab_size)
    else:
        backend = with_dummy_prefix(hf.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return hf, backend


def _tokens_in_front(hf: Any) -> list[int]:
    """Try which tokens transformers puts in front of a text: settings say it in several ways."""
    whole, text = hf("a")["input_ids"], hf("a", add_special_tokens=False)["input_ids"]
    n_more = len(whole) - len(text)
    n_front = next((n for n in range(n_more + 1) if whole[n : n + len(text)] == text), 0)
    return list(whole[:n_front])


def _default_template(given: Any) -> str | None:
    """Return the chat template; of several by name the one that transformers takes unasked."""
    template = given.get("default") if isinstance(given, dict) else given
    return template if isinstance(template, str) else None
