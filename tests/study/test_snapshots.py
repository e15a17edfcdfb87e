"""Methods that change whole matrices journal them every k steps; an interruption in between shows
in nothing.
"""

import os

import numpy as np
import pytest
from rewritten import rewrite_lines
from study_examples import NAMES, ONE_TEXT

from jaxedit.edits.apply import apply, replay_edits
from jaxedit.edits.edit import Dense, read_edit
from jaxedit.files import to_json
from jaxedit.metrics.perplexity import perplexity
from jaxedit.models.load import load
from jaxedit.study import loop
from jaxedit.study.config import default_config
from jaxedit.study.journal import read_journal
from jaxedit.study.replay import edited_model
from jaxedit.study.retained import read_retained

FACTS = [{"prompt": "{} lives in", "subject": name, "target_new": "Paris"} for name in NAMES]
METHODS = {
    "ft": dict(layers=(2,), num_steps=3, norm_constraint=5e-3),
    "memit-sequential": dict(  # its state learns from each edit
        layers=(2, 3),
        rect_keep=0.4,
        v_num_grad_steps=3,
        mom2_adjustment=False,
        mom2_update_weight=1.0,
        context_templates=(("{}",), ("I am. {}",)),
    ),
}


@pytest.fixture
def config_of(study_config):
    """A function: (method, **keys) -> the configuration of a quick study."""

    def make(method, **keys):
        guard = dict(max_ppl_ratio=1e6, action="keep")
        return study_config(method, FACTS, ONE_TEXT, METHODS[method], guard=guard, **keys)

    return make


def measured(folder) -> list[dict]:
    """The records without what two runs, or the two ways to journal, differ in."""
    records = [to_json(step.record.to_dict()) for step in read_journal(folder).steps]
    return [{k: v for k, v in each.items() if k not in ("time_s", "snapshot")} for each in records]


def n_bytes(folder) -> int:
    return sum(path.stat().st_size for path in (folder / "steps").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_an_interruption_between_snapshots_shows_in_nothing(config_of, tmp_path, shared, method):
    every = loop.run_study(config_of(method), tmp_path / "every")
    config = config_of(method, journal_dense_every=2)
    whole = loop.run_study(config, tmp_path / "whole")
    assert measured(whole) == measured(every)
    assert [bool(step.record.snapshot) for step in read_journal(whole).steps] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    assert n_bytes(whole) < 0.7 * n_bytes(every)

    broken = loop.run_study(config, tmp_path / "broken")
    lines = (broken / "journal.jsonl").read_bytes().splitlines(keepends=True)
    os.truncate(
        broken / "journal.jsonl", sum(map(len, lines[:4]))
    )  # step 3 is the last one, after the snapshot of step 2
    seen = []
    loop.run_study(config, broken, lambda record, total: seen.append(record.step))
    assert seen == [0, 1, 2, 3, 4, 5]
    assert measured(broken) == measured(whole)
    for path in (whole / "steps").iterdir():
        assert (broken / "steps" / path.name).read_bytes() == path.read_bytes(), path.name

    model = load(str(shared / "golden" / "gpt2"))
    summed = model
    for step in read_journal(every).steps[1:]:
        summed = apply(summed, read_edit(step.arrays))
    snapshot = read_edit(read_journal(whole).steps[-1].arrays)
    assert all(isinstance(delta, Dense) for delta in snapshot.deltas)
    for name, delta_EFD in replay_edits(model, [snapshot]).overlay.delta.items():
        np.testing.assert_array_equal(np.asarray(delta_EFD), np.asarray(summed.overlay.delta[name]))


def test_a_study_that_the_guard_ends_keeps_the_edits_before(config_of, tmp_path, caplog):
    """The edits since the last snapshot are in the model, whatever the version that journalled."""
    config = config_of("memit-sequential", journal_dense_every=10)
    ratios = [
        step.record.perplexity["ratio"]
        for step in read_journal(loop.run_study(config, tmp_path / "all")).steps[1:]
    ]
    n_kept = 1
    assert max(ratios[:n_kept]) < ratios[n_kept]  # the limit lies between
    limit = (max(ratios[:n_kept]) + ratios[n_kept]) / 2
    config.guard.update(action="stop", max_ppl_ratio=limit)
    folder = loop.run_study(config, tmp_path / "stopped")
    journal = read_journal(folder)
    assert [bool(step.record.kept) for step in journal.steps[1:]] == [True, False]
    found = perplexity(edited_model(folder), ONE_TEXT).mean
    assert found == journal.steps[n_kept].record.perplexity["mean"]
    assert "last weights" not in caplog.text

    # A journal without the last snapshot, as it was written before, says so and is mended.
    before = read_retained(journal, older=False)
    (folder / "retained.json").unlink()
    rewrite_lines(folder, lambda line: line.pop("snapshot", None))
    assert not edited_model(folder).metadata.history
    assert (
        "last weights are those after edit 0: the model lacks what was kept since, 1 of"
        in caplog.text
    )
    loop.run_study(config, folder)
    assert read_retained(read_journal(folder), older=False) == before
    assert perplexity(edited_model(folder), ONE_TEXT).mean == found


def test_where_snapshots_make_no_sense(config_of, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"journal_dense_every=2 is for sequences .* expected 1 for ft in mode single",
    ):
        loop.run_study(config_of("ft", journal_dense_every=2, mode="single"), tmp_path / "run")
    config = default_config("rome", layer=3)
    config.journal_dense_every = 2
    with pytest.raises(ValueError, match="expected 1 for rome in mode sequential"):
        loop.run_study(config, tmp_path / "run")


def test_fewer_facts_than_a_folder_holds_are_refused(config_of, tmp_path):
    loop.run_study(config_of("ft", n_facts=2), tmp_path / "run")
    with pytest.raises(ValueError, match="holds 2 edits, where 1 are asked for"):
        loop.run_study(config_of("ft", n_facts=1), tmp_path / "run")
