"""A text where a list of texts is wanted is refused by everything that takes texts."""

import pytest

import jaxedit
from jaxedit.metrics.consistency import consistency
from jaxedit.metrics.fluency import fluency, generate_texts
from jaxedit.metrics.perplexity import prepare
from jaxedit.models.texts import check_texts

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


@pytest.mark.parametrize("texts", [["a", ""], ("a",), []])
def test_lists_and_tuples_of_texts_are_taken(texts):
    check_texts(texts, "this")


def test_a_column_of_texts_is_taken():
    import numpy as np

    check_texts(np.array(["a", "b"]), "this")
