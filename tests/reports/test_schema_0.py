"""A journal as version 0 wrote it has a report and a comparison, with the same numbers."""

import json

import pytest

from jaxedit.reports.comparison import comparison_header, comparison_row, write_comparison
from jaxedit.reports.figures import perplexity_figure
from jaxedit.reports.markdown import write_report
from jaxedit.reports.records import edit_steps, table_row
from jaxedit.reports.studies import read_studies
from jaxedit.study.journal import read_journal

# As it stood on the disk: flat configuration, no schema; keys and metrics under their old names.
RUN = """{
  "config": {
    "batch_size": 1, "divergence_every": 0, "dtype": null, "edits_at_once": 16,
    "editor": {"method": "rome", "layer": 3, "keys": "mixed", "anchor": null},
    "facts": "facts.json", "fluency_every": 0,
    "guard": {"action": "rollback", "max_ppl_ratio": 2.0, "max_relative_perturbation": 0.1},
    "mesh": "", "mode": "sequential", "model": "tiny", "n_facts": 0, "part": "",
    "perplexity_every": 1, "prompts": ["The capital of France is"], "references": "",
    "retention_every": 2, "screen": "hold", "snapshot_every": 1, "stats": "", "texts": "texts.json"
  },
  "model_fingerprint": "abc", "facts_sha256": "d", "texts_sha256": "e", "stats": null,
  "n_skipped_facts": 0, "n_edits": 5, "context_templates": ["{}"]
}"""
UNEDITED = """{"step": 0, "perplexity": {"mean": 25.0, "pooled": 24.0, "n_broken": 0},
 "continuations": [" Paris"]}"""
KEPT = """{"step": 1, "case_id": 11, "prompt": "{} lives in", "subject": "BP",
 "target_new": "Paris", "target_true": "London", "n_requests": 1, "kept": true, "guard": "",
 "predicted": 0.04, "perplexity": {"mean": 26.0, "pooled": 25.0, "ratio": 1.04,
  "delta_nll_nats": 0.04, "delta_nll_stderr_nats": 0.001, "n_broken": 0},
 "fact": {"probability_new": 0.9, "probability_true": 0.01, "greedy_new": true, "efficacy": true,
  "paraphrase": 0.5, "neighbourhood": 1.0, "prefixed": true, "prefixed_greedy": false},
 "before": {"probability_new": 0.01, "probability_true": 0.5, "greedy_new": false,
  "efficacy": false, "paraphrase": 0.0, "neighbourhood": 1.0},
 "says": " Paris, France", "says_before": " London.", "continuations": [" Rome"],
 "editor": {"loss": 0.04, "denominator": 3.5}, "edit_norm": 2.5, "relative_norm": 0.05,
 "relative_perturbation": 0.03, "relative_perturbation_of_all": 0.03, "time_s": {"edit": 0.5}}"""
SKIPPED = """{"step": 2, "case_id": 12, "prompt": "{} lives in", "subject": "Bob",
 "target_new": "Munich", "target_true": "London", "n_requests": 1, "kept": false, "guard": "",
 "predicted": 0.34567, "error": "held back: predicted perturbation 0.346", "held": true,
 "time_s": {},
 "retention": {"1": {"probability_new": 0.8, "greedy_new": true, "efficacy": true}}}"""
FAILED = """{"step": 3, "case_id": 13, "prompt": "{} lives in", "subject": "too long",
 "target_new": "Oslo", "target_true": null, "n_requests": 1, "kept": false, "guard": "",
 "error": "the request has 300 tokens", "time_s": {"edit": 0.25}}"""
ROLLED_BACK = """{"step": 4, "case_id": 14, "prompt": "{} lives in", "subject": "Ann",
 "target_new": "Rome", "target_true": "London", "n_requests": 1, "kept": false,
 "guard": "the loss of 2 texts is not finite", "perplexity": {"mean": "inf", "pooled": "inf",
  "ratio": "inf", "delta_nll_nats": "inf", "delta_nll_stderr_nats": "nan", "n_broken": 2},
 "fact": {"probability_new": 0.7, "greedy_new": true, "efficacy": false, "paraphrase": 0.0,
  "neighbourhood": 0.0, "prefixed": false, "prefixed_greedy": false},
 "before": {"probability_new": 0.02, "greedy_new": false, "efficacy": false, "paraphrase": 0.0,
  "neighbourhood": 1.0},
 "says": " Rome", "says_before": " London.", "editor": {"loss": 0.1, "denominator": 0.2},
 "edit_norm": 90.0, "relative_norm": 2.0, "relative_perturbation": 1.5,
 "relative_perturbation_of_all": 1.6, "time_s": {"edit": 1.5},
 "retention": {"1": {"probability_new": 0.6, "greedy_new": true, "efficacy": true}}}"""
