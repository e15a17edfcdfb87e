"""Offsets find a subject's last token and a target's first."""

import pytest
from tokenizer_examples import byte_level

from jaxedit.models.hf_tokenizer import read_tokenizer
from jaxedit.models.tokenizer import Tokenizer, first_token_after, last_token_of

SUBJECTS = [  # prompt, subject, the text of the subject's last token
    ("{} is located in", "The Eiffel Tower", " Tower"),
    ("The mother tongue of {} is", "Danielle Darrieux", "ux"),
    ("In {}, the", "Washington, D.C", "C"),
    ("{} is in", "Washington, D.C.", "."),
    ("{}'s mother", "Beyoncé Knowles", "les"),
    ("Who is {}?", "Beyoncé", "cé"),
    ("I like {}", "AC/DC", "DC"),
    ("{} is a city", "Łódź", "\N{REPLACEMENT CHARACTER}"),  # the second byte of ź
    ('"{}" was created by', "Yahoo!", '!"'),  # the subject's last token goes beyond it
    ("Why is {}n here?", "Steve", " Steven"),  # likewise
    ("{}", "Q", "Q"),
]


@pytest.mark.parametrize(("prompt", "subject", "last"), SUBJECTS)
@pytest.mark.parametrize("bos", [False, True])
def test_the_last_token_of_a_subject_is_found(gpt2_tokenizer, prompt, subject, last, bos):
    text = prompt.replace("{}", subject)
    end = prompt.index("{}") + len(subject)
    ids, offsets = gpt2_tokenizer.encode_with_ends(text, bos)
    at = last_token_of(offsets, end)
    assert gpt2_tokenizer.decode([ids[at]]) == last
    assert offsets[at][0] < end <= offsets[at][1]
    # The tokens up to there hold the whole subject, those before them do not.
    assert subject in gpt2_tokenizer.decode(ids[: at + 1])
    assert subject not in gpt2_tokenizer.decode(ids[:at])


def test_of_a_character_in_many_tokens_a_subject_ends_with_the_last(gpt2_tokenizer):
    """GPT-2 has no token for this character: every byte is one, all at the same offsets."""
    text = "The city of 𠮷 is"
    ids, offsets = gpt2_tokenizer.encode_with_ends(text)
    at = last_token_of(offsets, len("The city of 𠮷"))
    assert offsets[at] == offsets[at - 1] == offsets[at - 2]
    assert gpt2_tokenizer.decode(ids[: at + 1]) == "The city of 𠮷"
    assert gpt2_tokenizer.decode(ids[at + 1 :]) == " is"


def test_of_a_character_in_many_tokens_a_target_begins_with_the_first(gpt2_tokenizer):
    ids, offsets = gpt2_tokenizer.encode_with_ends("The city of 𠮷 is")
    first = first_token_after(offsets, len("The city of"))
    assert gpt2_tokenizer.decode(ids[:first]) == "The city of"
    assert gpt2_tokenizer.decode(ids[first:]) == " 𠮷 is"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("prompt", "subject", "last"), SUBJECTS[:7])
def test_subjects_end_where_they_do_with_sentencepiece(pieces, prompt, subject, last, bos):
    text = prompt.replace("{}", subject)
    end = prompt.index("{}") + len(subject)
    ids, offsets = pieces.encode_with_ends(text, bos)
    at = last_token_of(offsets, end)
    assert pieces.decode(ids[int(bos) : at + 1]) == text[:end]


@pytest.mark.parametrize("bos", [False, True])
def test_targets_begin_where_they_do_with_sentencepiece(pieces, bos):
    ids, offsets = pieces.encode_with_ends("The capital of Italy is Rome", bos)
    first = first_token_after(offsets, len("The capital of Italy is"))
    assert pieces.decode(ids[first:]) == "Rome"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The capital of Italy is", " Rome"),
        ("I said:", ' "Ciao!"'),
        ("東京は", "日本"),
        ("He is", " Łukasz"),
        ("a", "\n\nb"),
    ],
)
def test_the_first_token_of_a_target_is_found(gpt2_tokenizer, prompt, target, bos):
    ids, offsets = gpt2_tokenizer.encode_with_ends(prompt + target, bos)
    at = first_token_after(offsets, len(prompt))
    assert gpt2_tokenizer.decode(ids[at:]) == target
    assert gpt2_tokenizer.decode(ids[int(bos) : at]) == prompt


@pytest.mark.parametrize("trim", [False, True])
def test_subjects_and_targets_are_found_with_and_without_a_tokens_space(trim):
    """Some tokenizer files cut the space off a token's offsets."""
    backend = byte_level(["Ġ T", "ĠT o", "Ġ i", "Ġi s"], trim=trim)
    tokenizer = Tokenizer(backend, False, None, None)
    text = "a To is"
    ids, offsets = tokenizer.encode_with_ends(text)
    assert [tokenizer.decode([i]) for i in ids] == ["a", " To", " is"]
    assert offsets == ([(0, 1), (2, 4), (5, 7)] if trim else [(0, 1), (1, 4), (4, 7)])
    assert last_token_of(offsets, len("a To")) == 1
    assert last_token_of(offsets, len("a")) == 0
    assert first_token_after(offsets, len("a To")) == 2
    assert first_token_after(offsets, len("a To ")) == 2
    assert first_token_after(offsets, 0) == 0


def test_a_subject_without_tokens_is_refused(tiny_checkpoint):
    tokenizer = read_tokenizer(tiny_checkpoint("llama"))
    with pytest.raises(ValueError, match=r"no token begins before character 2: .* for the subject"):
        last_token_of(tokenizer.encode_with_ends("東京")[1], 2)


def test_a_target_without_tokens_is_refused(tiny_checkpoint):
    tokenizer = read_tokenizer(tiny_checkpoint("llama"))
    with pytest.raises(ValueError, match=r"no token reaches beyond character 5: .* for the target"):
        first_token_after(tokenizer.encode_with_ends("He is東京")[1], 5)
