"""Tokenizers made by hand, and texts."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors


def byte_level(
    merges: list[str], digits: bool = False, trim: bool | None = None
) -> tokenizers.Tokenizer:
    """Make a byte-level BPE of 256 bytes, `<|bos|>` (256) and these merges.

    Args:
      merges: pairs of tokens, each pair one text.
      digits: whether digits are split singly.
      trim: whether offsets leave out spaces, as RoBERTa's do; absent: as tokenizers gives them.
    """
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|bos|>", *merged]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split()) for merge in merges]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|bos|>"])
    if trim is not None:
        made.post_processor = processors.ByteLevel(trim_offsets=trim)
    return made
