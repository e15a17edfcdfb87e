"""The report: what it says of every kind of step, from a journal written by hand."""

import json
import math
import shutil

import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot

from jaxedit.edits.journal import open_journal, read_journal
from jaxedit.study.report import markdown, report
from jaxedit.study.words import HEADER, edit_steps, name_of, number, outcome, row, summary

CONFIG = {"model": "tiny$x_{$", "mode": "sequential", "n_facts": 0, "editor": {"method": "c-rome", "layer": 3}}


def fact(probability: float, greedy: bool = False) -> dict:
    return dict(
        probability_new=probability,
        probability_true=None,
        greedy_new=greedy,
        efficacy=None,
        paraphrase=None,
        neighbourhood=None,
    )


def asked(step: int, subject: str, target: str, prompt: str = "{} is in") -> dict:
    return dict(
        step=step,
        case_id=step,
        prompt=prompt,
        subject=subject,
        target_new=target,
        target_true=None,
        kept=False,
        guard="",
    )


def measured(
    step: int, subject: str, target: str, ppl: float, *, kept=True, guard="", new=0.9, says=" Rome.", base=25.0, broken=0
) -> dict:
    """A record as the loop writes it; half a second for each phase."""
    return asked(step, subject, target) | dict(
        kept=kept,
        guard=guard,
        perplexity=dict(
            mean=ppl, pooled=ppl, ratio=ppl / base, delta_nll_nats=0.1, delta_nll_stderr_nats=0.01, n_broken=broken
        ),
        fact=fact(new, greedy=new > 0.5),
        before=fact(0.0123),
        says=says,
        editor=dict(loss=0.04, denominator=0.51 * step, n_steps=20),
        edit_norm=2.5,
        time_s=dict(edit=0.5, apply=0.5, facts=0.5, generate=0.5, perplexity=0.5),
    )


ERROR = "the request has 300 tokens, more than the 256 positions"
STEPS = [
    measured(1, "The Eiffel Tower", "Rome", 25.5, new=0.9876, says=" Rome."),
    measured(2, "a|b $x_{$ [link](u)", "5|\\6", 4321.5, kept=False, guard="perplexity 173 times", says="|\n|-|\r\n[x]"),
    asked(3, "too long", "Rome") | dict(error=ERROR, time_s=dict(edit=0.25)),
    measured(4, "BP", "Munich", math.inf, kept=False, guard="the loss of 2 texts is not finite", new=0.0, broken=2),
    measured(5, "東京 [Corp]", "Paris", 26.25, new=0.25, says=" Rome"),
    measured(6, "Zürich", "Oslo", 60.0, guard="perplexity 2.4 times", new=0.75),
]


def write(folder, steps, config=CONFIG, base=25.0):
    journal = open_journal(folder, {"config": config, "model_fingerprint": "abc", "n_skipped_facts": 0})
    journal.append({"step": 0, "perplexity": {"mean": base, "pooled": base, "n_broken": 0}}, {"nll_nats": np.ones(2)}, {})
    for step in steps:
        journal.append(step, {}, {})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("report") / "run", STEPS)
    assert report(folder) == folder / "report.md"
    return folder


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table, as GitHub reads them: a bar after a backslash is text."""
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


ROWS = [
    ["1", "The Eiffel Tower is in → Rome", "25.5", "1.02", "0.012 → 0.988", "yes", "0.51", "kept"],
    ["2", "a|b $x_{$ [link](u) is in → 5|\\6", "4,322", "172.9", "0.012 → 0.900", "yes", "1.02", "rolled back"],
    ["3", "too long is in → Rome", "", "", "", "", "", "not edited"],
    ["4", "BP is in → Munich", "inf", "inf", "0.012 → 0.000", "no", "2.04", "rolled back"],
    ["5", "東京 [Corp] is in → Paris", "26.2", "1.05", "0.012 → 0.250", "no", "2.55", "kept"],
    ["6", "Zürich is in → Oslo", "60.0", "2.4", "0.012 → 0.750", "yes", "3.06", "kept, damaging"],
]


def test_rows(folder):
    steps = edit_steps(read_journal(folder))
    assert [row(step) for step in steps] == ROWS
    assert len(HEADER) == len(ROWS[0])


def test_an_editor_without_a_denominator_has_an_empty_cell():
    step = measured(1, "BP", "Munich", 30.0)
    del step["editor"]["denominator"]
    assert row(step)[HEADER.index("|u·k|")] == ""


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
    assert [line[0] for line in says] == ["1", "2", "4", "5", "6"]  # nothing was said where nothing was edited
    assert says[1] == ["2", ROWS[1][1], "|⏎|-|⏎⏎[x]"]  # a line break would end the table
    assert f"- Edit 3 was not possible: {ERROR}" in text.splitlines()
    assert "edit 2.8 s, apply 2.5 s, facts 2.5 s, generate 2.5 s, perplexity 2.5 s in 6 edits." in text
    assert "![perplexity after each edit](perplexity.png)" in text
    written = json.loads(text.split("```json\n")[1].split("\n```")[0])
    assert written == json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert text == markdown(journal, edit_steps(journal))


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
    report(write(tmp_path / "calm", [s for s in STEPS if not s["guard"]]))
    calm = pixels(tmp_path / "calm" / "perplexity.png")
    assert near(calm, RED) == 0
    report(write(tmp_path / "one", [STEPS[0]]))
    one = near(pixels(tmp_path / "one" / "perplexity.png"), BLUE)  # a mark, and one in the legend
    assert near(calm, BLUE) == pytest.approx(1.5 * one, rel=0.1)


def test_marks_of_the_figure(folder, tmp_path, monkeypatch):
    """Each edit's mark is where it belongs; what is not finite is drawn ten times over the highest of the others."""
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    shutil.copytree(folder, tmp_path / "run")
    report(tmp_path / "run")
    figure = pyplot.gcf()
    monkeypatch.undo()
    (axes,) = figure.axes
    marks = {line.get_marker(): np.transpose(line.get_data()).tolist() for line in axes.lines if line.get_marker() != "None"}
    assert marks == {"o": [[1, 25.5], [5, 26.25]], "X": [[2, 4321.5], [4, 43215.0]], "s": [[6, 60.0]]}
    paths = [np.transpose(line.get_data()).tolist() for line in axes.lines if line.get_linestyle() == "-"]
    assert [[0, 25.0], [1, 25.5], [5, 26.25], [6, 60.0]] in paths  # the kept ones, from the unedited model on
    assert axes.get_yscale() == "log"
    bottom, top = axes.get_ylim()
    assert 1 < bottom < 25
    assert 43215 < top < 1e6
    texts = [text.get_text() for text in axes.texts]
    for text in ("a|b $x_{$ [link](u) → 5|\\6", "BP → Munich", "Zürich → Oslo", "unedited: 25.0"):
        assert text in texts
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kept", "damaging, rolled back", "damaging, kept"]
    pyplot.close(figure)


