"""`jaxedit study` and what goes with it: screening before, going on, the report, overrides.

The tests from test_study on follow one folder: they run in this order.
"""

import csv
import json
from pathlib import Path

import pytest
from command_examples import FACTS, STUDY, TEMPLATES, TEXTS, refusal, result

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.files import to_json
from jaxedit.study.journal import read_journal


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
    flags += ["--config.facts=screened/to_be_written.json"]  # not there: other facts are ranked
    done = run("screen", *flags, "--facts=facts.json", "--facts=facts.json", "--threshold=1e9")
    assert "0 of 6 facts have a predicted relative perturbation over 1e+09" in done.stdout
    assert "[bold]" in done.stdout
    assert refusal(run("screen", *flags, "--threshold=-1")).startswith(
        "--threshold=-1.0: expected a positive number"
    )


# study and report


@pytest.mark.same_bits
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
        "statistic": "mean",
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


def test_report_as_a_table_of_values(studied, run, folder):
    """Beside the other files, and said where; with --json nothing is printed but the JSON."""
    done = run("report", "--workdir=run", "--csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Table: {Path('run') / 'report.csv'}"
    journal = read_journal(folder / "run")
    with (folder / "run" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [step.record.step for step in journal.steps]
    means = [step.record.perplexity["mean"] for step in journal.steps]
    assert [float(row["perplexity.mean"]) for row in rows] == means
    assert result(run("report", "--workdir=run", "--csv", "--json"))["workdir"] == "run"


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


def test_a_shard_for_which_no_edits_are_left(run):
    """Of one batch of single edits the second of two shards has none; merged they are the study."""
    flags = [flag for flag in STUDY if "workdir" not in flag]
    flags += ["--config.mode=single", "--config.n_facts=1", "--workdir=sharded"]
    assert run(*flags, "--config.shard=1/2").returncode == 0
    done = run(*flags, "--config.shard=2/2")
    assert done.returncode == 0
    assert "shard-2-of-2 has no edits" in done.stdout
    assert result(run(*flags, "--config.shard=2/2", "--json"))["steps"] == []
    assert len(result(run("merge", "--workdir=sharded", "--json"))["steps"]) == 1
