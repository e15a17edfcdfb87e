"""Studies beside each other: the table against the journals by hand, the figure, and what is
refused.
"""

import json

import numpy as np
import pytest

from jaxedit.reports import comparison
from jaxedit.reports.outcomes import read_outcomes
from jaxedit.study import loop
from jaxedit.study.config import read_config, read_variants
from jaxedit.study.journal import read_journal

MORE = {
    "target_true": "London",
    "paraphrases": ["I know that"],
    "neighbours": [{"prompt": "Tim is", "answer": "London"}],
}
FACTS = [
    {"prompt": "{} lives in", "subject": "BP", "target_new": "French", **MORE},
    {"prompt": "{} lives in", "subject": "Bob", "target_new": "Munich", **MORE},
    {"prompt": "{} lives in", "subject": "Ann", "target_new": "Paris", **MORE},
]
CONFIG = """
from jaxedit.study.config import default_config
VARIANTS = ("rome", "c-rome")
def get_config(variant):
    config = default_config(variant, layer=3, v_num_grad_steps=4, context_templates=("{}", "I am. {}"))
    config.update(model=MODEL, facts=FACTS, texts=TEXTS, perplexity_every=2)
    config.guard.update(action="keep", max_relative_perturbation=1e6)
    return config
"""


@pytest.fixture(scope="module")
def compared(shared, tmp_path_factory):
    """A configuration file and the folder of its studies."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(
        json.dumps(["The Eiffel Tower is in Paris.", " Once upon a time"]), encoding="utf-8"
    )
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
        loop.run_study(read_config(folder / "two.py", name), folder / "runs" / name)
    return folder


def test_the_table_is_what_the_journals_hold(compared):
    outcomes = read_outcomes(compared / "runs", ("rome", "c-rome"))
    steps = comparison.measured_at(outcomes)
    assert steps == [2, 3]
    titles = comparison.comparison_header(outcomes)
    for outcome in outcomes:
        cells = dict(zip(titles, comparison.comparison_row(outcome, outcomes), strict=True))
        records = [step.record for step in read_journal(compared / "runs" / outcome.name).steps[1:]]
        assert cells["method"] == outcome.name
        assert cells["facts"] == "3"
        assert (
            cells["efficacy at once"]
            == f"{100 * np.mean([r['fact']['efficacy'] for r in records]):.0f} %"
        )
        retained = json.loads((compared / "runs" / outcome.name / "retained.json").read_text())[
            "facts"
        ]
        assert (
            cells["efficacy at the end"]
            == f"{100 * np.mean([fact['efficacy'] for fact in retained]):.0f} %"
        )
        shares = np.array(
            [
                np.mean([fact[key] for fact in retained])
                for key in ("efficacy", "paraphrase", "neighbourhood")
            ]
        )
        assert cells["S"] == f"{100 * (3 / np.sum(1 / shares) if all(shares) else 0):.0f} %"
        said = np.mean([record.metrics["prefixed_accuracy"] for record in records])
        assert cells["says it behind a prefix at once"] == f"{100 * said:.0f} %"
        highest = max(
            record.perplexity["mean"] for record in records if record.perplexity is not None
        )
        assert float(cells["highest ppl"].replace(",", "")) == pytest.approx(highest, rel=5e-3)
        assert float(cells["ppl after 3"].replace(",", "")) == pytest.approx(
            records[-1].perplexity["mean"], rel=5e-3
        )
        assert float(cells["s an edit"]) == pytest.approx(
            np.median([r["time_s"]["edit"] for r in records]), abs=0.051
        )


def test_comparison_md_and_figure(compared):
    outcomes = read_outcomes(compared / "runs", ("rome", "c-rome"))
    text = comparison.write_comparison(compared / "runs", "two methods", outcomes).read_text(
        encoding="utf-8"
    )
    assert text.startswith("# two methods")
    assert "| rome | 3 |" in text
    assert "| c-rome | 3 |" in text
    assert (compared / "runs" / "comparison.png").stat().st_size > 10_000
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


def test_variants_of_one_edit_are_weighed_against_each_other(
    compared, shared, tmp_path, monkeypatch
):
    """Efficacy against the perplexity ratio, a line a group of names, every point with its value."""
    text = (
        (compared / "two.py")
        .read_text()
        .replace('VARIANTS = ("rome", "c-rome")', 'VARIANTS = ("a@0.1", "a@0.5", "b@0.5")')
    )
    text = text.replace(
        "default_config(variant, layer=3,",
        'default_config("rome", layer=3, v_lr=float(variant[2:]),',
    )
    (tmp_path / "weigh.py").write_text(
        text.replace("perplexity_every=2", "n_facts=1"), encoding="utf-8"
    )
    variants = read_variants(tmp_path / "weigh.py")
    for name in variants:
        loop.run_study(read_config(tmp_path / "weigh.py", name), tmp_path / name)
    outcomes = read_outcomes(tmp_path, variants)
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    comparison.write_comparison(tmp_path, "weighed", outcomes)
    (axes,) = pyplot.gcf().axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert set(lines) == {"a", "b"}
    wanted = [float(outcome.made[0]["perplexity"]["ratio"]) for outcome in outcomes]
    np.testing.assert_allclose(lines["a"][:, 0], wanted[:2])
    assert [note.get_text() for note in axes.texts] == ["0.1", "0.5", "0.5"]
    monkeypatch.undo()
    pyplot.close("all")
