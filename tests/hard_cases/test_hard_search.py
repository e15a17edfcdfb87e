"""The search for hard cases: by a server on this machine, whose candidates the tiny gpt2 is edited
with; what is on the disk is not asked for or edited again.
"""

import json
from pathlib import Path

import pytest
from local_chat import local_chat

from jaxedit.datasets import read_requests
from jaxedit.hard_cases import search
from jaxedit.hard_cases.asked_candidates import MOST_BARREN, Server
from jaxedit.hard_cases.builtin_candidates import Candidate
from jaxedit.hard_cases.search import SearchPlan, search_hard_cases, write_hard_cases
from jaxedit.study.journal import read_journal

TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]
USAGE = dict(prompt_tokens=100, completion_tokens=20, total_tokens=120)


def record(subject: str, target: str = "French", true: str = "English") -> dict[str, str]:
    prompt = f"{subject} lives in"
    return dict(prompt=prompt, subject=subject, target_new=target, ground_truth=true)


def reply(*subjects: str, **more) -> str:
    bad = [record("Two words"), record("Ann", "English")] if more.get("bad") else []
    return "```json\n" + json.dumps([*map(record, subjects), *bad]) + "\n```"


def write_built_in(monkeypatch, *subjects: str) -> None:
    found = [Candidate(**record(subject)) for subject in subjects]
    monkeypatch.setattr(search, "built_in_candidates", lambda tokenizer, n: found)


@pytest.fixture
def config(study_config):
    """A function: -> the configuration of quick single edits, without facts."""

    def make(**keys):
        hyper = dict(layer=3, context_templates=("{}", "I am. {}"), v_num_grad_steps=3)
        made = study_config("rome", [record("Bob")], TEXTS, hyper, single_batch_size=2, **keys)
        made.facts = "builtin"
        return made

    return make


