"""Prompts as tokens: where the fact's token and the target are, and how a target joins."""

import dataclasses

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import to_dense
from jaxedit.edits.spaces import check_leading_space
from jaxedit.solving.prompts import (
    check_fact_token,
    fact_token_of,
    tokenise_prompt,
    tokenise_request,
    up_to_fact,
)

LIVES = jaxedit.Request("{} lives in", "Ann Lee", "Paris, Rome")


def test_positions_of_subject_and_target(words, ids):
    row = tokenise_prompt(words, "So. {}", "{} lives in", "Ann Lee", "Paris")
    assert row.tokens == ids("So . Ann Lee lives in Paris")
    assert row.fact_position == 3
    assert row.first_target == 6


def test_without_a_target_the_first_target_is_the_end(words, ids):
    row = tokenise_prompt(words, "{}", "{} lives in", "Ann Lee")
    assert row.tokens == ids("Ann Lee lives in")
    assert row.fact_position == 1
    assert row.first_target == 4


def test_the_prompts_last_token_can_be_the_facts(words):
    """The template's text behind the prompt is part of it, the target is not."""
    row = tokenise_prompt(words, "So. {},", "{} lives in", "Ann Lee", "Paris", fact_token="last")
    assert row.fact_position == 6
    assert row.first_target == 7


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("{} lives in", "Ann", "last"),  # its only token begins the prompt
        ("{} lives in", "Ann Lee", "subject_last"),
        ("So {} lives in", "Ann", "subject_last"),
    ],
)
def test_auto_avoids_position_0(words, prompt, subject, expected):
    request = jaxedit.Request(prompt, subject, "Paris")
    assert fact_token_of(words, request, "auto") == expected
    assert fact_token_of(words, request, "last") == "last"


def test_a_begin_of_text_token_moves_every_position(words, ids):
    with_bos = dataclasses.replace(words, add_bos=True)
    for leading_space in ("joined", "separate"):
        row = tokenise_prompt(with_bos, "{}", "{} lives in", "Ann", "Rome", leading_space)
        assert row.tokens == ids("<bos> Ann lives in Rome")
        assert row.fact_position == 1
        assert row.first_target == 4


@pytest.mark.parametrize(
    ("leading_space", "parts"),
    [
        ("joined", ["So. Ann is in Paris"]),  # one text
        ("separate", ["So. Ann is in", " Paris"]),  # tokens of their own
        ("none", ["So. Ann is inParis"]),  # one text without a space
        ("separate-no-space", ["So. Ann is in", "Paris"]),
    ],
)
def test_forms_of_the_leading_space(golden, leading_space, parts):
    tokenizer = golden("gpt2").tokenizer
    row = tokenise_prompt(tokenizer, "So. {}", "{} is in", "Ann", "Paris", leading_space)
    assert row.tokens == [token for part in parts for token in tokenizer.backend.encode(part).ids]
    target = tokenizer.decode(row.tokens[row.first_target :])
    assert target == ("Paris" if leading_space in ("none", "separate-no-space") else " Paris")
    assert tokenizer.decode(up_to_fact(row).tokens) == "So. Ann"


def test_a_request_in_its_templates(word_model, ids):
    """Templates hold the target; the bare and the KL prompt end with the fact's token."""
    tokenised = tokenise_request(word_model, LIVES, ("{}", "So. {}"))
    assert [row.tokens for row in tokenised.templates] == [
        ids("Ann Lee lives in Paris , Rome"),
        ids("So . Ann Lee lives in Paris , Rome"),
    ]
    assert [row.fact_position for row in tokenised.templates] == [1, 3]
    assert [row.first_target for row in tokenised.templates] == [4, 6]
    assert tokenised.bare.tokens == ids("Ann Lee")
    assert tokenised.kl.tokens == ids("Ann Lee")
    assert tokenised.bare.fact_position == tokenised.kl.fact_position == 1


def test_outer_spaces_of_a_target_do_not_count(golden):
    model = golden("gpt2")
    spaced = jaxedit.Request("{} lives in", "Ann Lee", "  Paris ")
    stripped = jaxedit.Request("{} lives in", "Ann Lee", "Paris")
    assert tokenise_request(model, spaced, ("{}",)) == tokenise_request(model, stripped, ("{}",))


def test_a_request_with_its_fact_at_the_prompts_end(word_model, ids):
    tokenised = tokenise_request(word_model, LIVES, ("So. {}",), fact_token="last")
    assert tokenised.templates[0].fact_position == 5
    assert tokenised.bare.tokens == ids("Ann Lee lives in")
    assert tokenised.kl.tokens == ids("Ann Lee is a")


def test_a_request_longer_than_the_context_is_refused(word_model):
    long = jaxedit.Request("{} lives in", "Ann " * 255 + "Lee", "Rome")
    with pytest.raises(ValueError, match=r"the request .* in its templates has 259 tokens"):
        tokenise_request(word_model, long, ("{}",))


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="fact_token='first': expected one of 'subject_last'"):
        check_fact_token("first")
    message = "leading_space='no': expected one of 'joined', 'separate', 'none', 'sep"
    with pytest.raises(ValueError, match=message):
        check_leading_space("no")


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("rome", dict(layer=3, context_templates=("{}", "I am a little. {}"), v_num_grad_steps=3)),
        ("ft", dict(layers=(3,))),
    ],
)
def test_the_leading_space_reaches_the_edit(golden, name, hyper):
    model = golden("gpt2")
    request = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
    changes = []
    for leading_space in ("joined", "none"):
        editor = jaxedit.make_editor(name, leading_space=leading_space, **hyper)
        edit, _, _ = editor.edit(model, [request], editor.init(model, None))
        changes.append(to_dense(edit.deltas[0]))
    assert not np.allclose(changes[0], changes[1], rtol=1e-3)
