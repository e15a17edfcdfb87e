"""Facts against the formulas, evaluated from what torch says of each answer."""

import functools
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from answers_in_torch import Rating

import jaxedit
from jaxedit import PromptAnswer, Request
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Dense, make_edit
from jaxedit.metrics.answers import score_answers
from jaxedit.metrics.facts import FactMetrics, average_facts, count_facts, evaluate_facts

FAMILIES = ("gpt2", "llama")
PREFIX = "So it was. {}"


@pytest.fixture(scope="module")
def requests_of(prompts_of):
    """Make a function: family -> requests with all that is evaluated, and with less and less."""

    def make(family: str) -> list[Request]:
        asked, targets, beginnings = prompts_of(family)
        prompts = ["{} is", "{} was born in", "A friend of {} likes", "The {}, which"]
        subjects = ["Sydney Hospital", "Ada", "Dante", "Nile"]
        full = []
        for i, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
            neighbours = [
                PromptAnswer(other, targets[(i + j + 2) % 6]) for j, other in enumerate(asked[:4])
            ]
            own = beginnings[3 * i : 3 * i + 3]
            full.append(
                Request(
                    prompt=prompt,
                    subject=subject,
                    target_new=targets[i],
                    target_true=targets[(i + 1) % 6] + " and more" * (i % 2),
                    paraphrases=tuple(own),
                    neighbours=tuple(neighbours),
                    portability=tuple(PromptAnswer(text, targets[i]) for text in own[1:]),
                )
            )
        beside = (PromptAnswer(asked[1], "Oslo"),)
        without_true = Request("{} is", "Ada", "Rome", paraphrases=(asked[0],), neighbours=beside)
        return [*full, without_true, Request("{} is", "Ada", "Rome", target_true="Oslo")]

    return make


class Evaluated(NamedTuple):
    """Requests, their metrics, and torch's rating of any answer."""

    requests: list[Request]
    found: list[FactMetrics]
    rate: Callable[[str, str], Rating]

    def each(self) -> list[tuple[FactMetrics, Request]]:
        """Pair metrics with requests."""
        return list(zip(self.found, self.requests, strict=True))

    def success(self, prompt: str, wanted: str, other: str) -> bool:
        """Return whether the wanted answer is likelier a token."""
        return self.rate(prompt, other).q > self.rate(prompt, wanted).q

    def magnitude(self, prompt: str, wanted: str, other: str) -> float:
        """Return the difference of the per-token probabilities."""
        return math.exp(-self.rate(prompt, wanted).q) - math.exp(-self.rate(prompt, other).q)


@pytest.fixture(scope="module", params=FAMILIES)
def evaluated(request, golden, torch_of, requests_of) -> Evaluated:
    """Evaluate the requests of a golden model."""
    requests = requests_of(request.param)
    found = evaluate_facts(golden(request.param), requests, prefix=PREFIX)
    return Evaluated(requests, found, functools.cache(torch_of(request.param).rate))


def mean(values: list[float]):
    """Return the mean to be compared with; None of nothing."""
    return pytest.approx(np.mean(values), abs=1e-6) if values else None


def test_probabilities_are_of_the_whole_answer(evaluated):
    for metrics, request in evaluated.each():
        rating = evaluated.rate(request.prompt_text, request.target_new)
        expected = math.exp(-rating.q * rating.n)
        assert metrics["probability_new"] == pytest.approx(expected, rel=1e-3)
        if request.target_true is not None:
            rating = evaluated.rate(request.prompt_text, request.target_true)
            expected = math.exp(-rating.q * rating.n)
            assert metrics["probability_true"] == pytest.approx(expected, rel=1e-3)


def test_efficacy_is_of_the_prompt_itself(evaluated):
    for metrics, request in evaluated.each():
        prompt, new, true = request.prompt_text, request.target_new, request.target_true
        rating = evaluated.rate(prompt, new)
        assert metrics["efficacy_accuracy"] is rating.is_reproduced
        assert metrics["token_accuracy"] == rating.token_accuracy
        if true is not None:
            assert metrics["efficacy_success"] is evaluated.success(prompt, new, true)
            assert metrics["efficacy_magnitude"] == mean([evaluated.magnitude(prompt, new, true)])
    assert {metrics["efficacy_success"] for metrics in evaluated.found} == {True, False, None}


def test_paraphrases_are_averaged(evaluated):
    for metrics, request in evaluated.each():
        new, true, prompts = request.target_new, request.target_true, request.paraphrases
        ratings = [evaluated.rate(prompt, new) for prompt in prompts]
        assert metrics["paraphrase_accuracy"] == mean([r.is_reproduced for r in ratings])
        assert metrics["paraphrase_token_accuracy"] == mean([r.token_accuracy for r in ratings])
        if true is not None:
            successes = [evaluated.success(prompt, new, true) for prompt in prompts]
            magnitudes = [evaluated.magnitude(prompt, new, true) for prompt in prompts]
            assert metrics["paraphrase_success"] == mean(successes)
            assert metrics["paraphrase_magnitude"] == mean(magnitudes)
    assert len({metrics["paraphrase_success"] for metrics in evaluated.found}) > 2


