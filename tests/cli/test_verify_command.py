"""From a study to a checkpoint and an adapter that torch agrees with."""

import json

import pytest
from command_examples import FACTS, TEXTS

from jaxedit.cli import run
from jaxedit.study.loop import run_study


@pytest.fixture(scope="module")
def studied(study_config, tmp_path_factory):
    """The folder of a study of three facts, whose edits are all kept."""
    hyper = dict(layer=3, v_num_grad_steps=3, context_templates=("{}", "I am. {}"))
    config = study_config("rome", FACTS, TEXTS, hyper, guard=dict(action="keep"))
    return run_study(config, tmp_path_factory.mktemp("study") / "run")


@pytest.mark.parametrize("format", ["hf", "peft"])
def test_what_a_study_exports_is_verified(studied, format, tmp_path, capsys):
    """Made again from the run; after another edit of it, it is another model."""
    out = tmp_path / "out"
    flags = [f"--format={format}", "--dtype=bfloat16", f"--out={out}"]
    assert run(["jaxedit", "export", str(studied), *flags]) == 0
    said = capsys.readouterr().out
    assert ("as written, in bfloat16" in said) == (format == "hf")
    assert ("P(target), mean of 3 facts" in said) == (format == "hf")
    assert run(["jaxedit", "verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compared_with"].startswith(
        f"the model of {studied}"
    )
    record = json.loads((out / "jaxedit.json").read_text())
    assert record["run_steps"] == [1, 2, 3]
    (out / "jaxedit.json").write_text(json.dumps({**record, "run_steps": [1, 2]}))
    assert run(["jaxedit", "verify", str(out)]) == 1
    assert "NO" in capsys.readouterr().out


def test_a_checkpoint_has_the_bases_dtype_unless_asked(studied, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["jaxedit", "export", str(studied), "--format=hf", f"--out={out}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == json.loads((out / "config.json").read_text())["dtype"] == "float32"
    before, after = found["measured"], found["measured_after_rounding"]
    assert after["perplexity"] == pytest.approx(before["perplexity"], rel=1e-5)
    assert after["probability_new"] == pytest.approx(before["probability_new"], rel=1e-3)
    assert len(after["probability_new"]) == 3
