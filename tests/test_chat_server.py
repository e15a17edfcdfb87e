"""Questions to a language model: what is sent, what comes back, and what is said where it fails."""

import sys

import pytest
from local_chat import local_chat

from jaxedit.chat_server import ChatReply, ask_chat

KEPT = "All is kept"


def test_a_reply_is_its_text_and_the_tokens_that_are_reported(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    usage = dict(prompt_tokens=7, completion_tokens=2, total_tokens=9)
    with local_chat("Yes.", usage=usage) as (address, requests):
        reply = ask_chat(address, "m", "Really?", "guest", KEPT, temperature=0)
    assert reply == ChatReply("Yes.", 7, 2)
    ((path, key, body),) = requests
    assert (path, key) == ("/v1/chat/completions", "Bearer none")
    messages = [{"role": "user", "content": "Really?"}]
    assert body == {"model": "m", "messages": messages, "temperature": 0}
    with local_chat("Yes.") as (address, _):
        assert ask_chat(address, "m", "Really?", "guest", KEPT) == ChatReply("Yes.", None, None)


def test_a_server_that_fails_is_named_with_what_to_do():
    with local_chat(401, b"<html>Welcome</html>") as (address, _):
        expected = rf"the guest m at {address} could not be asked \(AuthenticationError: .*{KEPT}"
        with pytest.raises(ValueError, match=expected):
            ask_chat(address, "m", "Really?", "guest", KEPT)
        with pytest.raises(ValueError, match=r"something else than .*: is the address right\?"):
            ask_chat(address, "m", "Really?", "guest", KEPT)


def test_without_the_client_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"a guest needs .*pip install 'jaxedit\[judge\]'"):
        ask_chat("http://localhost:1/v1", "m", "Really?", "guest", KEPT)
