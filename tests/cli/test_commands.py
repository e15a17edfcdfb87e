"""The commands as a person or a script runs them: results on standard output, one clear line where
the input is wrong.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxedit
from jaxedit.cli import command_names
from jaxedit.edits.edit import to_dense
from jaxedit.edits.serialise import read_edit
from jaxedit.files import to_json
from jaxedit.study.journal import read_journal

FACTS = [
    {"prompt": "{} lives in", "subject": "BP", "target_new": "French"},
    {"prompt": "{} lives in", "subject": "Bob [bold]", "target_new": "Munich"},
    {"prompt": "{} is based in", "subject": "Sony", "target_new": "London"},
]
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl who lived in the forest.",
]
TEMPLATES = ("{}", "I am. {}")


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """A folder with a model, facts and texts under short names; the commands run in it."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(shared / "golden" / "gpt2", folder / "tiny")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A function: arguments -> the finished process of `python -m jaxedit`; all share a cache of
    compiled programs.
    """
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "COLUMNS": "160",
        "HF_HUB_OFFLINE": "1",
    }

    def command(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "jaxedit", *arguments],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )

    return command


@pytest.fixture(scope="module")
def tiny(folder):
    return jaxedit.load(str(folder / "tiny"))


def result(done: subprocess.CompletedProcess) -> dict:
    """What a command printed with --json: one strict JSON object on one line, and nothing else."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(done.stdout, parse_constant=refuse)


