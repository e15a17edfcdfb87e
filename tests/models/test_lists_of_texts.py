"""A text where a list of texts is wanted is refused by everything that takes texts."""

import numpy as np
import pytest

import jaxedit
from jaxedit.metrics.consistency import consistency
from jaxedit.metrics.fluency import fluency, generate_texts
from jaxedit.metrics.perplexity import prepare

REQUEST = jaxedit.Request("{} is in", "BP", "Rome")
CALLS = {
    "generate": lambda model, texts: jaxedit.generate(model, texts, max_new_tokens=2),
    "generate_texts": generate_texts,
    "perplexity": jaxedit.perplexity,
    "prepare": prepare,
    "collect_stats": lambda model, texts: jaxedit.collect_stats(model, texts, [0]),
    "fluency": lambda model, texts: fluency(texts),
    "consistency": lambda model, texts: consistency(None, REQUEST, texts),
}


@pytest.mark.parametrize("wrong", ["Once upon", b"Once", 3, None, ["a", None], [["a"]], ["\ud83d"]])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_list_of_texts_is_refused(golden, name, wrong):
    with pytest.raises(ValueError, match=r"needs a list of|holds half a surrogate pair"):
        CALLS[name](golden("gpt2"), wrong)


@pytest.mark.parametrize("make", [set, frozenset, dict.fromkeys])
@pytest.mark.parametrize("name", CALLS)
def test_texts_without_an_order_are_refused(golden, name, make):
    with pytest.raises(ValueError, match=r"needs a list of texts, got a \w+ of them"):
        CALLS[name](golden("gpt2"), make(["Once upon a time", "Rome is in Italy"]))


@pytest.mark.parametrize("make", [tuple, np.array, iter, lambda texts: dict.fromkeys(texts).keys()])
@pytest.mark.parametrize("name", ["generate", "perplexity", "collect_stats", "fluency"])
def test_every_call_takes_them_as_it_takes_a_list(golden, name, make):
    texts = ["Once upon a time", "Rome is in Italy"]
    expected, found = (CALLS[name](golden("gpt2"), each) for each in (texts, make(texts)))
    if name == "collect_stats":
        expected, found = expected.digest, found.digest
    if name == "perplexity":
        expected, found = expected.per_text, found.per_text
    np.testing.assert_equal(found, expected)


@pytest.mark.parametrize("make", [tuple, np.array], ids=["tuple", "column"])
def test_tuples_and_columns_of_texts_are_what_the_list_is(golden, make):
    model, texts = golden("gpt2"), ["Once upon a time", "Rome is in Italy"]
    expected, found = jaxedit.perplexity(model, texts), jaxedit.perplexity(model, make(texts))
    np.testing.assert_array_equal(found.per_text, expected.per_text)
    assert CALLS["generate"](model, make(texts)) == CALLS["generate"](model, texts)


def test_an_empty_text_is_a_text_of_the_list():
    assert fluency(["a b c", ""]) == fluency(["a b c"]) / 2


def test_a_list_without_texts_is_one_where_nothing_can_be_made_of_it(golden):
    with pytest.raises(ValueError, match="generation needs at least one prompt"):
        jaxedit.generate(golden("gpt2"), [])