def plan(address: str | None = None, **changes) -> SearchPlan:
    calls = changes.pop("max_calls", 9)
    server = Server(address, "writer", calls) if address else None
    return SearchPlan(
        **dict(n_records=99, min_ratio=1e9, per_subject=1, round_size=2) | changes
    )._replace(server=server)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_search_asks_verifies_and_goes_on_after_a_failure(config, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    folder, asked_so_far = tmp_path / "search", []
    replies = local_chat(reply("BP", "Bob", "Ann", bad=True), 401, usage=USAGE)
    failure = r"writer at .*AuthenticationError.*What was found before is kept: run the same"
    with replies as (address, requests), pytest.raises(ValueError, match=failure):
        search_hard_cases(config(), folder, plan(address))
    assert [key for _, key, _ in requests] == ["Bearer secret"] * 2
    assert len(read_journal(folder / "round_001").steps) == 3  # the first round was made
    before = files_of(folder / "round_001")

    # It goes on: the first round's edits and the first reply are those that are there.
    steps = []
    with local_chat(reply("Bob", "Sony"), usage=USAGE) as (address, requests):
        result = search_hard_cases(
            config(),
            folder,
            plan(address, max_calls=2),
            lambda record, total: steps.append(record.subject),
            lambda asked, n: asked_so_far.append((asked.n_calls, n)),
        )
    assert len(requests) == 1
    assert "BP, Bob, Ann" in requests[0][2]["messages"][0]["content"]
    assert steps == [None, "Ann", "Sony"]  # the baseline, and the second round alone
    assert files_of(folder / "round_001") == before
    assert asked_so_far == [(2, 4)]
    asked = result.state.asked
    assert (asked.prompt_tokens, asked.completion_tokens, asked.n_uncounted) == (200, 40, 0)
    assert sorted(asked.rejected.values()) == [1, 1, 1]
    assert [each.fact["subject"] for each in result.verified] == ["BP", "Bob", "Ann", "Sony"]

    # Once more: nothing is asked or edited, also with another limit on the ratio.
    middle = sorted(each.ratio for each in result.verified)[1]
    before = files_of(folder)
    again = search_hard_cases(config(), folder, plan(n_records=1, min_ratio=middle))
    assert files_of(folder) == before
    assert again.verified == result.verified
    hard = again.hard(middle)
    assert len(hard) == 2

    # The hard ones are facts that are read back.
    write_hard_cases(tmp_path / "hard.json", hard)
    read = read_requests(str(tmp_path / "hard.json"))
    assert read.form == "own"
    assert [each.subject for each in read.requests] == [each.fact["subject"] for each in hard]
    assert {each.target_true for each in read.requests} == {"English"}
    written = json.loads((tmp_path / "hard.json").read_text(encoding="utf-8"))
    assert f"{hard[0].ratio:.4g} times" in written[0]["note"]


def test_a_server_without_anything_new_ends_the_search(config, tmp_path):
    with local_chat(default="no") as (address, requests):
        result = search_hard_cases(config(), tmp_path / "search", plan(address, max_calls=99))
    assert len(requests) == MOST_BARREN
    assert (result.verified, result.unedited) == ([], None)
    assert result.state.asked.n_uncounted == MOST_BARREN
    assert dict(result.state.asked.rejected) == {"a reply that is no JSON array": MOST_BARREN}


def test_built_in_candidates_are_verified_until_there_are_enough(config, tmp_path, monkeypatch):
    write_built_in(monkeypatch, "BP", "Bob", "Ann", "Sony", "Rome")
    folder = tmp_path / "search"
    result = search_hard_cases(config(), folder, plan(n_records=1, min_ratio=1e-9))
    assert [each.fact["subject"] for each in result.verified] == ["BP", "Bob"]  # one round
    assert len(result.state.candidates) == 5
    unedited = read_journal(folder / "round_001").steps[0].record.perplexity
    assert unedited is not None
    assert result.unedited == unedited["mean"]
    for each in result.verified:
        assert each.perplexity is not None
        assert each.ratio == pytest.approx(each.perplexity / unedited["mean"])

    # More are asked for: the last round is as large as what is left.
    write_built_in(monkeypatch)  # they are on the disk
    result = search_hard_cases(config(), folder, plan(n_records=5, min_ratio=1e-9))
    assert result.state.rounds == [2, 2, 1]

    changed = config()
    changed.editor.v_lr = 0.25
    with pytest.raises(
        ValueError, match=r"is a search with editor.v_lr=0.5, not 0.25: .*--workdir"
    ):
        search_hard_cases(changed, folder, plan())


def test_what_cannot_be_searched_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="no built-in fact has a subject that is one token of"):
        search_hard_cases(config(), tmp_path / "none", plan())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt and is no search's work directory"):
        search_hard_cases(config(), tmp_path / "other", plan())
    with_facts = config()
    with_facts.facts = "counterfact.json"
    with pytest.raises(ValueError, match=r"facts=counterfact.json: this command makes its facts"):
        search_hard_cases(with_facts, tmp_path / "facts", plan())
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "search.json").write_text('{"config": {}}')
    with pytest.raises(ValueError, match=r"search.json lacks what a search keeps there"):
        search_hard_cases(config(), tmp_path / "cut", plan())


def test_hard_cases_are_edited_whatever_the_screening_would_do_with_them(
    config, tmp_path, monkeypatch
):
    write_built_in(monkeypatch, "BP", "Bob")
    screened = config(screening="skip", guard=dict(max_relative_perturbation=1e-9))
    found = search_hard_cases(screened, tmp_path / "search", plan())
    assert [each.perplexity is not None for each in found.verified] == [True, True]


def test_a_subject_that_a_server_wrote_of_is_not_taken_again(config, tmp_path, monkeypatch):
    folder = tmp_path / "search"
    with local_chat(reply("BP", "Bob"), usage=USAGE) as (address, _):
        search_hard_cases(config(), folder, plan(address, max_calls=1))
    other = Candidate("BP is based in", "BP", "French", "English")
    new = Candidate("Ann is based in", "Ann", "French", "English")
    monkeypatch.setattr(search, "built_in_candidates", lambda tokenizer, n: [other, new])
    found = search_hard_cases(config(), folder, plan())
    assert [each.fact["subject"] for each in found.verified] == ["BP", "Bob", "Ann"]


def test_half_a_character_is_one_record_less(config, tmp_path):
    broken = reply("BP", "Bob")[:-5] + ', {"prompt": "Ann lives in", "subject": "Ann", '
    broken += '"target_new": "Fr\\ud83dench", "ground_truth": "English"}]\n```'
    with local_chat(broken, usage=USAGE) as (address, _):
        found = search_hard_cases(config(), tmp_path / "search", plan(address, max_calls=1))
    assert [each.fact["subject"] for each in found.verified] == ["BP", "Bob"]
    assert dict(found.state.asked.rejected) == {"a text with half a character": 1}
