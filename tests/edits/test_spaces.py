"""An answer behind its prompt: the space between them, and the prompt's tokens as they are."""

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from jaxedit.edits.spaces import check_leading_space, strip_end, tokenise_answer
from jaxedit.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    """Make a byte-level BPE in which "n" and "R" merge before all others, and "東" with "京"."""
    merges = [("i", "n"), ("R", "o"), ("Ġ", "R"), ("m", "e")]
    sun, capital = (pre_tokenizers.ByteLevel(False).pre_tokenize_str(c)[0][0] for c in "東京")
    for text in (sun, capital):
        merges += [(text[0], text[1]), (text[:2], text[2])]
    merges = [("n", "R"), *merges, (sun, capital)]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += dict.fromkeys(left + right for left, right in merges)
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, add_bos=False, bos_id=None, eos_id=None)


def texts_of(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    return [tokenizer.decode([token]) for token in tokens]


@pytest.mark.parametrize(
    ("leading_space", "parts"),
    [
        ("joined", ["Ann is in", " Rome"]),
        ("separate", ["Ann is in", " Rome"]),
        ("none", ["Ann is in", "Rome"]),
        ("separate-no-space", ["Ann is in", "Rome"]),
    ],
)
@pytest.mark.parametrize("at_end", ["", " ", "  \t", "\N{NO-BREAK SPACE}"])
def test_the_prompts_tokens_are_its_own(merging, leading_space, parts, at_end):
    """Even where its last letter would merge with the answer's first (joined: "nR")."""
    if at_end and leading_space in ("none", "separate-no-space"):
        parts = ["Ann is in", " Rome"]  # the prompt's own space is the one between
    found = tokenise_answer(merging, f"Ann is in{at_end}", "Rome", leading_space)
    prompt, answer = (merging.backend.encode(part).ids for part in parts)
    assert found.tokens == [*prompt, *answer]
    assert found.first == len(prompt) == len(found.offsets)
    assert found.n_characters == len("Ann is in")


def test_they_would_merge(merging):
    assert "nR" in texts_of(merging, merging.encode("Ann is inRome"))
    assert len(merging.encode("東京")) == 1


def test_a_subject_at_the_prompts_end_does_not_merge_with_the_target(merging):
    found = tokenise_answer(merging, "東", "京", "none")
    assert texts_of(merging, found.tokens) == ["東", "京"]
    assert found.first == 1


@pytest.mark.parametrize("at_end", ["\n", "\r\n", " \n", "\n "])
def test_behind_the_end_of_a_line_there_is_no_space(merging, at_end):
    found = tokenise_answer(merging, f"Ann:{at_end}", "Rome")
    assert merging.decode(found.tokens[found.first :]) == "Rome"
    assert merging.decode(found.tokens) == f"Ann:{at_end.rstrip(' ')}Rome"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a b", "a b"), ("a  ", "a"), ("a \n ", "a \n"), ("a\n\n", "a\n\n"), (" ", ""), ("", "")],
)
def test_spaces_at_the_end_go_and_lines_stay(prompt, expected):
    assert strip_end(prompt) == expected


@pytest.mark.parametrize("dummy", ["always", "never"])
def test_with_sentencepieces_a_merged_answer_has_no_piece_for_a_space(dummy):
    """Pieces of text with "nR" among them: by itself "Rome" would be the piece "▁R" and others."""
    letters = ["<unk>", "▁", *"ABCRainosme:", "<0x0A>"]
    merges = [("▁", "R"), ("n", "R"), ("o", "m")]
    tokens = letters + [left + right for left, right in merges]
    model = models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
    )
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=dummy, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pieces = Tokenizer(backend, add_bos=False, bos_id=None, eos_id=None)
    assert "nR" in texts_of(pieces, pieces.encode("is inRome"))
    found = tokenise_answer(pieces, "is in", "Rome", "none")
    assert found.tokens[: found.first] == pieces.encode("is in")
    assert texts_of(pieces, found.tokens[found.first :]) == ["R", "om", "e"]


def test_an_answer_that_cannot_be_told_from_its_prompt_is_refused(merging):
    """A tokenizer that drops what it does not know, and one that knows a whole line only."""
    words = Backend(models.WordLevel({"x": 0}, unk_token="x"))
    whole = Tokenizer(words, add_bos=False, bos_id=None, eos_id=None)
    with pytest.raises(ValueError, match="'Rome' merges with the end of the prompt 'Ann is in'"):
        tokenise_answer(whole, "Ann is in", "Rome", "none")
    nothing = Tokenizer(Backend(models.BPE()), add_bos=False, bos_id=None, eos_id=None)
    for leading_space in ("joined", "separate"):
        with pytest.raises(ValueError, match="the tokenizer gave no token for the target"):
            tokenise_answer(nothing, "Ann is in", "Rome", leading_space)


def test_an_unknown_space_is_refused_with_those_there_are():
    message = (
        "leading_space='no': expected one of 'joined', 'separate', 'none', 'separate-no-space'"
    )
    with pytest.raises(ValueError, match=message):
        check_leading_space("no")
