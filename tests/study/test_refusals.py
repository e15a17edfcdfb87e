"""What a study refuses before it writes anything: another's folder, a wrong configuration."""

import json
import shutil

import pytest
from rewritten import rewrite_run
from safetensors.numpy import load_file, save_file
from study_examples import FACTS, TEXTS, content

from jaxedit.study import loop
from jaxedit.study.replay import edited_model


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


@pytest.mark.parametrize("other", ["tokenizer", "tokenizer and weights"])
def test_a_tokenizer_that_another_version_reads_otherwise_is_said_to_be(
    whole, configure, tmp_path, other
):
    """Where nothing but its fingerprint differs; else the version explains nothing."""
    folder = shutil.copytree(whole(), tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    assert {"jaxedit", "jax", "jaxlib", "tokenizers", "transformers"} == set(run["versions"])
    prints = run["fingerprints"] | dict.fromkeys(other.split(" and "), "other")
    versions = run["versions"] | {"tokenizers": "0.0.1"}
    rewrite_run(folder, fingerprints=prints, versions=versions)
    with pytest.raises(ValueError, match=r"The model's tokenizer .*changed") as caught:
        loop.run_study(configure(), folder)
    with pytest.raises(ValueError, match="its tokenizer") as of_model:
        edited_model(folder)
    is_explained = other == "tokenizer"
    for error in (caught, of_model):
        said = "The study was made with tokenizers 0.0.1 (now " in str(error.value)
        assert said == is_explained, str(error.value)


def test_a_folder_of_other_things_is_refused(configure, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and is not a study's work directory"):
        loop.run_study(configure(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


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
        (
            dict(evaluation=dict(perplexity_every=0)),
            r"eval\.perplexity_every=0: expected a positive number",
        ),
        (
            dict(facts_per_edit=2, n_facts=3),
            r"n_facts=3 is not a multiple of facts_per_edit=2",
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


def test_texts_not_to_be_harmed_are_not_those_that_are_evaluated(configure, tmp_path):
    config, harm_file, texts_file = configure(), tmp_path / "harm.json", tmp_path / "texts.json"
    shared = " ".join(f"word {i}" for i in range(9))
    texts_file.write_text(json.dumps([*TEXTS, "A heading", shared]), encoding="utf-8")
    harm_file.write_text(json.dumps(["A heading", f" {shared}"]), encoding="utf-8")
    config.texts = str(texts_file)
    config.editor.update(harm_projection=1.0, harm_texts=str(harm_file))
    with pytest.raises(ValueError, match="harm_texts: 1 of them are texts that edits are evalu"):
        loop.run_study(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
