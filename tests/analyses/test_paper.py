"""What others measured beside a study: the paper's digitised curves, and its numbers against those
curves.
"""

import json

import numpy as np
import pytest
from journals import CONFIG, STEPS, write
from matplotlib import pyplot

from jaxedit.analyses.paper import SEQUENCES, UNEDITED
from jaxedit.reports.curves import read_curves
from jaxedit.reports.html import write_page
from jaxedit.reports.markdown import paper_lines, write_report
from jaxedit.study.journal import read_journal

NAMES = {"gpt2-xl": "GPT-2-XL", "gpt-j-6b": "GPT-J", "llama-2-7b": "Llama2-7b"}


@pytest.fixture(scope="module")
def digitised(shared):
    return shared / "data/paper/digitised_curves.json"


@pytest.mark.parametrize(("model", "method"), [key for key in SEQUENCES])
def test_the_papers_numbers_are_those_of_its_curves(model, method, digitised):
    for kind, (highest, last, first) in zip(
        ("normal", "hard"), SEQUENCES[model, method], strict=True
    ):
        (curve,) = read_curves([f"{digitised}:20|{NAMES[model]}/{method.upper()}|{kind}"])
        assert max(curve.perplexity) == pytest.approx(highest, rel=0.05)
        assert curve.perplexity[-1] == pytest.approx(last, rel=0.05)
        assert (
            next(
                (n for n, ppl in zip(curve.edits, curve.perplexity, strict=True) if ppl > 1000),
                None,
            )
            == first
        )
        assert curve.perplexity[0] == pytest.approx(UNEDITED[model][1], rel=0.01)


def test_they_stand_in_the_report_of_their_models_only(tmp_path):
    config = {
        **CONFIG,
        "model": "openai-community/gpt2-xl",
        "editor": {"method": "rome", "layer": 17},
    }
    lines = paper_lines(read_journal(write(tmp_path / "xl", STEPS, config)))
    assert "| hard | 1.1e+06 | 7.7e+05 | after 6 |" in lines
    assert "| normal | 74.5 | 74.5 | never |" in lines
    assert "Of 21,919 single ROME edits 77 took it over 1000." in lines
    assert (
        "## What the paper found"
        in write_report(tmp_path / "xl").read_text(encoding="utf-8").splitlines()
    )
    page = (tmp_path / "xl" / "report.html").read_text(encoding="utf-8")
    assert (
        '<td>hard</td><td class="number">1.1e+06</td><td class="number">7.7e+05</td><td class="number">after 6</td>'
        in page
    )
    assert paper_lines(read_journal(write(tmp_path / "tiny", STEPS))) == []


def test_a_curve_is_drawn_beside_the_studys_own(digitised, tmp_path, monkeypatch):
    curves = read_curves([f"{digitised}:20|GPT-2-XL/ROME|hard"])
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    write_report(write(tmp_path / "run", STEPS), curves)
    (axes,) = pyplot.gcf().axes
    monkeypatch.undo()
    drawn = next(line for line in axes.lines if line.get_label() == "20|GPT-2-XL/ROME|hard")
    assert np.array(drawn.get_xdata()).tolist() == [0, 2, 4, 6]  # as far as the study goes
    assert np.array(drawn.get_ydata())[-1] > 1e5
    assert axes.get_ylim()[1] >= 1.8e5
    pyplot.close()
    write_page(read_journal(tmp_path / "run"), tmp_path / "page.html", curves)
    assert "ROME|hard" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("chosen", "content", "message"),
    [
        ("c.json", {}, r"expected FILE\.json:NAME of a file that is there"),
        ("none.json:a", {}, r"expected FILE\.json:NAME of a file that is there"),
        ("c.json:b", {"a": {}}, "has no curve 'b'; it has a"),
        ("c.json:a", {"a": {"x": [1]}}, "'a' is no curve"),
        ("c.json:a", {"a": {"x": [1, 2], "y": [3]}}, "has 2 x and 1 y"),
    ],
)
def test_what_is_no_curve(chosen, content, message, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_curves([str(tmp_path / chosen)])
