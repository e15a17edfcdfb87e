"""The commands as a person or a script runs them: results on standard output, one clear line where
the input is wrong.
"""

import json
import os
import shutil
from importlib.metadata import version

import numpy as np
import pytest
from command_examples import EDIT, STUDY, refusal, result
from safetensors.numpy import load_file

import jaxedit
from jaxedit.cli import command_names

# ppl, generate


def test_ppl(run, folder, tiny, shared):
    """The library's value, and the reference's on the texts of the golden case."""
    golden = shared / "golden" / "gpt2"
    texts = json.loads((golden / "cases.json").read_text(encoding="utf-8"))["texts"]
    (folder / "golden.json").write_text(json.dumps(texts), encoding="utf-8")
    expected = load_file(golden / "expected.safetensors")
    found = result(run("ppl", "--model=tiny", "--texts=golden.json", "--json"))
    score = jaxedit.perplexity(tiny, texts)
    assert found["mean"] == score.mean
    assert found["per_text"] == score.per_text.tolist()
    assert (found["pooled"], found["n_tokens"], found["n_texts"]) == (
        score.pooled,
        score.n_tokens.sum(),
        24,
    )
    assert (found["model"], found["texts"], found["n_non_finite"]) == ("tiny", "golden.json", 0)
    assert found["mean"] == pytest.approx(float(np.squeeze(expected["ppl/mean"])), rel=1e-5)
    np.testing.assert_allclose(found["per_text"], expected["ppl/per_text"], rtol=1e-5)


def test_generate(run, tiny):
    prompts = ["Once upon a time", "The [b]Eiffel[/b] Tower"]
    done = run(
        "generate",
        "--model=tiny",
        *(f"--prompt={prompt}" for prompt in prompts),
        "--max_new_tokens=5",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == "\n\n".join(jaxedit.generate(tiny, prompts, max_new_tokens=5)) + "\n"
    assert done.stdout.startswith(prompts[0])


# doctor, configs, help, version


def test_doctor(run):
    """Without the model package or on a small machine it says so and fails, and its JSON is whole
    all the same.
    """
    done = run("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert found["jaxedit"] == version("jaxedit")
    assert found["jax"] == version("jax")
    assert found["devices"].endswith("(cpu)")
    assert done.returncode == (2 if found["problems"] else 0)
    assert done.stderr.count("\n") == (1 if found["problems"] else 0)
    assert all(found["problems"].values())  # a remedy for each


def test_configs_lists_names_and_arguments(run):
    done = run("configs")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "The default run" in lines["laptop"]
    found = result(run("configs", "--name=published", "--json"))
    assert "memit/llama-3-8b/alphaedit" in found["published"]["arguments"]
    said = refusal(run("configs", "--name=publish"))
    assert said.startswith("publish is not a configuration: expected ")
    assert "published" in said


def test_help_and_version(run):
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in command_names():
        assert f"\n    {name} " in done.stdout
    assert len(command_names()) >= 6
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, version("jaxedit") + "\n", "")
    done = run("edit", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--model=smollm2-135m", "--set=", "--prompt=...", "--json\n"):
        assert f"\n  {flag}" in done.stdout
    assert "--undefok" not in done.stdout  # absl's own flags are nobody's business


# wrong input


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["studi"],
            [
                "unknown command 'studi'; did you mean 'study'?",
                "Commands: bench, check, compare, configs, convert, diff, doctor",
            ],
        ),
        (["layers", "--method=rom"], ["unknown method 'rom'", "did you mean 'rome'?"]),
        (["layers", "--max_ratio=-3"], ["--max_ratio=-3"]),
        (["ppl", "--modell=tiny"], ["Unknown command line flag 'modell'", "Did you mean: model ?"]),
        (
            ["study", "--config.n_fact=3"],
            ["--config.n_fact=3: the configuration has no 'n_fact'", "did you mean 'n_facts'?"],
        ),
        (["study", "--config.editor.vlr=0.3"], ["--config.editor.vlr=0.3", "did you mean 'v_lr'?"]),
        (
            [*EDIT, "--set=editor.vlr=0.3"],
            ["--set=editor.vlr=0.3: expected KEY=VALUE", "did you mean 'editor.v_lr'?"],
        ),
        ([*EDIT, "--set=editor.v_lr=fast"], ["expected editor.v_lr= with a number"]),
        ([*EDIT, "--set=editor.context_templates=So. {}"], ["context_templates", "a list in []"]),
        ([*EDIT, "--set=n_facts=3"], ["of one edit the keys are editor.NAME=VALUE"]),
        (
            [argument for argument in EDIT if not argument.startswith("--layer")],
            ["no layer is published for rome on tiny (gpt2, 6 layers", "give --layer"],
        ),
        (
            ["study", "--set=editor.layers=[1]", "--set=editor.method=memit"],
            ["is one of rome, whose", "--config=published:memit/MODEL"],
        ),
        (["study", "--set=part=1/2"], ["the configuration's key 'part' is called 'shard' now"]),
        (["study", "--config.part=1/2"], ["key 'part' is called 'shard' now"]),
        (
            ["study", "--config=lap"],
            ["lap is not a configuration: expected a Python file with get_config()", "laptop"],
        ),
        (
            [*EDIT, "--prompt=They live in"],
            ["does not occur in the prompt 'They live in'"],
        ),
        (
            [*EDIT, "--prompt={} lives in {}"],
            ["'{} lives in {}' has 2 places {} for the subject, expected exactly one"],
        ),
        ([*EDIT, "--subject= "], ["'{} lives in' has an empty subject"]),
        (
            ["ppl", "--model=./missing"],
            ["missing does not exist", "an HF directory, a .gguf file or a hub id"],
        ),
        (
            ["ppl", "--model=cut", "--texts=texts.json"],
            ["model.safetensors", "is not a whole safetensors file"],
        ),
        (
            [*STUDY, "--config.facts=cut.json", "--workdir=new"],
            ["cut.json is not JSON", "line 1, column 13"],
        ),
        ([*STUDY, "--config.editor.context_templates=3", "--workdir=new"], ["context_templates"]),
    ],
    ids=lambda value: " ".join(value)[-40:],
)
def test_wrong_input(run, folder, arguments, messages):
    if not (folder / "cut").exists():
        shutil.copytree(folder / "tiny", folder / "cut")
        os.truncate(folder / "cut" / "model.safetensors", 500_000)
        (folder / "cut.json").write_text('[{"prompt": "{}', encoding="utf-8")
    said = refusal(run(*arguments))
    for message in messages:
        assert message in said
    assert not (folder / "new").exists()
