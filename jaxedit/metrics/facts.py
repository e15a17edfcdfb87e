"""Facts: whether an edit took, and whether neighbouring facts stayed.

As the ROME repository evaluates CounterFact (arXiv 2202.05262;
experiments/py/eval_utils_counterfact.py there): q(o) = -(1/|o|) sum_t log p(o_t | p, o_<t) is the
mean loss a token of the answer " o" after the prompt p, and exp(-q) the per-token probability, a
geometric mean over the answer's tokens.

*Success*: P(target_new) > P(target_true), both per token: q(target_true) > q(target_new).
*Magnitude*: the difference of the two per-token probabilities, exp(-q(target_new)) -
exp(-q(target_true)). *Accuracy*: greedy decoding reproduces the target: every token of it is the
most likely one, given those before it. Of a neighbouring prompt the target is its own answer, which
is compared with target_new. EasyEdit's reliability, generalisation and portability are *token
accuracies*: the share of a target's tokens that are the most likely ones.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict, cast

import numpy as np

from jaxedit.edits.edit import Edit
from jaxedit.edits.request import Request, check_requests
from jaxedit.metrics.answers import AnswerLookup, Pair, score_answers
from jaxedit.models.model import Model


class FactMetrics(TypedDict):
    """The metrics of a request; an average over several has numbers where a request has booleans.

    None where the request lacks what a metric takes. Averages over requests are the papers' scores:
    ES, EM of efficacy, PS, PM of paraphrases, NS, NM of neighbours (success, magnitude).

    Attributes:
      probability_new: the probability of the whole of target_new after the prompt, exp(-|o| q).
      probability_true: that of target_true.
      efficacy_success: whether q(target_true) > q(target_new) after the prompt.
      efficacy_accuracy: whether greedy decoding from the prompt reproduces target_new.
      token_accuracy: the share of target_new's tokens that are the most likely ones.
      efficacy_magnitude: exp(-q(target_new)) - exp(-q(target_true)) after the prompt.
      paraphrase_success: the share of paraphrases after which q(target_true) > q(target_new).
      paraphrase_magnitude: the mean over paraphrases of the difference of the probabilities.
      paraphrase_accuracy: the share of paraphrases after which decoding reproduces target_new.
      paraphrase_token_accuracy: the mean over paraphrases of the token accuracy of target_new.
      neighbourhood_success: the share of neighbours with q(target_new) > q(their own answer).
      neighbourhood_magnitude: the mean over neighbours of exp(-q(own)) - exp(-q(target_new)).
      neighbourhood_accuracy: the share of neighbours whose own answer decoding reproduces.
      portability_accuracy: the share of questions that follow from the new fact whose answers
        decoding reproduces.
      portability_token_accuracy: the mean over these questions of their answers' token accuracy.
      prefixed_success: efficacy_success after the prompt behind a context template.
      prefixed_accuracy: efficacy_accuracy after the prompt behind a context template.
    """

    probability_new: float | None
    probability_true: float | None
    efficacy_success: bool | float | None
    efficacy_accuracy: bool | float | None
    token_accuracy: float | None
    efficacy_magnitude: float | None
    paraphrase_success: float | None
    paraphrase_magnitude: float | None
    paraphrase_accuracy: float | None
    paraphrase_token_accuracy: float | None
    neighbourhood_success: float | None
    neighbourhood_magnitude: float | None
    neighbourhood_accuracy: float | None
    portability_accuracy: float | None
    portability_token_accuracy: float | None
    prefixed_success: bool | float | None
    prefixed_accuracy: bool | float | None


def evaluate_facts(
    model: Model,
    requests: list[Request],
    edits: list[Edit] | None = None,
    prefix: str | None = None,
) -> list[FactMetrics]:
    """Evaluate requests with their paraphrases and neighbours, all in one packed call.

    Args:
      model: with or without edits.
      requests: at least one; each with the space that it says before its answers.
      edits: for each request a low-rank edit that the model has only when it is asked about this
        request.
      prefix: a context template; the prompt is then asked behind it as well (arXiv 2406.11263,
        section 4).

    Raises:
      ValueError: on a single request instead of a list; as `score_answers`.
    """
    requests = check_requests(requests)
    # Requests whose edits differ share no answers; without edits all requests share them.
    edit_of_request = list(range(len(requests))) if edits else [0] * len(requests)
    asked: dict[tuple[int, Pair], None] = {}  # an ordered set
    for n, request in zip(edit_of_request, requests, strict=True):
        asked |= dict.fromkeys((n, pair) for pair in _pairs(request, prefix))
    answers = score_answers(model, [pair for _, pair in asked], edits, [n for n, _ in asked])

    index: dict[int, dict[Pair, int]] = {}
    for i, (n, pair) in enumerate(asked):
        index.setdefault(n, {})[pair] = i
    return [
        _metrics_of(request, AnswerLookup(answers, index[n]), prefix)
        for n, request in zip(edit_of_request, requests, strict=True)
    ]


def average_facts(found: list[FactMetrics]) -> FactMetrics:
    """Average metrics over requests, each over those that have it; a single request's are kept."""
    if len(found) == 1:
        return found[0]
    means: dict[str, float | None] = {}
    for key in found[0]:
        values = [metrics[key] for metrics in found if metrics[key] is not None]
        means[key] = _mean(values)
    return cast(FactMetrics, means)


