"""GGUF files (llama.cpp): weights dequantised by the `gguf` package, configuration and tokenizer
from the metadata.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.models import family as families
from jaxedit.models.checkpoint import Checkpoint
from jaxedit.models.family import Fields
from jaxedit.models.tokenizer import Tokenizer


def open_gguf(path: Path) -> Checkpoint:
    """Opens a .gguf file of architecture llama or gpt2.

    Raises:
      ValueError: on a file that is cut short, of another architecture, or quantised in a way `gguf`
        cannot read.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole GGUF file: {error}"
        ) from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    arch = metadata.get("general.architecture")
    supported = [name for name in families.family_names() if hasattr(families.find(name), "GGUF")]
    if arch not in supported:
        raise ValueError(
            f"{path} has architecture {arch!r}; GGUF files are read for {', '.join(supported)}"
        )
    if metadata.get(f"{arch}.expert_count"):
        raise ValueError(
            f"{path} is a mixture of experts: its layers have no single MLP whose second weight could be edited"
        )

    def read(name: str, spans: tuple[slice, ...] = ()) -> np.ndarray:
        tensor = tensors[name]
        try:
            # Rows are quantised by themselves, so other rows need not be read.
            rows = tensor.data[spans[0]] if len(spans) > 1 else tensor.data
            whole = gguf.quants.dequantize(rows, tensor.tensor_type)
            return whole[(slice(None), *spans[1:]) if len(spans) > 1 else spans]
        except NotImplementedError as error:
            raise ValueError(
                f"{path}: tensor {name!r} is quantised as {tensor.tensor_type.name}: {error}"
            ) from error

    family = families.find(arch)
    try:
        values, tokenizer = family.from_gguf(metadata), tokenizer_from_metadata(metadata)
    except KeyError as error:
        raise ValueError(
            f"{path} has no {error} in its metadata; was it written for an old version of llama.cpp?"
        ) from error
    if arch == "llama":
        values["tie_word_embeddings"] = "output.weight" not in tensors
        values["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if "rope_freqs.weight" in tensors:
        values["rope_factors"] = read("rope_freqs.weight").tolist()
    config = family.config(Fields(values))
    # GGUF names the axes from the innermost one on.
    shape = lambda name: tuple(map(int, tensors[name].shape[::-1]))  # noqa: E731
    return Checkpoint(
        str(path), family, config, family.GGUF, frozenset(tensors), shape, read, tokenizer
    )


def tokenizer_from_metadata(metadata: dict[str, Any]) -> Tokenizer:
    """Rebuilds the tokenizer that a GGUF file describes: byte-level BPE ("gpt2") or sentencepiece
    BPE ("llama").

    Raises:
      ValueError: on another kind, or a byte-level pre-tokenizer that is not known here.
    """
    from tokenizers import AddedToken

    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(metadata)
    elif kind == "llama":
        backend = _sentencepiece(metadata)
    else:
        raise ValueError(
            f"the GGUF tokenizer is {kind!r}; supported: 'gpt2' (byte-level BPE) and 'llama' (sentencepiece)"
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    special = {3: True, 4: False}  # llama.cpp's token types CONTROL and USER_DEFINED
    backend.add_special_tokens(
        [
            AddedToken(t, normalized=False, special=special[k])
            for t, k in zip(tokens, types, strict=False)
            if k in special
        ]
    )
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    # Where the file does not say, llama.cpp adds one for sentencepiece and for Llama 3.
    usual = kind == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", usual)
    return Tokenizer(
        backend,
        bool(add_bos and bos_id is not None),
        bos_id,
        metadata.get("tokenizer.ggml.eos_token_id"),
    )


# How llama.cpp's names for pre-tokenizers split text before the merges, as the models' own
# tokenizer.json do.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {
    "default": (None, False),
    "gpt-2": (None, False),
    "smollm": (None, True),
    "llama-bpe": (_LLAMA3, False),
}


def _byte_level(metadata: dict[str, Any]):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _PRE_TOKENIZERS:
        raise ValueError(
            f"the GGUF pre-tokenizer {name!r} is not supported; supported: {', '.join(_PRE_TOKENIZERS)}"
        )
    regex, single_digits = _PRE_TOKENIZERS[name]
    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name == "llama-bpe")
    )
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    if regex is not None:
        steps.append(pre_tokenizers.Split(Regex(regex), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: dict[str, Any]):
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # Sentencepiece merges the pair whose union has the best score; a merge table in that order does
    # the same.
    splits = [
        (-scores[i], vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
        for token, i in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [(left, right) for *_, left, right in sorted(splits)]
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    prefix = (
        [normalizers.Prepend("▁")] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    )
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if prefix else [])
    )
    return backend
