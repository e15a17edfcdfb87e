"""Studies that write each fact by the alternative that harms least."""

import json

import numpy as np
import pytest
from study_examples import FACTS, TEMPLATES, TEXTS

import jaxedit
from jaxedit.edits.edit import read_edit, to_dense
from jaxedit.edits.predicted_change import change_of_scores, loss_scores
from jaxedit.reports.records import edit_steps, summary
from jaxedit.solving import rank_one
from jaxedit.solving.harm_texts import read_parts
from jaxedit.study import alternatives
from jaxedit.study.config import editor_config
from jaxedit.study.edited import open_run
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study
from jaxedit.study.run_config import replay_config

HARM_TEXTS = [
    "The Eiffel Tower is located in the city of Paris, and the Louvre is not far from it at all.",
    " The NBA and MLB haven't sold lawmakers on a cut so far, but they will try again next year.",
    " In the north of the country people speak a language that few in the capital understand.",
]
ROME = dict(layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)
REMEMBERS = dict(layers=(2, 3), v_num_grad_steps=4, mom2_adjustment=False, update_norm_lambda=1.0)
REMEMBERS["context_templates"] = (("{}",), ("I am. {}",))
OTHERS = (
    dict(ROME, method="c-rome", layer=1),
    dict(REMEMBERS, method="memit-sequential"),
)
PLACES = tuple(("mlp/w_down", layer) for layer in (1, 2, 3))


@pytest.fixture(scope="module")
def config_of(study_config, tmp_path_factory):
    """Make a function: (facts, **keys) -> a study with these alternatives."""
    path = tmp_path_factory.mktemp("texts") / "harm.json"
    path.write_text(json.dumps(HARM_TEXTS), encoding="utf-8")
    given = dict(alternatives=OTHERS, harm_texts=str(path), guard=dict(action="keep"))
    return lambda asked=FACTS, **keys: study_config("rome", asked, TEXTS, ROME, **given | keys)


@pytest.fixture(scope="module")
def studied(config_of, tmp_path_factory):
    return run_study(config_of(), tmp_path_factory.mktemp("alternatives") / "run")


def test_each_step_is_the_least_harmful_edit_of_the_model_then(studied, golden):
    """By the library's own calls: each editor on the model with the kept edits, and the predicted
    change of all these edits together. No model this small says what it is told, so harm decides.
    """
    model = golden("gpt2")
    probe = read_parts(model, HARM_TEXTS, alternatives.HARM_TOKENS, PLACES)
    editors = [jaxedit.make_editor("rome", **ROME)]
    for each in OTHERS:
        editors.append(jaxedit.make_editor(**{"name": each["method"], **without_method(each)}))
    states = [editor.init(model, None) for editor in editors]
    kept, chosen = [], []
    for step, fact in zip(read_journal(studied).steps[1:], FACTS, strict=True):
        request = jaxedit.Request(**fact)
        made = [e.edit(model, [request], state) for e, state in zip(editors, states, strict=True)]
        harms_nats = []
        for edit, _, _ in made:
            deltas = [delta for each in (*kept, edit) for delta in each.deltas]
            harms_nats.append(change_of_scores(loss_scores(probe, deltas)).mean_nats())
        best = int(np.argmin(harms_nats))
        chosen.append(best)
        edit, states[best], _ = made[best]
        found = read_edit(step.arrays)
        assert [each[:2] for each in found.deltas] == [each[:2] for each in edit.deltas]
        for mine, theirs in zip(found.deltas, edit.deltas, strict=True):
            np.testing.assert_allclose(to_dense(mine), to_dense(theirs), rtol=1e-3, atol=1e-6)
        numbers = step.record.optimisation
        assert numbers["alternative"] == best
        assert numbers["alternative_predicted_nats"] == pytest.approx(harms_nats[best], rel=1e-3)
        kept.append(edit)
        model = jaxedit.apply(model, edit)
    assert len(set(chosen)) > 1, chosen


def without_method(alternative):
    return {name: value for name, value in alternative.items() if name != "method"}


def test_a_study_that_goes_on_makes_the_same_edits(config_of, studied, tmp_path):
    run_study(config_of(n_facts=2), tmp_path / "run")
    folder = run_study(config_of(), tmp_path / "run")
    steps = [read_journal(each).steps[1:] for each in (folder, studied)]
    for mine, theirs in zip(*steps, strict=True):
        assert mine.arrays.read_bytes() == theirs.arrays.read_bytes()
        assert mine.record.optimisation == theirs.record.optimisation


def test_the_journal_and_the_report_say_what_was_chosen(studied):
    journal = read_journal(studied)
    written = journal.run["config"]["alternatives"]
    assert [each["method"] for each in written] == ["c-rome", "memit-sequential"]
    assert written[0]["clamp_norm_factor"] == 4.0  # whole: what was not given too
    assert open_run(studied).editor["alternatives"] == written
    chosen = [int(step.record.optimisation["alternative"]) for step in journal.steps[1:]]
    names = ["rome (layer 3)", "c-rome (layer 1)", "memit-sequential (layers 2, 3)"]
    counts = [f"{chosen.count(index)} by {name}" for index, name in enumerate(names)]
    said = " ".join(summary(journal, edit_steps(journal)))
    assert f"Edits made: {'; '.join(counts)}." in said
    assert "rome, c-rome or memit-sequential on " in said
    assert f"said with none of them: {len(FACTS)}." in said


