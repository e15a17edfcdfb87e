"""The report: what it says of every kind of step, from a journal written by hand."""

import json
import math
import shutil

import matplotlib.image
import numpy as np
import pytest
from journals import CONFIG, ERROR, ROWS, STEPS, asked, measured, write
from matplotlib import pyplot

from jaxedit.reports.formatting import format_number
from jaxedit.reports.markdown import report_markdown, write_report
from jaxedit.reports.records import HEADER, edit_steps, name_of, outcome, summary, table_row
from jaxedit.study.journal import read_journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("report") / "run", STEPS)
    assert write_report(folder) == folder / "report.md"
    return folder


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table, as GitHub reads them: a bar after a backslash is
    text.
    """
    parts = line.strip().replace("\\|", "\0").split("|")
    assert parts[0] == ""
    assert parts[-1] == ""
    return [part.strip().replace("\0", "|") for part in parts[1:-1]]


def table(text: str, header: list[str]) -> list[list[str]]:
    """The rows of the Markdown table with this header."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("|") and cells(line) == header)
    assert set(lines[at + 1]) <= set("|-:")
    assert len(cells(lines[at + 1])) == len(header)
    end = next(i for i in range(at, len(lines)) if not lines[i].startswith("|"))
    return [cells(line) for line in lines[at + 2 : end]]


def test_rows(folder):
    steps = edit_steps(read_journal(folder))
    assert [table_row(step) for step in steps] == ROWS
    assert len(HEADER) == len(ROWS[0])


def test_an_editor_without_a_denominator_has_an_empty_cell():
    step = measured(1, "BP", "Munich", 30.0)
    del step["editor"]["denominator"]
    assert table_row(step)[HEADER.index("|u·k|")] == ""


def test_summary(folder):
    journal = read_journal(folder)
    assert summary(journal, edit_steps(journal)) == [
        "c-rome on tiny$x_{$, sequential edits: 5 edits made, 3 kept, 2 rolled back, 1 not possible.",
        "The unedited model's perplexity is 25.0; 2 of the edits took it over 1,000 (collapse).",
        "After the last kept edit it is 60.0.",
        "Right after its edit the model says the new fact in 3 of 5 cases.",
        "The most damaging edit: BP is in → Munich, perplexity inf.",
    ]


