"""What follows from a journal is made anew where it cannot be read; a report says what it lacks."""

import json
import logging
import shutil

import pytest
from journals import measured, write_journal
from rewritten import as_older
from study_examples import FACTS, TIGHT, interrupt

from jaxedit.reports.markdown import report_markdown
from jaxedit.reports.records import edit_steps
from jaxedit.reports.studies import read_studies
from jaxedit.study import loop, resume
from jaxedit.study.journal import read_journal
from jaxedit.study.remarks import journal_remarks
from jaxedit.study.replay import edited_model

FILE = "retained.json"


@pytest.fixture(scope="module")
def studied(configure, tmp_path_factory):
    """The folder of a study of three facts; to be copied."""
    return loop.run_study(configure(FACTS[:3]), tmp_path_factory.mktemp("retained") / "run")


@pytest.fixture
def folder(studied, tmp_path):
    return shutil.copytree(studied, tmp_path / "run")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",  # a disk that was full
        lambda content: content[: len(content) // 2],
        lambda content: b"{}",
        lambda content: b"[]",
        lambda content: b"[" * 100_000,
        lambda content: content.replace(b"0.", b"1."),  # other numbers
        lambda content: content.replace(b'"digest"', b'"digess"'),
        lambda content: json.dumps({**json.loads(content), "steps": [1, 3]}).encode(),
    ],
)
def test_a_file_that_cannot_be_read_is_made_anew(configure, folder, damage):
    path = folder / FILE
    whole, (undamaged,) = path.read_bytes(), read_studies(folder.parent, ("run",))
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    (study,) = read_studies(folder.parent, ("run",))
    assert study.retained in ([], undamaged.retained)
    loop.run_study(configure(FACTS[:3]), folder)
    assert path.read_bytes() == whole


def test_a_file_of_another_study_or_time_is_made_anew(configure, folder, tmp_path):
    """Of a study whose edits have the same numbers, and of this one before it went on."""
    path = folder / FILE
    whole = path.read_bytes()
    other = loop.run_study(configure([FACTS[0], FACTS[3], FACTS[2]]), tmp_path / "other")
    steps = [json.loads(content)["steps"] for content in (whole, (other / FILE).read_bytes())]
    assert steps[0] == steps[1]
    path.write_bytes((other / FILE).read_bytes())
    assert read_studies(tmp_path, ("run",))[0].retained == []
    loop.run_study(configure(FACTS[:3]), folder)
    assert path.read_bytes() == whole

    # A second edit that the guard rolls back: the model is the same, the journal is not.
    grown = loop.run_study(configure(ratio=TIGHT, n_facts=1), tmp_path / "grown")
    before = (grown / FILE).read_bytes()
    loop.run_study(configure(ratio=TIGHT, n_facts=2), grown)
    after = (grown / FILE).read_bytes()
    assert json.loads(before)["steps"] == json.loads(after)["steps"] == [1]
    assert json.loads(before)["journal"] != json.loads(after)["journal"]


def test_a_report_says_that_its_study_is_unfinished(configure, folder, tmp_path, caplog):
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        loop.run_study(configure(FACTS[:3]), part, interrupt(2))
    journal = read_journal(part)
    expected = "The study is not finished: 2 of 3 edits."
    assert any(line.startswith(expected) for line in journal_remarks(journal))
    assert expected in report_markdown(journal, edit_steps(journal))
    with caplog.at_level(logging.WARNING):
        edited_model(part)
    assert expected in caplog.text
    whole = read_journal(folder)
    assert journal_remarks(whole) == []
    assert "not finished" not in report_markdown(whole, edit_steps(whole))


def test_a_report_says_that_lines_were_lost(configure, folder, caplog):
    """At the end of a journal nothing but journal_end.json shows it; the steps are made again."""
    path = folder / "journal.jsonl"
    whole = [step.record.step for step in read_journal(folder).steps]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    with caplog.at_level(logging.WARNING):
        journal = read_journal(folder)
    assert "has lost its last lines, 2 of 4; a study that goes on makes" in caplog.text
    expected = "The journal has lost its last lines, 2 of 4"
    assert expected in report_markdown(journal, edit_steps(journal))
    loop.run_study(configure(FACTS[:3]), folder)
    assert [step.record.step for step in read_journal(folder).steps] == whole
    assert journal_remarks(read_journal(folder)) == []


@pytest.mark.parametrize("content", [b"", b"{}", b'{"n_lines": 9, "undone": [1], "digest": "a"}'])
def test_a_damaged_mark_of_the_end_is_made_anew(configure, folder, content):
    """It alone is no reason to refuse a journal whose lines are whole."""
    mark = folder / "journal_end.json"
    whole = mark.read_bytes()
    mark.write_bytes(content)
    assert len(read_journal(folder).steps) == 4
    loop.run_study(configure(FACTS[:3]), folder)
    assert mark.read_bytes() == whole


def test_a_report_shows_contradictions(tmp_path):
    """Of how many edits, and what the facts of the first few want; markup among it is escaped."""
    found = ["'<b>BP is in' is to be answered with 'Rome' and 'Oslo'"]
    steps = [
        measured(step, "BP", "Rome", 26.0, contradictions=found if step > 1 else None)
        for step in range(1, 7)
    ]
    journal = write_journal(tmp_path / "run", steps)
    text = report_markdown(journal, edit_steps(journal))
    assert "contradict each other in 5 edits, first in edit 2" in text
    assert text.count("is to be answered with 'Rome' and 'Oslo'") == 3
    assert "<b>" not in text


def test_a_report_says_that_a_journal_cannot_be_verified(folder):
    as_older(folder)
    journal = read_journal(folder)
    assert "The first 4 lines of the journal" in report_markdown(journal, edit_steps(journal))


def test_a_study_goes_on_that_began_before_a_key_was_there(configure, folder):
    """An absent key counts as its default, and another value of it is another study."""
    as_older(folder, schema=2)
    run = json.loads((folder / "run.json").read_text())
    for group, key in (("eval", "kl_every"), ("guard", "max_relative_perturbation")):
        del run["config"][group][key]
    for key in ("screening", "dtype"):
        del run["config"][key]
    del run["config"]["editor"]["v_lr"]
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match=r"config\.screening: \"\" there, \"log\" now"):
        loop.run_study(configure(FACTS[:3], screening="log"), folder)
    loop.run_study(configure(FACTS[:3]), folder)
    assert read_journal(folder).run["config"]["editor"]["v_lr"] == 0.5


def test_another_fact_at_a_line_is_another_studys(configure, folder):
    context = loop.build_context(configure(FACTS[:3]), folder)
    exchanged = context._replace(batches=[context.batches[i] for i in (0, 2, 1)])
    with pytest.raises(ValueError, match=r'step 2 has the prompt "\{\} lives in", the study'):
        resume.check_steps(exchanged, read_journal(folder))