RETAINED = """{"steps": [1], "facts": [{"probability_new": 0.6, "greedy_new": false,
 "efficacy": true, "paraphrase": 0.25, "neighbourhood": 0.5, "prefixed_greedy": true}]}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write the folder of a study of version 0."""
    folder = tmp_path_factory.mktemp("old") / "rome"
    (folder / "steps").mkdir(parents=True)
    (folder / "run.json").write_text(RUN, encoding="utf-8")
    (folder / "retained.json").write_text(RETAINED, encoding="utf-8")
    lines = []
    for step, text in enumerate((UNEDITED, KEPT, SKIPPED, FAILED, ROLLED_BACK)):
        arrays = f"steps/{step:06d}.safetensors"
        (folder / arrays).touch()
        lines.append(json.dumps({**json.loads(text), "arrays": arrays}) + "\n")
    (folder / "journal.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_rows_of_the_table(folder):
    assert [table_row(step) for step in edit_steps(read_journal(folder))] == [
        ["1", "BP lives in → Paris", "26.0", "1.04", "0.010 → 0.900", "100%", "3.5", "kept"],
        ["2", "Bob lives in → Munich", "", "", "", "", "", "skipped"],
        ["3", "too long lives in → Oslo", "", "", "", "", "", "not edited"],
        ["4", "Ann lives in → Rome", "inf", "inf", "0.020 → 0.700", "100%", "0.2", "rolled back"],
    ]


def test_report_md(folder):
    lines = write_report(folder).read_text(encoding="utf-8").splitlines()
    assert (
        "rome on tiny, sequential edits: 2 edits made, 1 kept, 1 rolled back, 1 not possible, "
        "1 skipped by the screening."
    ) in lines
    assert "- Edit 2 was skipped by the screening: predicted relative perturbation 0.346" in lines
    assert "- Edit 3 was not possible: the request has 300 tokens" in lines
    assert "| 1 | BP lives in → Paris |  Paris, France |" in lines
    assert "![P(new) of each fact as more are written](retention.png)" in lines
    assert (folder / "retention.png").is_file()
    assert '    "facts_per_edit": 1,' in lines  # the configuration as it is called now


def test_report_html(folder):
    write_report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    for said in (
        "before:  London.",
        "after:  Paris, France",
        "skipped by the screening: predicted relative perturbation 0.346",
        "the request has 300 tokens",
        "the loss of 2 texts is not finite",
        "The capital of France is",
    ):
        assert said in text


def test_the_figure(folder):
    (axes,) = perplexity_figure(read_journal(folder)).axes
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert drawn["kept"] == [(1, 26.0)]
    assert drawn["rolled back"] == [(4, 1e4)]


def test_the_comparison(folder):
    studies = read_studies(folder.parent, ("rome",))
    titles, row = comparison_header(studies), comparison_row(studies[0], studies)
    assert dict(zip(titles, row, strict=True)) == {
        "method": "rome",
        "facts": "2",
        "efficacy after its edit": "50 %",
        "efficacy after all edits": "100 %",
        "accuracy after its edit": "100 %",
        "accuracy after all edits": "0 %",
        "prefixed accuracy after its edit": "0 %",
        "prefixed accuracy after all edits": "100 %",
        "paraphrase": "25 %",
        "neighbourhood": "50 %",
        "S": f"{300 / (1 + 4 + 2):.0f} %",
        "highest ppl": "inf",
        "ppl after 1": "26.0",
        "ppl after 4": "inf",
        "s per edit": "1.0",
    }
    assert "| rome | 2 |" in write_comparison(folder.parent, "old", studies).read_text("utf-8")


def test_reading_leaves_the_journal_as_it_is(folder):
    write_report(folder)
    assert (folder / "run.json").read_text(encoding="utf-8") == RUN
    assert '"says_before"' in (folder / "journal.jsonl").read_text(encoding="utf-8")
