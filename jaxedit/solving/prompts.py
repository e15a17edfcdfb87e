"""Prompts as tokens: a request in its context templates, and where the subject and the target are.

A template has one `{}` for the prompt, a prompt one `{}` for the subject. In the template "So. {}"
the prompt "{} lives in" for the subject "Ann Lee" and the target "Paris" is

    So   .   Ann   Lee   lives   in   Paris
                   ^                  ^
                   fact_position      first_target

The fact's token, by default the subject's last one, is where a key is read and a vector is added.
"""

from typing import NamedTuple

from jaxedit.edits.request import Request
from jaxedit.edits.spaces import strip_end, tokenise_answer
from jaxedit.models.model import Model
from jaxedit.models.tokenizer import Tokenizer, last_token_of

KL_TEMPLATE = "{} is a"  # "essence": what the subject is should not drift
FACT_TOKENS = ("subject_last", "last", "auto")


class TokenisedPrompt(NamedTuple):
    """One prompt as tokens.

    Attributes:
      tokens: the prompt's, and the target's where it has one.
      fact_position: of the subject's last token, or at fact_token="last" of the prompt's.
      first_target: position of the target's first token; without a target the number of tokens.
    """

    tokens: list[int]
    fact_position: int
    first_target: int


class TokenisedRequest(NamedTuple):
    """The prompts of one request as tokens.

    Attributes:
      templates: the prompt in each context template, with the target.
      bare: the prompt alone, cut behind the fact's token.
      kl: the prompt of the KL term, "{} is a", cut behind the fact's token.
    """

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
    """Tokenise template(prompt(subject)), followed by the target where there is one.

    The subject's last token is found by character offsets in the prompt, so it is right whatever
    merges with what in it. The prompt's tokens are those it has without the target.

    Args:
      tokenizer: the model's.
      template: with one `{}` for the prompt.
      prompt: with one `{}` for the subject.
      subject: as it stands in the prompt.
      target: without a space in front.
      leading_space: between prompt and target, one of `jaxedit.edits.spaces.SPACES`.
      fact_token: which token is the fact's: "subject_last", or the prompt's "last" one.

    Raises:
      ValueError: where the tokenizer has no token for the subject, or none for the target.
    """
    template_before, template_after = template.split("{}")
    prompt_before, prompt_after = prompt.split("{}")
    if template_after:  # it follows the prompt, and no answer does
        prompt_after = strip_end(prompt_after)
    up_to_subject = template_before + prompt_before + subject
    whole_prompt = up_to_subject + prompt_after + template_after
    answered = tokenise_answer(tokenizer, whole_prompt, target, leading_space)
    fact_end = len(up_to_subject) if fact_token == "subject_last" else answered.n_characters
    fact_position = last_token_of(answered.offsets, fact_end)
    return TokenisedPrompt(answered.tokens, fact_position, answered.first)


def fact_token_of(tokenizer: Tokenizer, request: Request, fact_token: str) -> str:
    """Resolve "auto": the prompt's "last" token if the subject's is at position 0.

    There every sequence parks its attention, keys are unlike those elsewhere, and what is added
    changes nothing (arXiv 2406.11263, section 3).
    """
    if fact_token != "auto":
        return fact_token
    bare = tokenise_prompt(tokenizer, "{}", request.prompt, request.subject)
    return "last" if bare.fact_position == 0 else "subject_last"


def check_fact_token(fact_token: str) -> None:
    """Raise a ValueError on an unknown place of keys and values."""
    if fact_token not in FACT_TOKENS:
        raise ValueError(
            f"fact_token={fact_token!r}: expected one of {', '.join(map(repr, FACT_TOKENS))}"
        )


def tokenise_request(
    model: Model,
    request: Request,
    templates: tuple[str, ...],
    leading_space: str = "joined",
    fact_token: str = "subject_last",
) -> TokenisedRequest:
    """Tokenise a request in its templates, its bare prompt and its KL prompt.

    Args:
      model: gives the tokenizer and the positions there are.
      request: whose own `leading_space` counts before the one given.
      templates: context templates.
      leading_space: of requests that say nothing of it.
      fact_token: which token is the fact's.

    Raises:
      ValueError: where a row is longer than the model's positions (a subject longer than the
        context, say).
    """
    tokenizer = model.tokenizer
    subject, target = request.subject, request.target_new
    leading_space = request.leading_space or leading_space
    fact_token = fact_token_of(tokenizer, request, fact_token)
    in_templates = [
        tokenise_prompt(
            tokenizer, template, request.prompt, subject, target, leading_space, fact_token
        )
        for template in templates
    ]
    bare = tokenise_prompt(tokenizer, "{}", request.prompt, subject, fact_token=fact_token)
    kl = tokenise_prompt(tokenizer, "{}", KL_TEMPLATE, subject, fact_token=fact_token)
    for row in [*in_templates, bare, kl]:
        about = f"the request {request.summary[:80]!r} in its templates"
        model.config.check_length(len(row.tokens), about)
    return TokenisedRequest(in_templates, up_to_fact(bare), up_to_fact(kl))


def up_to_fact(row: TokenisedPrompt) -> TokenisedPrompt:
    """Cut a prompt behind the fact's token."""
    return row._replace(tokens=row.tokens[: row.fact_position + 1])
