"""Facts judged by what a model says: against transformers' generation, and a judge that is local.

What a study journals of it is tested on the golden gpt2, chats on SmolLM2.
"""

import contextlib
from typing import Any

import pytest
import torch
import transformers
from local_chat import local_chat
from reference.models import hf_model

import jaxedit
from jaxedit import PromptAnswer, Request
from jaxedit.metrics import generated
from jaxedit.metrics.generated import (
    CONTEXTS,
    KINDS,
    GeneratedAnswer,
    contains,
    first_line_of,
    generate_answers,
    generated_metrics,
    normalise,
    put_in_context,
)
from jaxedit.metrics.judge import Judge
from jaxedit.study import loop
from jaxedit.study.journal import read_journal

REQUEST = Request(
    prompt="{} lives in",
    subject="Bob",
    target_new="Paris",
    paraphrases=("Bob has his home in", "Bob can be found in"),
    neighbours=(PromptAnswer("Ann lives in", "London"),),
    portability=(PromptAnswer("Bob lives in the country of", "France"),),
)
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]


@pytest.fixture
def served():
    """Make a function: (replies) -> a judge's address and the requests it got."""
    with contextlib.ExitStack() as servers:
        yield lambda *replies: servers.enter_context(local_chat(*replies, default="CORRECT"))


@pytest.mark.parametrize("context", ["bare", "qa"])
def test_what_is_said_is_what_transformers_generates(golden, shared, context):
    model, directory = golden("gpt2"), shared / "golden" / "gpt2"
    said = generate_answers(model, [REQUEST], context)
    assert [each["kind"] for each in said] == ["efficacy", "paraphrase", "paraphrase", *KINDS[2:]]
    assert [each["answer"] for each in said] == ["Paris", "Paris", "Paris", "London", "France"]
    reference = hf_model(directory)
    for each in said:
        asked = put_in_context(model, each["prompt"], context)
        if context == "qa":
            assert asked == f"Please answer the question:\n\nQ: {each['prompt']}\nA:"
        tokens = torch.tensor([model.tokenizer.encode(asked)])
        whole = reference.generate(tokens, max_new_tokens=generated.MAX_NEW_TOKENS, do_sample=False)
        new = whole[0, tokens.shape[1] :].tolist()
        text = model.tokenizer.decode(new, skip_special=True)
        assert each["said"] == first_line_of(text)


