"""Edited models by name: a study's, a saved edit's, and what is known of their edits."""

import dataclasses
import json

import numpy as np
import pytest
from rewritten import rewrite_run

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.study.edited import open_edit, open_run
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

TEMPLATES = ("{}", "I am. {}")
HYPER = dict(layer=3, v_num_grad_steps=3, context_templates=TEMPLATES)
FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris", "target_true": "Rome"}
    for subject in ("BP", "Bob", "Ann")
]
MORE = [{"prompt": "{} is based in", "subject": "Sony", "target_new": "London"}]
TEXTS = ["The Eiffel Tower is in Paris."]


@pytest.fixture(scope="module")
def config_of(study_config):
    return lambda facts, **keys: study_config(
        "rome", facts, TEXTS, HYPER, guard=dict(action="keep"), **keys
    )


@pytest.fixture(scope="module")
def first(config_of, tmp_path_factory):
    return run_study(config_of(FACTS), tmp_path_factory.mktemp("first") / "run")


@pytest.fixture(scope="module")
def saved(golden, tmp_path_factory):
    """A fact written into the golden GPT-2, and its file."""
    path = tmp_path_factory.mktemp("saved") / "edit.safetensors"
    request = jaxedit.Request("{} lives in", "Bob", "Munich")
    edited, edit, _ = jaxedit.edit_model(golden("gpt2"), request, **HYPER)
    edit.save(path)
    return edited, edit, path


def delta(model) -> np.ndarray:
    return np.asarray(model.overlay.delta["mlp/w_down"][int(model.overlay.slot["mlp/w_down"][3])])


@pytest.mark.parametrize(
    ("chosen", "subjects"),
    [
        (dict(), ["BP", "Bob", "Ann"]),
        (dict(after_step=2), ["BP", "Bob"]),
        (dict(run_steps=[3, 1]), ["Ann", "BP"]),
    ],
    ids=str,
)
def test_a_run_tells_what_edits_its_model_has(first, chosen, subjects):
    edited = open_run(first, **chosen)
    journal = read_journal(first)
    assert [request.subject for request in edited.requests] == subjects
    assert [record.subject for record in edited.records] == subjects
    assert edited.requests[0].target_true == "Rome"
    assert len(edited.model.metadata.history) == len(subjects)
    assert edited.editor == journal.run["config"]["editor"]
    assert edited.unedited_ppl == journal.steps[0].record.perplexity["mean"]
    assert edited.source == journal.run["config"]["model"]


def test_a_run_whose_facts_are_gone_knows_those_of_its_journal(first, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(first, folder)
    config = read_journal(folder).run["config"]
    rewrite_run(folder, config=config | {"facts": str(tmp_path / "gone.json")})
    requests = open_run(folder).requests
    assert [(each.subject, each.target_new) for each in requests] == [
        (fact["subject"], fact["target_new"]) for fact in FACTS
    ]


def test_a_saved_edit_is_its_model_again(saved):
    edited, edit, path = saved
    found = open_edit(path)
    np.testing.assert_array_equal(delta(found.model), delta(edited))
    assert [request.summary for request in found.requests] == ["Bob lives in → Munich"]
    assert found.editor["method"] == "rome"
    assert found.editor["v_num_grad_steps"] == 3
    again = jaxedit.Edit.load(path)
    assert again.record == json.loads(json.dumps(edit.record))
    assert again.base == edit.base == edited.rounded_fingerprint


def test_a_short_edit_is_that_of_the_editor(saved, golden):
    edited, edit, _ = saved
    model, editor = golden("gpt2"), jaxedit.make_editor("rome", **HYPER)
    request = jaxedit.Request("{} lives in", "Bob", "Munich")
    expected, _, _ = editor.edit(model, [request], editor.init(model, None))
    np.testing.assert_array_equal(edit.deltas[0].u_FR, expected.deltas[0].u_FR)
    np.testing.assert_array_equal(edit.deltas[0].v_RD, expected.deltas[0].v_RD)
    assert edited.metadata.history == (edit,)


def test_an_edit_fits_its_base_in_either_dtype_and_no_other(saved, shared):
    _, edit, path = saved
    half = open_edit(path, dtype="bfloat16")
    assert half.model.rounded_fingerprint == edit.base
    with pytest.raises(ValueError, match="made on weights with the fingerprint"):
        open_edit(path, source=str(shared / "golden" / "gptj"))


@pytest.mark.parametrize("content", [b"", b"not an edit"])
def test_a_file_that_is_no_edit_is_refused(tmp_path, content):
    path = tmp_path / "edit.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as an edit"):
        jaxedit.Edit.load(path)
    with pytest.raises(ValueError, match=r"gone\.safetensors cannot be read"):
        jaxedit.Edit.load(tmp_path / "gone.safetensors")


