"""Texts longer than a sliding window, and those too long for a model's rotary frequencies."""

import dataclasses

import numpy as np
import pytest
from reference.checkpoints import edit_json
from reference.models import assert_same_logits, hf_greedy, hf_logits, hf_model, token_rows
from reference.variants import VARIANTS

import jaxedit

WINDOWS = {
    "mistral": dict(sliding_window=24),
    "qwen2": dict(use_sliding_window=True, sliding_window=24, max_window_layers=0),
    "qwen3": dict(use_sliding_window=True, sliding_window=24, max_window_layers=2),
    "gemma3_text": dict(sliding_window=24),
}


@pytest.mark.parametrize("family", WINDOWS)
def test_what_is_longer_than_a_window_is_computed(tiny_checkpoint, family):
    directory = tiny_checkpoint(family, **WINDOWS[family])
    model, theirs = jaxedit.load(str(directory)), hf_model(directory)
    assert model.config.window == 24
    rows = token_rows(model.config.V, length=60)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(theirs, rows))
    # From the 25th token on one no longer sees the first.
    config = dataclasses.replace(model.config, window=100)
    without = jaxedit.logits(dataclasses.replace(model, config=config), rows)
    difference = np.abs(np.asarray(without) - hf_logits(theirs, rows)).max(axis=(0, 2))
    assert difference[:24].max() < 1e-4 < 1e-2 < difference[24]


@pytest.mark.parametrize("family", WINDOWS)
def test_generation_beyond_a_window_is_greedy_as_hfs(tiny_checkpoint, family):
    directory = tiny_checkpoint(family, **WINDOWS[family])
    model, theirs = jaxedit.load(str(directory)), hf_model(directory)
    prompts = ["The tongue", "The mother tongue of the author is French, and his"]
    expected = []
    for prompt in prompts:
        tokens = model.tokenizer.encode(prompt)
        made = hf_greedy(theirs, tokens, 30)
        stop = next((i for i, token in enumerate(made) if token == 0), len(made))
        assert len(tokens) + stop > 24, "the text must pass the window"
        expected.append(prompt + model.tokenizer.decode(made[:stop]))
    assert jaxedit.generate(model, prompts, max_new_tokens=30) == expected


@pytest.mark.parametrize(
    ("family", "variant"),
    [("phi3", "longrope"), ("llama", "dynamic, within its positions")],
)
def test_frequencies_that_change_with_the_length_end_a_text(tiny_checkpoint, family, variant):
    model = jaxedit.load(str(tiny_checkpoint(family, **VARIANTS[family][variant])))
    longest = model.config.rope.longest
    assert longest in (48, 64)
    message = rf"a row of tokens has {longest + 1} tokens.*{longest}, beyond which the rotary"
    with pytest.raises(ValueError, match=message):
        jaxedit.logits(model, token_rows(model.config.V, rows=1, length=longest + 1))


@pytest.mark.parametrize(
    ("name", "layers"), [("sliding_window_pattern", (0, 2)), ("_sliding_window_pattern", None)]
)
def test_a_pattern_says_which_layers_have_a_window_where_no_types_do(copy_of, name, layers):
    directory = copy_of("gemma3_text", sliding_window=24)
    edit_json(directory / "config.json", layer_types=None, **{name: 2})
    model, theirs = jaxedit.load(str(directory)), hf_model(directory)
    assert model.config.window_layers == layers
    rows = token_rows(model.config.V, length=60)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(theirs, rows))
