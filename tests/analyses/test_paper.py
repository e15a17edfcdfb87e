"""The paper's numbers: against its digitised curves, and beside the studies of its models."""

import json

import numpy as np
import pytest
from journals import CONFIG, STEPS, write_journal

from jaxedit.analyses.paper import SEQUENCES, UNEDITED, paper_numbers
from jaxedit.reports.curves import read_curves
from jaxedit.reports.figures import perplexity_figure
from jaxedit.reports.html import write_page
from jaxedit.reports.markdown import paper_lines, write_report
from jaxedit.study.journal import read_journal

NAMES = {"gpt2-xl": "GPT-2-XL", "gpt-j-6b": "GPT-J", "llama-2-7b": "Llama2-7b"}
XL = {**CONFIG, "model": "openai-community/gpt2-xl", "editor": {"method": "rome", "layer": 17}}


@pytest.fixture(scope="module")
def digitised(shared):
    """Return the path of the paper's digitised curves."""
    return shared / "data/paper/digitised_curves.json"


@pytest.mark.parametrize("kind", ["normal", "hard"])
@pytest.mark.parametrize(("model", "method"), list(SEQUENCES))
def test_the_papers_numbers_are_those_of_its_curves(model, method, kind, digitised):
    highest, last, first = SEQUENCES[model, method][kind == "hard"]
    (curve,) = read_curves([f"{digitised}:20|{NAMES[model]}/{method.upper()}|{kind}"])
    assert max(curve.perplexity) == pytest.approx(highest, rel=0.05)
    assert curve.perplexity[-1] == pytest.approx(last, rel=0.05)
    collapsed = [n for n, ppl in zip(curve.edits, curve.perplexity, strict=True) if ppl > 1000]
    assert (collapsed[0] if collapsed else None) == first
    assert curve.perplexity[0] == pytest.approx(UNEDITED[model][1], rel=0.01)


def test_they_stand_in_the_report_of_a_model_of_the_paper(tmp_path):
    lines = paper_lines(write_journal(tmp_path / "run", STEPS, XL))
    assert lines[0] == "## What the paper found"
    assert "| hard | 1.1e+06 | 7.7e+05 | after 6 |" in lines
    assert "| normal | 74.5 | 74.5 | never |" in lines
    assert "Of 21,919 single ROME edits 77 took it over 1000." in lines
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "\n".join(lines) in text


def test_they_stand_in_its_page(tmp_path):
    write_page(write_journal(tmp_path / "run", STEPS, XL), tmp_path / "page.html")
    cells = [f'<td class="number">{text}</td>' for text in ("1.1e+06", "7.7e+05", "after 6")]
    assert "".join(["<td>hard</td>", *cells]) in (tmp_path / "page.html").read_text("utf-8")


def test_another_model_has_none(tmp_path):
    journal = write_journal(tmp_path / "run", STEPS)
    assert paper_numbers(journal) is None
    assert paper_lines(journal) == []


def test_a_method_that_the_paper_did_not_try_has_sentences_only(tmp_path):
    config = {**XL, "editor": {"method": "emmet"}}
    numbers = paper_numbers(write_journal(tmp_path / "run", STEPS, config))
    assert numbers is not None
    assert numbers.sentences == ["Unedited gpt2-xl: 68.77 on ME-PPL_50, 68.39 on ME-PPL_1k."]
    assert numbers.rows == []


def test_a_digitised_curve_is_drawn_beside_the_studys_own(digitised, tmp_path):
    name = "20|GPT-2-XL/ROME|hard"
    journal, curves = write_journal(tmp_path / "run", STEPS), read_curves([f"{digitised}:{name}"])
    (axes,) = perplexity_figure(journal, curves).axes
    drawn = next(line for line in axes.lines if line.get_label() == name)
    published = json.loads(digitised.read_text(encoding="utf-8"))[name]
    n = sum(edits <= 7 for edits in published["x"])  # as far as the study goes
    np.testing.assert_array_equal(drawn.get_xdata(), published["x"][:n])
    np.testing.assert_array_equal(drawn.get_ydata(), published["y"][:n])
    assert axes.get_ylim()[1] >= max(published["y"][:n])
    write_page(read_journal(tmp_path / "run"), tmp_path / "page.html", curves)
    assert "ROME|hard" in (tmp_path / "page.html").read_text(encoding="utf-8")