def test_an_edit_without_a_record_needs_a_model(saved, shared, tmp_path):
    _, edit, _ = saved
    path = tmp_path / "bare.safetensors"
    dataclasses.replace(edit, record={}).save(path)
    with pytest.raises(ValueError, match="does not say which model it edits: give --model"):
        open_edit(path)
    found = open_edit(path, source=str(shared / "golden" / "gpt2"))
    assert (found.editor, found.records, found.requests) == ({}, (), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(layer=77), r"layers \[77\] do not exist"),
        (dict(weight="x"), "the weight 'x'; of .* can be edited"),
    ],
)
def test_a_saved_edit_that_does_not_fit_is_named(saved, config_of, tmp_path, change, message):
    """By its file, wherever it is read: by a command, and as what a study begins with."""
    _, edit, _ = saved
    path = tmp_path / "foreign.safetensors"
    dataclasses.replace(edit, deltas=(edit.deltas[0]._replace(**change),)).save(path)
    with pytest.raises(ValueError, match=rf"foreign\.safetensors: .*{message}"):
        open_edit(path)
    config = config_of(MORE, start=dict(edit=str(path)))
    with pytest.raises(ValueError, match=rf"foreign\.safetensors: .*{message}"):
        run_study(config, tmp_path / "run")


# Studies that begin with an edited model.


@pytest.mark.same_bits
def test_a_study_on_top_of_another_is_one_study_of_both(config_of, first, tmp_path):
    """Same seeds, templates and order: the edit on top is the one a longer study makes."""
    start = dict(run=str(first), run_steps=(), after_step=None, edit="")
    folder = run_study(config_of(MORE, start=start), tmp_path / "more")
    whole = run_study(config_of([*FACTS, *MORE]), tmp_path / "whole")
    last = read_edit(read_journal(whole).steps[-1].arrays)
    found = read_edit(read_journal(folder).steps[-1].arrays)
    np.testing.assert_array_equal(found.deltas[0].u_FR, last.deltas[0].u_FR)
    np.testing.assert_array_equal(found.deltas[0].v_RD, last.deltas[0].v_RD)

    edited = open_run(folder)
    np.testing.assert_array_equal(delta(edited.model), delta(jaxedit.edited_model(whole)))
    assert [each.subject for each in edited.requests] == ["BP", "Bob", "Ann", "Sony"]
    before = read_journal(folder).steps[0].record.perplexity["mean"]
    assert before == jaxedit.perplexity(jaxedit.edited_model(first), TEXTS).mean


def test_a_study_on_top_of_one_that_has_changed_is_another(config_of, first, saved, tmp_path):
    edit = saved[1]
    start = dict(run="", run_steps=(), after_step=None, edit=str(tmp_path / "edit.safetensors"))
    edit.save(start["edit"])
    folder = run_study(config_of(MORE, start=start), tmp_path / "more")
    assert [each.subject for each in open_run(folder).requests] == ["Bob", "Sony"]
    read_edit(read_journal(first).steps[1].arrays).save(start["edit"])
    with pytest.raises(ValueError, match="start_sha256"):
        run_study(config_of(MORE, start=start), folder)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (dict(run="RUN", edit="x.safetensors"), "start.run and start.edit exclude each other"),
        (dict(run="RUN", after_step=9), "has no edit 9; it has 1 to 3"),
        (dict(edit="gone.safetensors"), "gone.safetensors cannot be read"),
        (dict(after_step=2), "after_step=2: expected one of them, with the study in start.run"),
        (dict(run_steps=(7,)), r"run_steps=\[7\] and .* with the study in start.run"),
        (dict(run="RUN", run_steps=(1,), after_step=2), "expected one of them"),
    ],
    ids=str,
)
def test_a_start_that_cannot_be_is_refused(config_of, first, tmp_path, start, message):
    given = dict(run="", run_steps=(), after_step=None, edit="") | start
    given["run"] = given["run"].replace("RUN", str(first))
    with pytest.raises(ValueError, match=message):
        run_study(config_of(MORE, start=given), tmp_path / "run")


