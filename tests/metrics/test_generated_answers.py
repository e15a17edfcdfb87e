"""lm-eval's requests on special tokens, windows and long contexts: as its own HFLM in torch."""

import json

import numpy as np
import pytest
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from reference.byte_tokenizer import EOS, IDS, TURN, write_byte_model
from reference.checkpoints import edit_json
from reference.models import hf_model

import jaxedit
from jaxedit.metrics.harness import HarnessModel

CONTEXTS = (
    "Once upon a time",
    "A",
    "The capital of Italy is Rome, and the capital of France is Paris. What is that of Spain?",
    "<|bos|>What is",
    "She said:<|turn|>yes",
)


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def pair_of(folder) -> tuple[HarnessModel, HFLM]:
    """Load a checkpoint as ours and as lm-eval's model for torch, which sees one row at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = HFLM(hf_model(folder), tokenizer=tokenizer, batch_size=1, device="cpu")
    return HarnessModel(jaxedit.load(str(folder))), theirs


# Which tokens the tiny model says is known from trying: bytes 64 to 160 are most of them.
CHECKPOINTS = {
    "plain": dict(generation={"eos_token_id": 257, "bos_token_id": 256}),
    "special": dict(special=range(64, 160, 2), generation={"eos_token_id": 257}),
    "ends": dict(generation={"eos_token_id": [257, 258, *range(60, 256, 9)]}),
    "special ends": dict(
        special=range(60, 256, 3), generation={"eos_token_id": [257, *range(60, 256, 9)]}
    ),
    "without a begin": dict(add_bos=False, generation={"eos_token_id": None}),
}


@pytest.fixture(scope="module", params=["ends", "special ends", "without a begin"])
def pair(request, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes") / "model"
    source = tiny_checkpoint("llama", **IDS)
    return pair_of(write_byte_model(source, folder, **CHECKPOINTS[request.param]))


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["~~~"], "max_gen_toks": 24},
        {"until": [TURN, "a", EOS], "max_new_tokens": 40, "do_sample": False, "temperature": 0.7},
        {"until": "e", "max_gen_toks": None, "max_tokens": 16, "num_beams": 1, "top_p": 0.9},
    ],
    ids=str,
)
def test_answers_are_those_of_torch(pair, settings):
    """Of contexts that are cut, hold special tokens, and end in several ways; in one batch.

    lm-eval's get them one by one, so it does not matter what else is in a batch.
    """
    ours, theirs = pair
    requests = asked("generate_until", *((context, settings) for context in CONTEXTS))
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests, disable_tqdm=True)


def test_the_checkpoints_answers_differ(tiny_checkpoint, tmp_path):
    """What is special, and what ends, shows in the answers: the test above would see it lost."""
    source = tiny_checkpoint("llama", **IDS)
    settings = {"until": ["~~~"], "max_gen_toks": 40}
    requests = asked("generate_until", *((context, settings) for context in CONTEXTS))
    answers = {}
    for name in ("plain", "special", "ends", "special ends"):
        folder = write_byte_model(source, tmp_path / name, **CHECKPOINTS[name])
        answers[name] = HarnessModel(jaxedit.load(str(folder))).generate_until(requests)
    assert len({tuple(found) for found in answers.values()}) == 4
    assert max(map(len, answers["ends"])) < max(map(len, answers["plain"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.7}, "asks for sampling"),
        ({"do_sample": True}, "asks for sampling"),
        ({"repetition_penalty": 1.1}, r"ask for \{'repetition_penalty': 1.1\}"),
        ({"num_beams": 4}, r"ask for \{'num_beams': 4\}"),
        ({"max_length": 9}, r"ask for \{'max_length': 9\}"),
        ({"max_gen_toks": 64}, "max_gen_toks=64: the model has 64 positions"),
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
    ],
)
def test_what_is_no_greedy_generation_is_refused(windowed, settings, message):
    with pytest.raises(ValueError, match=message):
        windowed[0].generate_until(asked("generate_until", ("A", settings)))


@pytest.mark.parametrize(
    "setting",
    [
        *({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": [97]}),
        *({"min_new_tokens": 20}, {"max_new_tokens": 2}, {"bad_words_ids": [[97]]}),
    ],
    ids=str,
)
def test_what_generation_config_does_to_answers_is_refused(tiny_checkpoint, tmp_path, setting):
    """They are no longer those of plain greedy generation, which `HFLM` then does not do."""
    source, settings = tiny_checkpoint("llama", **IDS), {"until": ["~~~"], "max_gen_toks": 10}
    folder = write_byte_model(
        source, tmp_path / "asked", generation={"eos_token_id": 257, **setting}
    )
    (name,) = setting
    with pytest.raises(ValueError, match=rf"generation_config.json of .* asks for \{{'{name}'"):
        pair_of(folder)[0].generate_until(asked("generate_until", ("Once", settings)))


def test_settings_without_effect_are_no_reason_to_refuse(tiny_checkpoint, tmp_path):
    without = {"repetition_penalty": 1.0, "num_beams": 1, "do_sample": True, "temperature": 0.6}
    source, settings = tiny_checkpoint("llama", **IDS), {"until": ["~~~"], "max_gen_toks": 10}
    ours, theirs = pair_of(write_byte_model(source, tmp_path / "plain", generation=without))
    requests = asked("generate_until", ("Once", settings))
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize("named", [None, "<|turn|>"], ids=str)
def test_an_empty_context_is_the_token_that_the_files_name(tiny_checkpoint, tmp_path, named):
    folder = write_byte_model(tiny_checkpoint("llama", **IDS), tmp_path / "named")
    edit_json(folder / "tokenizer_config.json", bos_token=named)
    ours, theirs = pair_of(folder)
    assert ours.prefix_token_id == theirs.prefix_token_id == (257 if named is None else 258)
    for kind in ("loglikelihood", "loglikelihood_rolling"):
        requests = asked(kind, *(PAIRS if kind == "loglikelihood" else [("Once upon",), ("",)]))
        found, expected = (getattr(each, kind)(requests) for each in (ours, theirs))
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-4)


def test_chats_begin_with_one_begin_of_text_token(tiny_checkpoint, tmp_path):
    folder = write_byte_model(tiny_checkpoint("llama", **IDS), tmp_path / "chat")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    for chat_template in (template, template.removeprefix("{{ bos_token }}")):
        about["chat_template"] = chat_template
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        ours, theirs = pair_of(folder)
        history = [{"role": "user", "content": "Who?"}]
        prompt = ours.apply_chat_template(history)
        assert prompt == theirs.apply_chat_template(history)
        assert ours.tok_encode(prompt) == theirs.tok_encode(prompt)
        assert ours.tok_encode(prompt).count(256) == 1


PAIRS = (("Once", " up"), ("", "Once up"), ("O", "nce upo"), ("<|bos|>ab", "cde"))


@pytest.fixture(scope="module")
def windowed(tiny_checkpoint, tmp_path_factory):
    """Load a mistral that sees 8 tokens of 64."""
    source = tiny_checkpoint("mistral", sliding_window=8, **IDS)
    return pair_of(write_byte_model(source, tmp_path_factory.mktemp("window") / "model"))


def test_log_likelihoods_within_a_window_are_those_of_torch(windowed):
    ours, theirs = windowed
    requests = asked("loglikelihood", *PAIRS, ("Once", " upo"))  # the last token is only predicted
    found = ours.loglikelihood(requests, disable_tqdm=True)
    # One by one: in a batch lm-eval mixes up two that are the same text cut at two places.
    expected = [theirs.loglikelihood([each], disable_tqdm=True)[0] for each in requests]
    for (logp, greedy), (their_logp, their_greedy) in zip(found, expected, strict=True):
        assert logp == pytest.approx(their_logp, abs=1e-4)
        assert greedy == their_greedy
    texts = asked("loglikelihood_rolling", ("Onceup",))
    rolling = ours.loglikelihood_rolling(texts, disable_tqdm=True)
    assert rolling == pytest.approx(theirs.loglikelihood_rolling(texts, disable_tqdm=True))


def test_requests_beyond_a_window_are_answered_as_by_torch(windowed):
    ours, theirs = windowed
    for pair in (("Once", " upon"), ("", "Once upon a"), ("Once upon a time there", " was")):
        request = asked("loglikelihood", pair)
        ((logp, greedy),) = ours.loglikelihood(request, disable_tqdm=True)
        ((their_logp, their_greedy),) = theirs.loglikelihood(request, disable_tqdm=True)
        assert (logp, greedy) == (pytest.approx(their_logp, abs=1e-4), their_greedy)
    texts = asked("loglikelihood_rolling", ("Once upon a time",))
    rolling = ours.loglikelihood_rolling(texts, disable_tqdm=True)
    assert rolling == pytest.approx(theirs.loglikelihood_rolling(texts, disable_tqdm=True))
    settings = {"max_gen_toks": 12, "do_sample": False, "until": ["@@"]}
    generated = asked("generate_until", ("Once", settings))
    found = ours.generate_until(generated, disable_tqdm=True)
    assert found == theirs.generate_until(generated, disable_tqdm=True)


@pytest.mark.parametrize("arguments", [("Once", ""), ("", "<|bos|>")], ids=["nothing", "begin"])
def test_a_request_without_tokens_to_score_is_refused(windowed, arguments):
    with pytest.raises(ValueError, match=r"and 0 to score; lm-eval needs at least one of each"):
        windowed[0].loglikelihood(asked("loglikelihood", arguments), disable_tqdm=True)