def test_report_md(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    journal = read_journal(folder)
    for line in summary(journal, edit_steps(journal)):
        assert line in text.splitlines()
    assert table(text, HEADER) == ROWS
    says = table(text, ["#", "edit", "continuation"])
    assert [line[0] for line in says] == [
        "1",
        "2",
        "4",
        "5",
        "6",
    ]  # nothing was said where nothing was edited
    assert says[1] == ["2", ROWS[1][1], "|⏎|-|⏎⏎[x]"]  # a line break would end the table
    assert f"- Edit 3 was not possible: {ERROR}" in text.splitlines()
    assert (
        "edit 2.8 s, apply 2.5 s, facts 2.5 s, generate 2.5 s, perplexity 2.5 s in 6 edits." in text
    )
    assert "![perplexity after each edit](perplexity.png)" in text
    written = json.loads(text.split("```json\n")[1].split("\n```")[0])
    assert written == json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert text == report_markdown(journal, edit_steps(journal))


def pixels(path) -> np.ndarray:
    image = matplotlib.image.imread(path)[..., :3]
    assert image.shape[0] > 500
    assert image.shape[1] > 1000
    return image


def near(image: np.ndarray, colour: str) -> int:
    """How many pixels have this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(image - wanted).max(axis=-1) < 0.02).sum())


BLUE, RED = "#1b6ca8", "#b3261e"


def test_figure(folder, tmp_path):
    """It is drawn, with as many more pixels of a mark as there are more of its kind."""
    image = pixels(folder / "perplexity.png")
    assert (folder / "perplexity.pdf").read_bytes().startswith(b"%PDF-")
    assert (folder / "perplexity.pdf").stat().st_size > 5000
    assert image.mean() > 0.8  # mostly paper
    assert near(image, BLUE) > 100
    assert near(image, RED) > 100
    write_report(write(tmp_path / "calm", [s for s in STEPS if not s["guard"]]))
    calm = pixels(tmp_path / "calm" / "perplexity.png")
    assert near(calm, RED) == 0
    write_report(write(tmp_path / "one", [STEPS[0]]))
    one = near(pixels(tmp_path / "one" / "perplexity.png"), BLUE)  # a mark, and one in the legend
    assert near(calm, BLUE) == pytest.approx(1.5 * one, rel=0.1)


def test_marks_of_the_figure(folder, tmp_path, monkeypatch):
    """Each edit's mark is where it belongs; what is not finite is drawn ten times over the highest
    of the others.
    """
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    shutil.copytree(folder, tmp_path / "run")
    write_report(tmp_path / "run")
    figure = pyplot.gcf()
    monkeypatch.undo()
    (axes,) = figure.axes
    marks = {
        line.get_marker(): np.transpose(line.get_data()).tolist()
        for line in axes.lines
        if line.get_marker() != "None"
    }
    assert marks == {
        "o": [[1, 25.5], [5, 26.25]],
        "X": [[2, 4321.5], [4, 43215.0]],
        "s": [[6, 60.0]],
    }
    paths = [
        np.transpose(line.get_data()).tolist() for line in axes.lines if line.get_linestyle() == "-"
    ]
    assert [
        [0, 25.0],
        [1, 25.5],
        [5, 26.25],
        [6, 60.0],
    ] in paths  # the kept ones, from the unedited model on
    assert axes.get_yscale() == "log"
    bottom, top = axes.get_ylim()
    assert 1 < bottom < 25
    assert 43215 < top < 1e6
    texts = [text.get_text() for text in axes.texts]
    for text in ("a|b $x_{$ [link](u) → 5|\\6", "BP → Munich", "Zürich → Oslo", "unedited: 25.0"):
        assert text in texts
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "kept",
        "damaging, rolled back",
        "damaging, kept",
    ]
    pyplot.close(figure)


def test_a_report_reads_only(folder, tmp_path):
    """It may be made while the study runs, whose last line may be half there."""
    shutil.copytree(folder, tmp_path / "run")
    lines = tmp_path / "run" / "journal.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])
    before = {path: path.read_bytes() for path in (lines, tmp_path / "run" / "run.json")}
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert table(text, HEADER) == ROWS[:-1]
    assert {path: path.read_bytes() for path in before} == before


def test_single(tmp_path):
    """Edits that are measured alone are neither kept nor rolled back."""
    steps = [step | {"kept": False} for step in STEPS if "error" not in step and not step["guard"]]
    folder = write(tmp_path / "run", steps, {**CONFIG, "mode": "single"})
    text = write_report(folder).read_text(encoding="utf-8")
    assert [line[-1] for line in table(text, HEADER)] == ["measured", "measured"]
    assert (
        "c-rome on tiny$x_{$, single edits: 2 edits made, 0 kept, 0 rolled back, 0 not possible."
        in text
    )
    assert "After the last kept edit" not in text
    assert near(pixels(folder / "perplexity.png"), BLUE) > 100


def test_a_damaging_edit_measured_alone_is_not_called_rolled_back(tmp_path):
    """In the mode single there is nothing to roll back; the figure calls such an edit damaging, so
    do table and summary.
    """
    steps = [step | {"kept": False} for step in STEPS if "error" not in step]
    folder = write(tmp_path / "run", steps, {**CONFIG, "mode": "single"})
    text = write_report(folder).read_text(encoding="utf-8")
    assert "rolled back" not in text.replace("0 rolled back", "")
    assert near(pixels(folder / "perplexity.png"), RED) > 100


def test_all_edits_failed(tmp_path):
    steps = [STEPS[2] | {"step": 1}, STEPS[2] | {"step": 2}]
    text = write_report(write(tmp_path / "run", steps)).read_text(encoding="utf-8")
    assert "0 edits made, 0 kept, 0 rolled back, 2 not possible." in text
    assert "The most damaging edit" not in text
    assert [line[-1] for line in table(text, HEADER)] == ["not edited"] * 2
    assert near(pixels(tmp_path / "run" / "perplexity.png"), RED) == 0


def test_a_base_that_is_not_finite(tmp_path):
    """A model that was broken before any edit."""
    steps = [
        measured(
            1,
            "BP",
            "Munich",
            math.inf,
            kept=False,
            guard="the loss of 2 texts is not finite",
            base=1.0,
            broken=2,
        )
    ]
    text = write_report(write(tmp_path / "run", steps, base=math.inf)).read_text(encoding="utf-8")
    assert (
        "The unedited model's perplexity is inf; 1 of the edits took it over 1,000 (collapse)."
        in text
    )


def test_a_study_without_an_edit_raises(tmp_path):
    write(tmp_path / "run", [])
    with pytest.raises(ValueError, match="holds no edit yet; run the study first"):
        write_report(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "journal.jsonl",
        "run.json",
        "steps",
    ]
    for other in (tmp_path / "missing", tmp_path):
        with pytest.raises(
            ValueError, match=r"is not a study's work directory: it has no run\.json"
        ):
            write_report(other)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000123456, "0.000123"),
        (1.23456, "1.23"),
        (9.99, "9.99"),
        (10.26, "10.3"),
        (999.94, "999.9"),
        (1000, "1,000"),
        (1234567.8, "1,234,568"),
        (-12.34, "-12.3"),
        (-1e4, "-10,000"),
        (math.inf, "inf"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("2.5", "2.5"),
        (999.96, "1,000"),
    ],
)
def test_number(value, text):
    assert format_number(value) == text


def test_outcomes_and_names():
    kinds = {(step["kept"], bool(step["guard"]), "error" in step): outcome(step) for step in STEPS}
    assert kinds == {
        (True, False, False): "kept",
        (False, True, False): "rolled back",
        (False, False, True): "not edited",
        (True, True, False): "kept, damaging",
    }
    assert outcome(measured(1, "BP", "Munich", 25.0, kept=False)) == "measured"
    assert name_of(asked(1, "{x}", "Rome", "Where is {}?")) == "Where is {x}? → Rome"
