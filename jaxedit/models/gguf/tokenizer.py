"""The tokenizer that a GGUF file's metadata describe."""

from typing import Any

from jaxedit.models.gguf.pre_tokenizers import PreTokenizer, find_pre_tokenizer
from jaxedit.models.tokenizer import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's types of tokens


def tokenizer_from_metadata(metadata: dict[str, Any]) -> Tokenizer:
    """Rebuild the tokenizer that a GGUF file's metadata describes.

    Its kinds are byte-level BPE ("gpt2") and sentencepiece BPE ("llama").

    Raises:
      ValueError: on another kind, or a byte-level pre-tokenizer that is not known here.
    """
    from tokenizers import AddedToken

    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        pre = find_pre_tokenizer(metadata)
        backend, usual_bos = _byte_level(metadata, pre), pre.adds_bos
    elif kind == "llama":
        backend, usual_bos = _sentencepiece(metadata), True
    else:
        raise ValueError(
            f"the GGUF tokenizer is {kind!r}; "
            "supported: 'gpt2' (byte-level BPE) and 'llama' (sentencepiece)"
        )

    # Tokens that are taken out of a text before the merges.
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    by_type: dict[int, list[AddedToken]] = {CONTROL: [], USER_DEFINED: []}
    for token, added_type in zip(tokens, types, strict=False):
        if added_type in by_type:
            is_special = added_type == CONTROL
            by_type[added_type].append(AddedToken(token, normalized=False, special=is_special))
    backend.add_special_tokens(by_type[CONTROL])
    backend.add_tokens(by_type[USER_DEFINED])  # parts of texts, such as <think>

    # Where the file does not say, llama.cpp adds a begin-of-text token for sentencepiece and some
    # pre-tokenizers.
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", usual_bos) and bos_id is not None)
    eos_id = metadata.get("tokenizer.ggml.eos_token_id")
    template = metadata.get("tokenizer.chat_template")
    others = {
        name: metadata.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("eot", "eom", "unknown", "padding")
    }
    known = {name: i for name, i in others.items() if i is not None}
    return Tokenizer(
        backend,
        add_bos,
        bos_id,
        eos_id,
        template,
        more_end_ids=frozenset(known[name] for name in ("eot", "eom") if name in known),
        more_special_ids=frozenset(known.values()),
    )


def _byte_level(metadata: dict[str, Any], pre: PreTokenizer):
    """Build a byte-level BPE tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    backend = Tokenizer(bpe)
    if pre.composes:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.single_digits else []
    if pre.regex is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.regex), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.regex is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: dict[str, Any]):
    """Build a sentencepiece BPE tokenizer."""
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
    bpe = models.BPE(
        vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    backend = Tokenizer(bpe)

    # Spaces are written as "▁", most often with one before the text, which decoding takes off.
    normal: list[Any] = [normalizers.Replace(" ", "▁")]
    decoded: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        normal = [normalizers.Prepend("▁"), *normal]
        decoded = [*decoded, decoders.Strip(" ", 1, 0)]
    backend.normalizer = normalizers.Sequence(normal)
    backend.decoder = decoders.Sequence(decoded)
    return backend
