"""A prompt and its answer as tokens: the space between them, and where the answer begins.

    leading_space          between them   the answer's tokens
    "joined"               one space      those it has behind the prompt
    "separate"             one space      those of " Rome" by itself, as released code has them
                                          (sentencepiece may then give a piece more)
    "none"                 nothing        those it has behind the prompt, for languages that have no
                                          space between words
    "separate-no-space"    nothing        those of "Rome" by itself, as the released code of NSE
                                          optimises its values (2410.04045)

The prompt's tokens are always its own, those that it has while there is no answer: these are what a
model reads when it is asked. White space at a prompt's end counts as the space between, and none
comes on top of it.
"""

from typing import NamedTuple

from jaxedit.models.tokenizer import Tokenizer, first_token_after

SPACES = ("joined", "separate", "none", "separate-no-space")
LINE_ENDS = ("\n", "\r")


class TokenisedAnswer(NamedTuple):
    """A prompt as tokens, followed by those of its answer where it has one.

    Attributes:
      tokens: the prompt's, then the answer's.
      first: position of the answer's first token; without an answer the number of tokens.
      offsets: the characters (start, end) that each of the prompt's tokens stands for.
      n_characters: of the prompt, without the spaces at its end.
    """

    tokens: list[int]
    first: int
    offsets: list[tuple[int, int]]
    n_characters: int


def check_leading_space(leading_space: str) -> None:
    """Raise a ValueError on an unknown way to put a space before a target."""
    if leading_space not in SPACES:
        raise ValueError(
            f"leading_space={leading_space!r}: expected one of {', '.join(map(repr, SPACES))}"
        )


def strip_end(prompt: str) -> str:
    """Return a prompt without the spaces at its end; the end of a line is kept."""
    bare = prompt.rstrip()
    last_line_end = max(prompt.rfind(sign, len(bare)) for sign in LINE_ENDS)
    return prompt[: last_line_end + 1] if last_line_end >= 0 else bare


def tokenise_answer(
    tokenizer: Tokenizer, prompt: str, answer: str, leading_space: str = "joined"
) -> TokenisedAnswer:
    """Tokenise a prompt, followed by its answer.

    Args:
      tokenizer: the model's.
      prompt: as it is asked.
      answer: without white space at its edges; empty: there is none.
      leading_space: one of SPACES.

    Raises:
      ValueError: where the tokenizer has no tokens for the answer, or none that leave the prompt's
        as they are.
    """
    bare = strip_end(prompt)
    tokens, offsets = tokenizer.encode_with_ends(bare)
    if not answer:
        return TokenisedAnswer(tokens, len(tokens), offsets, len(bare))
    has_space = leading_space in ("joined", "separate") or bare != prompt
    space = " " if has_space and not bare.endswith(LINE_ENDS) else ""
    if leading_space.startswith("separate"):
        answer_tokens = tokenizer.encode(space + answer, bos=False)
        if not answer_tokens:
            raise ValueError(f"the tokenizer gave no token for the target {answer!r}")
    else:
        answer_tokens = _tokens_behind(tokenizer, bare, tokens, space + answer)
    return TokenisedAnswer([*tokens, *answer_tokens], len(tokens), offsets, len(bare))


def _tokens_behind(
    tokenizer: Tokenizer, prompt: str, prompt_tokens: list[int], answer: str
) -> list[int]:
    """Return the tokens of an answer behind a prompt, whose own tokens stay as they are."""
    whole, offsets = tokenizer.encode_with_ends(prompt + answer)
    first = first_token_after(offsets, len(prompt))
    if whole[:first] == prompt_tokens:
        return whole[first:]

    # The beginning of the answer merges with the end of the prompt. A model that is asked has read
    # the prompt's own tokens, so the answer gets those that it has at the beginning of a line.
    in_line, offsets = tokenizer.encode_with_ends(f"\n{answer}", bos=False)
    own = in_line[first_token_after(offsets, 1) :]
    if tokenizer.decode(prompt_tokens + own) != tokenizer.decode(whole):
        raise ValueError(
            f"the target {answer!r} merges with the end of the prompt {prompt[-40:]!r}: this "
            "tokenizer has no tokens for it that leave the prompt's last one as it is; give a "
            "prompt that ends elsewhere, or leading_space='separate'"
        )
    return own
