"""The token rows that an edit reads: each context template around each request, and the prompt of
the KL term.
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.models.packing import pad_tokens, round_up
from jaxedit.models.tokenizer import Tokenizer, first_token_after, last_token_of

KL_TEMPLATE = "{} is a"  # "essence": what the subject is should not drift
# prefixes are padded to multiples of this and suffixes to even lengths, so that few shapes are
# compiled
PREFIX_STEP = 8
SPACES = ("joined", "separate", "none")
FACT_TOKENS = ("subject_last", "last", "auto")

Array = np.ndarray | jax.Array


class TokenisedPrompt(NamedTuple):
    """One prompt as tokens, where the subject's last token is (or, at another `fact_token`, the
    prompt's), and where the target begins."""

    tokens: list[int]
    fact_position: int
    first_target: int


class PromptBatch(NamedTuple):
    """The rows of n requests as arrays: for each request its templates, the KL prompt, the bare
    prompt; then padding.

    A bare prompt that some template begins with has no row of its own: what lies at its subject is
    the same there. Everything right of a row's subject stands, in the same rectangle, at suffix
    offsets 0 (the subject's last token), 1, ... `read_*` name the positions whose logits the loss
    reads: their row, suffix offset, target token and weight."""

    token_BT: Array
    fact_position_B: Array
    request_B: Array
    first_row_N: Array
    bare_row_N: Array
    kl_row_N: Array
    read_row_Q: Array
    read_offset_Q: Array
    read_target_Q: Array
    read_weight_Q: Array


class PaddedShape(NamedTuple):
    """The static sizes of `Rows`: the padded prefix and suffix lengths, and how many positions a
    template reads.
    """

    prefix: int
    suffix: int
    n_read: int


class TokenisedRequest(NamedTuple):
    """A request's rows: one for each template with the target, the bare prompt, and the KL prompt."""

    templates: list[TokenisedPrompt]
    bare: TokenisedPrompt
    kl: TokenisedPrompt


def tokenise_prompt(
    tokenizer: Tokenizer,
    template: str,
    prompt: str,
    subject: str,
    target: str = "",
    leading_space: str = "joined",
    fact_token: str = "subject_last",
) -> TokenisedPrompt:
    """Tokenises template(prompt(subject)), followed by the target where there is one.

    The subject's last token is found by character offsets in the whole text, so it is right
    whatever merges with what.

    Args:
      tokenizer: the model's.
      template: with one `{}` for the prompt.
      prompt: with one `{}` for the subject.
      subject: as it stands in the prompt.
      target: without a space in front.
      leading_space: one of SPACES: "joined", one space, and the whole text is tokenised together;
        "separate", the space and the target are tokenised by themselves and follow the prompt's
        tokens, as released code has it (sentencepiece may then give a piece more); "none", no
        space, for languages that have none between words.
      fact_token: whose place `fact_position` is: "subject_last", or the prompt's "last" token.
    """
    before, after = template.split("{}")
    prompt_before, prompt_after = prompt.split("{}")
    head = before + prompt_before + subject
    question = head + prompt_after + after
    space = "" if leading_space == "none" else " "
    apart = bool(target) and leading_space == "separate"
    tokens, ends = tokenizer.encode_with_ends(
        question if apart or not target else question + space + target
    )
    at_subject = last_token_of(ends, len(head if fact_token == "subject_last" else question))
    if apart:
        return TokenisedPrompt(
            [*tokens, *tokenizer.encode(space + target, bos=False)], at_subject, len(tokens)
        )
    return TokenisedPrompt(
        tokens, at_subject, first_token_after(ends, len(question)) if target else len(tokens)
    )


def fact_token_of(tokenizer: Tokenizer, request: Request, fact_token: str) -> str:
    """Where a request's keys and values are read: of "auto", the prompt's "last" token if the
    subject's is at position 0.

    There every sequence parks its attention, keys are unlike those elsewhere, and what is added
    changes nothing (arXiv 2406.11263, section 3)."""
    if fact_token != "auto":
        return fact_token
    at_first = tokenise_prompt(tokenizer, "{}", request.prompt, request.subject).fact_position == 0
    return "last" if at_first else "subject_last"


def check_fact_token(fact_token: str) -> None:
    """Raises a ValueError on an unknown place of keys and values."""
    if fact_token not in FACT_TOKENS:
        raise ValueError(
            f"fact_token={fact_token!r}: expected one of {', '.join(map(repr, FACT_TOKENS))}"
        )


def check_leading_space(leading_space: str) -> None:
    """Raises a ValueError on an unknown way to put a space before a target."""
    if leading_space not in SPACES:
        raise ValueError(
            f"leading_space={leading_space!r}: expected one of {', '.join(map(repr, SPACES))}"
        )


