"""Facts against a plain loop in HF torch, and against the formulas evaluated from it."""

import functools
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit import PromptAnswer, Request
from jaxedit.edits.edit import Dense, apply, make_edit
from jaxedit.metrics.answers import ScoredAnswers, score_answers
from jaxedit.metrics.facts import FactMetrics, average_facts, evaluate_facts

FAMILIES = ("gpt2", "llama")
PREFIX = "So it was. {}"


class Rating(NamedTuple):
    """How torch rates an answer: mean loss a token, its tokens, and which greedy decoding says."""

    q: float
    n: int
    is_reproduced: bool
    token_accuracy: float


class Torch(NamedTuple):
    """An HF model in torch, asked one text at a time."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    front: list[int]  # put before every text

    def log_probs(self, tokens: list[int]) -> torch.Tensor:
        """Return those of the token after each one, [T, V]."""
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([tokens])).logits[0].double(), -1)

    def rate(self, prompt: str, answer: str) -> Rating:
        """Rate an answer after a prompt."""
        before = self.front + self.tokenizer(prompt).input_ids
        joint = self.front + self.tokenizer(f"{prompt} {answer}").input_ids
        assert joint[: len(before)] == before
        assert self.tokenizer.decode(joint[len(before) :]) == f" {answer}"
        log_probs = self.log_probs(joint)
        answer_at = range(len(before), len(joint))
        losses = [-float(log_probs[t - 1, joint[t]]) for t in answer_at]
        hits = [int(log_probs[t - 1].argmax()) == joint[t] for t in answer_at]
        n = len(losses)
        return Rating(sum(losses) / n, n, all(hits), sum(hits) / n)

    def greedy(self, prompt: str) -> dict[int, str]:
        """Continue a prompt by 1 to 3 tokens, where these are " word..." and no others would be.

        Returns:
          The number of tokens -> the answer that they are.
        """
        before = self.front + self.tokenizer(prompt).input_ids
        tokens, answers = list(before), {}
        for n in (1, 2, 3):
            tokens.append(int(self.log_probs(tokens)[-1].argmax()))
            text = self.tokenizer.decode(tokens[len(before) :])
            answer = text.strip()
            again = self.front + self.tokenizer(prompt + text).input_ids
            if answer and text == f" {answer}" and again == tokens:
                answers[n] = answer
        return answers


@pytest.fixture(scope="module")
def torch_of(shared):
    """Make a function: (family, with a begin-of-text token) -> Torch."""
    # The models are tiny: more threads than free cores would only wait for one another.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)

    @functools.cache
    def load(family: str, bos: bool = False) -> Torch:
        directory = shared / "golden" / family
        read = transformers.AutoModelForCausalLM.from_pretrained
        model = read(directory, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        return Torch(model, tokenizer, [model.config.bos_token_id] if bos else [])

    yield load
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def prompts_of(golden_expected):
    """Make a function: family -> the golden requests' prompts and targets, beginnings of texts."""

    def find(family: str) -> tuple[list[str], list[str], list[str]]:
        cases, _ = golden_expected(family)
        asked = [case["prompt"].replace("{}", case["subject"]) for case in cases["requests"]]
        targets = [case["target_new"] for case in cases["requests"]]
        beginnings = [text[:n].rstrip() for text in cases["texts"][:12] for n in (20, 40)]
        return asked, targets, beginnings

    return find


# Answers


class Answers(NamedTuple):
    """What a model and torch make of the same answers."""

    ours: ScoredAnswers
    theirs: list[Rating]


@pytest.fixture(scope="module", params=[("gpt2", False), ("llama", False), ("llama", True)])
def answers(request, shared, torch_of, prompts_of) -> Answers:
    """Score answers that are wrong, right, and right at first only, of one token and more."""
    family, bos = request.param
    hf = torch_of(family, bos)
    asked, targets, beginnings = prompts_of(family)
    pairs = [(prompt, target) for prompt in asked for target in targets[:3]]
    pairs.append((asked[0], "a rather longer answer of several words"))
    greedy = [(prompt, hf.greedy(prompt)) for prompt in [*asked, *beginnings]]
    assert {n for _, by_length in greedy for n in by_length} == {1, 2, 3}
    for prompt, by_length in greedy:
        pairs += [(prompt, answer) for answer in by_length.values()]
        if 1 in by_length:
            pairs.append((prompt, f"{by_length[1]} and more"))
    model = jaxedit.load(str(shared / "golden" / family), add_bos=bos)
    return Answers(score_answers(model, pairs), [hf.rate(*pair) for pair in pairs])


def test_losses_of_answers_are_those_of_torch(answers):
    ours, theirs = answers
    np.testing.assert_allclose(ours.nll_nats, [r.q for r in theirs], rtol=0, atol=1e-4)
    assert ours.nll_nats.dtype == np.float64
    assert ours.n_tokens.tolist() == [r.n for r in theirs]
    assert len(set(ours.n_tokens.tolist())) > 3


def test_answers_are_reproduced_where_greedy_decoding_in_torch_says_them(answers):
    ours, theirs = answers
    assert ours.is_reproduced.dtype == bool
    assert ours.is_reproduced.tolist() == [r.is_reproduced for r in theirs]
    assert 5 < ours.is_reproduced.sum() < len(theirs) - 5


def test_token_accuracies_are_those_of_torch(answers):
    ours, theirs = answers
    assert ours.token_accuracy.tolist() == [r.token_accuracy for r in theirs]
    assert set(ours.token_accuracy.tolist()) - {0.0, 1.0}


def test_an_answer_follows_after_exactly_one_space(golden):
    model = golden("gpt2")
    pairs = [("The capital is", answer) for answer in ("Rome", " Rome", "Rome ")]
    plain, spaced, at_end = score_answers(model, pairs).nll_nats
    assert plain == spaced == at_end
    assert plain != score_answers(model, [("The capital is ", "Rome")]).nll_nats[0]


# Metrics


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


def test_efficacy_accuracy_is_true_for_what_greedy_decoding_says(golden, torch_of, prompts_of):
    hf = torch_of("llama")
    _, _, beginnings = prompts_of("llama")
    greedy = [(prompt, hf.greedy(prompt)) for prompt in beginnings]
    prompt, answer = next((prompt, found[2]) for prompt, found in greedy if 2 in found)
    subject = prompt.split()[0]
    template = prompt.replace(subject, "{}", 1)
    request = Request(template, subject, answer, target_true=f"{answer} and more")
    (metrics,) = evaluate_facts(golden("llama"), [request])
    assert metrics["efficacy_accuracy"] is True
    expected = math.exp(-2 * hf.rate(prompt, answer).q)
    assert metrics["probability_new"] == pytest.approx(expected, rel=1e-3)


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


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one pair"),
        ([("The capital is", " ")], r"The capital is.* has an empty answer"),
        ([("", "Rome")], "no token before it"),
        ([("The capital is", "Rome " * 300)], r"has \d+ tokens, more than the 256 positions"),
    ],
    ids=["no pairs", "empty answer", "empty prompt", "too long"],
)
def test_what_cannot_be_scored_is_refused(golden, pairs, message):
    with pytest.raises(ValueError, match=message):
        score_answers(golden("gpt2"), pairs)


def test_facts_need_a_request(golden):
    with pytest.raises(ValueError, match="at least one pair"):
        evaluate_facts(golden("gpt2"), [])
