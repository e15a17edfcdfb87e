"""An edit taken out of the middle of a study: the model, and a study that goes on, are those that
never had it, and nothing is erased.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from rewritten import as_older, rewrite_lines
from study_examples import ONE_TEXT, TEMPLATES, records

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.files import exclusive_lock
from jaxedit.study.chain import is_sealed
from jaxedit.study.journal import read_journal
from jaxedit.study.journal_end import MARK
from jaxedit.study.loop import run_study
from jaxedit.study.record import SCHEMA
from jaxedit.study.replay import edited_model
from jaxedit.study.undo import Undone, undo_steps

NAMES = ("BP", "Bob", "Sony", "Ann", "Tim", "Sam", "Max", "Tom", "Jim", "Dan")
FACTS = [{"prompt": "{} lives in", "subject": name, "target_new": "Paris"} for name in NAMES]
TOO_LONG = {"prompt": "{} lives in", "subject": "Bob and " * 200 + "Ann", "target_new": "Paris"}
METHODS = {
    "rome": dict(layer=3, v_num_grad_steps=4, context_templates=TEMPLATES),
    "memit-sequential": dict(  # its state learns the keys of each kept edit
        layers=(2, 3),
        v_num_grad_steps=3,
        mom2_adjustment=False,
        mom2_update_weight=1.0,
        context_templates=(("{}",), ("I am. {}",)),
    ),
    "ft": dict(layers=(3,), num_steps=2),
}


@pytest.fixture(scope="module")
def config_of(study_config):
    """A function: (method, **keys) -> the configuration of a quick study of ten facts."""

    def make(method, facts=FACTS, **keys):
        guard = dict(max_ppl_ratio=1e6, action="keep")
        return study_config(method, facts, ONE_TEXT, METHODS[method], guard=guard, **keys)

    return make


@pytest.fixture(scope="module")
def studied(config_of, tmp_path_factory):
    """The folder of a study of ten facts by rome; to be copied."""
    return run_study(config_of("rome"), tmp_path_factory.mktemp("ten") / "run")


@pytest.fixture
def folder(studied, tmp_path):
    return shutil.copytree(studied, tmp_path / "run")


def lines(folder) -> bytes:
    return (folder / "journal.jsonl").read_bytes()


def never_kept(folder, numbers) -> None:
    """Rewrite a journal as if a guard had rolled these edits back."""
    rewrite_lines(folder, lambda line: line["step"] in numbers and line.update(kept=False))


def assert_same_arrays(a, b) -> None:
    """Compare two trees bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for mine, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_the_model_is_the_one_that_never_had_it(folder, golden):
    """Bit for bit the nine others' sum, and not the ten's; the base is as it was loaded."""
    whole = edited_model(folder)
    assert undo_steps(folder, [5]) == [Undone(5, "Tim lives in → Paris", [6, 7, 8, 9, 10])]
    expected = golden("gpt2")
    for step in read_journal(folder).steps[1:]:
        if step.record.step != 5:
            expected = jaxedit.apply(expected, read_edit(step.arrays))
    found = edited_model(folder)
    assert len(found.metadata.history) == 9
    assert_same_arrays(found.overlay, expected.overlay)
    assert_same_arrays(found.base, golden("gpt2").base)
    assert found.fingerprint == golden("gpt2").fingerprint
    assert jaxedit.perplexity(found, ONE_TEXT).mean == jaxedit.perplexity(expected, ONE_TEXT).mean
    before, after = (np.asarray(m.overlay.delta["mlp/w_down"]) for m in (whole, found))
    assert not np.array_equal(before, after)


def test_a_model_from_before_the_undo_says_what_it_lacks(folder, caplog):
    """The model after edit 5 had edit 3, which was taken out after edit 10."""
    undo_steps(folder, [3])
    never = edited_model(folder, run_steps=[1, 2, 4, 5])
    assert caplog.text == ""
    assert_same_arrays(edited_model(folder, after_step=5).overlay.delta, never.overlay.delta)
    assert "left out of the model after edit 5, which had them when" in caplog.text
    assert caplog.text.rstrip().endswith("it was measured: 3")
    caplog.clear()
    edited_model(folder, after_step=2)
    assert caplog.text == ""


