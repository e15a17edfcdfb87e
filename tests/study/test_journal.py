"""The journal: bit for bit there and back, in strict JSON, of one study only."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from journal_examples import LAYOUT, RUN, assert_same_array, drawn_edit, filled, step
from reference.strict_json import read_strict_json

from jaxedit import Dense, LowRank
from jaxedit.edits.edit import edit_to_arrays, read_edit
from jaxedit.files import to_json
from jaxedit.study.journal import open_journal, read_journal
from jaxedit.study.record import SCHEMA


def test_an_edit_comes_back_bit_for_bit(tmp_path):
    edit = drawn_edit()
    open_journal(tmp_path / "run", RUN).append(step(0), *edit_to_arrays(edit))
    (line,) = read_journal(tmp_path / "run").steps
    again = read_edit(line.arrays)
    assert [type(delta) for delta in again.deltas] == [LowRank, Dense, LowRank]
    for ours, theirs in zip(edit.deltas, again.deltas, strict=True):
        assert (ours.weight, ours.layer) == (theirs.weight, theirs.layer)
        for a, b in zip(ours[2:], theirs[2:], strict=True):
            assert_same_array(a, b)
    assert sorted(again.memory) == ["keys", "scale", "tokens"]
    for name, array in edit.memory.items():
        assert_same_array(array, again.memory[name])
    assert again.hf_layout == LAYOUT
    before, after = edit.dense(), again.dense()
    assert (
        list(before) == list(after) == [f"model.layers.{l}.mlp.down_proj.weight" for l in (2, 3, 5)]
    )
    for name in before:
        assert_same_array(before[name], after[name])


def test_steps_come_back_in_order(tmp_path):
    journal = filled(tmp_path / "a" / "run")  # folders are made
    assert [s.record for s in journal.steps] == [
        dataclasses.replace(step(n), arrays=f"steps/00000{n}.safetensors") for n in range(3)
    ]
    assert journal.run == {"schema": SCHEMA, **to_json(RUN)}
    assert read_journal(tmp_path / "a" / "run").steps == journal.steps
    assert sorted(path.name for path in (tmp_path / "a" / "run").rglob("*")) == [
        *(f"00000{n}.safetensors" for n in range(3)),
        "journal.jsonl",
        "journal_end.json",
        "run.json",
        "steps",
    ]


def test_another_study_is_refused_by_the_keys_that_differ(tmp_path):
    filled(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    other = {
        "config": {"model": "tiny", "n_facts": 5, "editor": {"v_lr": 0.3, "layers": (1, 2)}},
        "facts_sha256": "abd",
    }
    with pytest.raises(ValueError, match="belongs to another study") as caught:
        open_journal(tmp_path / "run", other, may_differ=("config.n_facts",))
    message = str(caught.value)
    assert "config.editor.v_lr: 0.5 there, 0.3 now" in message
    assert 'facts_sha256: "abc" there, "abd" now' in message
    assert "n_facts" not in message
    assert "model" not in message
    assert "layers" not in message  # a tuple is what JSON makes a list of
    assert "--workdir" in message
    with pytest.raises(ValueError, match=r"config\.n_facts: 2 there, 5 now"):
        open_journal(tmp_path / "run", other)
    fewer = {
        "config": {"model": "tiny", "n_facts": 2, "editor": {"v_lr": 0.5}},
        "facts_sha256": "abc",
        "new": 1,
    }
    with pytest.raises(
        ValueError,
        match=r"config\.editor\.layers: \[1, 2\] there, null now; new: null there, 1 now",
    ):
        open_journal(tmp_path / "run", fewer)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_what_may_differ_is_taken_over(tmp_path):
    filled(tmp_path / "run")
    more = {**RUN, "config": {**RUN["config"], "n_facts": 7}}
    assert len(open_journal(tmp_path / "run", more, may_differ=("config.n_facts",)).steps) == 3
    assert read_journal(tmp_path / "run").run == {
        "schema": SCHEMA,
        **to_json(more),
    }  # the report shows what was run last


@pytest.mark.parametrize("name", ["notes.txt", "steps/000001.safetensors"])
def test_a_folder_with_other_things_in_it_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        ValueError, match="is not empty and is not a study's work directory; give another --workdir"
    ):
        open_journal(tmp_path, RUN)
    with pytest.raises(ValueError, match=r"is not a study's work directory: it has no run\.json"):
        read_journal(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\udcff"])
def test_a_run_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"run\.json is not JSON|belongs to another study"):
        open_journal(tmp_path, RUN)
    assert (tmp_path / "run.json").read_bytes() == content.encode(errors="surrogateescape")


def test_an_empty_folder_is_taken(tmp_path):
    assert open_journal(tmp_path, RUN).steps == []
    assert json.loads((tmp_path / "run.json").read_text())["config"]["editor"] == {
        "v_lr": 0.5,
        "layers": [1, 2],
    }


def test_numbers_that_are_not_finite_survive_in_strict_json(tmp_path):
    numbers = {"a": math.inf, "c": np.float32("inf")}
    lists = {"b": [-math.inf, math.nan], "d": (1, 2)}
    journal = open_journal(tmp_path / "run", {**RUN, "limit": math.inf, "lists": lists})
    written = dataclasses.replace(step(0), edit_norm=math.nan, optimisation=numbers)
    journal.append(written, {}, {})
    for name in ("journal.jsonl", "run.json"):
        read_strict_json((tmp_path / "run" / name).read_text(encoding="utf-8"))
    journal = read_journal(tmp_path / "run")
    record = journal.steps[0].record
    assert math.isnan(record.edit_norm)
    assert (record.optimisation["a"], record.optimisation["c"]) == (math.inf, math.inf)
    assert journal.run["lists"] == {"b": ["-inf", "nan"], "d": [1, 2]}
    assert to_json(np.array([1.5, np.nan])) == [1.5, "nan"]
    assert to_json({"n": np.int64(3), "truth": np.bool_(True), "none": None}) == {
        "n": 3,
        "truth": True,
        "none": None,
    }
