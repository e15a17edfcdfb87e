"""The space before an answer is the same in every metric, in training and in torch's own sum."""

import dataclasses
import math

import pytest

import jaxedit
from jaxedit.edits.request import with_leading_space
from jaxedit.metrics.answers import Pair, score_answers
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.solving.prompts import tokenise_request
from jaxedit.study.config import default_config
from jaxedit.study.digests import digest_requests
from jaxedit.study.validation import facts_of_edits

REQUEST = jaxedit.Request(
    "{} is in",
    "The Eiffel Tower",
    "Rome",
    target_true="Paris",
    paraphrases=("To see The Eiffel Tower go to",),
    neighbours=(jaxedit.PromptAnswer("The Louvre is in", "Paris"),),
    portability=(jaxedit.PromptAnswer("Its country is", "Italy"),),
)
BETWEEN = {"none": "", "separate": " ", "joined": " "}


@pytest.mark.parametrize("leading_space", BETWEEN)
def test_every_metric_asks_with_the_requests_own_space(golden, torch_of, leading_space):
    """Torch sums over the tokens of the prompt and of the answer, each tokenised by itself."""
    hf = torch_of("gpt2")

    def q(prompt: str, answer: str) -> float:
        before = hf.tokenizer(prompt).input_ids
        tokens = before + hf.tokenizer(BETWEEN[leading_space] + answer).input_ids
        log_probs = hf.log_probs(tokens)
        losses = [-float(log_probs[t - 1, tokens[t]]) for t in range(len(before), len(tokens))]
        return sum(losses) / len(losses)

    request = dataclasses.replace(REQUEST, leading_space=leading_space)
    (found,) = evaluate_facts(golden("gpt2"), [request], prefix="So. {}")
    asked, paraphrase = request.prompt_text, request.paraphrases[0]
    louvre, own = request.neighbours[0]

    def magnitude(prompt: str, wanted: str, other: str) -> float:
        return math.exp(-q(prompt, wanted)) - math.exp(-q(prompt, other))

    close = dict(rel=1e-3, abs=1e-9)
    assert found["efficacy_magnitude"] == pytest.approx(magnitude(asked, "Rome", "Paris"), **close)
    of_paraphrase = magnitude(paraphrase, "Rome", "Paris")
    assert found["paraphrase_magnitude"] == pytest.approx(of_paraphrase, **close)
    of_neighbour = magnitude(louvre, own, "Rome")
    assert found["neighbourhood_magnitude"] == pytest.approx(of_neighbour, **close)
    assert found["efficacy_success"] == (q(asked, "Paris") > q(asked, "Rome"))
    assert found["prefixed_success"] == (q(f"So. {asked}", "Paris") > q(f"So. {asked}", "Rome"))


def test_each_of_several_requests_has_its_own(golden):
    """The same prompts and answers, asked with a space and without: no answer is taken twice."""
    model = golden("gpt2")
    spaces = [None, "none", "separate", "separate-no-space"]
    requests = [dataclasses.replace(REQUEST, leading_space=space) for space in spaces]
    together = [metrics["probability_new"] for metrics in evaluate_facts(model, requests)]
    alone = [evaluate_facts(model, [request])[0]["probability_new"] for request in requests]
    assert together == pytest.approx(alone, rel=1e-4)
    assert together[0] == pytest.approx(together[2], rel=1e-4)
    assert together[1] == pytest.approx(together[3], rel=1e-4)
    assert abs(math.log(together[0] / together[1])) > 0.01


@pytest.mark.parametrize("leading_space", [None, *BETWEEN])
@pytest.mark.parametrize("at_end", ["", " "])
def test_an_edit_trains_on_the_tokens_that_metrics_ask_for(golden, leading_space, at_end):
    model = golden("gpt2")
    request = jaxedit.Request(f"{{}} is in{at_end}", "Ann", "Rome", leading_space=leading_space)
    (row,) = tokenise_request(model, request, ("{}",)).templates
    scored = score_answers(model, [Pair(request.prompt_text, "Rome", leading_space or "joined")])
    if not at_end:
        assert scored.n_tokens[0] == len(row.tokens) - row.first_target
    assert model.tokenizer.encode(request.prompt_text) == row.tokens[: row.first_target]


def test_a_request_s_own_space_counts_before_the_editors(golden):
    model = golden("gpt2")
    own = dataclasses.replace(REQUEST, leading_space="none")
    assert tokenise_request(model, own, ("{}",), "joined") == tokenise_request(
        model, REQUEST, ("{}",), "none"
    )


@pytest.mark.parametrize(("name", "layer"), [("rome", {"layer": 1}), ("ft", {"layers": (1,)})])
def test_a_studys_facts_have_the_space_of_its_editor(name, layer):
    values = default_config(name, leading_space="none", **layer).to_dict()
    assert facts_of_edits([REQUEST], values) == [with_leading_space([REQUEST], "none")]
    # Journals from before there was such a field still know their facts.
    fields = dict(REQUEST.__dict__)
    del fields["leading_space"]
    from jaxedit.study.digests import digest

    assert digest_requests([REQUEST]) == digest([fields])
    assert digest_requests(with_leading_space([REQUEST], "none")) != digest([fields])


@pytest.mark.parametrize("wrong", ["ab", ("a", None), [3, "b"]])
def test_a_text_in_place_of_a_pair_is_refused(golden, wrong):
    with pytest.raises(ValueError, match=r"pair 0 must be texts \(prompt, answer\)"):
        score_answers(golden("gpt2"), [wrong])