def count_facts(found: list[FactMetrics]) -> dict[str, int]:
    """Count the requests that have a metric, for each metric that some have and others lack."""
    counts = {key: sum(metrics[key] is not None for metrics in found) for key in found[0]}
    return {key: count for key, count in counts.items() if 0 < count < len(found)}


def _pairs(request: Request, prefix: str | None) -> Iterator[Pair]:
    """Yield every prompt and answer that is scored for a request."""
    pair = _pair_of(request)
    prompts = [request.prompt_text, *request.paraphrases]
    if prefix is not None:
        prompts.append(prefix.replace("{}", request.prompt_text))
    for prompt in prompts:
        yield pair(prompt, request.target_new)
        if request.target_true is not None:
            yield pair(prompt, request.target_true)
    for neighbour in request.neighbours:
        yield pair(neighbour.prompt, request.target_new)
        yield pair(neighbour.prompt, neighbour.answer)
    for question in request.portability:
        yield pair(question.prompt, question.answer)


def _pair_of(request: Request) -> Callable[[str, str], Pair]:
    """Return what makes a prompt and an answer a pair with the request's own space between."""
    return functools.partial(Pair, leading_space=request.leading_space or "joined")


def _metrics_of(request: Request, answers: AnswerLookup, prefix: str | None) -> FactMetrics:
    """Compute the metrics of one request from its scored answers."""
    # The pairs that are compared: a prompt with its target and with the other answer.
    new, true = request.target_new, request.target_true
    prompt, pair = request.prompt_text, _pair_of(request)
    own_and_new = [(pair(n.prompt, n.answer), pair(n.prompt, new)) for n in request.neighbours]
    paraphrases = [pair(paraphrase, new) for paraphrase in request.paraphrases]
    questions = [pair(question.prompt, question.answer) for question in request.portability]

    def against_true(
        measure: Callable[[Pair, Pair], float], prompts: Sequence[str]
    ) -> float | None:
        """Average a measure of target_new beside target_true over prompts."""
        if true is None:
            return None
        return _mean([measure(pair(asked, new), pair(asked, true)) for asked in prompts])

    def success(asked: str) -> bool | None:
        return None if true is None else answers.is_likelier(pair(asked, new), pair(asked, true))

    # The prompt behind a context template.
    prefixed_success = prefixed_accuracy = None
    if prefix is not None:
        prefixed = prefix.replace("{}", prompt)
        prefixed_success = success(prefixed)
        prefixed_accuracy = answers.is_reproduced(pair(prefixed, new))
    return FactMetrics(
        probability_new=answers.probability(pair(prompt, new)),
        probability_true=None if true is None else answers.probability(pair(prompt, true)),
        efficacy_success=success(prompt),
        efficacy_accuracy=answers.is_reproduced(pair(prompt, new)),
        token_accuracy=answers.token_accuracy(pair(prompt, new)),
        efficacy_magnitude=against_true(answers.magnitude, [prompt]),
        paraphrase_success=against_true(answers.is_likelier, request.paraphrases),
        paraphrase_magnitude=against_true(answers.magnitude, request.paraphrases),
        paraphrase_accuracy=_mean(list(map(answers.is_reproduced, paraphrases))),
        paraphrase_token_accuracy=_mean(list(map(answers.token_accuracy, paraphrases))),
        neighbourhood_success=_mean([answers.is_likelier(*pairs) for pairs in own_and_new]),
        neighbourhood_magnitude=_mean([answers.magnitude(*pairs) for pairs in own_and_new]),
        neighbourhood_accuracy=_mean([answers.is_reproduced(own) for own, _ in own_and_new]),
        portability_accuracy=_mean(list(map(answers.is_reproduced, questions))),
        portability_token_accuracy=_mean(list(map(answers.token_accuracy, questions))),
        prefixed_success=prefixed_success,
        prefixed_accuracy=prefixed_accuracy,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
