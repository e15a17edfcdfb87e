"""The study: a fold of edits that rejected ones leave no trace in, and that interruptions do not
show in.
"""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxedit
from jaxedit import LowRank, Request
from jaxedit.editors import Editor
from jaxedit.edits.edit import Edit, make_edit, to_dense
from jaxedit.edits.serialise import read_edit
from jaxedit.files import to_json
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import (
    read_key_probe,
    relative_perturbation,
    total_relative_perturbation,
)
from jaxedit.models.model import allocate_deltas
from jaxedit.study import context, loop
from jaxedit.study.journal import read_journal

# All of one shape in the tiny gpt2, so that one compilation does. The second takes the perplexity
# over the guard's TIGHT limit, alone or after the first; the others stay under it.
FACTS = [
    {"case_id": 11, "prompt": "{} lives in", "subject": "BP", "target_new": "French"},
    {
        "case_id": 12,
        "prompt": "{} lives in",
        "subject": "Bob",
        "target_new": "Munich",
        "target_true": "London",
    },
    {"case_id": 13, "prompt": "{} is based in", "subject": "Sony", "target_new": "London"},
    {"case_id": 14, "prompt": "{} lives in", "subject": "Ann", "target_new": "Paris"},
]
TOO_LONG = {
    "case_id": 15,
    "prompt": "{} lives in",
    "subject": "Bob and " * 200 + "Ann",
    "target_new": "Paris",
}
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl who lived in the forest.",
    " The NBA and MLB haven't sold lawmakers on a cut so far",
]
TEMPLATES = ("{}", "I am. {}")
TIGHT = 1.02


@pytest.fixture(scope="module")
def model(golden):
    """The unedited model, with the room for edits that a study gives it, so that nothing is
    compiled twice.
    """
    return allocate_deltas(golden("gpt2"), "mlp/w_down", (3,))


@pytest.fixture(scope="module")
def editor():
    return jaxedit.make_editor("rome", layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)


@pytest.fixture(scope="module")
def configure(study_config):
    """A function: (facts, **keys) -> a quick study; it keeps every edit unless told not to."""
    hyper = dict(layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)

    def make(asked=FACTS, ratio=1e6, action="rollback", evaluation=(), **keys):
        guard = dict(max_ppl_ratio=ratio, action=action)
        return study_config("rome", asked, TEXTS, hyper, evaluation, guard=guard, **keys)

    return make


@pytest.fixture(scope="module")
def whole(configure, tmp_path_factory):
    """A function: **keys -> the folder of an uninterrupted study; each is run once."""
    done: dict[str, Path] = {}

    def run(**keys) -> Path:
        key = json.dumps(keys, sort_keys=True)
        if key not in done:
            done[key] = loop.run_study(configure(**keys), tmp_path_factory.mktemp("whole") / "run")
        return done[key]

    return run


@pytest.fixture
def remembering(monkeypatch, model):
    """Studies use an editor whose edits depend on its state, which rome's do not.

    The state is what the kept edits' memories hold, one number each. A subject "Bob" is
    destructive, "Nan" and "Huge" are so beyond what is finite, "Nobody" cannot be edited."""
    scale = {"Bob": 30.0, "Nan": np.nan, "Huge": 1e38}
    direction = {"Bob": 3}  # one of those that raise the perplexity, 1.34 times

    def edit(model, requests, state):
        (request,) = requests
        if request.subject == "Nobody":
            raise ValueError("Nobody cannot be edited")
        seed = sum(map(ord, request.summary)) + 1000 * len(state) + round(sum(state))
        rng = np.random.default_rng(direction.get(request.subject, seed))
        u_FR, v_RD = (
            rng.standard_normal((192, 1)) / 14,
            rng.standard_normal((1, 48)) * scale.get(request.subject, 0.05),
        )
        made = make_edit(
            model, [LowRank("mlp/w_down", 3, u_FR, v_RD)], {"learnt": np.array(float(seed))}
        )
        return made, (*state, float(seed)), {"n_learnt": len(state)}

    made = Editor(
        name="remembering",
        hyper=None,
        slots=lambda model: {"mlp/w_down": (3,)},
        init=lambda model, stats: (),
        edit=edit,
        restore=lambda state, edit: (*state, float(edit.memory["learnt"])),
    )
    monkeypatch.setattr(context, "editor_from", lambda *_, **__: made)
    return made


