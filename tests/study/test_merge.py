"""A study of single edits made in parts is, once merged, the study that one process makes."""

import json
import shutil

import pytest

from jaxedit.study import loop
from jaxedit.study.config import default_config
from jaxedit.study.context import shard_steps
from jaxedit.study.journal import read_journal
from jaxedit.study.merge import merge_shards

NAMES = ("BP", "Bob", "Sony", "Ann", "Tim")
FACTS = [
    {"prompt": "{} lives in", "subject": name, "target_new": "Paris", "target_true": "London"}
    for name in NAMES
]
TIMED = ("time_s", "arrays")


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory):
    """A function: (folder, **keys) -> single edits in lots of two, the perplexity after every
    second.
    """
    folder = tmp_path_factory.mktemp("merge")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(
        json.dumps(["The Eiffel Tower is located in the city of Paris."]), encoding="utf-8"
    )

    def study(name, **keys):
        config = default_config(
            "rome", layer=3, v_num_grad_steps=3, context_templates=("{}", "I am. {}")
        )
        places = dict(facts=str(folder / "facts.json"), texts=str(folder / "texts.json"))
        own = dict(mode="single", single_batch_size=2, perplexity_every=2, guard=dict(action="keep"))
        config.update(model=str(shared / "golden" / "gpt2"), **{**own, **places, **keys})
        return loop.run_study(config, folder / name)

    return study


@pytest.fixture(scope="module")
def parts(run):
    """The folder of two finished parts."""
    for i in (1, 2):
        folder = run(f"scan/part-{i}-of-2", part=f"{i}/2")
    return folder.parent


def test_lots_are_taken_turn_about():
    assert [shard_steps(5, 2, f"{i}/2") for i in (1, 2)] == [(1, 2, 5), (3, 4)]
    assert shard_steps(5, 2, "") == (1, 2, 3, 4, 5)
    assert shard_steps(3, 2, "3/3") == ()
    for wrong in ("0/2", "3/2", "2", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="expected I/N with I from 1 to N"):
            shard_steps(5, 2, wrong)


def test_merged_parts_are_the_whole(run, parts):
    whole, merged = read_journal(run("whole")), read_journal(merge_shards(parts))
    for one, other in zip(whole.steps, merged.steps, strict=True):
        records = [
            {key: value for key, value in step.record.items() if key not in TIMED}
            for step in (one, other)
        ]
        assert records[0] == records[1]
        assert one.arrays.read_bytes() == other.arrays.read_bytes()
    assert merged.run == whole.run
    assert merge_shards(parts) == parts / "merged"  # again, in its place


def test_a_part_goes_on_after_an_interruption(run, parts):
    part = read_journal(parts / "part-1-of-2")
    assert [step.record.step for step in part.steps] == [0, 1, 2, 5]
    lines = parts / "part-1-of-2" / "journal.jsonl"
    before = lines.read_bytes()
    lines.write_bytes(b"".join(before.splitlines(keepends=True)[:3]))
    with pytest.raises(
        ValueError, match="edit 5 is not there yet; run the parts to their end first"
    ):
        merge_shards(parts)
    run("scan/part-1-of-2", shard="1/2")  # the unfinished lot whole
    untimed = [
        [
            {key: value for key, value in json.loads(line).items() if key not in TIMED}
            for line in content.splitlines()
        ]
        for content in (before, lines.read_bytes())
    ]
    assert untimed[0] == untimed[1]


def test_what_cannot_be_merged(run, parts, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no parts; make them with `jaxedit study --config\.part=I/N"
    ):
        merge_shards(tmp_path)
    copy = shutil.copytree(parts, tmp_path / "copy")
    run_json = json.loads((copy / "part-2-of-2" / "run.json").read_text())
    run_json["texts_sha256"] = "other"
    (copy / "part-2-of-2" / "run.json").write_text(json.dumps(run_json))
    with pytest.raises(
        ValueError, match=r"part-2-of-2 is a part of another study than .*part-1-of-2"
    ):
        merge_shards(copy)
    shutil.rmtree(copy / "part-2-of-2")
    with pytest.raises(ValueError, match="lacks part-2-of-2"):
        merge_shards(copy)
    with pytest.raises(
        ValueError, match="only single edits, none of which ends the study, can be made in parts"
    ):
        run("wrong", shard="1/2", mode="sequential")
