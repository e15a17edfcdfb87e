"""The metadata of a GGUF file: typed, and without keys that would change what is computed.

Keys are llama.cpp's (`gguf-py/gguf/constants.py`). Of the architecture's own keys each is read or
refused, as the attributes of an HF configuration are; of the tokenizer's likewise. Keys of other
name spaces (general., quantize., those of who quantised the file) say nothing to llama.cpp either.
"""

from pathlib import Path
from typing import Any

from jaxedit.messages import first_line
from jaxedit.models.fields import Fields
from jaxedit.models.gguf.header import check_header

LONGEST_TOKEN = 4096  # characters; building the merges takes the square of it

# Keys of an architecture that llama.cpp reads and that change nothing in the models read here.
_INERT = {
    "vocab_size": "the tokens' list and the embedding say it",
    "expert_used_count": "without experts nothing",
    "tensor_data_layout": "a note of the first converters",
    "rope.scaling.original_context_length": "read for yarn only",
    "rope.scaling.finetuned": "provenance",
}
# Keys of the tokenizer that are read in `tokenizer.py`, or say nothing about a text's tokens in
# byte-level BPE and sentencepiece BPE.
_TOKENIZER = {
    *("model", "pre", "tokens", "token_type", "scores", "merges"),
    *("add_bos_token", "add_space_prefix"),
    *("add_eos_token", "add_sep_token", "token_type_count"),
    *("remove_extra_whitespaces", "precompiled_charsmap"),  # of T5's kind of tokenizer
}
_IDS = ("_token_id", "_token_ids")  # ends of keys that number special tokens


def read_metadata(path: Path) -> tuple[Any, dict[str, Any]]:
    """Open a GGUF file and read its metadata.

    Returns:
      What `gguf.GGUFReader` makes of the file, and key -> value.

    Raises:
      ValueError: where the file is cut short or announces more than it holds.
      OSError: where it cannot be read.
    """
    import gguf

    n_bytes = path.stat().st_size
    try:
        check_header(path)
        reader = gguf.GGUFReader(path)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} ({n_bytes:,} bytes) is not a whole GGUF file: {first_line(error)}"
        ) from error


def metadata_fields(path: Path, metadata: dict[str, Any]) -> Fields:
    """Return the metadata as fields, each to be taken with its type."""
    hint = " in its metadata; was it written for an old version of llama.cpp?"
    return Fields(metadata, str(path), hint)


def check_file_kind(path: Path, metadata: dict[str, Any]) -> None:
    """Check that a file is one whole model.

    Raises:
      ValueError: on an adapter and the like, and on one of several parts.
    """
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ValueError(f"{path} is of type {kind!r}; a model is needed")
    if metadata.get("split.count", 0) not in (0, 1):
        raise ValueError(
            f"{path} is one of {metadata['split.count']} parts: put them together with "
            "llama-gguf-split --merge"
        )


def finish_architecture(fields: Fields, architecture: str) -> None:
    """Check that no key of the architecture is left over.

    Raises:
      ValueError: on keys that nobody knows, and on attention that is not causal.
    """
    fields.expect(f"{architecture}.attention.causal", True)
    fields.expect(f"{architecture}.use_parallel_residual", False)
    attn_factor = f"{architecture}.rope.scaling.attn_factor"
    if attn_factor not in fields.seen:
        fields.expect(attn_factor, 1.0)
    fields.expect(f"{architecture}.expert_count", 0)
    known = fields.seen | {f"{architecture}.{name}" for name in _INERT}
    unknown = [name for name in fields.values if name.startswith(f"{architecture}.")]
    unknown = sorted(set(unknown) - known)
    if unknown:
        raise ValueError(
            f"{fields.what} has unknown keys {unknown[:9]} in its metadata: "
            "they may change what the model computes"
        )


def check_tokenizer(fields: Fields) -> None:
    """Check the types, lengths and ranges of a tokenizer's metadata, and that none is unknown.

    Raises:
      ValueError: on what is not as the keys' meaning asks.
    """
    prefix = "tokenizer.ggml."
    tokens = fields.sequence(f"{prefix}tokens", str)
    longest = max(map(len, tokens), default=0)
    if not tokens or longest > LONGEST_TOKEN:
        raise ValueError(
            f"{fields.what} has {len(tokens)} tokens, the longest of {longest:,} characters; "
            f"expected some, of {LONGEST_TOKEN:,} at most"
        )
    fields.text(f"{prefix}model", None)
    fields.text(f"{prefix}pre", None)
    fields.text("tokenizer.chat_template", None)
    fields.flag(f"{prefix}add_bos_token", False)
    fields.flag(f"{prefix}add_space_prefix", True)
    fields.expect(f"{prefix}escape_whitespaces", True)
    for name, kind in (("token_type", int), ("scores", float)):
        values = fields.sequence(f"{prefix}{name}", kind, default=None)
        if values is not None and len(values) != len(tokens):
            raise ValueError(
                f"{fields.what} has {len(values):,} entries in {prefix}{name} for {len(tokens):,} "
                "tokens"
            )
    merges = fields.sequence(f"{prefix}merges", str, default=None) or []
    odd = next((pair for pair in merges if pair.count(" ") != 1), None)
    if odd is not None:
        raise ValueError(
            f"{fields.what} has {odd[:80]!r} in {prefix}merges; expected two tokens with a space "
            "between"
        )

    own = [name.removeprefix(prefix) for name in fields.values if name.startswith(prefix)]
    for name in own:
        if name.endswith(_IDS[0]):
            fields.count(f"{prefix}{name}", least=0, most=len(tokens) - 1)
    unknown = sorted(name for name in own if name not in _TOKENIZER and not name.endswith(_IDS))
    unknown = [name for name in unknown if f"{prefix}{name}" not in fields.seen]
    if unknown:
        raise ValueError(
            f"{fields.what} has unknown keys {unknown[:9]} of {prefix} in its metadata: "
            "they may change a text's tokens"
        )
