"""Facts: whether an edit took, and whether what lies beside it stayed.

As the ROME repository evaluates CounterFact (arXiv 2202.05262; experiments/py/eval_utils_counterfact.py there):
q(o) = -(1/|o|) sum_t log p(o_t | p, o_<t) is the mean loss a token of the answer " o" after the prompt p. An edit took
where the new answer is likelier than the true one, q(true) > q(new), on its own prompt (efficacy) and on paraphrases; a
neighbour stayed where its own answer is likelier than the new one. exp(-q) is a geometric mean a token; the probabilities
given here are those of the whole answer, exp(-|o| q).
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.edit import Edit, in_rows
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.models.score import pack, score
from jaxedit.models.tokenizer import first_token_after

Pair = tuple[str, str]


class Answers(NamedTuple):
    """For each pair (prompt, answer): how the model rates the answer.

    `nll_nats` is the mean loss a token of the answer (q above), infinite where it is not finite; `n_tokens` its tokens;
    `exact` whether each of them is the most likely one, so that greedy decoding from the prompt would say the answer (False
    where the loss is not finite).
    """

    nll_nats: np.ndarray
    n_tokens: np.ndarray
    exact: np.ndarray


def answers(model: Model, pairs: list[Pair], edits: list[Edit] | None = None, edit_of: list[int] | None = None) -> Answers:
    """Rates answers after their prompts, all in one packed call.

    Args:
      model: with or without edits.
      pairs: (prompt, answer). The answer follows the prompt after exactly one space, whether or not it was given with one,
        and both are tokenised together, with a begin-of-text token where the model's own settings ask for one.
      edits: low-rank edits that the model has only for single pairs.
      edit_of: which of them, for each pair.

    Raises:
      ValueError: without pairs, on an empty answer, a prompt of no tokens, or a text longer than a model's learned positions.
    """
    if not pairs:
        raise ValueError("facts need at least one pair of a prompt and an answer")
    token_lists, firsts = [], []
    for prompt, answer in pairs:
        if not answer.strip():
            raise ValueError(f"the prompt {prompt!r} has an empty answer, so there is nothing to score")
        tokens, ends = model.tokenizer.encode_with_ends(f"{prompt} {answer.strip()}")
        first = first_token_after(ends, len(prompt))
        if first == 0:
            raise ValueError(f"the answer {answer!r} has no token before it to be predicted from; give it a prompt")
        model.config.check_length(len(tokens), f"the prompt {prompt[:40]!r}... with its answer {answer[:40]!r}")
        token_lists.append(tokens)
        firsts.append(first)
    packed = pack(token_lists, model.mesh.shape["data"], edit_of)
    scores = score(model, packed, None if edits is None else functools.partial(in_rows, model, edits))
    # Scores begin with the second token: that of token t stands at t - 1.
    nll_nats = np.array([nll[first - 1 :].mean() for nll, first in zip(scores.nll_nats, firsts, strict=True)])
    exact = np.array([hit[first - 1 :].all() for hit, first in zip(scores.is_argmax, firsts, strict=True)])
    n_tokens = np.array([len(tokens) - first for tokens, first in zip(token_lists, firsts, strict=True)])
    finite = np.isfinite(nll_nats)  # NaN logits have no argmax, whatever the comparison of running maxima says
    return Answers(np.where(finite, nll_nats, np.inf), n_tokens, exact & finite)


def facts(model: Model, requests: list[Request], edits: list[Edit] | None = None) -> list[dict[str, Any]]:
    """Whether requests hold in a model, each with its paraphrases and neighbours; one packed call for all of them.

    Args:
      model: with or without edits.
      requests: at least one.
      edits: for each request a low-rank edit that the model has only when it is asked about this request.

    Returns:
      For each request, with q the mean loss a token (None where the request lacks what it takes):
      probability_new: the probability of the whole of target_new after the prompt.
      probability_true: that of target_true.
      greedy_new: whether greedy decoding from the prompt would say target_new.
      efficacy: whether q(target_true) > q(target_new) after the prompt; averaged over requests it is ES.
      paraphrase: the share of paraphrases after which q(target_true) > q(target_new); its average is PS.
      neighbourhood: the share of neighbours after whose prompt q(their answer) < q(target_new); its average is NS.

    Raises:
      ValueError: as `answers`.
    """
    owner = list(range(len(requests))) if edits else [0] * len(requests)
    owned = list(dict.fromkeys((n, pair) for n, request in zip(owner, requests, strict=True) for pair in _pairs(request)))
    rated = answers(model, [pair for _, pair in owned], edits, [n for n, _ in owned])
    rows: dict[int, dict[Pair, int]] = {}
    for i, (n, pair) in enumerate(owned):
        rows.setdefault(n, {})[pair] = i
    return [_fact(request, rated, rows[n]) for n, request in zip(owner, requests, strict=True)]


def mean_fact(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The entries of `facts` averaged over requests, each over those that have it; a single request's are as they are."""
    if len(found) == 1:
        return found[0]
    held = {key: [fact[key] for fact in found if fact[key] is not None] for key in found[0]}
    return {key: float(np.mean(values)) if values else None for key, values in held.items()}


def _pairs(request: Request) -> Iterator[Pair]:
    """All that has to be scored for a request."""
    for prompt in (request.question, *request.paraphrases):
        yield prompt, request.target_new
        if request.target_true is not None:
            yield prompt, request.target_true
    for neighbour in request.neighbours:
        yield neighbour.prompt, request.target_new
        yield neighbour.prompt, neighbour.answer


def _fact(request: Request, rated: Answers, row: dict[Pair, int]) -> dict[str, Any]:
    """The entries of `facts` for one request."""
    question, new, true = request.question, request.target_new, request.target_true

    def q(prompt: str, answer: str) -> float:
        return float(rated.nll_nats[row[prompt, answer]])

    def probability(answer: str) -> float:
        return float(np.exp(-q(question, answer) * rated.n_tokens[row[question, answer]]))

    def took(prompt: str) -> bool:
        return true is not None and q(prompt, true) > q(prompt, new)

    paraphrase = [took(prompt) for prompt in request.paraphrases]
    neighbourhood = [q(prompt, answer) < q(prompt, new) for prompt, answer in request.neighbours]
    return {
        "probability_new": probability(new),
        "probability_true": None if true is None else probability(true),
        "greedy_new": bool(rated.exact[row[question, new]]),
        "efficacy": None if true is None else took(question),
        "paraphrase": float(np.mean(paraphrase)) if paraphrase and true is not None else None,
        "neighbourhood": float(np.mean(neighbourhood)) if neighbourhood else None,
    }