def test_nothing_is_erased(folder):
    before, n_files = lines(folder), len(list((folder / "steps").iterdir()))
    undo_steps(folder, [5, 2])
    undo_steps(folder, [10])
    assert lines(folder).startswith(before)
    undos = [json.loads(line) for line in lines(folder)[len(before) :].splitlines()]
    assert [(line["kind"], line["step"], line["undone"]) for line in undos] == [
        ("undo", 10, [2, 5]),
        ("undo", 10, [10]),
    ]
    links = {"previous", "digest"}
    assert all(set(line) == {"kind", "step", "undone", "written_at"} | links for line in undos)
    assert len(list((folder / "steps").iterdir())) == n_files
    steps = [step.record for step in read_journal(folder).steps]
    assert [record.step for record in steps] == list(range(11))
    assert [record.step for record in steps if record.undone_after == 10] == [2, 5, 10]
    assert [record.step for record in steps if record.kept] == [1, 3, 4, 6, 7, 8, 9]
    assert [record.step for record in steps if record.was_kept] == list(range(1, 11))
    assert len(edited_model(folder, run_steps=[5]).metadata.history) == 1
    assert len(edited_model(folder, after_step=5).metadata.history) == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_study_goes_on_as_if_it_never_had_it(config_of, tmp_path, method):
    """Model and editor's state: the next edits, their measurements and files are the same."""
    undone = run_study(config_of(method, n_facts=4), tmp_path / "undone")
    never = shutil.copytree(undone, tmp_path / "never")
    kept = shutil.copytree(undone, tmp_path / "kept")
    undo_steps(undone, [2])
    never_kept(never, [2])
    for folder in (undone, never, kept):
        (folder / "retained.json").unlink()
        run_study(config_of(method, n_facts=6), folder)
    assert records(undone)[5:] == records(never)[5:]
    assert records(undone)[5:] != records(kept)[5:]
    for name in ("retained.json", "steps/000005.safetensors", "steps/000006.safetensors"):
        assert (undone / name).read_bytes() == (never / name).read_bytes(), name
    assert_same_arrays(edited_model(undone).overlay, edited_model(never).overlay)


def test_a_state_learns_of_the_kept_edits_alone(configure, remembering, tmp_path):
    """The state after resuming is that of the edits that are still kept, in their order."""
    config = configure(n_facts=3)
    folder = run_study(config, tmp_path / "run")
    learnt = [
        float(read_edit(step.arrays).memory["learnt"]) for step in read_journal(folder).steps[1:]
    ]
    undo_steps(folder, [1])
    config.n_facts = 4
    run_study(config, folder)
    seed = sum(map(ord, "Ann lives in → Paris")) + 1000 * 2 + round(learnt[1] + learnt[2])
    assert float(read_edit(read_journal(folder).steps[4].arrays).memory["learnt"]) == seed


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([11], r"has no edit 11; it has 1 to 10"),
        ([0], r"has no edit 0"),
        ([3, 12], r"has no edit 12"),
        ([7], r"edit 7 of .* was not kept \(perplexity 3 times\): the model does not have it"),
        ([2], r"edit 2 of .* was undone before, after edit 10"),
    ],
)
def test_what_cannot_be_undone_leaves_the_journal_alone(folder, numbers, message):
    reason = {"guard_reason": "perplexity 3 times"}
    rewrite_lines(folder, lambda line: line["step"] == 7 and line.update(reason))
    never_kept(folder, [7])
    undo_steps(folder, [2])
    before = lines(folder)
    with pytest.raises(ValueError, match=message):
        undo_steps(folder, numbers)
    assert lines(folder) == before


def test_an_edit_that_was_not_possible_is_refused(config_of, tmp_path):
    folder = run_study(config_of("rome", [TOO_LONG, FACTS[0]]), tmp_path / "run")
    with pytest.raises(ValueError, match=r"edit 1 of .* was not kept \(.*tokens.*\)"):
        undo_steps(folder, [1])


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("rome", dict(mode="single"), "is a study of single edits, .* none is kept"),
        ("ft", dict(journal_dense_every=2), "holds the weights after every 2 edits, and no edit"),
    ],
)
def test_studies_without_an_edit_to_take_out(config_of, tmp_path, method, keys, message):
    folder = run_study(config_of(method, n_facts=2, **keys), tmp_path / "run")
    before = lines(folder)
    with pytest.raises(ValueError, match=message):
        undo_steps(folder, [2])
    assert lines(folder) == before


