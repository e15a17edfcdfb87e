"""report.md: what it says of every kind of step, from a journal written by hand."""

import dataclasses
import html
import json
import math
import re
import shutil

import pytest
from journals import (
    ERROR,
    NOT_POSSIBLE,
    ROWS,
    SINGLE,
    STEPS,
    as_single,
    baseline,
    measured,
    write_journal,
)

from jaxedit.reports.markdown import damage_prediction_lines, report_markdown, write_report
from jaxedit.reports.records import HEADER, edit_steps, summary
from jaxedit.study.journal import read_journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a study with every kind of step, and its report; return the folder."""
    folder = tmp_path_factory.mktemp("report") / "run"
    write_journal(folder, STEPS)
    assert write_report(folder) == folder / "report.md"
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.md").read_text(encoding="utf-8")


def report(folder, *args, **kwargs) -> str:
    """Write a journal and its report; return the text of the latter."""
    write_journal(folder / "run", *args, **kwargs)
    return write_report(folder / "run").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    """Split a row of a Markdown table as GitHub does: a bar after a backslash is text."""
    parts = line.strip().replace("\\|", "\0").split("|")
    assert parts[0] == ""
    assert parts[-1] == ""
    return [shown(part.strip().replace("\0", "|")) for part in parts[1:-1]]


def shown(text: str) -> str:
    """What Markdown shows of escaped text."""
    return html.unescape(re.sub(r"\\([\\`*_\[\]|~$])", r"\1", text))


def table(text: str, header: list[str]) -> list[list[str]]:
    """Find the rows of the Markdown table with this header."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("|") and cells(line) == header)
    assert set(lines[at + 1]) <= set("|-:")
    assert len(cells(lines[at + 1])) == len(header)
    end = next(i for i in range(at, len(lines)) if not lines[i].startswith("|"))
    return [cells(line) for line in lines[at + 2 : end]]


def test_the_summary_stands_above_the_table(folder, text):
    journal = read_journal(folder)
    lines = text.splitlines()
    first_row = next(i for i, line in enumerate(lines) if line.startswith("|"))
    shown_lines = list(map(shown, lines[:first_row]))
    for line in summary(journal, edit_steps(journal)):
        assert line in shown_lines


def test_every_step_has_its_row(text):
    assert table(text, HEADER) == ROWS


def test_skipped_edits_are_listed_apart_from_errors(text):
    lines = text.splitlines()
    assert f"- Edit 3 was not possible: {ERROR}" in lines
    skipped = "- Edit 7 was skipped by the screening: predicted relative perturbation 0.346"
    assert skipped in lines


def test_continuations_of_the_edits_that_were_made(text):
    says = table(text, ["#", "edit", "continuation"])
    assert [line[0] for line in says] == ["1", "2", "4", "5", "6"]
    assert says[1] == ["2", ROWS[1][1], "|⏎|-|⏎⏎[x]"]  # a line break would end the table


def test_times_and_configuration(folder, text):
    expected = "edit 2.8 s, apply 2.5 s, facts 2.5 s, generate 2.5 s, perplexity 2.5 s in 7 edits."
    assert expected in text.splitlines()
    written = json.loads(text.split("```json\n")[1].split("\n```")[0])
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert written == {name: value for name, value in run.items() if name != "digest"}


def test_the_report_is_made_of_the_journal_alone(folder, text):
    journal = read_journal(folder)
    assert text == report_markdown(journal, edit_steps(journal))


def test_every_picture_that_it_shows_is_there(tmp_path):
    held = {"1": {"probability_new": 0.5}}
    steps = [
        measured(i, "a", "b", 26.0 + i, total_relative_perturbation=0.1 * i, retention=held)
        for i in range(1, 5)
    ]
    text = report(tmp_path, steps)
    shown = {line.split("(")[-1].rstrip(")") for line in text.splitlines() if line[:2] == "!["}
    assert shown == {"perplexity.png", "damage_prediction.png", "retention.png"}
    for name in shown:
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "run" / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_figure_that_is_not_made_is_not_shown(folder, text):
    assert "retention.png" not in text
    assert not (folder / "retention.png").exists()


