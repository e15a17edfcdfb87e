"""The layer that is chosen, and what it is judged by."""

import dataclasses
import json
import math

import pytest
from journals import measured
from run_command import run_command

from jaxedit.analyses.layer_choice import choose_layer, judge_layer

UNEDITED = 25.0


def edit(step: int, ratio: float, accuracy: bool, paraphrase: float | None, perturbation=0.01):
    """Make the record of a single edit."""
    record = measured(step, "a", "b", UNEDITED * ratio, relative_perturbation=perturbation)
    metrics = {**record.metrics, "efficacy_accuracy": accuracy, "paraphrase_accuracy": paraphrase}
    return dataclasses.replace(
        record, perplexity={**record.perplexity, "ratio": ratio}, metrics=metrics
    )


def test_a_layer_is_judged_by_all_of_its_edits():
    records = [
        edit(1, 1.0, True, 0.5, 0.02),
        edit(2, 1.03, True, None, 0.04),
        edit(3, math.nan, False, 0.0, 0.06),
        dataclasses.replace(edit(4, 1.0, True, 1.0), error="it could not be made"),
    ]
    found = judge_layer(3, records, max_ratio=1.02)
    assert (found.layer, found.n_edits) == (3, 4)
    assert found.share_within == 1 / 4
    assert found.accuracy == 2 / 4
    assert found.paraphrase_accuracy == 0.25
    assert found.mean_accuracy == (0.75 + 1 + 0) / 4
    assert found.median_ratio == 1.03
    assert found.highest_ratio == math.inf
    assert found.perturbation == pytest.approx(0.04)


def test_a_layer_without_an_edit_says_why():
    record = dataclasses.replace(edit(1, 1.0, True, 1.0), error="too long")
    with pytest.raises(ValueError, match="none of 1 edits of layer 2 was made; the first: too"):
        judge_layer(2, [record], 1.02)


def layer(number: int, n_safe: int, n_said: int, perturbation=0.01):
    """Judge twenty edits of a layer."""
    records = [
        edit(i, 1.0 if i < n_safe else 1.5, i < n_said, None, perturbation) for i in range(20)
    ]
    return judge_layer(number, records, 1.02)


def test_of_the_safe_layers_the_one_is_chosen_after_which_most_is_said():
    unsafe, weak, good = layer(1, 18, 20), layer(2, 20, 5), layer(3, 19, 15)
    assert choose_layer([unsafe, weak, good]) == good


def test_of_equal_layers_the_one_that_perturbs_least_is_chosen():
    first, second = layer(1, 20, 15, 0.03), layer(2, 20, 15, 0.02)
    assert choose_layer([first, second]) == second


def test_where_no_layer_is_safe_none_is_chosen():
    assert choose_layer([layer(1, 18, 20), layer(2, 0, 20)]) is None


def test_the_command_runs_a_study_a_layer_and_goes_on_with_it(shared, tmp_path):
    arguments = [
        *("--n_facts=2", "--method=c-rome", "--layers=1,3", "--max_ratio=1000", "--json"),
        f"--model={shared / 'golden' / 'gpt2'}",
        f"--workdir={tmp_path / 'layers'}",
        "--set=editor.v_num_grad_steps=3",
        '--set=editor.context_templates=["{}"]',
    ]
    printed = []
    for _ in range(2):
        done = run_command(tmp_path, "layers", *arguments)
        assert not done.returncode, done.stderr
        printed.append(json.loads(done.stdout))
    assert printed[0] == printed[1]
    assert [each["layer"] for each in printed[0]["layers"]] == [1, 3]
    assert printed[0]["chosen"] in (1, 3)
    journal = (tmp_path / "layers" / "layer_3" / "journal.jsonl").read_text()
    assert len(journal.splitlines()) == 3