def test_a_report_reads_only(folder, tmp_path):
    """It may be made while the study runs, whose last line may be half there."""
    shutil.copytree(folder, tmp_path / "run")
    lines = tmp_path / "run" / "journal.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])
    before = {path: path.read_bytes() for path in (lines, tmp_path / "run" / "run.json")}
    text = report(tmp_path / "run").read_text(encoding="utf-8")
    assert table(text, HEADER) == ROWS[:-1]
    assert {path: path.read_bytes() for path in before} == before


def test_single(tmp_path):
    """Edits that are measured alone are neither kept nor rolled back."""
    steps = [step | {"kept": False} for step in STEPS if "error" not in step and not step["guard"]]
    folder = write(tmp_path / "run", steps, {**CONFIG, "mode": "single"})
    text = report(folder).read_text(encoding="utf-8")
    assert [line[-1] for line in table(text, HEADER)] == ["measured", "measured"]
    assert "c-rome on tiny$x_{$, single edits: 2 edits made, 0 kept, 0 rolled back, 0 not possible." in text
    assert "After the last kept edit" not in text
    assert near(pixels(folder / "perplexity.png"), BLUE) > 100


def test_a_damaging_edit_measured_alone_is_not_called_rolled_back(tmp_path):
    """In the mode single there is nothing to roll back; the figure calls such an edit damaging, so do table and summary."""
    steps = [step | {"kept": False} for step in STEPS if "error" not in step]
    folder = write(tmp_path / "run", steps, {**CONFIG, "mode": "single"})
    text = report(folder).read_text(encoding="utf-8")
    assert "rolled back" not in text.replace("0 rolled back", "")
    assert near(pixels(folder / "perplexity.png"), RED) > 100


def test_all_edits_failed(tmp_path):
    steps = [STEPS[2] | {"step": 1}, STEPS[2] | {"step": 2}]
    text = report(write(tmp_path / "run", steps)).read_text(encoding="utf-8")
    assert "0 edits made, 0 kept, 0 rolled back, 2 not possible." in text
    assert "The most damaging edit" not in text
    assert [line[-1] for line in table(text, HEADER)] == ["not edited"] * 2
    assert near(pixels(tmp_path / "run" / "perplexity.png"), RED) == 0


def test_a_base_that_is_not_finite(tmp_path):
    """A model that was broken before any edit."""
    steps = [measured(1, "BP", "Munich", math.inf, kept=False, guard="the loss of 2 texts is not finite", base=1.0, broken=2)]
    text = report(write(tmp_path / "run", steps, base=math.inf)).read_text(encoding="utf-8")
    assert "The unedited model's perplexity is inf; 1 of the edits took it over 1,000 (collapse)." in text


def test_a_study_without_an_edit_raises(tmp_path):
    write(tmp_path / "run", [])
    with pytest.raises(ValueError, match="holds no edit yet; run the study first"):
        report(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["journal.jsonl", "run.json", "steps"]
    for other in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match=r"is not a study's work directory: it has no run\.json"):
            report(other)


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
    assert number(value) == text


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