def test_the_table_of_the_predictors():
    fields = dict(relative_perturbation=0.01, optimisation={})
    steps = [
        measured(i, "a", "b", ppl, **fields) for i, ppl in enumerate((25.1, 25.2, 25.3, 2000), 1)
    ]
    steps = [
        dataclasses.replace(step, relative_perturbation=value)
        for step, value in zip(steps, (0.2, 0.1, 0.3, 0.4), strict=True)
    ]
    lines = damage_prediction_lines(steps)
    assert lines[0] == "## How well the damage was predicted"
    assert lines[2] == (
        "4 edits were measured, 1 of them damaging (over 1.1 times the unedited perplexity), 1 "
        "collapsing. Rank correlations are with the change of the mean loss."
    )
    header = [
        "predictor",
        "Spearman",
        "of the harmless",
        "of the damaging",
        "AUC",
        "holds all damaging",
        "collapses in worst 1 %",
    ]
    # Ranks 2 1 3 4 against 1 2 3 4: 1 - 6 * 2 / (4 * 15); 2 1 3 against 1 2 3: 1 - 6 * 2 / (3 * 8).
    row = ["relative perturbation", "0.800", "0.500", "–", "1.000", "worst 25.0 %", "1 of 1"]
    assert table("\n".join([*lines, ""]), header) == [row]


def test_a_bar_in_a_predictors_name_does_not_divide_its_cell():
    steps = [measured(i, "a", "b", 25.0 + i) for i in range(1, 5)]
    (row,) = [line for line in damage_prediction_lines(steps) if "u·k" in line]
    assert cells(row)[0] == "1 / |u·k|"


def test_without_a_predictor_the_report_does_not_speak_of_it(text):
    assert "predicted" not in text.replace("predicted relative perturbation", "")


def test_a_report_reads_only(folder, tmp_path):
    """It may be made while the study runs, whose last line may be half there."""
    shutil.copytree(folder, tmp_path / "run")
    lines = tmp_path / "run" / "journal.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])
    before = {path: path.read_bytes() for path in (lines, tmp_path / "run" / "run.json")}
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert table(text, HEADER) == ROWS[:-1]
    assert {path: path.read_bytes() for path in before} == before


def test_single_edits_are_neither_kept_nor_rolled_back(tmp_path):
    text = report(tmp_path, as_single(STEPS), SINGLE)
    outcomes = [line[-1] for line in table(text, HEADER)]
    assert outcomes.count("measured") == 2
    assert outcomes.count("damaging") == 3
    assert "rolled back" not in text.replace("0 rolled back", "")
    assert "After the last kept edit" not in text


def test_a_study_of_failures(tmp_path):
    text = report(tmp_path, [dataclasses.replace(NOT_POSSIBLE, step=step) for step in (1, 2)])
    assert "0 edits made, 0 kept, 0 rolled back, 2 not possible." in text
    assert "The most damaging edit" not in text
    assert [line[-1] for line in table(text, HEADER)] == ["not edited"] * 2


def test_a_model_that_was_broken_before_any_edit(tmp_path):
    for perplexity, text in ((math.inf, "inf"), (1000.5, "1,000")):
        found = report(tmp_path / text, STEPS[3:4], first=baseline(perplexity))
        assert (
            f"The unedited model's perplexity is {text}; that is over 1,000 (collapse) without any "
            "edit."
        ) in found.splitlines()
        assert "took it over" not in found
    at_the_limit = report(tmp_path / "limit", STEPS[3:4], first=baseline(1000.0))
    assert "1 of the edits took it over 1,000 (collapse)." in at_the_limit


def test_a_study_without_an_edit_is_refused_and_left_as_it_is(tmp_path):
    write_journal(tmp_path / "run", [])
    with pytest.raises(ValueError, match="holds no edit yet; run the study first"):
        write_report(tmp_path / "run")
    found = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert found == ["journal.jsonl", "journal_end.json", "run.json", "steps"]


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    message = r"is not a study's work directory: it has no run\.json"
    for other in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match=message):
            write_report(other)