def test_what_is_said_counts_before_what_harms(config_of, tmp_path, monkeypatch):
    """An edit at layer 1 alone is said: it is chosen, whatever it harms."""

    def evaluate(model, requests):
        layers = [delta.layer for delta in model.metadata.history[-1].deltas]
        return [{"efficacy_accuracy": float(layers == [1])} for _ in requests]

    monkeypatch.setattr(alternatives, "evaluate_facts", evaluate)
    folder = run_study(config_of(n_facts=2), tmp_path / "run")
    for step in read_journal(folder).steps[1:]:
        assert step.record.optimisation["alternative"] == 1
        assert step.record.optimisation["alternatives_said"] == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(harm_texts=""), "alternatives and harm_texts go together"),
        (dict(alternatives=()), "alternatives and harm_texts go together"),
        (dict(alternatives=(dict(layer=3),)), "each entry with its method"),
        (dict(alternatives=(dict(method="rom"),)), "did you mean 'rome'"),
        (dict(alternatives=(dict(method="rome", v_l=1),)), "no hyper-parameter 'v_l'"),
        (dict(alternatives=(dict(method="rome", layer=99),)), "layers .99. do not exist"),
        (dict(alternatives=(dict(method="rome"),)), "layer"),
        (
            dict(alternatives=(dict(method="rome", layer=1, anchor="bos"),)),
            "anchor is None",
        ),
        (
            dict(alternatives=(dict(method="rome", layer=1, leading_space="none"),)),
            "joined",
        ),
        (dict(alternatives=(dict(method="rome", layer=1, v_lr=-1.0),)), "v_lr=-1.0"),
        (dict(alternatives=(dict(method="rome", harm_projection=3.0),)), "needs texts whose loss"),
        (dict(alternatives=(OTHERS[0], OTHERS[0])), "there twice"),
        (dict(alternatives=(dict(ROME, method="rome"),)), "there twice"),
        (dict(journal_dense_every=2), "journal_dense_every=2"),
        (
            dict(alternatives=(dict(ROME, method="rome", mom2_adjustment=True),)),
            "needs second moments",
        ),
        (dict(screening="log"), "exclude each other"),
        (dict(facts_per_edit=2), "writes one fact"),
    ],
    ids=str,
)
def test_alternatives_that_cannot_be_used_are_refused(config_of, tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        run_study(config_of(**keys), tmp_path / "run")


def test_another_study_is_named_by_the_keys_of_its_alternatives(config_of, studied):
    others = (dict(OTHERS[0], clamp_norm_factor=2.0), OTHERS[1])
    with pytest.raises(
        ValueError, match=r"alternatives\.0\.clamp_norm_factor: 4\.0 there, 2\.0 now"
    ):
        run_study(config_of(alternatives=others), studied)


def test_sampled_templates_are_those_that_the_study_began_with(config_of, tmp_path, monkeypatch):
    """They lie in its run.json: what a model generates may differ on another machine."""
    sampled = dict(method="c-rome", layer=1, v_num_grad_steps=2)
    config = config_of(n_facts=1, alternatives=(sampled,))
    folder = run_study(config, tmp_path / "run")
    (entry,) = read_journal(folder).run["config"]["alternatives"]
    assert len(entry["context_templates"]) == 21
    path = folder / "run.json"
    monkeypatch.setattr(rank_one, "sample_templates", lambda *_: pytest.fail("sampled again"))
    before = path.read_bytes()
    run_study(config_of(n_facts=1, alternatives=(sampled,)), folder)
    assert path.read_bytes() == before


def test_an_alternative_that_cannot_write_a_fact_is_told(config_of, tmp_path, caplog):
    """Its templates are longer than the model's positions."""
    long = dict(ROME, method="c-rome", layer=2, context_templates=("word " * 300 + "{}",))
    with caplog.at_level("WARNING", logger="jaxedit"):
        folder = run_study(config_of(n_facts=1, alternatives=(long,)), tmp_path / "run")
    assert "alternative 1 (c-rome) cannot write" in caplog.text
    numbers = read_journal(folder).steps[1].record.optimisation
    assert (numbers["alternative"], numbers["alternatives_failed"]) == (0, 1)


def test_entries_of_editor_config_and_a_leading_tilde(config_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "h.json").write_text(json.dumps(HARM_TEXTS))
    entry = editor_config("rome", **dict(ROME, layer=1), harm_projection=2.0, harm_texts="~/h.json")
    folder = run_study(config_of(n_facts=1, alternatives=(entry,)), tmp_path / "run")
    (written,) = read_journal(folder).run["config"]["alternatives"]
    assert written["harm_texts"] == str(tmp_path / "h.json")


def test_texts_that_are_evaluated_are_refused(study_config, tmp_path):
    texts = [*TEXTS, HARM_TEXTS[0]]
    (tmp_path / "harm.json").write_text(json.dumps(HARM_TEXTS), encoding="utf-8")
    keys = dict(alternatives=OTHERS[:1], harm_texts=str(tmp_path / "harm.json"))
    with pytest.raises(ValueError, match="that edits are evaluated on"):
        run_study(study_config("rome", FACTS, texts, ROME, **keys), tmp_path / "run")


def test_the_same_requests_by_another_method_or_model(studied, shared):
    journal = read_journal(studied)
    other = replay_config(journal, overrides=["editor.method=memit"])
    assert (other.alternatives, other.harm_texts) == ((), "")
    moved = replay_config(journal, model=str(shared / "golden" / "llama"))
    assert [each["method"] for each in moved.alternatives] == ["c-rome", "memit-sequential"]
    assert not any({"layer", "layers"} & set(each) for each in moved.alternatives)
