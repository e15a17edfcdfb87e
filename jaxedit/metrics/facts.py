"""Facts: whether an edit took, and whether what lies beside it stayed.

As the ROME repository evaluates CounterFact (arXiv 2202.05262;
experiments/py/eval_utils_counterfact.py there): q(o) = -(1/|o|) sum_t log p(o_t | p, o_<t) is the
mean loss a token of the answer " o" after the prompt p. An edit took where the new answer is
likelier than the true one, q(true) > q(new), on its own prompt (efficacy) and on paraphrases; a
neighbour stayed where its own answer is likelier than the new one. exp(-q) is a geometric mean a
token; the probabilities given here are those of the whole answer, exp(-|o| q).

Three words, never mixed: *success* is which answer is likelier; *magnitude* by how much,
exp(-q(new)) - exp(-q(true)) (for a neighbour exp(-q(its answer)) - exp(-q(new))); *accuracy*
whether every token of the wanted answer is the most likely one, given those before it. EasyEdit's
reliability, generalisation and portability are *token accuracies*: the share of such tokens."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.edit import Edit, with_per_row_edits
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.models.packing import pack
from jaxedit.models.score import token_losses
from jaxedit.models.tokenizer import first_token_after

Pair = tuple[str, str]


class ScoredAnswers(NamedTuple):
    """For each pair (prompt, answer): how the model rates the answer.

    `nll_nats` is the mean loss a token of the answer (q above), infinite where it is not finite;
    `n_tokens` its tokens; `share` of them that are the most likely one, and `exact` whether all
    are, so that greedy decoding from the prompt would say the answer (nothing where the loss is not
    finite)."""

    nll_nats: np.ndarray
    n_tokens: np.ndarray
    share: np.ndarray
    exact: np.ndarray


def score_answers(
    model: Model,
    pairs: list[Pair],
    edits: list[Edit] | None = None,
    edit_of: list[int] | None = None,
) -> ScoredAnswers:
    """Rates answers after their prompts, all in one packed call.

    Args:
      model: with or without edits.
      pairs: (prompt, answer). The answer follows the prompt after exactly one space, whether or not
        it was given with one, and both are tokenised together, with a begin-of-text token where the
        model's own settings ask for one.
      edits: low-rank edits that the model has only for single pairs.
      edit_of: which of them, for each pair.

    Raises:
      ValueError: without pairs, on an empty answer, a prompt of no tokens, or a text longer than a
        model's learned positions.
    """
    if not pairs:
        raise ValueError("facts need at least one pair of a prompt and an answer")
    token_lists, firsts = [], []
    for prompt, answer in pairs:
        if not answer.strip():
            raise ValueError(
                f"the prompt {prompt!r} has an empty answer, so there is nothing to score"
            )
        tokens, ends = model.tokenizer.encode_with_ends(f"{prompt} {answer.strip()}")
        first = first_token_after(ends, len(prompt))
        if first == 0:
            raise ValueError(
                f"the answer {answer!r} has no token before it to be predicted from; give it a prompt"
            )
        model.config.check_length(
            len(tokens), f"the prompt {prompt[:40]!r}... with its answer {answer[:40]!r}"
        )
        token_lists.append(tokens)
        firsts.append(first)
    packed = pack(token_lists, model.mesh.shape["data"], edit_of)
    scores = token_losses(
        model,
        packed,
        None if edits is None else functools.partial(with_per_row_edits, model, edits),
    )
    # Scores begin with the second token: that of token t stands at t - 1.
    nll_nats = np.array(
        [nll[first - 1 :].mean() for nll, first in zip(scores.nll_nats, firsts, strict=True)]
    )
    share = np.array(
        [hit[first - 1 :].mean() for hit, first in zip(scores.is_argmax, firsts, strict=True)]
    )
    n_tokens = np.array(
        [len(tokens) - first for tokens, first in zip(token_lists, firsts, strict=True)]
    )
    finite = np.isfinite(
        nll_nats
    )  # NaN logits have no argmax, whatever the comparison of running maxima says
    share = np.where(finite, share, 0.0)
    return ScoredAnswers(np.where(finite, nll_nats, np.inf), n_tokens, share, share == 1.0)


def evaluate_facts(
    model: Model,
    requests: list[Request],
    edits: list[Edit] | None = None,
    prefix: str | None = None,
) -> list[dict[str, Any]]:
    """Whether requests hold in a model, each with its paraphrases and neighbours; one packed call
    for all of them.

    Args:
      model: with or without edits.
      requests: at least one.
      edits: for each request a low-rank edit that the model has only when it is asked about this
        request.
      prefix: a context template; the prompt is then asked behind it as well (arXiv 2406.11263,
        section 4).

    Returns:
      For each request, with q the mean loss a token (None where the request lacks what it takes):
      probability_new: the probability of the whole of target_new after the prompt.
      probability_true: that of target_true. greedy_new: whether greedy decoding from the prompt
      would say target_new. token_accuracy: the share of target_new's tokens that are the most
      likely ones. efficacy: whether q(target_true) > q(target_new) after the prompt; averaged over
      requests it is ES. paraphrase: the share of paraphrases after which q(target_true) >
      q(target_new); its average is PS. neighbourhood: the share of neighbours after whose prompt
      q(their answer) < q(target_new); its average is NS. efficacy_magnitude, paraphrase_magnitude,
      neighbourhood_magnitude: how far apart the two probabilities a token are; EM,
        PM, NM.
      paraphrase_accuracy, neighbourhood_accuracy: the share of them after which every token of
        target_new, of their answer, is the most likely one; and paraphrase_token_accuracy.
      portability, portability_token_accuracy: the same for the questions that follow from the new
        fact.
      prefixed, prefixed_greedy: efficacy and greedy_new behind `prefix`.

    Raises:
      ValueError: as `answers`.
    """
    owner = list(range(len(requests))) if edits else [0] * len(requests)
    pairs = [
        (n, pair)
        for n, request in zip(owner, requests, strict=True)
        for pair in _pairs(request, prefix)
    ]
    owned = list(dict.fromkeys(pairs))
    rated = score_answers(model, [pair for _, pair in owned], edits, [n for n, _ in owned])
    rows: dict[int, dict[Pair, int]] = {}
    for i, (n, pair) in enumerate(owned):
        rows.setdefault(n, {})[pair] = i
    return [
        _fact(request, AnswerLookup(rated, rows[n]), prefix)
        for n, request in zip(owner, requests, strict=True)
    ]


def average_facts(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The entries of `facts` averaged over requests, each over those that have it; a single
    request's are as they are.
    """
    if len(found) == 1:
        return found[0]
    held = {key: [fact[key] for fact in found if fact[key] is not None] for key in found[0]}
    return {key: float(np.mean(values)) if values else None for key, values in held.items()}


