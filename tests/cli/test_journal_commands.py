"""`jaxedit show`, `undo`, `replay` and `diff` on a study of the golden gpt2, in this process."""

import contextlib
import json
import shutil

import pytest
from command_examples import FACTS, TEMPLATES, TEXTS
from reference.strict_json import read_strict_json

from jaxedit.cli import _main
from jaxedit.files import to_json
from jaxedit.reports import figures
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study
from jaxedit.study.replay import edited_model


@pytest.fixture(scope="module")
def studied(study_config, tmp_path_factory):
    """The folder of a study of three facts."""
    hyper = dict(layer=3, v_num_grad_steps=3, context_templates=TEMPLATES)
    guard = dict(max_ppl_ratio=1e6, action="keep")
    config = study_config("rome", FACTS, TEXTS, hyper, guard=guard)
    return run_study(config, tmp_path_factory.mktemp("commands") / "run")


@pytest.fixture
def folder(studied, tmp_path):
    return shutil.copytree(studied, tmp_path / "run")


@pytest.fixture
def command(monkeypatch, capsys):
    """A function: arguments -> (exit status, standard output, standard error)."""
    monkeypatch.setattr(_main, "distributed_session", contextlib.nullcontext)
    monkeypatch.setattr(_main, "enable_compilation_cache", lambda: None)

    def run(*arguments) -> tuple[int, str, str]:
        status = _main.run(["jaxedit", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_show_is_the_table_of_the_edits_and_writes_nothing(command, folder):
    before = content(folder)
    status, shown, said = command("show", folder)
    assert (status, said) == (0, "")
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["1", "2", "3"]
    assert "Bob [bold] lives in → Munich" in shown
    assert "3 edits made, 3 kept" in shown
    _, shown, _ = command("show", folder, "--json")
    steps = [to_json(step.record.to_dict()) for step in read_journal(folder).steps]
    found = read_strict_json(shown)
    assert [found["baseline"], *found["steps"]] == steps
    assert content(folder) == before


def test_show_of_one_edit(command, folder):
    """Its whole record, and the change as its file has it."""
    record = read_journal(folder).steps[2].record
    found = read_strict_json(command("show", folder, 2, "--json")[1])
    assert found["record"] == to_json(record.to_dict())
    assert (found["outcome"], found["memory"]) == ("kept", {})
    (change,) = found["changes"]
    norm = change.pop("norm")
    assert change == dict(weight="mlp/w_down", layer=3, rank=1, shape=[192, 48])
    assert norm == pytest.approx(record.edit_norm, rel=1e-12)
    status, shown, _ = command("show", folder, 2)
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines() if len(line.split()) > 1)
    assert status == 0
    assert rows["subject"].strip() == "Bob [bold]"
    assert rows["metrics.probability_new"].strip() == f"{record.metrics['probability_new']:.3g}"
    assert "rank 1, 192 x 48, Frobenius norm" in shown


def test_undo_says_what_rests_on_it_and_writes_the_report(command, folder):
    status, shown, _ = command("undo", folder, "1-2")
    assert status == 0
    assert shown.startswith("Edit 1 is undone: BP lives in → French\nEdit 2 is undone: Bob [bold]")
    assert "undone after edit 3" in (folder / "report.md").read_text(encoding="utf-8")
    assert "undone after edit 3" in (folder / "report.html").read_text(encoding="utf-8")
    assert len(edited_model(folder).metadata.history) == 1
    assert "undone_after" in command("show", folder, 1)[1]
    found = read_strict_json(command("undo", folder, 3, "--json")[1])
    assert found["undone"] == [
        {"step": 3, "request_summary": "Sony is based in → London", "later_steps": []}
    ]


def test_undo_warns(command, folder, caplog):
    command("undo", folder, 1)
    assert caplog.messages == [
        "edits 2-3 were optimised on a model that had edit 1; they stay as they are"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "RUN", "4"], "has no edit 4; it has 1 to 3"),
        (["show", "RUN", "x"], "STEP x: expected the number of an edit, e.g. 3"),
        (["show", "nowhere"], "nowhere is not a study's work directory: it has no run.json"),
        (["undo", "RUN"], "STEP... is missing; expected jaxedit undo RUN STEP..."),
        (["undo", "RUN", "2,3"], "2,3: expected numbers of steps and ranges of them with spaces"),
        (["undo", "RUN", "1", "9"], "has no edit 9; it has 1 to 3"),
        (["undo", "nowhere", "1"], "nowhere is not a study's work directory"),
        (["replay", "RUN", "--workdir=RUN"], "is the study that is replayed: give a new folder"),
        (["replay", "RUN", "--set=editor.vlr=1"], "did you mean 'editor.v_lr'?"),
        (["replay", "RUN", "--model=./missing"], "missing does not exist"),
        (["diff", "RUN"], "RUN2 is missing; expected jaxedit diff RUN1 RUN2"),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_input_is_one_line_and_changes_nothing(command, folder, arguments, message):
    before = content(folder.parent)
    given = [argument.replace("RUN", str(folder)) for argument in arguments]
    status, shown, said = command(*given)
    assert (status, shown) == (2, "")
    assert message in said
    assert said.splitlines()[-1].startswith("jaxedit: error: ")
    assert content(folder.parent) == before


