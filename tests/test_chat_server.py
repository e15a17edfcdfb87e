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


def completion(message, **more):
    return {"choices": [{"index": 0, "message": message}], **more}


@pytest.mark.parametrize(
    "answer",
    [
        completion(None),
        {"choices": [{"index": 0, "text": "of an older protocol"}]},
        {"choices": "abc"},
        {"choices": ["abc"]},
        {"choices": {"a": 1}},
        {"choices": None},
        completion({"role": "assistant", "content": 5}),
        {"object": "list"},
    ],
)
def test_json_that_is_no_chat_is_named(answer):
    with (
        local_chat(answer) as (address, _),
        pytest.raises(ValueError, match=rf"guest m at {address} .* something else than .*{KEPT}"),
    ):
        ask_chat(address, "m", "Really?", "guest", KEPT)


@pytest.mark.parametrize("said", ["No endpoints found", {"message": "No endpoints found"}])
def test_an_error_that_comes_as_an_answer_is_said(said):
    with (
        local_chat({"error": said}) as (address, _),
        pytest.raises(ValueError, match=rf"answered with an error \(No endpoints found\). {KEPT}"),
    ):
        ask_chat(address, "m", "Really?", "guest", KEPT)


def test_tokens_that_are_no_numbers_are_not_counted():
    message = {"role": "assistant", "content": "Yes."}
    usage = {"prompt_tokens": "7", "completion_tokens": None}
    with local_chat(completion(message, usage=usage)) as (address, _):
        assert ask_chat(address, "m", "Really?", "guest", KEPT) == ChatReply("Yes.", None, None)


def test_json_that_is_cut_is_named():
    with (
        local_chat(b'{"choices": [') as (address, _),
        pytest.raises(ValueError, match="something else than a chat's completion"),
    ):
        ask_chat(address, "m", "Really?", "guest", KEPT)


@pytest.mark.parametrize(
    ("key", "expected"), [("", ("Yes.", "Bearer none")), ("schlüssel", "could not be asked")]
)
def test_an_empty_key_is_none_and_a_strange_one_is_said(monkeypatch, key, expected):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with local_chat("Yes.") as (address, requests):
        if key:
            with pytest.raises(ValueError, match=expected):
                ask_chat(address, "m", "Really?", "guest", KEPT)
            return
        reply = ask_chat(address, "m", "Really?", "guest", KEPT)
    assert (reply.text, requests[0][1]) == expected


def test_without_the_client_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"a guest needs .*pip install 'jaxedit\[judge\]'"):
        ask_chat("http://localhost:1/v1", "m", "Really?", "guest", KEPT)
