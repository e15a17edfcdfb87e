"""How texts are split before a byte-level BPE merges, by llama.cpp's name in a GGUF file."""

import logging
from typing import Any, NamedTuple

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (  # with a place for what may end one
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
)
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = _WORDS % ("", "") + r"|\p{N}" + _OTHERS
GPT_4O = _WORDS % (("(?i:'s|'t|'re|'ve|'m|'ll|'d)?",) * 2) + r"|\p{N}{1,3}" + _OTHERS


class PreTokenizer(NamedTuple):
    """What a tokenizer does before and beside its merges, as the models' own tokenizer.json say.

    Attributes:
      regex: of the pieces; None: GPT-2's own.
      single_digits: whether digits are split singly first.
      ignore_merges: whether a whole piece is looked up before it is merged.
      adds_bos: whether a begin-of-text token is added where the file does not say.
      composes: whether letters and their accents are composed first (NFC).
    """

    regex: str | None = None
    single_digits: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False
    composes: bool = False


_OF_LLAMA3 = PreTokenizer(LLAMA3, ignore_merges=True, adds_bos=True)
_OF_QWEN2 = PreTokenizer(QWEN2, composes=True)
PRE_TOKENIZERS = {
    "default": PreTokenizer(),
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    "llama-bpe": _OF_LLAMA3,
    "llama3": _OF_LLAMA3,
    "llama-v3": _OF_LLAMA3,
    "qwen2": _OF_QWEN2,  # of Qwen 1.5, 2, 2.5 and 3
    "deepseek-r1-qwen": _OF_QWEN2,
    "dbrx": PreTokenizer(LLAMA3),  # of Phi 4
    "gpt-4o": PreTokenizer(GPT_4O),  # of Phi 4 mini
    "tekken": PreTokenizer(TEKKEN, ignore_merges=True, adds_bos=True),  # of Mistral Nemo
}


def find_pre_tokenizer(metadata: dict[str, Any]) -> PreTokenizer:
    """Find the pre-tokenizer of a byte-level BPE.

    Raises:
      ValueError: on one that is not known here.
    """
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name == "default":
        logging.getLogger("jaxedit").warning(
            "the GGUF file names no pre-tokenizer (tokenizer.ggml.pre): texts are split as GPT-2 "
            "does, which may not be how the model was trained, nor what llama.cpp does without one"
        )
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"the GGUF pre-tokenizer {name!r} is not supported; supported: "
            f"{', '.join(PRE_TOKENIZERS)}. Load the model's Hugging Face checkpoint instead"
        )
    return PRE_TOKENIZERS[name]