def test_an_undo_cut_short_never_happened(folder, config_of):
    """What a crash leaves: half of the line, and journal_end.json as it was before."""
    whole, mark = lines(folder), (folder / MARK).read_bytes()
    undo_steps(folder, [5])
    (folder / "journal.jsonl").write_bytes(lines(folder)[:-3])
    (folder / MARK).write_bytes(mark)
    assert len(edited_model(folder).metadata.history) == 10
    run_study(config_of("rome"), folder)
    assert lines(folder) == whole


@pytest.mark.parametrize("n_bytes_lost", [1, 3, "line"])
def test_an_undo_that_was_lost_is_noticed(folder, config_of, n_bytes_lost):
    """Whoever reads the study and whoever goes on with it are refused; the way out works."""
    before = lines(folder)
    undo_steps(folder, [5])
    undone = lines(folder)
    content = before if n_bytes_lost == "line" else undone[:-n_bytes_lost]
    (folder / "journal.jsonl").write_bytes(content)
    message = r"(lost its end .* edits \[5\] were undone; restore it|line 12 was changed since it)"
    for use in (edited_model, read_journal, lambda folder: run_study(config_of("rome"), folder)):
        with pytest.raises(ValueError, match=message):
            use(folder)
    assert lines(folder) == content
    (folder / MARK).unlink()
    (folder / "journal.jsonl").write_bytes(before)
    undo_steps(folder, [5])
    assert len(edited_model(folder).metadata.history) == 9


def test_an_undo_after_which_a_crash_came_counts(folder):
    """The line was written, journal_end.json was not."""
    mark = (folder / MARK).read_bytes()
    undo_steps(folder, [5])
    (folder / MARK).write_bytes(mark)
    assert len(edited_model(folder).metadata.history) == 9
    undo_steps(folder, [6])
    assert json.loads((folder / MARK).read_text())["undone"] == [5, 6]
    assert json.loads((folder / MARK).read_text())["n_lines"] == 13


def test_a_journal_whose_undo_names_no_kept_edit_is_damaged(folder):
    undo_steps(folder, [5])
    line = lines(folder).splitlines(keepends=True)[-1]
    (folder / "journal.jsonl").write_bytes(lines(folder) + line)
    with pytest.raises(ValueError, match="line 13 does not follow the line before it"):
        read_journal(folder)
    rewrite_lines(folder, lambda line: None)
    with pytest.raises(
        ValueError, match=r"journal\.jsonl: an undo names edit 5, which is not kept"
    ):
        read_journal(folder)


def test_nothing_is_undone_while_a_study_runs(config_of, tmp_path):
    """Nor do two studies write to one folder; the lock ends with its holder."""
    folder, said = tmp_path / "run", []

    def on_step(record, total):
        for writing in (lambda: undo_steps(folder, [1]), lambda: run_study(config, folder)):
            with pytest.raises(ValueError, match="is in use by process") as caught:
                writing()
            said.append(str(caught.value))

    config = config_of("rome", n_facts=1)
    run_study(config, folder, on_step)
    assert len(said) == 4
    with exclusive_lock(folder), pytest.raises(ValueError, match="is in use by process"):
        undo_steps(folder, [1])
    undo_steps(folder, [1])
    assert not edited_model(folder).metadata.history


def test_a_version_that_knows_no_undo_refuses_the_journal(folder):
    """It would take the line for one that was cut short: so the schema is written as of today."""
    as_older(folder, schema=1)
    older = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    del older["config"]["start"]
    (folder / "run.json").write_text(json.dumps(older), encoding="utf-8")
    before, run = lines(folder), read_journal(folder).run
    assert run["config"]["start"]["run"] == ""
    undo_steps(folder, [5])
    written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert is_sealed(written)
    assert {**run, "upgraded_from": 1} == {k: v for k, v in written.items() if k != "digest"}
    assert run["schema"] == SCHEMA == 3
    assert lines(folder).startswith(before)
