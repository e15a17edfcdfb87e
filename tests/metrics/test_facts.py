"""Facts against a plain loop in HF torch, and against the formulas evaluated from it."""

import functools
import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit import Probe, Request
from jaxedit.edits.edit import Dense, apply, make_edit
from jaxedit.metrics.facts import evaluate_facts, score_answers

FAMILIES = ("gpt2", "llama")


class Rate(NamedTuple):
    q: float
    n: int
    exact: bool
    share: float


class Torch(NamedTuple):
    """An HF model in torch, and what is asked of it one text at a time."""

    model: object
    tokenizer: object
    prefix: list[int]

    def log_probs(self, tokens):
        """Of the token after each one, [T, V]."""
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([tokens])).logits[0].double(), -1)

    def rate(self, prompt: str, answer: str) -> Rate:
        before = self.prefix + self.tokenizer(prompt).input_ids
        joint = self.prefix + self.tokenizer(f"{prompt} {answer}").input_ids
        assert joint[: len(before)] == before
        assert self.tokenizer.decode(joint[len(before) :]) == f" {answer}"
        log_probs = self.log_probs(joint)
        losses = [-float(log_probs[t - 1, joint[t]]) for t in range(len(before), len(joint))]
        hits = [int(log_probs[t - 1].argmax()) == joint[t] for t in range(len(before), len(joint))]
        return Rate(sum(losses) / len(losses), len(losses), all(hits), sum(hits) / len(hits))

    def greedy(self, prompt: str) -> dict[int, str]:
        """n -> the n tokens that greedy decoding says after the prompt, where they are " word..."
        and no other tokens are.
        """
        before = self.prefix + self.tokenizer(prompt).input_ids
        tokens, said = list(before), {}
        for n in (1, 2, 3):
            tokens.append(int(self.log_probs(tokens)[-1].argmax()))
            text = self.tokenizer.decode(tokens[len(before) :])
            answer = text.strip()
            if (
                answer
                and text == f" {answer}"
                and self.prefix + self.tokenizer(prompt + text).input_ids == tokens
            ):
                said[n] = answer
        return said


@pytest.fixture(scope="module")
def torch_of(shared):
    """A function: (family, with a begin-of-text token) -> Torch."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # the models are tiny: more threads than free cores would only wait for one another

    @functools.cache
    def load(family, bos=False):
        directory = shared / "golden" / family
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        return Torch(
            model,
            transformers.AutoTokenizer.from_pretrained(directory),
            [model.config.bos_token_id] if bos else [],
        )

    yield load
    torch.set_num_threads(n_threads)


def prompts_of(shared, family):
    """The golden requests' questions and beginnings of the golden texts."""
    cases = json.loads((shared / "golden" / family / "cases.json").read_text(encoding="utf-8"))
    questions = [
        request["prompt"].replace("{}", request["subject"]) for request in cases["requests"]
    ]
    targets = [request["target_new"] for request in cases["requests"]]
    return (
        questions,
        targets,
        [text[:length].rstrip() for text in cases["texts"][:12] for length in (20, 40)],
    )


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", False), ("llama", True)])
def test_answers_are_those_of_torch(family, bos, shared, torch_of):
    model = jaxedit.load(str(shared / "golden" / family), add_bos=bos)
    hf = torch_of(family, bos)
    questions, targets, beginnings = prompts_of(shared, family)
    pairs = [(question, target) for question in questions for target in targets[:3]]
    pairs.append((questions[0], "a rather longer answer of several words"))
    said = [
        (prompt, n, answer)
        for prompt in [*questions, *beginnings]
        for n, answer in hf.greedy(prompt).items()
    ]
    assert {n for _, n, _ in said} == {1, 2, 3}
    pairs += [(prompt, answer) for prompt, _, answer in said]
    pairs += [
        (prompt, f"{answer} and more") for prompt, n, answer in said if n == 1
    ]  # begins right, goes on wrong
    rated = score_answers(model, pairs)
    expected = [hf.rate(*pair) for pair in pairs]
    np.testing.assert_allclose(rated.nll_nats, [rate.q for rate in expected], rtol=0, atol=1e-4)
    assert rated.nll_nats.dtype == np.float64
    assert rated.n_tokens.tolist() == [rate.n for rate in expected]
    assert rated.exact.dtype == bool
    assert rated.exact.tolist() == [rate.exact for rate in expected]
    assert 5 < rated.exact.sum() < len(pairs) - 5
    assert rated.share.tolist() == [rate.share for rate in expected]
    assert set(rated.share.tolist()) - {0.0, 1.0}
    assert len(set(rated.n_tokens.tolist())) > 3