def tokenise_request(
    model: Model,
    request: Request,
    templates: tuple[str, ...],
    leading_space: str = "joined",
    fact_token: str = "subject_last",
) -> TokenisedRequest:
    """A request in its templates, as tokens; the bare prompt and the KL prompt end with the token
    that is written at.

    Raises:
      ValueError: where a row is longer than the model's positions (a subject longer than the
        context, say).
    """
    tokenizer = model.tokenizer
    subject, target = request.subject, request.target_new.strip()
    at = fact_token_of(tokenizer, request, fact_token)
    filled = [
        tokenise_prompt(tokenizer, each, request.prompt, subject, target, leading_space, at)
        for each in templates
    ]
    bare, kl = (
        tokenise_prompt(tokenizer, "{}", prompt, subject, fact_token=at)
        for prompt in (request.prompt, KL_TEMPLATE)
    )
    for row in [*filled, bare, kl]:
        model.config.check_length(
            len(row.tokens), f"the request {request.summary[:80]!r} in its templates"
        )
    return TokenisedRequest(
        filled, *(row._replace(tokens=row.tokens[: row.fact_position + 1]) for row in (bare, kl))
    )


def common_shape(tokenised: list[TokenisedRequest]) -> PaddedShape:
    """The smallest shape that holds all these requests."""
    filled = [row for each in tokenised for row in each.templates]
    rows = [row for each in tokenised for row in (*each.templates, each.bare, each.kl)]
    return PaddedShape(
        prefix=round_up(max(row.fact_position for row in rows), PREFIX_STEP),
        suffix=round_up(
            max(len(row.tokens) - 1 - row.fact_position for row in filled), 2
        ),  # the last target token is not read
        n_read=max(len(row.tokens) - row.first_target for row in filled),
    )


def to_batch(tokenised: list[TokenisedRequest], shape: PaddedShape, n_data: int) -> PromptBatch:
    """Lays the rows of requests into padded arrays; the number of rows is a multiple of `n_data`."""
    rows: list[TokenisedPrompt] = []
    owner: list[int] = []
    first_row, bare_row, kl_row = [], [], []
    read: list[tuple[int, int, int, float]] = []
    for n, (filled, bare, kl) in enumerate(tokenised):
        first_row.append(len(rows))
        for row in filled:
            n_target = len(row.tokens) - row.first_target
            for i in range(
                shape.n_read
            ):  # where a target has fewer tokens, its first is read again with weight 0
                real = i < n_target
                at = row.first_target + (i if real else 0)
                weight = 1.0 / (n_target * len(filled)) if real else 0.0
                read.append((len(rows), at - 1 - row.fact_position, row.tokens[at], weight))
            rows.append(
                row._replace(tokens=row.tokens[:-1])
            )  # the last target token is only predicted
        kl_row.append(len(rows))
        rows.append(kl)
        same = (
            i for i, row in enumerate(filled) if row.tokens[: row.fact_position + 1] == bare.tokens
        )
        bare_row.append(first_row[-1] + next(same, len(filled) + 1))
        if bare_row[-1] == len(rows):
            rows.append(bare)
        owner += [n] * (len(rows) - len(owner))
    n_rows = round_up(len(rows), n_data)
    token_BT = pad_tokens([row.tokens for row in rows], n_rows, shape.prefix + shape.suffix)
    padding = [0] * (n_rows - len(rows))
    read_row, read_offset, read_target, read_weight = zip(*read, strict=True)
    return PromptBatch(
        token_BT,
        fact_position_B=np.array([row.fact_position for row in rows] + padding, np.int32),
        request_B=np.array(owner + padding, np.int32),
        first_row_N=np.array(first_row, np.int32),
        bare_row_N=np.array(bare_row, np.int32),
        kl_row_N=np.array(kl_row, np.int32),
        read_row_Q=np.array(read_row, np.int32),
        read_offset_Q=np.array(read_offset, np.int32),
        read_target_Q=np.array(read_target, np.int32),
        read_weight_Q=np.array(read_weight, np.float32),
    )


def equal_chunks(items: list, most: int) -> tuple[list[list], int]:
    """Cuts a list into parts of one size, at most `most`; the last is filled up with its last item,
    which is to be ignored.

    Returns:
      The parts, and the number of items.
    """
    size = -(-len(items) // -(-len(items) // most))
    filled = [*items, *[items[-1]] * (-len(items) % size)]
    return [filled[i : i + size] for i in range(0, len(filled), size)], len(items)