def test_replay_by_another_method_and_diff(command, folder):
    """The new study lies beside the first with its report, and the two differ in what was set."""
    before = content(folder)
    steps = ["--set=editor.mom2_adjustment=false", "--set=editor.v_num_grad_steps=3"]
    templates = '--set=editor.context_templates=[["{}"], ["I am. {}"]]'
    status, shown, _ = command(
        *("replay", folder, "--set=editor.method=memit", "--set=editor.layers=[2, 3]"),
        *(*steps, templates, "--json"),
    )
    assert status == 0
    replayed = folder.parent / "run-memit"
    assert read_strict_json(shown)["workdir"] == str(replayed)
    assert (replayed / "report.html").is_file()
    assert content(folder) == before

    found = read_strict_json(command("diff", folder, replayed, "--json")[1])
    assert found["settings"]["config.editor.method"] == ["rome", "memit"]
    assert found["settings"]["config.editor.layers"] == [None, [2, 3]]
    assert not {"model_fingerprint", "facts_sha256", "texts_sha256"} & set(found["settings"])
    assert found["only_first"] == found["only_second"] == []
    assert [pair[0]["step"] for pair in found["edits"]] == [1, 2, 3]
    status, shown, _ = command("diff", folder, replayed)
    lines = [line.split() for line in shown.splitlines()]
    assert ["config.editor.method", '"rome"', '"memit"'] in lines
    status, shown, _ = command("diff", folder, folder)
    assert shown.endswith("do not differ in configuration, facts or outcomes.\n")


def test_a_replay_on_another_base_is_named_by_it(command, folder, shared):
    llama = shared / "golden" / "llama"
    status, shown, _ = command("replay", folder, f"--model={llama}", "--set=editor.layer=2")
    assert status == 0, shown
    replayed = folder.parent / "run-llama"
    run = json.loads((replayed / "run.json").read_text(encoding="utf-8"))
    assert (run["config"]["model"], run["config"]["editor"]["layer"]) == (str(llama), 2)
    assert f"Report: {replayed}" in shown.replace("\n", "")


def test_signals_of_a_study_and_of_a_folder_of_studies(command, folder, monkeypatch):
    """A column and a row of the figure each; the numbers are those of the journal."""
    drawn = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.update({path: figure}))
    status, shown, _ = command("signals", "--run", folder)
    assert status == 0
    header, *rows = shown.splitlines()
    assert header.split() == ["signal", "limit", "run"]
    assert next(row for row in rows if row.startswith("KL")).split()[-2:] == ["not", "measured"]
    (axes,) = drawn[folder / "signals"].axes
    line = next(line for line in axes.lines if line.get_label() == "norm")
    assert list(line.get_xdata()) == [1, 2, 3]

    shutil.copytree(folder, folder.parent / "other")
    status, shown, _ = command("signals", "--run", folder.parent, "--json")
    assert status == 0
    found = read_strict_json(shown)
    assert [each["study"] for each in found] == ["other", "run"]
    ratios = [step.record.perplexity["ratio"] for step in read_journal(folder).steps[1:]]
    for each in found:
        assert [row["perplexity"] for row in each["signals"]] == pytest.approx(ratios)
        assert (each["tasks"], each["fall"]) == ([], None)
    titles = [axes.get_title(loc="left") for axes in drawn[folder.parent / "signals"].axes]
    assert titles == ["other", "run"]
    status, _, said = command("signals", "--run", folder / "nothing")
    assert status == 2
    assert str(folder / "nothing") in said


def test_signals_after_an_undo_are_of_the_models_there_are(command, folder):
    """Edit 3 was measured with edit 2, which the model lacks now: its weights alone are told."""
    assert command("undo", folder, "2")[0] == 0
    _, shown, _ = command("signals", "--run", folder, "--json")
    ((first, third),) = [each["signals"] for each in read_strict_json(shown)]
    assert (first["step"], third["step"]) == (1, 3)
    assert {"perplexity", "norm"} <= first.keys()
    assert set(third) == {"step", "norm", "cosine", "hyperspherical energy"}


def test_layers_measures_after_every_edit_whatever_is_set(command, shared, tmp_path):
    for name, content in (("facts.json", FACTS), ("texts.json", TEXTS)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    asked = {"model": shared / "golden" / "gpt2", "layers": "2,3", "n_facts": 2}
    asked |= {name: tmp_path / f"{name}.json" for name in ("facts", "texts")}
    sets = (
        "eval.perplexity_every=5",
        "editor.v_num_grad_steps=1",
        'editor.context_templates=["{}"]',
    )
    status, shown, said = command(
        "layers",
        *(f"--{name}={value}" for name, value in asked.items()),
        *(f"--set={each}" for each in sets),
        f"--workdir={tmp_path / 'layers'}",
        "--json",
    )
    assert status == 0, said
    assert [row["layer"] for row in read_strict_json(shown)["layers"]] == [2, 3]