# A study as an object.


def test_a_study_as_an_object(config_of, first, tmp_path):
    study = jaxedit.run_study(config_of(FACTS), tmp_path / "run")
    again = jaxedit.open_study(study.folder)
    assert again == study
    assert list(again.steps["subject"]) == ["BP", "Bob", "Ann"]
    assert list(again.steps["perplexity.mean"]) == [
        step.record.perplexity["mean"] for step in read_journal(first).steps[1:]
    ]
    np.testing.assert_array_equal(
        delta(again.model(after_step=2)), delta(jaxedit.edited_model(first, after_step=2))
    )
    assert again.report() == study.folder / "report.md"
    assert again.config["editor"]["method"] == "rome"
    with pytest.raises(ValueError, match="is not a study's work directory"):
        jaxedit.open_study(tmp_path / "gone")


# Edits from the start at other layers than the study's own.


@pytest.mark.parametrize(
    ("method", "hyper", "layer"), [("rome", {}, 1), ("rome", {}, 4), ("ft", dict(num_steps=2), 4)]
)
@pytest.mark.same_bits
def test_a_study_above_or_below_the_edits_it_began_with(
    study_config, saved, golden, tmp_path, method, hyper, layer
):
    """Every other edit of whole matrices is journalled, and a snapshot has the first edits too."""
    edited, _, path = saved
    own = dict(layers=(layer,), **hyper) if method == "ft" else HYPER | dict(layer=layer)
    every = 2 if method == "ft" else 1
    start = dict(run="", run_steps=(), after_step=None, edit=str(path))
    config = study_config(
        method, FACTS, TEXTS, own, guard=dict(action="keep"), start=start, journal_dense_every=every
    )
    folder = run_study(config, tmp_path / "run")
    journal = read_journal(folder)
    assert journal.steps[0].record.perplexity["mean"] == jaxedit.perplexity(edited, TEXTS).mean
    found = open_run(folder)
    np.testing.assert_array_equal(delta(found.model), delta(edited))  # layer 3 has the first edit
    last = journal.steps[-1].record.perplexity["mean"]
    assert jaxedit.perplexity(found.model, TEXTS).mean == pytest.approx(last, rel=1e-6)
    assert found.unedited_ppl is None  # the base was never measured
    assert [each.subject for each in found.requests] == ["Bob", "BP", "Bob", "Ann"]


def test_a_study_whose_start_has_changed_is_not_read(config_of, first, saved, tmp_path):
    edit = saved[1]
    start = dict(run="", run_steps=(), after_step=None, edit=str(tmp_path / "edit.safetensors"))
    edit.save(start["edit"])
    folder = run_study(config_of(MORE, start=start), tmp_path / "more")
    read_edit(read_journal(first).steps[1].arrays).save(start["edit"])
    with pytest.raises(ValueError, match=r"began with other edits than .* names now"):
        jaxedit.edited_model(folder)


@pytest.mark.parametrize("layers", [[2], (2,), 2], ids=str)
def test_layers_of_a_method_that_edits_one_layer(golden, layers):
    request = jaxedit.Request("{} lives in", "Bob", "Munich")
    hyper = {name: value for name, value in HYPER.items() if name != "layer"}
    _, edit, _ = jaxedit.edit_model(golden("gpt2"), request, "rome", layers=layers, **hyper)
    assert [each.layer for each in edit.deltas] == [2]
    assert edit.record["editor"]["layer"] == 2
    with pytest.raises(ValueError, match="rome edits one layer"):
        jaxedit.edit_model(golden("gpt2"), request, "rome", layers=[2, 3], **hyper)
