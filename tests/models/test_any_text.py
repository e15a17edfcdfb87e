"""Any text at all: it becomes tokens, is scored and continued, or is refused with a ValueError.

`JAXEDIT_EXAMPLES=2000 pytest tests/models/test_any_text.py` tries more texts, drawn anew.
"""

import os

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reference.byte_tokenizer import BOS, EOS, IDS, TURN, write_byte_model

import jaxedit
from jaxedit.models.generate import continue_texts

N_EXAMPLES = int(os.environ.get("JAXEDIT_EXAMPLES", "0"))
BOUNDED = settings(
    max_examples=N_EXAMPLES or 40,
    derandomize=not N_EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PARTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.text(st.characters(categories=["Cc", "Cf", "Mn", "So"]), max_size=4),
    st.sampled_from(
        [BOS, EOS, TURN, "<|", "|>", " ", "\n", "東京", "🙂", "👩‍👩‍👧", "Zorgon", "{}"]
    ),
)
ANY_TEXT = st.lists(PARTS, max_size=5).map("".join)
WITH_SURROGATES = st.text(st.characters(categories=["Cs", "Ll"]), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint, tmp_path_factory):
    """Load a model, and its tokenizer as transformers has it; it knows a token too many."""
    folder = tmp_path_factory.mktemp("any") / "model"
    write_byte_model(tiny_checkpoint("llama", **IDS), folder, beyond=["Zorgon"])
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    return jaxedit.load(str(folder)), hf


@BOUNDED
@given(ANY_TEXT)
@example("")
@example(BOS + BOS)
def test_any_text_has_the_tokens_of_transformers_and_comes_back(loaded, text):
    model, hf = loaded
    expected = hf.encode(text, add_special_tokens=False)
    if 259 in expected:
        with pytest.raises(ValueError, match="the token 'Zorgon' has the id 259"):
            model.tokenizer.encode(text)
        return
    tokens, offsets = model.tokenizer.encode_with_ends(text)
    assert tokens == expected if expected[:1] == [256] else tokens == [256, *expected]
    assert len(offsets) == len(tokens)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    (many,) = model.tokenizer.encode_many([text])
    assert many.tolist() == tokens
    assert model.tokenizer.decode(expected) == text
    assert model.tokenizer.decode(tokens, skip_special=True) == hf.decode(
        expected, skip_special_tokens=True
    )


@settings(BOUNDED, max_examples=N_EXAMPLES or 15)
@given(st.lists(ANY_TEXT, min_size=1, max_size=2))
def test_any_texts_are_scored_and_continued_or_refused(loaded, texts):
    """Whatever is computed is of all their tokens but the first."""
    model, hf = loaded
    lists = [hf.encode(text, add_special_tokens=False) for text in texts]
    is_right = all(len(tokens) > 1 and 259 not in tokens for tokens in lists)
    if is_right:
        found = jaxedit.perplexity(model, texts)
        assert found.n_tokens.tolist() == [len(tokens) - 1 for tokens in lists]
        assert np.isfinite(found.nll_nats).all()
    else:
        with pytest.raises(ValueError, match=r"'Zorgon'|perplexity needs at least two"):
            jaxedit.perplexity(model, texts)
    if any(259 in tokens for tokens in lists):
        with pytest.raises(ValueError, match="'Zorgon'"):
            jaxedit.generate(model, texts, max_new_tokens=1)
        return
    for text, said in zip(texts, continue_texts(model, texts, max_new_tokens=1), strict=True):
        assert not any(token in said for token in (BOS, EOS, TURN)), text
    for whole in jaxedit.generate(model, texts, max_new_tokens=1):
        assert not any(token in whole for token in (BOS, EOS, TURN))


@BOUNDED
@given(WITH_SURROGATES)
def test_half_a_surrogate_pair_is_refused_and_nothing_else(loaded, text):
    model, _ = loaded
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in text)
    for call in (model.tokenizer.encode, lambda text: model.tokenizer.encode_many([text])):
        if is_text:
            call(text)
            continue
        with pytest.raises(ValueError, match="half a surrogate pair"):
            call(text)