def refusal(done: subprocess.CompletedProcess) -> str:
    """What a command said of wrong input: one line on standard error, and nothing on standard
    output.
    """
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("jaxedit: error: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("jaxedit: error: ").rstrip("\n")


STUDY = (
    "study",
    "--workdir=run",
    "--config.model=tiny",
    "--config.facts=facts.json",
    "--config.texts=texts.json",
    "--config.editor.layer=3",
    "--config.editor.v_num_grad_steps=4",
    "--config.editor.context_templates=('{}', 'I am. {}')",
    "--config.guard.max_ppl_ratio=1e6",
)


@pytest.fixture(scope="module")
def studied(run):
    """The study of the first two facts."""
    return run(*STUDY, "--config.n_facts=2", "--json")


def test_screen(run, folder):
    """The flagged facts and as many others make files of facts; the ranking says which."""
    flags = [flag for flag in STUDY if "workdir" not in flag and flag != "study"]
    written = [
        "--hard_out=screened/hard.json",
        "--normal_out=screened/normal.json",
        "--threshold=1e-9",
    ]
    found = result(run("screen", *flags, *written, "--json"))
    assert sorted(each["request"] for each in found["ranking"]) == sorted(
        f"{fact['prompt'].replace('{}', fact['subject'])} → {fact['target_new']}" for fact in FACTS
    )
    assert found["n_flagged"] == 3
    hard = json.loads((folder / "screened" / "hard.json").read_text(encoding="utf-8"))
    assert [fact["subject"] for fact in hard] == [
        each["request"].split(" lives")[0].split(" is")[0] for each in found["ranking"]
    ]
    assert json.loads((folder / "screened" / "normal.json").read_text(encoding="utf-8")) == []
    done = run("screen", *flags, "--facts=facts.json", "--facts=facts.json", "--threshold=1e9")
    assert "0 of 6 facts have a predicted relative perturbation over 1e+09" in done.stdout
    assert "[bold]" in done.stdout
    assert refusal(run("screen", *flags, "--threshold=-1")).startswith(
        "--threshold=-1.0: expected a positive number"
    )


# study and report


def test_study(studied, folder, tiny):
    found = result(studied)
    assert found["workdir"] == "run"
    journal = read_journal(folder / "run")
    assert [found["baseline"], *found["steps"]] == [
        to_json(step.record.to_dict()) for step in journal.steps
    ]
    assert [step["subject"] for step in found["steps"]] == ["BP", "Bob [bold]"]
    assert found["baseline"]["perplexity"]["mean"] == jaxedit.perplexity(tiny, TEXTS).mean
    edited = tiny
    for step in journal.steps[1:]:
        edited = jaxedit.apply(edited, read_edit(step.arrays))
        assert step.record.perplexity["mean"] == jaxedit.perplexity(edited, TEXTS).mean
    assert (
        found["summary"][0]
        == "rome on tiny, sequential edits: 2 edits made, 2 kept, 0 rolled back, 0 not possible."
    )
    config = journal.run["config"]  # every flag arrived, and with its type
    assert (config["model"], config["facts"], config["texts"], config["n_facts"]) == (
        "tiny",
        "facts.json",
        "texts.json",
        2,
    )
    assert config["editor"]["context_templates"] == list(TEMPLATES)
    assert (config["editor"]["layer"], config["editor"]["v_num_grad_steps"]) == (3, 4)
    assert config["guard"] == {
        "max_ppl_ratio": 1e6,
        "action": "rollback",
        "max_relative_perturbation": 0.1,
    }
    for name in ("report.md", "perplexity.png", "perplexity.pdf"):
        assert (folder / "run" / name).stat().st_size > 500
    assert (
        "Bob [bold] lives in → Munich: perplexity" in studied.stderr
    )  # the progress, out of the results' way
    assert "Traceback" not in studied.stderr


def test_study_goes_on(studied, run, folder):
    """The last step is lost, as by an interruption, and one more fact is asked for: the first step
    is not made again.
    """
    first = result(studied)["steps"]
    lines = folder / "run" / "journal.jsonl"
    lines.write_bytes(lines.read_bytes()[:-30])
    found = result(run(*STUDY, "--config.n_facts=3", "--json"))
    assert [step["subject"] for step in found["steps"]] == ["BP", "Bob [bold]", "Sony"]
    assert found["steps"][0] == first[0]  # its times too
    assert found["steps"][1] | {"time_s": 0} == first[1] | {"time_s": 0}
    assert found["steps"][1]["time_s"] != first[1]["time_s"]


def test_report(studied, run, folder):
    """The table again, from the journal alone; brackets are text."""
    steps = [step.record for step in read_journal(folder / "run").steps[1:]]
    expected = {
        name: (folder / "run" / name).read_bytes() for name in ("report.md", "perplexity.png")
    }
    for name in expected:
        (folder / "run" / name).unlink()
    done = run("report", "--workdir=run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "#",
        "edit",
        "perplexity",
        "ratio",
        "P(new)",
        "accuracy",
        "|u·k|",
        "outcome",
    ]
    for step, line in zip(steps, lines[1:], strict=False):
        assert line.startswith(
            f"{step.step}  {step.prompt.replace('{}', step.subject)} → {step.target_new} "
        )
        assert f" {step.perplexity['mean']:,.0f} " in line
        assert line.rstrip().endswith("kept")
    assert (
        f"rome on tiny, sequential edits: {len(steps)} edits made, {len(steps)} kept, 0 rolled back"
        in done.stdout
    )
    assert {name: (folder / "run" / name).read_bytes() for name in expected} == expected


# edit, ppl, generate

EDIT = (
    "edit",
    "--model=tiny",
    "--texts=texts.json",
    "--layer=3",
    "--set=editor.v_num_grad_steps=4",
    '--set=editor.context_templates=["{}", "I am. {}"]',
    "--prompt={} lives in",
    "--subject=Bob",
    "--target=Munich",
)


@pytest.fixture(scope="module")
def edited(run):
    """The edit as JSON, saved."""
    return run(*EDIT, "--save=saved/edit.safetensors", "--json")


def test_edit_as_json_and_saved(edited, folder, tiny):
    """The numbers are the library's for the edit that was saved, which is of the layer and steps
    asked for.
    """
    found, saved = result(edited), read_edit(folder / "saved" / "edit.safetensors")
    assert [delta[:2] for delta in saved.deltas] == [("mlp/w_down", 3)]
    assert found["request"] == "Bob lives in → Munich"
    assert (found["method"], found["model"]) == ("rome", "tiny")
    assert found["optimisation"]["n_steps"] == 4
    assert found["optimisation"]["v_norm"] == pytest.approx(
        np.linalg.norm(to_dense(saved.deltas[0])), rel=1e-5
    )
    for when, model in (("unedited", tiny), ("edited", jaxedit.apply(tiny, saved))):
        score = jaxedit.perplexity(model, TEXTS)
        assert (found[when]["perplexity"], found[when]["pooled"]) == (score.mean, score.pooled)
        assert (
            found[when]["says"] == jaxedit.generate(model, ["Bob lives in"], max_new_tokens=12)[0]
        )
    assert found["edited"]["probability_new"] > found["unedited"]["probability_new"]


def test_edit_as_a_table(edited, run):
    done = run(*EDIT)
    assert done.returncode == 0, done.stderr
    found = result(edited)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert "Bob lives in → Munich with rome in tiny" in done.stdout
    assert ["unedited", "edited"] in lines
    assert [
        "perplexity",
        *(f"{found[when]['perplexity']:,.0f}" for when in ("unedited", "edited")),
    ] in lines
    assert [
        "P(new)",
        *(f"{found[when]['probability_new']:.3g}" for when in ("unedited", "edited")),
    ] in lines
    assert ["says", "it", "no", "no"] in lines


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


# doctor, help, version


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
                "Commands: bench, compare, configs, convert, doctor",
            ],
        ),
        (["ppl", "--modell=tiny"], ["Unknown command line flag 'modell'", "model"]),
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
        (["study", "--set=part=1/2"], ["the configuration's key 'part' is called 'shard' now"]),
        (["study", "--config.part=1/2"], ["key 'part' is called 'shard' now"]),
        (["study", "--config=lap"], ["lap"]),
        (
            [*EDIT, "--prompt=Bob lives in"],
            ["'Bob lives in' has 0 places {} for the subject, expected exactly one"],
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


def test_a_folder_of_another_study(studied, run, folder):
    before = (folder / "run" / "journal.jsonl").read_bytes()
    said = refusal(run(*STUDY, "--config.editor.v_lr=0.3", "--config.guard.action=stop"))
    assert "run belongs to another study" in said
    assert "config.editor.v_lr: 0.5 there, 0.3 now" in said
    assert 'config.guard.action: "rollback" there, "stop" now' in said
    assert "--workdir" in said
    assert (folder / "run" / "journal.jsonl").read_bytes() == before


def test_set_is_one_override_for_every_command_with_a_configuration(run, folder):
    """The same study as with --config.KEY flags, and of the package's configuration by name."""
    flags = [flag.replace("--config.", "--set=") for flag in STUDY if "workdir" not in flag]
    flags = [flag for flag in flags if "context_templates" not in flag]
    flags.append('--set=editor.context_templates=["{}", "I am. {}"]')
    done = run(*flags, "--config=laptop", "--set=n_facts=1", "--workdir=by-set", "--json")
    found = result(done)
    other = result(run(*STUDY, "--config.n_facts=1", "--workdir=by-flag", "--json"))
    untimed = [[{**step, "time_s": 0} for step in each["steps"]] for each in (found, other)]
    assert untimed[0] == untimed[1]
    runs = [read_journal(folder / name).run["config"] for name in ("by-set", "by-flag")]
    assert runs[0] == runs[1]


def test_configs_lists_names_and_arguments(run):
    done = run("configs")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "The default run" in lines["laptop"]
    found = result(run("configs", "--name=published", "--json"))
    assert "memit/llama-3-8b/alphaedit" in found["published"]["arguments"]
    assert "no" not in refusal(run("configs", "--name=publish")).split()[0]