def _pairs(request: Request, prefix: str | None) -> Iterator[Pair]:
    """All that has to be scored for a request."""
    prompts = [
        request.prompt_text,
        *request.paraphrases,
        *([] if prefix is None else [prefix.replace("{}", request.prompt_text)]),
    ]
    for prompt in prompts:
        yield prompt, request.target_new
        if request.target_true is not None:
            yield prompt, request.target_true
    for neighbour in request.neighbours:
        yield neighbour.prompt, request.target_new
        yield neighbour.prompt, neighbour.answer
    yield from request.portability


class AnswerLookup(NamedTuple):
    """Answers that can be looked up by their prompt and text."""

    answers: ScoredAnswers
    row: dict[Pair, int]

    def q(self, pair: Pair) -> float:
        """The mean loss a token."""
        return float(self.answers.nll_nats[self.row[pair]])

    def margin(self, wanted: Pair, other: Pair) -> float:
        """The difference of the two probabilities a token."""
        return float(np.exp(-self.q(wanted)) - np.exp(-self.q(other)))

    def probability(self, pair: Pair) -> float:
        """Of the whole answer."""
        return float(np.exp(-self.q(pair) * self.answers.n_tokens[self.row[pair]]))

    def exact(self, pair: Pair) -> bool:
        """Whether each token is the most likely one."""
        return bool(self.answers.exact[self.row[pair]])

    def share(self, pair: Pair) -> float:
        """Of the tokens that are."""
        return float(self.answers.share[self.row[pair]])


def _fact(request: Request, rated: AnswerLookup, prefix: str | None) -> dict[str, Any]:
    """The entries of `facts` for one request."""
    new, true = request.target_new, request.target_true
    bare, paraphrases = request.prompt_text, request.paraphrases
    beside = [((prompt, answer), (prompt, new)) for prompt, answer in request.neighbours]
    follow = [(prompt, answer) for prompt, answer in request.portability]
    behind = None if prefix is None else prefix.replace("{}", bare)

    def against_true(
        measure: Callable[[Pair, Pair], float], prompts: Sequence[str]
    ) -> float | None:
        return (
            None
            if true is None
            else _mean([measure((prompt, new), (prompt, true)) for prompt in prompts])
        )

    def took(wanted: Pair, other: Pair) -> bool:
        return rated.q(other) > rated.q(wanted)

    efficacy = against_true(took, [bare])
    prefixed = None if behind is None else against_true(took, [behind])
    return {
        "probability_new": rated.probability((bare, new)),
        "probability_true": None if true is None else rated.probability((bare, true)),
        "efficacy_accuracy": rated.exact((bare, new)),
        "token_accuracy": rated.share((bare, new)),
        "efficacy_success": None if efficacy is None else bool(efficacy),
        "paraphrase_success": against_true(took, paraphrases),
        "neighbourhood_success": _mean([took(*pairs) for pairs in beside]),
        "efficacy_magnitude": against_true(rated.margin, [bare]),
        "paraphrase_magnitude": against_true(rated.margin, paraphrases),
        "neighbourhood_magnitude": _mean([rated.margin(*pairs) for pairs in beside]),
        "paraphrase_accuracy": _mean([rated.exact((prompt, new)) for prompt in paraphrases]),
        "paraphrase_token_accuracy": _mean([rated.share((prompt, new)) for prompt in paraphrases]),
        "neighbourhood_accuracy": _mean([rated.exact(own) for own, _ in beside]),
        "portability_accuracy": _mean([rated.exact(pair) for pair in follow]),
        "portability_token_accuracy": _mean([rated.share(pair) for pair in follow]),
        "prefixed_success": None if prefixed is None else bool(prefixed),
        "prefixed_accuracy": None if behind is None else rated.exact((behind, new)),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
