"""Studies beside each other: the table, against journals written by hand and by studies."""

import dataclasses
import json
import math

import numpy as np
import pytest
from journals import NOT_POSSIBLE, SINGLE, fact_metrics, measured, write_journal

from jaxedit.reports import comparison
from jaxedit.reports.comparison import comparison_header, comparison_row
from jaxedit.reports.comparison_figures import comparison_figure
from jaxedit.reports.studies import FinishedStudy, read_studies
from jaxedit.study.config import read_config, read_variants
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

FACT = {
    "prompt": "{} lives in",
    "target_true": "London",
    "paraphrases": ["I know that"],
    "neighbours": [{"prompt": "Tim is", "answer": "London"}],
}
FACTS = [
    {**FACT, "subject": "BP", "target_new": "French"},
    {**FACT, "subject": "Bob", "target_new": "Munich"},
    {**FACT, "subject": "Ann", "target_new": "Paris"},
]
CONFIG = """
from jaxedit.study.config import default_config
VARIANTS = ("rome", "c-rome")
def get_config(variant):
    hyper = dict(layer=3, v_num_grad_steps=4, context_templates=("{}", "I am. {}"))
    config = default_config(variant, **hyper)
    config.update(model=MODEL, facts=FACTS, texts=TEXTS)
    config.eval.perplexity_every = 2
    config.guard.update(action="keep", max_relative_perturbation=1e6)
    return config
"""


@pytest.fixture(scope="module")
def compared(shared, tmp_path_factory):
    """Run the studies of a configuration; return the folder of its file and theirs."""
    folder = tmp_path_factory.mktemp("compare")
    texts = ["The Eiffel Tower is in Paris.", " Once upon a time"]
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    places = {
        "MODEL": shared / "golden" / "gpt2",
        "FACTS": folder / "facts.json",
        "TEXTS": folder / "texts.json",
    }
    text = CONFIG
    for name, path in places.items():
        text = text.replace(f"={name}", f"={str(path)!r}")
    (folder / "two.py").write_text(text, encoding="utf-8")
    for name in read_variants(folder / "two.py"):
        run_study(read_config(folder / "two.py", name), folder / "runs" / name)
    return folder


def percent(values) -> str:
    """Format a mean as the table does."""
    return f"{100 * np.mean(list(values)):.0f} %"


@pytest.mark.parametrize("name", ["rome", "c-rome"])
def test_the_table_is_what_the_studies_measured(name, compared):
    studies = read_studies(compared / "runs", ("rome", "c-rome"))
    assert comparison.measured_at(studies) == [2, 3]
    study = next(study for study in studies if study.name == name)
    cells = dict(zip(comparison_header(studies), comparison_row(study, studies), strict=True))
    folder = compared / "runs" / name
    records = [step.record for step in read_journal(folder).steps[1:]]
    retained = json.loads((folder / "retained.json").read_text(encoding="utf-8"))["facts"]

    # Shares of facts.
    assert (cells["method"], cells["facts"]) == (name, "3")
    for title, key in comparison.METRICS.items():
        after_edit = percent(record.metrics[title] for record in records)
        assert cells[f"{key} after its edit"] == after_edit
        assert cells[f"{key} after all edits"] == percent(facts[title] for facts in retained)
    shares = [
        np.mean([facts[f"{key}_success"] for facts in retained])
        for key in ("efficacy", "paraphrase", "neighbourhood")
    ]
    score = 3 / np.sum(1 / np.array(shares)) if all(shares) else 0.0
    assert (cells["paraphrase"], cells["neighbourhood"]) == (
        percent(shares[1:2]),
        percent(shares[2:]),
    )
    assert cells["S"] == percent([score])

    # Perplexities, and times.
    perplexities = [r.perplexity["mean"] for r in records if r.perplexity]
    number = {
        title: float(text.replace(",", "")) for title, text in cells.items() if "ppl" in title
    }
    assert number["highest ppl"] == pytest.approx(max(perplexities), rel=5e-3)
    assert number["ppl after 3"] == pytest.approx(perplexities[-1], rel=5e-3)
    time_s = np.median([record.time_s["edit"] for record in records])
    assert float(cells["s per edit"]) == pytest.approx(time_s, abs=0.051)