@pytest.mark.smollm2
@pytest.mark.real_model
def test_a_chat_is_asked_in_the_tokenizers_own_template(smollm2, tmp_path):
    """Against transformers' tokenizer, which reads the same template."""
    own = smollm2.tokenizer
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own.backend, chat_template=own.chat_template
    )
    messages = [{"role": "user", "content": "Where is the Eiffel Tower?"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert put_in_context(smollm2, "Where is the Eiffel Tower?", "chat") == rendered
    fact = Request(prompt="Where is {}?", subject="the Eiffel Tower", target_new="Paris")
    (said,) = generate_answers(smollm2, [fact], "chat")
    assert (said["contains"], said["exact"]) == (True, False)
    assert "<|im" not in said["said"]


def test_a_model_without_a_template_has_no_chat(golden):
    with pytest.raises(ValueError, match="this model's tokenizer has no chat template"):
        generate_answers(golden("gpt2"), [REQUEST], "chat")
    with pytest.raises(ValueError, match="unknown context 'QA'; expected one of bare, qa, chat"):
        generate_answers(golden("gpt2"), [REQUEST], "QA")
    assert CONTEXTS == ("bare", "qa", "chat")


@pytest.mark.parametrize(
    ("text", "line"),
    [(" Rome.\nIt is", "Rome."), ("\n\n Rome \n", "Rome"), ("", ""), ("\n", "")],
)
def test_an_answer_ends_at_its_first_line_break(text, line):
    assert first_line_of(text) == line


@pytest.mark.parametrize(
    ("said", "answer", "is_exact", "is_in"),
    [
        ("The Rome.", "rome", True, True),
        ("in Rome, Italy", "Rome", False, True),
        ("in Rome, Italy", "Rome Italy", False, True),
        ("Romeo and Juliet", "Rome", False, False),
        ("Italy, Rome", "Rome Italy", False, False),
        ("", "Rome", False, False),
        ("a", "the", False, False),
        ("A.", "A", True, True),
        ("“Paris”", "Paris", True, True),
        ("日本。", "日本", True, True),
        ("!!!", "???", False, False),
    ],
)
def test_answers_are_compared_as_squad_does(said, answer, is_exact, is_in):
    assert (normalise(said) == normalise(answer)) == is_exact
    assert contains(said, answer) == is_in


def test_shares_are_means_over_requests():
    def said(request, kind, exact, contained):
        return GeneratedAnswer(
            request=request,
            kind=kind,
            prompt="p",
            answer="a",
            said="s",
            exact=exact,
            contains=contained,
            judged=None,
        )

    shares = generated_metrics(
        [
            said(0, "efficacy", False, True),
            said(1, "efficacy", False, False),
            said(0, "paraphrase", True, True),
            said(0, "paraphrase", False, True),
            said(1, "paraphrase", False, False),
        ]
    )
    assert shares == {
        "generated_efficacy_exact": 0.0,
        "generated_efficacy_contains": 0.5,
        "generated_paraphrase_exact": 0.25,
        "generated_paraphrase_contains": 0.5,
    }


def test_generated_and_teacher_forced_numbers_never_share_a_name():
    from jaxedit.metrics.facts import FactMetrics

    always = dict(request=0, prompt="p", answer="a", said="s")
    always |= dict(exact=True, contains=True, judged=True)
    answers: list[Any] = [{"kind": kind, **always} for kind in KINDS]
    assert len(generated_metrics(answers)) == 3 * len(KINDS)
    assert not set(generated_metrics(answers)) & set(FactMetrics.__annotations__)


# The judge.


def test_a_judge_is_asked_each_question_once(served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    address, asked = served("CORRECT", "INCORRECT.", "correct")
    judge = Judge(address, "grader")
    verdicts = [judge.is_right("Who?", "Ada", said) for said in ("Ada", "Bob", "Ada L.", "Ada")]
    assert verdicts == [True, False, True, True]
    assert len(asked) == 3
    path, key, body = asked[1]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "grader")
    (message,) = body["messages"]
    for part in ("Question: Who?", "Right answer: Ada", "Said: Bob"):
        assert part in message["content"]
    assert body["temperature"] == 0


def test_a_judge_that_is_away_or_says_something_else_is_named(served, monkeypatch):
    monkeypatch.setattr("openai._constants.DEFAULT_MAX_RETRIES", 0)
    address, _ = served("Well, it depends", 401)
    with pytest.raises(ValueError, match=r"grader at .* said 'Well, it depends', where CORRECT"):
        Judge(address, "grader").is_right("Who?", "Ada", "Bob")
    with pytest.raises(ValueError, match=r"could not be asked \(AuthenticationError: .*OPENAI_API"):
        Judge(address, "grader").is_right("Who?", "Ada", "Bob")


# In a study.


@pytest.fixture
def config(study_config):
    def make(**evaluation):
        facts = [
            {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
            for subject in ("BP", "Bob")
        ]
        hyper = dict(layer=3, context_templates=("{}", "I am. {}"), v_num_grad_steps=4)
        keep = dict(action="keep")
        return study_config("rome", facts, TEXTS, hyper, evaluation, guard=keep)

    return make


def test_a_study_journals_what_is_said(config, served, tmp_path):
    """A judge's verdicts are the journal's: a study that goes on does not ask for them again."""
    address, asked = served()
    judged = config(generated_every=1, judge=address, judge_model="grader")
    judged.n_facts = 1
    loop.run_study(judged, tmp_path / "run")
    assert len(asked) == 1
    judged.n_facts = 2
    loop.run_study(judged, tmp_path / "run")
    journal = read_journal(tmp_path / "run")
    records = [step.record for step in journal.steps[1:]]
    assert len(asked) == 2
    model = jaxedit.edited_model(tmp_path / "run")
    request = Request(prompt="{} lives in", subject="Bob", target_new="Paris")
    (said,) = generate_answers(model, [request])
    assert records[1].generated_answers == [said | {"judged": True}]
    assert records[1].generated_metrics == {
        "generated_efficacy_exact": float(said["exact"]),
        "generated_efficacy_contains": float(said["contains"]),
        "generated_efficacy_judged": 1.0,
    }
    report = jaxedit.open_study(tmp_path / "run").report().read_text()
    assert "| efficacy | " in report.partition("## What the model says by itself")[2]


def test_it_is_asked_every_so_many_edits(config, tmp_path):
    loop.run_study(config(generated_every=2, generated_context="qa"), tmp_path / "run")
    records = [step.record for step in read_journal(tmp_path / "run").steps[1:]]
    assert [record.generated_answers is not None for record in records] == [False, True]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (dict(generated_context="QA"), r"eval.generated_context='QA': expected one of bare, qa"),
        (dict(generated_every=-1), r"eval.generated_every=-1: expected a number of edits, or 0"),
        (dict(judge="http://x/v1"), r"eval.judge and eval.judge_model go together"),
    ],
)
def test_a_wrong_key_is_named(config, tmp_path, evaluation, message):
    with pytest.raises(ValueError, match=message):
        loop.run_study(config(**evaluation), tmp_path / "run")
