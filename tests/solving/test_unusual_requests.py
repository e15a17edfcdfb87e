"""Requests of any text: the subject is located and tokens are made, or an error says why not."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from jaxedit.edits.request import Request
from jaxedit.edits.spaces import SPACES, strip_end, tokenise_answer
from jaxedit.edits.subjects import contradictions, find_subject, to_template
from jaxedit.models.tokenizer import Tokenizer
from jaxedit.solving.prompts import FACT_TOKENS, fact_token_of, tokenise_prompt, up_to_fact

BOUNDED = settings(max_examples=150, derandomize=True, deadline=None)
WORDS = st.sampled_from(
    ["Ann", "BP", "Rome", "is", "in", "Annual", "東京", "は", "서울", "Москва", "राम", "ไทย", "C++"]
    + ["\U0001f469\u200d\U0001f680", "Zoe\u0301", "ي\u0651", "{", "}", "\x00", "\x1b[31m", "\t"]
    + ["\u200b", "\u202e", "'", '"', "\\", "\U00020bb7", "\n", "\N{NO-BREAK SPACE}"]
)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JOINED = st.lists(WORDS | ANY, max_size=4).map("".join)
TEXTS = st.lists(WORDS | ANY, max_size=5).map(" ".join) | JOINED


def byte_level() -> Tokenizer:
    """Make a tokenizer of bytes in which common pairs, also over words' edges, are one token."""
    pairs = [("n", "R"), ("Ġ", "R"), ("A", "n"), ("An", "n"), ("B", "P"), ("æ", "Ŀ"), ("{", "}")]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in pairs)]
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, add_bos=False, bos_id=None, eos_id=None)


def pieces() -> Tokenizer:
    """Make a tokenizer as Llama-2's: a space before the text, bytes of what is not known."""
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"AnBPRomeis", "▁R", "nR", "An"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = [("▁", "R"), ("n", "R"), ("A", "n")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend, add_bos=False, bos_id=None, eos_id=None)


def letters() -> Tokenizer:
    """Make a tokenizer that drops whatever it does not know."""
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate("AnBPRome is")}, merges=[]))
    return Tokenizer(backend, add_bos=False, bos_id=None, eos_id=None)


TOKENIZERS = [byte_level(), pieces(), letters()]


def attempt(make, *args, **more):
    """Make something of texts; None where a ValueError says that there is none, no other error."""
    try:
        return make(*args, **more)
    except UnicodeError:
        raise AssertionError(
            "a text that cannot be written is told by an error of our own"
        ) from None
    except ValueError:
        return None


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "pieces", "letters"])
@BOUNDED
@given(
    before=TEXTS,
    after=TEXTS,
    subject=TEXTS,
    target=TEXTS,
    leading_space=st.sampled_from(SPACES),
    fact_token=st.sampled_from(FACT_TOKENS),
)
def test_prompts_of_any_text_are_tokenised_or_refused(
    tokenizer, before, after, subject, target, leading_space, fact_token
):
    def rows(request: Request):
        at = fact_token_of(tokenizer, request, fact_token)
        asked = "So. {}", request.prompt, request.subject
        row = tokenise_prompt(tokenizer, *asked, request.target_new, leading_space, at)
        return row, tokenise_prompt(tokenizer, *asked, fact_token=at)

    request = attempt(Request, f"{before}{{}}{after}", subject, target)
    made = request and attempt(rows, request)
    if not (request and made):
        return
    # The value is written at a token of the prompt alone, which is there in both.
    row, bare = made
    assert row.fact_position == bare.fact_position < row.first_target < len(row.tokens)
    assert up_to_fact(row).tokens == up_to_fact(bare).tokens
    assert row.tokens[: row.first_target] == tokenizer.encode(f"So. {request.prompt_text}")
    if tokenizer is TOKENIZERS[0]:  # it loses nothing
        assert tokenizer.decode(row.tokens).endswith(request.target_new)
        up_to_subject = f"So. {request.prompt.split('{}')[0]}{request.subject}"
        if fact_token == "subject_last":
            assert tokenizer.decode(up_to_fact(row).tokens).startswith(up_to_subject)


@BOUNDED
@given(prompt=TEXTS, subject=TEXTS)
def test_a_subject_is_located_in_any_text_or_refused(prompt, subject):
    template, subject = attempt(to_template, prompt, subject), subject.strip()
    at = find_subject(prompt, subject) if subject else None
    if template is None:
        assert at is None
    else:
        assert template == prompt[:at] + "{}" + prompt[at + len(subject) :]


@BOUNDED
@given(prefix=TEXTS, subject=TEXTS, suffix=TEXTS)
def test_between_spaces_a_subject_is_always_found(prefix, subject, suffix):
    subject = subject.strip()
    if subject and not unicodedata.category(subject[0]).startswith("M") and subject[0] != "\u200d":
        assert find_subject(f"{prefix} {subject} {suffix}", subject) is not None


@BOUNDED
@given(prompt=TEXTS, subject=TEXTS, target=TEXTS)
def test_a_request_is_the_same_when_it_is_made_of_itself(prompt, subject, target):
    """Also where the target is the old one: nothing of it is changed by a second look."""
    more = dict(target_true=target, paraphrases=[prompt])
    request = attempt(Request, f"{{}} {prompt}", subject, target, **more)
    if request is None:
        return
    assert Request(**request.__dict__) == request
    assert request.target_true == request.target_new
    assert contradictions([request, request]) == []
    assert request.prompt_text == strip_end(request.prompt_text)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "pieces", "letters"])
@BOUNDED
@given(prompt=TEXTS, answer=TEXTS, leading_space=st.sampled_from(SPACES))
def test_white_space_at_a_prompts_end_adds_none(tokenizer, prompt, answer, leading_space):
    prompt, answer = prompt.rstrip(), answer.strip()
    with_space = "joined" if leading_space == "none" else leading_space.replace("-no-space", "")
    expected = attempt(tokenise_answer, tokenizer, prompt, answer, with_space)
    found = attempt(tokenise_answer, tokenizer, f"{prompt}  ", answer, leading_space)
    assert found == expected