def test_neighbours_own_answers_are_compared_with_the_new_one(evaluated):
    for metrics, request in evaluated.each():
        new, beside = request.target_new, request.neighbours
        ratings = [evaluated.rate(*neighbour) for neighbour in beside]
        assert metrics["neighbourhood_accuracy"] == mean([r.is_reproduced for r in ratings])
        successes = [evaluated.success(*neighbour, new) for neighbour in beside]
        magnitudes = [evaluated.magnitude(*neighbour, new) for neighbour in beside]
        assert metrics["neighbourhood_success"] == mean(successes)
        assert metrics["neighbourhood_magnitude"] == mean(magnitudes)
    assert len({metrics["neighbourhood_success"] for metrics in evaluated.found}) > 2


def test_portability_is_of_the_questions_that_follow(evaluated):
    for metrics, request in evaluated.each():
        ratings = [evaluated.rate(*question) for question in request.portability]
        assert metrics["portability_accuracy"] == mean([r.is_reproduced for r in ratings])
        assert metrics["portability_token_accuracy"] == mean([r.token_accuracy for r in ratings])
    found = [metrics["portability_token_accuracy"] for metrics in evaluated.found]
    assert any(value is not None for value in found)


def test_prefixed_metrics_are_of_the_prompt_behind_the_template(evaluated):
    for metrics, request in evaluated.each():
        prompt = PREFIX.replace("{}", request.prompt_text)
        new, true = request.target_new, request.target_true
        assert metrics["prefixed_accuracy"] is evaluated.rate(prompt, new).is_reproduced
        if true is not None:
            assert metrics["prefixed_success"] is evaluated.success(prompt, new, true)


def test_without_a_true_answer_there_is_no_success_or_magnitude(evaluated):
    missing = [metrics for metrics, request in evaluated.each() if request.target_true is None]
    assert missing
    for metrics in missing:
        of_prompts = [f"{what}_success" for what in ("efficacy", "paraphrase", "prefixed")]
        keys = ["probability_true", *of_prompts, "efficacy_magnitude", "paraphrase_magnitude"]
        assert [metrics[key] for key in keys] == [None] * len(keys)


def test_metrics_are_those_that_are_declared_and_plain_json(evaluated):
    for metrics in evaluated.found:
        assert metrics.keys() == FactMetrics.__annotations__.keys()
        assert json.loads(json.dumps(metrics)) == metrics


def test_averages_leave_out_what_a_request_lacks(evaluated):
    averaged = average_facts(evaluated.found)
    for key, value in averaged.items():
        held = [metrics[key] for metrics in evaluated.found if metrics[key] is not None]
        assert value == mean(held)
    assert average_facts(evaluated.found[:1]) is evaluated.found[0]


def test_requests_that_have_a_metric_are_counted_where_others_lack_it(evaluated):
    counts = count_facts(evaluated.found)
    for key in FactMetrics.__annotations__:
        n_held = sum(metrics[key] is not None for metrics in evaluated.found)
        is_some = 0 < n_held < len(evaluated.found)
        assert counts.get(key) == (n_held if is_some else None)
    assert 0 < counts["efficacy_success"] < len(evaluated.found)
    assert count_facts(evaluated.found[:1]) == {}


def test_efficacy_accuracy_is_true_for_what_greedy_decoding_says(golden, torch_of, prompts_of):
    hf = torch_of("llama")
    _, _, beginnings = prompts_of("llama")
    greedy = [(prompt, hf.greedy(prompt)) for prompt in map(str.lstrip, beginnings)]
    prompt, answer = next((prompt, found[2]) for prompt, found in greedy if 2 in found)
    subject = prompt.split()[0]
    template = prompt.replace(subject, "{}", 1)
    request = Request(template, subject, answer, target_true=f"{answer} and more")
    (metrics,) = evaluate_facts(golden("llama"), [request])
    assert metrics["efficacy_accuracy"] is True
    expected = math.exp(-2 * hf.rate(prompt, answer).q)
    assert metrics["probability_new"] == pytest.approx(expected, rel=1e-3)


def test_facts_need_a_request(golden):
    with pytest.raises(ValueError, match="at least one pair"):
        evaluate_facts(golden("gpt2"), [])


# Edited and broken models


def with_change(model: jaxedit.Model, change_FD: np.ndarray) -> jaxedit.Model:
    return apply(model, make_edit(model, [Dense("mlp/w_down", 2, change_FD.astype(np.float32))]))


def test_the_edited_model_is_asked(golden):
    model, pair = golden("gpt2"), ("The capital is", "Rome")
    noise_FD = np.random.default_rng(0).normal(size=(model.config.F, model.config.D))
    noisy = with_change(model, noise_FD)
    assert score_answers(noisy, [pair]).nll_nats != score_answers(model, [pair]).nll_nats


def test_a_broken_model_reproduces_nothing(golden, requests_of):
    model = golden("gpt2")
    broken = with_change(model, np.full((model.config.F, model.config.D), np.nan))
    scored = score_answers(broken, [("The capital is", "Rome")])
    assert scored.nll_nats.tolist() == [math.inf]
    assert scored.is_reproduced.tolist() == [False]
    (metrics,) = evaluate_facts(broken, requests_of("gpt2")[:1], prefix="So. {}")
    assert not any(metrics.values())
    assert None not in metrics.values()