def test_comparison_md_and_figure(compared):
    studies = read_studies(compared / "runs", ("rome", "c-rome"))
    path = comparison.write_comparison(compared / "runs", "two methods", studies)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# two methods"
    for study in studies:
        assert "| " + " | ".join(comparison_row(study, studies)) + " |" in lines
    assert "![perplexity](comparison.png)" in lines
    assert (compared / "runs" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (compared / "runs" / "comparison.pdf").read_bytes().startswith(b"%PDF")


def test_variants_are_chosen_and_checked(compared, tmp_path):
    path = compared / "two.py"
    assert read_variants(path) == ("rome", "c-rome")
    assert read_variants(path, ["c-rome"]) == ("c-rome",)
    with pytest.raises(ValueError, match=r"has no variant 'memit'; it has rome, c-rome"):
        read_variants(path, ["memit"])
    (tmp_path / "none.py").write_text("def get_config(): pass", encoding="utf-8")
    with pytest.raises(ValueError, match="has no VARIANTS"):
        read_variants(tmp_path / "none.py")


def edits(*efficacies: float | None):
    """Make records of edits of a batch of two facts each."""
    return [
        dataclasses.replace(
            measured(step, "a", "b", 26.0, n_requests=2),
            metrics=fact_metrics(0.9, True) | {"efficacy_success": efficacy},
            time_s={"edit": float(step)},
        )
        for step, efficacy in enumerate(efficacies, 1)
    ]


def test_single_edits_have_one_column_a_metric(tmp_path):
    steps = [*edits(1.0, 0.5), dataclasses.replace(NOT_POSSIBLE, step=3)]
    studies = [FinishedStudy("rome", write_journal(tmp_path / "run", steps, SINGLE), [])]
    assert dict(
        zip(comparison_header(studies), comparison_row(studies[0], studies), strict=True)
    ) == {
        "method": "rome",
        "facts": "4",
        "efficacy": "75 %",
        "accuracy": "100 %",
        "prefixed accuracy": "–",
        "paraphrase": "–",
        "neighbourhood": "–",
        "S": "–",
        "highest ppl": "26.0",
        "s per edit": "1.5",
    }


def test_facts_that_lack_a_metric_do_not_count(tmp_path):
    journal = write_journal(tmp_path / "run", edits(1.0, None), SINGLE)
    studies = [FinishedStudy("rome", journal, [])]
    cells = dict(zip(comparison_header(studies), comparison_row(studies[0], studies), strict=True))
    assert cells["efficacy"] == "100 %"


def test_a_study_in_which_nothing_could_be_edited_has_a_row(tmp_path):
    failed = write_journal(tmp_path / "run", [dataclasses.replace(NOT_POSSIBLE, step=1)], SINGLE)
    studies = [FinishedStudy("rome", failed, [])]
    row = comparison_row(studies[0], studies)
    assert row == ["rome", "0", *["–"] * 8]


def test_a_sequence_of_which_nothing_was_kept_is_still_a_sequence(tmp_path):
    steps = [dataclasses.replace(step, kept=False) for step in edits(1.0, 0.5)]
    studies = [FinishedStudy("rome", write_journal(tmp_path / "run", steps), [])]
    cells = dict(zip(comparison_header(studies), comparison_row(studies[0], studies), strict=True))
    assert cells["efficacy after its edit"] == "75 %"
    assert cells["efficacy after all edits"] == "–"


def test_shares_are_of_facts_and_not_of_edits(tmp_path):
    """A last batch that is shorter counts for less, right after its edit and after all."""
    whole, short = edits(1.0, 0.0)
    steps = [dataclasses.replace(whole, n_requests=3), dataclasses.replace(short, n_requests=1)]
    retained = [{"efficacy_success": 0.0}, {"efficacy_success": 1.0}]
    studies = [FinishedStudy("rome", write_journal(tmp_path / "run", steps), retained)]
    cells = dict(zip(comparison_header(studies), comparison_row(studies[0], studies), strict=True))
    assert cells["efficacy after its edit"] == "75 %"
    assert cells["efficacy after all edits"] == "25 %"


def test_shares_are_of_the_facts_that_have_the_metric(tmp_path):
    """Of the first batch one fact of three has a true answer, of the second one both have."""
    first, second = edits(0.0, 1.0)
    some = {"efficacy_success": 1}
    steps = [
        dataclasses.replace(first, n_requests=3, n_requests_by_metric=some),
        dataclasses.replace(second, n_requests=2),
    ]
    retained = [{"efficacy_success": 1.0}, {"efficacy_success": 0.0}]
    studies = [FinishedStudy("memit", write_journal(tmp_path / "run", steps), retained)]
    cells = dict(zip(comparison_header(studies), comparison_row(studies[0], studies), strict=True))
    assert cells["efficacy after its edit"] == "67 %"
    assert cells["efficacy after all edits"] == "33 %"


@pytest.mark.parametrize(
    ("shares", "score"),
    [((1.0, 0.5, 0.25), 3 / 7), ((1.0, 0.0, 0.5), 0.0), ((1.0, None, 0.5), None)],
)
def test_the_score_is_the_harmonic_mean(shares, score):
    assert comparison.harmonic_mean(*shares) == (score and pytest.approx(score))


def test_steps_at_which_all_measured_the_perplexity(tmp_path):
    def study(name, steps):
        records = [
            measured(step, "a", "b", 26.0)
            if step in steps
            else dataclasses.replace(measured(step, "a", "b", 26.0), perplexity=None)
            for step in range(1, 41)
        ]
        return FinishedStudy(name, write_journal(tmp_path / name, records), [])

    studies = [study("a", range(1, 41)), study("b", range(2, 41, 2))]
    assert comparison.measured_at(studies, most=4) == [2, 14, 28, 40]
    assert comparison.measured_at([*studies, study("c", [3])]) == []


def test_a_perplexity_that_is_not_finite_is_the_highest(tmp_path):
    steps = [measured(1, "a", "b", 26.0), measured(2, "a", "b", math.inf)]
    studies = [FinishedStudy("rome", write_journal(tmp_path / "run", steps), [])]
    cells = dict(zip(comparison_header(studies), comparison_row(studies[0], studies), strict=True))
    assert cells["highest ppl"] == "inf"


def test_studies_are_compared_by_facts_where_edits_write_several(tmp_path):
    """One writes a fact at a time, the other four, with one of its edits not possible."""

    def study(name, records):
        return FinishedStudy(name, write_journal(tmp_path / name, records), [])

    singly = study("a", [measured(step, "a", "b", 26.0 + step) for step in range(1, 13)])
    in_fours = [measured(step, "a", "b", 40.0 + step) for step in range(1, 4)]
    in_fours = [dataclasses.replace(record, n_requests=4) for record in in_fours]
    failed = dataclasses.replace(NOT_POSSIBLE, step=2, n_requests=4)
    together = study("b", [in_fours[0], failed, in_fours[2]])
    studies = [singly, together]
    assert together.perplexities == {4: 41.0, 12: 43.0}
    assert comparison.measured_at(studies) == [4, 12]
    rows = [
        dict(zip(comparison_header(studies), comparison_row(each, studies), strict=True))
        for each in studies
    ]
    assert [row["ppl after 12"] for row in rows] == ["38.0", "43.0"]
    (axes,) = comparison_figure(studies).axes
    drawn = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["b"][1:] == [[4, 41], [12, 43]]
    assert drawn["a"][-1] == [12, 38]
    assert axes.get_xlabel() == "facts written"
    (axes,) = comparison_figure([singly]).axes
    assert axes.get_xlabel() == "edits"