def test_an_answer_follows_after_exactly_one_space(golden):
    model = golden("gpt2")
    plain, spaced, at_end = score_answers(
        model,
        [("The capital is", "Rome"), ("The capital is", " Rome"), ("The capital is", "Rome ")],
    ).nll_nats
    assert plain == spaced == at_end
    assert plain != score_answers(model, [("The capital is ", "Rome")]).nll_nats[0]


@pytest.fixture(scope="module")
def requests(shared):
    """A function: family -> requests with all that facts reads, and with less and less of it."""

    def make(family):
        questions, targets, beginnings = prompts_of(shared, family)
        prompts = ["{} is", "{} was born in", "A friend of {} likes", "The {}, which"]
        full = [
            Request(
                prompt=prompt,
                subject=subject,
                target_new=targets[i],
                target_true=targets[(i + 1) % 6] + " and more" * (i % 2),
                paraphrases=tuple(beginnings[3 * i : 3 * i + 3]),
                neighbours=tuple(
                    Probe(question, targets[(i + j + 2) % 6])
                    for j, question in enumerate(questions[:4])
                ),
                portability=tuple(
                    Probe(beginning, targets[i]) for beginning in beginnings[3 * i + 1 : 3 * i + 3]
                ),
            )
            for i, (prompt, subject) in enumerate(
                zip(prompts, ("Sydney Hospital", "Ada", "Dante", "Nile"), strict=True)
            )
        ]
        return [
            *full,
            Request(
                "{} is",
                "Ada",
                "Rome",
                paraphrases=(questions[0],),
                neighbours=(Probe(questions[1], "Oslo"),),
            ),
            Request("{} is", "Ada", "Rome", target_true="Oslo"),
        ]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_are_the_formulas(family, golden, torch_of, requests):
    hf = torch_of(family)
    asked = requests(family)
    found = evaluate_facts(golden(family), asked, prefix="So it was. {}")

    def margins(pairs):
        """Means of exp(-q) of the first minus that of the second."""
        each = [math.exp(-hf.rate(*one).q) - math.exp(-hf.rate(*other).q) for one, other in pairs]
        return pytest.approx(sum(each) / len(each), abs=1e-6) if each else None

    def shares(pairs, kind):
        return (
            pytest.approx(np.mean([getattr(hf.rate(*pair), kind) for pair in pairs]))
            if pairs
            else None
        )

    for fact, request in zip(found, asked, strict=True):
        question, new, true = request.prompt_text, request.target_new, request.target_true
        behind = f"So it was. {question}"
        assert fact["token_accuracy"] == hf.rate(question, new).share
        assert fact["prefixed_greedy"] is hf.rate(behind, new).exact
        beside = [((prompt, answer), (prompt, new)) for prompt, answer in request.neighbours]
        assert fact["neighbourhood_magnitude"] == margins(beside)
        assert fact["neighbourhood_accuracy"] == shares([own for own, _ in beside], "exact")
        assert fact["portability"] == shares(request.portability, "exact")
        assert fact["portability_token_accuracy"] == shares(request.portability, "share")
        asked_so = [(prompt, new) for prompt in request.paraphrases]
        assert fact["paraphrase_accuracy"] == shares(asked_so, "exact")
        assert fact["paraphrase_token_accuracy"] == shares(asked_so, "share")
        rate = hf.rate(question, new)
        assert fact["probability_new"] == pytest.approx(math.exp(-rate.q * rate.n), rel=1e-3)
        assert fact["greedy_new"] is rate.exact
        stays = [
            hf.rate(prompt, answer).q < hf.rate(prompt, new).q
            for prompt, answer in request.neighbours
        ]
        assert fact["neighbourhood"] == (sum(stays) / len(stays) if stays else None)
        if true is None:
            assert (
                fact["probability_true"]
                is fact["efficacy"]
                is fact["paraphrase"]
                is fact["prefixed"]
                is None
            )
            assert fact["efficacy_magnitude"] is fact["paraphrase_magnitude"] is None
            continue
        assert fact["prefixed"] is (hf.rate(behind, true).q > hf.rate(behind, new).q)
        assert fact["efficacy_magnitude"] == margins([((question, new), (question, true))])
        assert fact["paraphrase_magnitude"] == margins(
            [((prompt, new), (prompt, true)) for prompt in request.paraphrases]
        )
        rate_true = hf.rate(question, true)
        assert fact["probability_true"] == pytest.approx(
            math.exp(-rate_true.q * rate_true.n), rel=1e-3
        )
        assert fact["efficacy"] is (rate_true.q > rate.q)
        took = [hf.rate(prompt, true).q > hf.rate(prompt, new).q for prompt in request.paraphrases]
        assert fact["paraphrase"] == (sum(took) / len(took) if took else None)
    assert {fact["efficacy"] for fact in found} == {True, False, None}
    assert len({fact["paraphrase"] for fact in found}) > 2
    assert len({fact["neighbourhood"] for fact in found}) > 2
    json.dumps(found)


