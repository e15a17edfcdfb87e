"""What the files of an HF directory say of a tokenizer besides its vocabulary."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxedit.files import read_json, shorten_json

if TYPE_CHECKING:
    import tokenizers


def find_ids(backend: "tokenizers.Tokenizer", tokens: list[str]) -> frozenset[int]:
    """Return the ids of those tokens that the vocabulary has."""
    ids = (backend.token_to_id(str(token)) for token in tokens)
    return frozenset(i for i in ids if i is not None)


def read_end_ids(directory: Path) -> frozenset[int]:
    """Read the tokens at which HF's `generate` ends: one, several or none.

    They are those of generation_config.json, or where there is none of the configuration.

    Raises:
      ValueError: where they are no ids.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        path = directory / "config.json"
    ids = read_json(path).get("eos_token_id") if path.is_file() else None
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(i) is int for i in listed):
        raise ValueError(
            f"{path} has eos_token_id={shorten_json(ids)}; expected an id, or a list of ids"
        )
    return frozenset(listed)


def with_dummy_prefix(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
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
