"""The tokenizer that a GGUF file's metadata describe."""

from typing import Any

from jaxedit.models.gguf.pre_tokenizers import PreTokenizer, find_pre_tokenizer
from jaxedit.models.tokenizer import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's types of tokens
SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # llama.cpp's, where a file names none
# Control tokens at which llama.cpp ends by their text, those that end turns first.
TURN_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|return|>"),
    *("<|call|>", "<EOT>", "_<EOT>", "<end_of_utterance>"),
)
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>")
HF_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


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
    known = _special_ids(metadata, kind)
    bos_id = known.get("bos")
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", usual_bos) and bos_id is not None)
    turn_ends = set() if "eot" in known else _ends_by_text(by_type[CONTROL], known, tokens)
    return Tokenizer(
        backend,
        add_bos,
        bos_id,
        known.get("eos"),
        metadata.get("tokenizer.chat_template"),
        more_end_ids=frozenset(known[name] for name in ("eot", "eom") if name in known),
        turn_end_ids=frozenset(turn_ends),
        more_special_ids=frozenset(i for name, i in known.items() if name not in ("bos", "eos")),
        special_tokens={HF_NAMES[name]: tokens[i] for name, i in known.items() if name in HF_NAMES},
    )


def _special_ids(metadata: dict[str, Any], kind: str) -> dict[str, int]:
    """Return the ids of special tokens by llama.cpp's names for them."""
    usual = SENTENCEPIECE_IDS if kind == "llama" else {}
    names = ("bos", "eos", "eot", "eom", "unknown", "padding")
    found = {
        name: metadata.get(f"tokenizer.ggml.{name}_token_id", usual.get(name)) for name in names
    }
    n_tokens = len(metadata["tokenizer.ggml.tokens"])
    return {name: i for name, i in found.items() if i is not None and i < n_tokens}


def _ends_by_text(control: list[Any], known: dict[str, int], tokens: list[str]) -> set[int]:
    """Return the control tokens that end what a model says, in a file that names no end of a turn.

    Where its end-of-text token is one that ends turns, nothing is missing.
    """
    if "eos" in known and tokens[known["eos"]] in TURN_ENDS:
        return set()
    texts = {token.content for token in control} & {*TURN_ENDS, *TEXT_ENDS}
    return {i for i, token in enumerate(tokens) if token in texts} - {known.get("eos")}


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