def test_greedy_new_is_true_for_what_greedy_decoding_says(golden, torch_of, shared):
    hf = torch_of("llama")
    prompt, answer = next(
        (p, said[2]) for p in prompts_of(shared, "llama")[2] if 2 in (said := hf.greedy(p))
    )
    subject = prompt.split()[0]
    request = Request(
        prompt.replace(subject, "{}", 1), subject, answer, target_true=f"{answer} and more"
    )
    (fact,) = evaluate_facts(golden("llama"), [request])
    assert fact["greedy_new"] is True
    assert fact["probability_new"] == pytest.approx(
        math.exp(-2 * hf.rate(prompt, answer).q), rel=1e-3
    )


def test_an_edited_model_is_what_is_asked_and_a_broken_one_knows_nothing(golden, requests):
    model = golden("gpt2")
    shape = (model.config.F, model.config.D)
    request = requests("gpt2")[0]
    before = score_answers(model, [(request.prompt_text, "Rome")])
    generator = np.random.default_rng(0)
    noisy = apply(
        model,
        make_edit(model, [Dense("mlp/w_down", 2, generator.normal(size=shape).astype(np.float32))]),
    )
    assert score_answers(noisy, [(request.prompt_text, "Rome")]).nll_nats != before.nll_nats
    broken = apply(
        model, make_edit(model, [Dense("mlp/w_down", 2, np.full(shape, np.nan, np.float32))])
    )
    rated = score_answers(broken, [(request.prompt_text, "Rome")])
    assert rated.nll_nats.tolist() == [math.inf]
    assert rated.exact.tolist() == [False]
    (fact,) = evaluate_facts(broken, [request], prefix="So. {}")
    assert not any(fact.values())
    assert None not in fact.values()


def test_what_cannot_be_asked_raises(golden):
    model = golden("gpt2")
    with pytest.raises(ValueError, match="at least one pair"):
        score_answers(model, [])
    with pytest.raises(ValueError, match="at least one pair"):
        evaluate_facts(model, [])
    with pytest.raises(ValueError, match=r"The capital is.* has an empty answer"):
        score_answers(model, [("The capital is", " ")])
    with pytest.raises(ValueError, match="no token before it"):
        score_answers(model, [("", "Rome")])
    with pytest.raises(ValueError, match=r"has \d+ tokens, more than the 256 positions"):
        score_answers(model, [("The capital is", "Rome " * 300)])
