"""What the files of an HF directory say of a tokenizer besides its vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxedit.files import read_json, shorten_json
from jaxedit.models.family import reject_custom_code

if TYPE_CHECKING:
    import tokenizers


def find_ids(backend: "tokenizers.Tokenizer", tokens: list[str]) -> frozenset[int]:
    """Return the ids of those tokens that the vocabulary has."""
    ids = (backend.token_to_id(str(token)) for token in tokens)
    return frozenset(i for i in ids if i is not None)


def add_missing_tokens(
    backend: "tokenizers.Tokenizer",
    added: "Mapping[int, tokenizers.AddedToken]",
    vocab_size: int | None,
) -> None:
    """Add the tokens to a tokenizer.json's that transformers adds, as other files name them.

    Args:
      backend: of tokenizer.json; it is changed.
      added: id -> token, all that transformers takes out of texts before they are split.
      vocab_size: how many tokens the model has an embedding of; those beyond are left out. None:
        those that tokenizer.json has an id of.

    Raises:
      ValueError: where a token would have another id than transformers gives it.
    """
    own = {token.content for token in backend.get_added_tokens_decoder().values()}
    limit = backend.get_vocab_size() if vocab_size is None else vocab_size
    for i, token in sorted(added.items()):
        if token.content in own or i >= limit:
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != i:
            raise ValueError(
                f"the token {token.content!r} has the id {i}, but "
                f"{backend.token_to_id(token.content)} behind those of tokenizer.json"
            )


def read_generation(directory: Path) -> tuple[dict[str, Any], frozenset[int]]:
    """Read what the files ask of HF's `generate`, and the tokens at which it ends: any number.

    They stand in generation_config.json, or where there is none in the configuration.

    Raises:
      ValueError: where the tokens are no ids.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        path = directory / "config.json"
    settings = read_json(path) if path.is_file() else {}
    ids = settings.get("eos_token_id")
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(i) is int for i in listed):
        raise ValueError(
            f"{path} has eos_token_id={shorten_json(ids)}; expected an id, or a list of ids"
        )
    return settings, frozenset(listed)


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


def check_settings(path: Path, has_backend: bool) -> None:
    """Check that a tokenizer_config.json asks for no code and no class that is not there.

    Args:
      path: of the file.
      has_backend: whether there is a tokenizer.json, which needs no class.

    Raises:
      ValueError: where it does, or is no JSON object.
    """
    import transformers  # slow to import

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
