"""Sampling: the distribution is transformers'; a streamed text is the one generated at once."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from reference.models import hf_model

import jaxedit
from jaxedit.models.generate import continue_tokens, stream

PROMPT = [5, 17, 3, 80]
N_ROWS = 4000


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint) -> jaxedit.Model:
    model = jaxedit.load(str(tiny_checkpoint("gpt2")))
    tokenizer = dataclasses.replace(model.tokenizer, eos_id=None)
    metadata = dataclasses.replace(model.metadata, tokenizer=tokenizer)
    return dataclasses.replace(model, metadata=metadata)


@pytest.mark.parametrize(
    "asked",
    [
        dict(temperature=0.5),
        dict(temperature=2.0, top_k=5),
        dict(top_p=0.3),
        dict(temperature=0.7, top_k=40, top_p=0.6),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_of_transformers(tiny, tiny_checkpoint, asked):
    """Filtered in transformers' order: temperature, top_k, top_p."""
    with torch.no_grad():
        logits = hf_model(tiny_checkpoint("gpt2"))(torch.tensor([PROMPT])).logits[:, -1]
    warpers = transformers.LogitsProcessorList(
        [
            transformers.TemperatureLogitsWarper(asked.get("temperature", 1.0)),
            transformers.TopKLogitsWarper(asked.get("top_k", logits.shape[-1])),
            transformers.TopPLogitsWarper(asked.get("top_p", 1.0)),
        ]
    )
    expected = torch.softmax(warpers(torch.tensor([PROMPT]), logits), dim=-1)[0].double().numpy()

    rows = continue_tokens(tiny, [PROMPT] * N_ROWS, max_new_tokens=1, seed=3, **asked)
    found = np.bincount([row[0] for row in rows], minlength=len(expected)) / N_ROWS
    assert not found[expected == 0].any()
    deviation = np.sqrt(expected * (1 - expected) / N_ROWS)
    assert (np.abs(found - expected) <= 4.5 * deviation + 1e-12).all()


@pytest.mark.parametrize("asked", [dict(), dict(temperature=0.9, top_p=0.9, seed=5)], ids=str)
@pytest.mark.parametrize("n_new", [1, 4, 5, 14])
def test_a_streamed_text_is_the_one_generated_at_once(tiny, asked, n_new):
    pieces = list(stream(tiny, PROMPT, max_new_tokens=n_new, **asked))
    (new,) = continue_tokens(tiny, [PROMPT], max_new_tokens=n_new, **asked)
    whole = tiny.tokenizer.decode(PROMPT + new)
    assert "".join(pieces) == whole.removeprefix(tiny.tokenizer.decode(PROMPT))


def test_a_streamed_text_ends_at_the_end_of_text_token(tiny):
    (new,) = continue_tokens(tiny, [PROMPT], max_new_tokens=14)
    at = next(i for i in range(2, 14) if new[i] not in new[:i])
    tokenizer = dataclasses.replace(tiny.tokenizer, eos_id=new[at])
    metadata = dataclasses.replace(tiny.metadata, tokenizer=tokenizer)
    ending = dataclasses.replace(tiny, metadata=metadata)
    text = "".join(stream(ending, PROMPT, max_new_tokens=14))
    prompt = tiny.tokenizer.decode(PROMPT)
    assert text == tiny.tokenizer.decode(PROMPT + new[:at]).removeprefix(prompt)


def test_temperature_zero_is_greedy(tiny):
    greedy = continue_tokens(tiny, [PROMPT], max_new_tokens=8)
    assert continue_tokens(tiny, [PROMPT], max_new_tokens=8, temperature=0, top_p=0.5) == greedy


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(temperature=-1.0), "temperature=-1.0: expected 0"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(top_p=0.0), "top_p=0.0: expected a probability"),
        (dict(top_p=1.5), "top_p=1.5"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tiny, asked, message):
    with pytest.raises(ValueError, match=message):
        jaxedit.generate(tiny, ["Once"], **asked)


@pytest.mark.parametrize("asked", [[("user", "Who?")], [("system", "Be."), ("user", "Who?")]])
def test_a_chat_is_rendered_as_transformers_does(tiny_checkpoint, tmp_path, asked):
    """In a template that asks for its special tokens, and refuses what it does not know."""
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}"
        "{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(str(tiny_checkpoint("llama")))
    theirs.chat_template = template
    theirs.save_pretrained(tmp_path)
    messages = [dict(role=role, content=content) for role, content in asked]
    ours = jaxedit.models.hf_tokenizer.read_tokenizer(tmp_path)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render_chat(messages) == expected
    with pytest.raises(ValueError, match="refuses these messages: no tools"):
        ours.render_chat([dict(role="tool", content="x")])


def test_a_model_without_a_template_says_so(tiny):
    with pytest.raises(ValueError, match="has no chat template"):
        tiny.tokenizer.render_chat([dict(role="user", content="Who?")])


def test_any_seed_is_a_seed(tiny):
    """As jax.random takes them: more than 32 bits, or negative."""
    for seed in (2**31, 2**40, -1):
        continue_tokens(tiny, [PROMPT], max_new_tokens=2, top_k=5, seed=seed)
    large, small = (
        continue_tokens(tiny, [PROMPT] * 8, max_new_tokens=6, top_k=9, seed=seed)
        for seed in (2**31, 0)
    )
    assert large != small