def records(folder: Path) -> list[dict]:
    """The journal without what two runs of the same study may differ in."""
    return [
        {k: v for k, v in to_json(step.record.to_dict()).items() if k != "time_s"}
        for step in read_journal(folder).steps
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def edits_of(folder: Path) -> list[Edit]:
    return [read_edit(step.arrays) for step in read_journal(folder).steps[1:]]


def only_kept(folder: Path) -> list[Edit]:
    return [read_edit(step.arrays) for step in read_journal(folder).steps[1:] if step.record.kept]


def request(fact: dict) -> Request:
    return Request(fact["prompt"], fact["subject"], fact["target_new"])


def by_hand(model, editor, asked: list[dict]) -> Edit:
    """The last fact's edit, on the model that has the ones before."""
    state = editor.init(model, None)
    for fact in asked:
        edit, state, _ = editor.edit(model, [request(fact)], state)
        model = jaxedit.apply(model, edit)
    return edit


def assert_same_edit(a: Edit, b: Edit):
    assert [delta[:2] for delta in a.deltas] == [delta[:2] for delta in b.deltas]
    for mine, theirs in zip(a.deltas, b.deltas, strict=True):
        np.testing.assert_array_equal(to_dense(mine), to_dense(theirs))


def assert_same_study(folder: Path, other: Path):
    """Two studies' journals are the same but for times, and their steps' files byte for byte."""
    assert records(folder) == records(other)
    mine, theirs = content(folder), content(other)
    assert sorted(mine) == sorted(theirs)
    differing = [name for name in mine if name != "journal.jsonl" and mine[name] != theirs[name]]
    assert differing == []


def perplexities(folder: Path) -> list[float]:
    return [step.record.perplexity["mean"] for step in read_journal(folder).steps]


# sequential


def test_edits_accumulate(whole, model, editor):
    """The journal's edits and perplexities are those of editing step by step by hand."""
    folder = whole()
    assert [step.record.kept for step in read_journal(folder).steps[1:]] == [True] * 4
    found, edited = edits_of(folder), model
    for n, fact in enumerate(FACTS):
        assert_same_edit(found[n], by_hand(model, editor, FACTS[: n + 1]))
        assert not np.array_equal(to_dense(found[n].deltas[0]), np.zeros((192, 48)))
        edited = jaxedit.apply(edited, found[n])
        score = jaxedit.perplexity(edited, TEXTS)
        record = read_journal(folder).steps[n + 1].record
        assert record.perplexity["mean"] == score.mean
        assert record.perplexity["pooled"] == score.pooled
        assert (
            record.continuation
            == jaxedit.generate(edited, [request(fact).prompt_text], max_new_tokens=8)[0][
                len(request(fact).prompt_text) :
            ]
        )
        assert (record.case_id, record.subject) == (fact["case_id"], fact["subject"])


def test_the_edits_are_in_the_weights(whole, model, shared, tmp_path):
    """A checkpoint with the journal's kept edits added to its file has the perplexity that the
    journal ends with.
    """
    folder, copy = whole(ratio=TIGHT), tmp_path / "edited"
    shutil.copytree(shared / "golden" / "gpt2", copy)
    weights = load_file(copy / "model.safetensors")
    for edit in only_kept(folder):
        for name, change in edit.dense().items():
            stored = name if name in weights else f"transformer.{name}"
            weights[stored] = weights[stored] + change
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    kept = [step.record for step in read_journal(folder).steps[1:] if step.record.kept]
    assert 0 < len(kept) < len(FACTS)
    mean = jaxedit.perplexity(jaxedit.load(str(copy)), TEXTS).mean
    assert mean == pytest.approx(kept[-1].perplexity["mean"], rel=1e-5)
    assert mean != pytest.approx(jaxedit.perplexity(model, TEXTS).mean, rel=1e-3)


def test_a_record_says_what_was_measured(whole, model):
    folder = whole()
    first, *steps = read_journal(folder).steps
    unedited = jaxedit.perplexity(model, TEXTS)
    assert first.record.perplexity == {
        "mean": unedited.mean,
        "pooled": unedited.pooled,
        "n_non_finite": 0,
    }
    np.testing.assert_array_equal(load_file(first.arrays)["nll_nats"], unedited.nll_nats)
    edited, probes = model, read_key_probe(model, prepare(model, TEXTS), (3,))
    for step, edit in zip(steps, edits_of(folder), strict=True):
        edited = jaxedit.apply(edited, edit)
        after, record = jaxedit.perplexity(edited, TEXTS), step.record
        difference = np.log(after.per_text) - np.log(unedited.per_text)
        measured = record.perplexity
        assert measured["ratio"] == after.mean / unedited.mean
        assert measured["delta_nll_nats"] == pytest.approx(difference.mean(), rel=1e-9)
        assert measured["delta_nll_stderr_nats"] == pytest.approx(
            difference.std(ddof=1) / np.sqrt(len(TEXTS)), rel=1e-9
        )
        assert record.edit_norm == pytest.approx(np.linalg.norm(to_dense(edit.deltas[0])), rel=1e-6)
        assert record.edit_norm_ratio == pytest.approx(
            record.edit_norm / np.linalg.norm(model.base["mlp/w_down"][3]), rel=1e-5
        )
        assert record.relative_perturbation == pytest.approx(
            relative_perturbation(probes, edit), rel=1e-5
        )
        assert record.total_relative_perturbation == pytest.approx(
            total_relative_perturbation(probes, edited), rel=1e-5
        )
        assert set(record.time_s) == {
            "edit",
            "perturbation",
            "apply",
            "facts",
            "generate",
            "perplexity",
        }
        assert record.optimisation["n_steps"] == 4
    # `before` is the unedited model's, also for an edit that is not the first.
    for fact, step in zip(FACTS, steps, strict=True):
        (expected,) = evaluate_facts(
            model,
            [Request(fact["prompt"], fact["subject"], fact["target_new"], fact.get("target_true"))],
        )
        assert step.record.unedited_metrics["probability_new"] == pytest.approx(
            expected["probability_new"], rel=1e-9
        )
    assert steps[1].record.metrics["probability_true"] > 0
    assert steps[0].record.metrics["probability_true"] is None


# the guard


def test_a_rolled_back_edit_leaves_no_trace(whole, model, editor):
    folder = whole(ratio=TIGHT)
    steps = [step.record for step in read_journal(folder).steps[1:]]
    assert [step.kept for step in steps] == [True, False, True, True]
    ratio = steps[1].perplexity["ratio"]
    assert ratio > TIGHT
    assert steps[1].guard_code == "ppl_ratio"
    assert steps[1].guard_reason == f"perplexity {ratio:.3g} times the unedited model's"
    assert [step.guard_code for step in steps if step.kept] == [None] * 3
    first, damaging, third, _ = edits_of(folder)
    assert_same_edit(third, by_hand(model, editor, [FACTS[0], FACTS[2]]))
    assert (
        steps[2].perplexity["mean"]
        == jaxedit.perplexity(jaxedit.apply(jaxedit.apply(model, first), third), TEXTS).mean
    )
    # and it is another than where the damaging one is kept
    assert not np.array_equal(to_dense(third.deltas[0]), to_dense(edits_of(whole())[2].deltas[0]))
    assert_same_edit(damaging, edits_of(whole())[1])  # what was rolled back can be looked at


@pytest.mark.parametrize("bad", ["Bob", "Nan", "Huge", "Nobody"])
def test_a_rejected_edit_leaves_no_state(configure, remembering, model, tmp_path, bad):
    """Neither one rolled back nor one that failed: what follows is the study that never asked for
    it.
    """
    asked = [FACTS[0], {**FACTS[1], "subject": bad}, *FACTS[2:]]
    with_it = loop.run_study(configure(asked, ratio=1.2), tmp_path / "with")
    without = loop.run_study(configure([FACTS[0], *FACTS[2:]], ratio=1.2), tmp_path / "without")
    found, expected = records(with_it), records(without)
    assert [r["kept"] for r in found[1:]] == [True, False, True, True]
    assert [r["optimisation"]["n_learnt"] for r in expected[1:]] == [0, 1, 2]
    drop = ("step", "arrays")
    for a, b in zip([*found[:2], *found[3:]], expected, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {
            k: v for k, v in b.items() if k not in drop
        }
    for a, b in zip(only_kept(with_it), edits_of(without), strict=True):
        assert_same_edit(a, b)
    code = {"Bob": "ppl_ratio", "Nan": "non_finite_edit", "Huge": "non_finite_loss"}.get(bad)
    assert found[2].get("error", "") == ("Nobody cannot be edited" if bad == "Nobody" else "")
    assert found[2].get("guard_code") == code


def test_an_edit_beyond_what_is_finite(configure, remembering, tmp_path):
    """Its numbers are journalled as text that `float` reads, and the study goes on without it."""
    folder = loop.run_study(
        configure([{**FACTS[0], "subject": "Nan"}, FACTS[2]], ratio=1.2), tmp_path / "run"
    )
    broken, fine = (step.record for step in read_journal(folder).steps[1:])
    assert broken.guard_code == "non_finite_edit"
    assert broken.guard_reason == "the edit itself is not finite"
    assert (broken.perplexity["mean"], broken.perplexity["n_non_finite"]) == (np.inf, len(TEXTS))
    assert np.isnan(broken.edit_norm)
    assert broken.metrics["probability_new"] == 0.0
    line = json.loads((folder / "journal.jsonl").read_text().splitlines()[1])
    assert (line["perplexity"]["mean"], line["edit_norm"]) == ("inf", "nan")
    assert fine.kept
    assert fine.perplexity["n_non_finite"] == 0


def test_keep_keeps_a_damaging_edit(whole, configure, tmp_path):
    """The same model as without a guard; only the journal says what happened."""
    folder = loop.run_study(configure(ratio=TIGHT, action="keep"), tmp_path / "run")
    steps = [step.record for step in read_journal(folder).steps[1:]]
    assert [step.kept for step in steps] == [True] * 4
    over = [step.perplexity["ratio"] > TIGHT for step in steps]
    assert [step.guard_code == "ppl_ratio" for step in steps] == over
    assert over[1]
    assert perplexities(folder) == perplexities(whole())
    for a, b in zip(edits_of(folder), edits_of(whole()), strict=True):
        assert_same_edit(a, b)


def test_stop_ends_for_good(whole, configure, tmp_path):
    seen = []
    config = configure(ratio=TIGHT, action="stop")
    folder = loop.run_study(
        config, tmp_path / "run", lambda record, total: seen.append((record.step, total))
    )
    assert seen == [(0, 4), (1, 4), (2, 4)]
    steps = [step.record for step in read_journal(folder).steps]
    assert [step.kept for step in steps] == [None, True, False]
    assert steps[2].guard_code == "ppl_ratio"
    assert perplexities(folder) == perplexities(whole(ratio=TIGHT))[:3]
    before = content(folder)
    again = []
    loop.run_study(config, folder, lambda record, total: again.append((record.step, total)))
    assert again == seen
    assert content(folder) == before


# single


def test_single_edits_do_not_see_each_other(whole, configure, model, editor, tmp_path):
    """Each is the edit of the untouched model, in whatever order they come, and none is kept."""
    alone = dict(mode="single", ratio=TIGHT, single_batch_size=1)
    folder = whole(**alone)
    found = edits_of(folder)
    steps = [step.record for step in read_journal(folder).steps[1:]]
    for fact, edit, record in zip(FACTS, found, steps, strict=True):
        assert_same_edit(edit, by_hand(model, editor, [fact]))
        alone_mean = jaxedit.perplexity(jaxedit.apply(model, edit), TEXTS).mean
        assert record.perplexity["mean"] == alone_mean
        assert not record.kept
        assert (record.guard_code is not None) == (record.perplexity["ratio"] > TIGHT)
    assert any(record.guard_code for record in steps)
    turned = loop.run_study(configure(FACTS[::-1], **alone), tmp_path / "turned")
    drop = ("step", "arrays")
    assert [{k: v for k, v in r.items() if k not in drop} for r in records(turned)[1:]] == [
        {k: v for k, v in r.items() if k not in drop} for r in records(folder)[:0:-1]
    ]
    for a, b in zip(edits_of(turned), found[::-1], strict=True):
        assert_same_edit(a, b)


def test_single_edits_leave_no_state(configure, remembering, tmp_path):
    folder = loop.run_study(configure(mode="single", action="keep", ratio=1.2), tmp_path / "run")
    assert [r["optimisation"]["n_learnt"] for r in records(folder)[1:]] == [0] * 4
    assert ["guard_code" in r for r in records(folder)[1:]] == [False, True, False, False]


# interruptions

STUDIES = [
    dict(),
    dict(ratio=TIGHT),
    dict(ratio=TIGHT, action="keep"),
    dict(mode="single", single_batch_size=2),
]


def interrupt(step: int):
    """An on_step that interrupts the study right after a step."""

    def on_step(record, total):
        if record.step == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("keys", STUDIES, ids=str)
def test_an_interruption_does_not_show(whole, configure, tmp_path, keys, after):
    with pytest.raises(KeyboardInterrupt):
        loop.run_study(configure(**keys), tmp_path / "run", interrupt(after))
    assert len(read_journal(tmp_path / "run").steps) == after + 1
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    seen = []
    loop.run_study(
        configure(**keys),
        tmp_path / "run",
        lambda record, total: seen.append((record.step, total)),
    )
    assert seen == [(n, 4) for n in range(5)]  # the steps found are shown too
    assert (
        (tmp_path / "run" / "journal.jsonl").read_bytes().startswith(before)
    )  # and not made again
    assert_same_study(tmp_path / "run", whole(**keys))


@pytest.mark.parametrize(
    "keys", [dict(ratio=1.2), dict(ratio=1.2, action="keep"), dict(mode="single")], ids=str
)
def test_an_interruption_does_not_show_in_an_editors_state(configure, remembering, tmp_path, keys):
    loop.run_study(configure(**keys), tmp_path / "whole")
    for after in range(4):
        with pytest.raises(KeyboardInterrupt):
            loop.run_study(configure(**keys), tmp_path / "run", interrupt(after))
        assert (
            len(read_journal(tmp_path / "run").steps) == after + 1
        )  # it went on from where it was
    loop.run_study(configure(**keys), tmp_path / "run")
    assert_same_study(tmp_path / "run", tmp_path / "whole")
    learnt = [r["optimisation"]["n_learnt"] for r in records(tmp_path / "run")[1:]]
    assert learnt == (
        [0] * 4 if "mode" in keys else [0, 1, 2, 3] if "action" in keys else [0, 1, 1, 2]
    )


def test_a_last_line_cut_short_does_not_show(whole, configure, tmp_path):
    shutil.copytree(whole(ratio=TIGHT), tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[: len(last) // 2])
    (tmp_path / "run" / "steps" / "000004.safetensors.part").write_bytes(b"half a file")
    loop.run_study(configure(ratio=TIGHT), tmp_path / "run")
    assert path.read_bytes().startswith(b"".join(lines))
    assert_same_study(tmp_path / "run", whole(ratio=TIGHT))


def test_a_finished_study_does_nothing_more(whole, configure, tmp_path):
    shutil.copytree(whole(), tmp_path / "run")
    before = content(tmp_path / "run")
    loop.run_study(configure(), tmp_path / "run")
    assert content(tmp_path / "run") == before


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("at", [1, 2], ids=["arrays", "line"])
def test_a_full_disk_can_be_made_room_on(whole, configure, tmp_path, at):
    """The write fails at the third edit's arrays or at its line; the same study then goes on."""
    with pytest.MonkeyPatch.context() as patch:
        real, calls = os.fsync, itertools.count(1)

        def fill(record, total):
            if record.step == 2:
                patch.setattr(
                    os,
                    "fsync",
                    lambda descriptor: no_space() if next(calls) == at else real(descriptor),
                )

        with pytest.raises(OSError, match="No space left on device") as caught:
            loop.run_study(configure(), tmp_path / "run", fill)
        assert next(calls) == at + 1
    assert caught.value.errno == errno.ENOSPC
    assert f"step 3 could not be written to {tmp_path / 'run'}" in str(caught.value)
    assert (
        "the steps before it are whole: make room and run the same command again to go on"
        in str(caught.value)
    )
    assert [r["step"] for r in records(tmp_path / "run")] == [0, 1, 2]
    assert not list((tmp_path / "run").rglob("*.part"))
    loop.run_study(configure(), tmp_path / "run")
    assert_same_study(tmp_path / "run", whole())


# the folder and the configuration


def test_n_facts_may_grow(whole, configure, tmp_path):
    folder = loop.run_study(configure(n_facts=1), tmp_path / "run")
    assert len(read_journal(folder).steps) == 2
    loop.run_study(configure(n_facts=3), folder)
    assert records(folder) == records(whole())[:4]
    assert read_journal(folder).run["config"]["n_facts"] == 3
    loop.run_study(configure(n_facts=0), folder)
    assert_same_study(folder, whole())


def test_another_study_is_refused_in_the_same_folder(whole, configure, shared, tmp_path):
    folder = whole()
    before = content(folder)

    def refusal(config) -> str:
        with pytest.raises(ValueError, match="belongs to another study") as caught:
            loop.run_study(config, folder)
        assert content(folder) == before
        return str(caught.value)

    other = configure(action="stop", mode="single")
    other.editor.v_lr = 0.3
    message = refusal(other)
    assert "config.editor.v_lr: 0.5 there, 0.3 now" in message
    assert 'config.guard.action: "rollback" there, "stop" now' in message
    assert 'config.mode: "sequential" there, "single" now' in message
    assert "n_facts" not in message
    # the same names, but another content
    mine, texts_file = configure(n_facts=1), tmp_path / "texts.json"
    facts_file = tmp_path / "facts.json"
    shutil.copytree(shared / "golden" / "gpt2", tmp_path / "model")
    facts_file.write_text(json.dumps(FACTS), encoding="utf-8")
    texts_file.write_text(json.dumps(TEXTS), encoding="utf-8")
    mine.update(facts=str(facts_file), texts=str(texts_file), model=str(tmp_path / "model"))
    folder = loop.run_study(mine, tmp_path / "run")
    before = content(folder)
    facts_file.write_text(
        json.dumps([*FACTS[:-1], {**FACTS[-1], "target_new": "Rome"}]), encoding="utf-8"
    )
    texts_file.write_text(json.dumps(TEXTS[::-1]), encoding="utf-8")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(name for name in weights if name.endswith("h.2.mlp.c_fc.weight"))
    save_file(
        {**weights, name: 2 * weights[name]},
        tmp_path / "model" / "model.safetensors",
        {"format": "pt"},
    )
    message = refusal(mine)
    for key in ("facts_sha256", "texts_sha256", "model_fingerprint"):
        assert f"{key}: " in message
    assert "config." not in message


def test_a_folder_of_other_things_is_refused(configure, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and is not a study's work directory"):
        loop.run_study(configure(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_request_that_cannot_be_edited_is_recorded(whole, configure, model, editor, tmp_path):
    """A subject longer than the model's positions: the study says so, goes on, and can be
    interrupted there.
    """
    config = configure([FACTS[0], TOO_LONG, FACTS[2]])
    with pytest.raises(KeyboardInterrupt):
        loop.run_study(config, tmp_path / "run", interrupt(2))
    folder = loop.run_study(config, tmp_path / "run")
    _, _, failed, after = records(folder)
    assert "more than the 256 positions of this gpt2 model" in failed["error"]
    assert (failed["kept"], failed["case_id"]) == (False, 15)
    assert "guard_code" not in failed
    assert "perplexity" not in failed
    assert after["kept"]
    assert_same_edit(
        read_edit(folder / after["arrays"]), by_hand(model, editor, [FACTS[0], FACTS[2]])
    )
    uninterrupted = loop.run_study(config, tmp_path / "whole")
    assert_same_study(folder, uninterrupted)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(mode="both"), r"mode='both': expected one of sequential, single"),
        (dict(n_facts=-1), r"n_facts=-1: expected a number of facts, or 0 for all"),
        (dict(action="undo"), r"guard\.action='undo': expected one of keep, rollback, stop"),
        (dict(action="record"), r"guard\.action='record' is called 'keep' now"),
        (dict(part="1/2"), r"the configuration's key 'part' is called 'shard' now"),
        (dict(prompts=()), r"key 'prompts' is called 'eval\.prompts' now"),
        (
            dict(evaluation=dict(kl_evry=3)),
            r"unknown key 'eval\.kl_evry'; did you mean 'kl_every'\?",
        ),
        (dict(ratio=1.0), r"guard\.max_ppl_ratio=1\.0: expected a number over 1"),
        (dict(modes="single"), r"the unknown key 'modes'; did you mean 'mode'\?"),
        (dict(editor=dict(method="romee")), r"unknown method 'romee'; did you mean 'rome'\?"),
        (dict(editor=dict(layer=5)), r"layer=5: .* can be edited at layers 0 to 4"),
        (dict(editor=dict(v_lr=-0.5)), r"v_lr=-0\.5"),
        (dict(editor=dict(v_num_grad_steps=0)), r"v_num_grad_steps=0"),
        (dict(dtype="int8"), r"dtype 'int8': weights are stored as float32 or bfloat16"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused_before_anything_is_written(
    configure, tmp_path, keys, message
):
    with pytest.raises(ValueError, match=message):
        loop.run_study(configure(**keys), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_template_without_a_place_is_refused_before_anything_is_written(configure, tmp_path):
    """It is the configuration that is wrong, not each request."""
    config = configure()
    config.editor.context_templates = ("{}", "So it is.")
    with pytest.raises(
        ValueError, match=r"the context template 'So it is\.' must have exactly one \{\}"
    ):
        loop.run_study(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_and_measuring_every_so_often(configure, shared, tmp_path, monkeypatch):
    """Two facts an edit, the perplexity after the second edit only; what is kept at the end is
    looked at once more.
    """

    def two_at_once(model, requests, state):
        rank_one = [
            editor_of_one.edit(model, [request], single_state)[0].deltas[0] for request in requests
        ]
        u_FR, v_RD = (
            np.concatenate([getattr(d, f) for d in rank_one], axis)
            for f, axis in (("u_FR", 1), ("v_RD", 0))
        )
        return (
            make_edit(model, [LowRank("mlp/w_down", 3, u_FR, v_RD)]),
            state,
            {"n": float(len(requests))},
        )

    editor_of_one = jaxedit.make_editor(
        "rome", layer=3, v_num_grad_steps=4, context_templates=TEMPLATES
    )
    single_state = editor_of_one.init(jaxedit.load(str(shared / "golden" / "gpt2")), None)
    monkeypatch.setattr(
        context, "editor_from", lambda config, **more: editor_of_one._replace(edit=two_at_once)
    )
    seldom = configure(facts_per_edit=2, evaluation=dict(perplexity_every=2))
    eager = read_journal(loop.run_study(seldom, tmp_path / "eager")).steps[1:]
    assert (
        eager[0].record.relative_perturbation > 0.1
    )  # an edit that perturbs so much has its perplexity measured at once
    assert [step.record.perplexity is not None for step in eager] == [True, True]
    seldom.guard.max_relative_perturbation = 1e6
    folder = loop.run_study(seldom, tmp_path / "run")
    steps = [step.record for step in read_journal(folder).steps[1:]]
    assert [record.n_requests for record in steps] == [2, 2]
    assert [record.perplexity is not None for record in steps] == [False, True]
    assert [record.optimisation["n"] for record in steps] == [2, 2]
    retained = json.loads((folder / "retained.json").read_text())
    assert retained["steps"] == [1, 2]
    model = allocate_deltas(jaxedit.load(str(shared / "golden" / "gpt2")), "mlp/w_down", (3,))
    for step in read_journal(folder).steps[1:]:
        model = jaxedit.apply(model, read_edit(step.arrays))
    requests = [Request(**fact) for fact in FACTS]
    held = [fact["probability_new"] for fact in evaluate_facts(model, requests)]
    assert [fact["probability_new"] for fact in retained["facts"]] == pytest.approx(
        [np.mean(held[:2]), np.mean(held[2:])], rel=1e-4
    )
    assert steps[0].metrics["probability_new"] > steps[0].unedited_metrics["probability_new"]
    with pytest.raises(ValueError, match=r"n_facts=3 is not a multiple of facts_per_edit=2"):
        loop.run_study(configure(facts_per_edit=2, n_facts=3), tmp_path / "other")
    with pytest.raises(ValueError, match=r"eval\.perplexity_every=0: expected a positive number"):
        loop.run_study(configure(evaluation=dict(perplexity_every=0)), tmp_path / "other")
