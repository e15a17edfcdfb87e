"""Questions to a language model at any address that speaks OpenAI's protocol."""

import os
from typing import Any, NamedTuple

from jaxedit.messages import first_line

KEY = "OPENAI_API_KEY"  # in the environment
NO_KEY = "none"  # servers on one's own machine ask for none


class ChatReply(NamedTuple):
    """What a server said.

    Attributes:
      text: empty where it said nothing.
      prompt_tokens: of the question, as the server counts them; None: it does not say.
      completion_tokens: of the answer.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


def ask_chat(
    base_url: str, model: str, content: str, role: str, kept: str, **options: Any
) -> ChatReply:
    """Ask a model one question; return its `ChatReply`.

    Args:
      base_url: of the server, e.g. "http://localhost:8000/v1".
      model: its name there.
      content: the question.
      role: what the model is asked as, for messages, e.g. "judge".
      kept: what of the work so far is kept where it cannot be asked, for messages.
      **options: of the protocol, e.g. temperature.

    Raises:
      ValueError: where the client is not installed, the server cannot be asked, or answers with
        something else than a chat's completion.
    """
    try:
        import openai
    except ImportError as error:
        raise ValueError(
            f"a {role} needs the client openai: pip install 'jaxedit[judge]'"
        ) from error
    asked = f"the {role} {model} at {base_url}"
    try:
        client = openai.OpenAI(base_url=base_url, api_key=os.environ.get(KEY) or NO_KEY)
        reply = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], **options
        )
    except (openai.OpenAIError, UnicodeEncodeError) as error:  # a key that no header can hold
        raise ValueError(
            f"{asked} could not be asked ({type(error).__name__}: {first_line(error)}); the key is "
            f"taken from {KEY}. {kept}: run the same command again to go on"
        ) from error
    except ValueError as error:  # JSON that is cut, or none
        raise ValueError(_no_completion(asked, kept)) from error
    return _read_completion(reply, asked, kept)


def _read_completion(reply: Any, asked: str, kept: str) -> ChatReply:
    """Read what a server answered; the client checks nothing of it.

    Raises:
      ValueError: where it is no chat's completion, or an error that came as an answer.
    """
    refused = getattr(reply, "error", None)
    if refused:
        said = refused.get("message", refused) if isinstance(refused, dict) else refused
        raise ValueError(f"{asked} answered with an error ({first_line(said)}). {kept}")
    try:
        text = reply.choices[0].message.content if list(reply.choices) else None
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(_no_completion(asked, kept)) from error
    if not isinstance(text, str | None):
        raise ValueError(_no_completion(asked, kept))
    usage = getattr(reply, "usage", None)
    counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return ChatReply(text or "", *(n if isinstance(n, int) else None for n in counts))


def _no_completion(asked: str, kept: str) -> str:
    """Say that an answer is none, e.g. a page for people."""
    return (
        f"{asked} answered with something else than a chat's completion: is the address right? "
        f"It often ends in /v1. {kept}"
    )
