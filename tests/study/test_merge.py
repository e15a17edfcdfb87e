"""A study of single edits made in shards is, once merged, the study that one process makes."""

import json
import shutil

import pytest
from rewritten import as_older, rewrite_run
from study_examples import IN_PARIS, ONE_TEXT, TEMPLATES

from jaxedit.files import to_json
from jaxedit.study import loop
from jaxedit.study.journal import read_journal
from jaxedit.study.merge import merge_shards, shard_folder
from jaxedit.study.remarks import journal_remarks
from jaxedit.study.validation import shard_steps

TIMED = ("time_s", "arrays", "previous", "digest")


@pytest.fixture(scope="module")
def run(study_config, tmp_path_factory):
    """A function: (folder, **keys) -> single edits in batches of two, the perplexity after every
    second.
    """
    folder = tmp_path_factory.mktemp("merge")
    hyper = dict(layer=3, v_num_grad_steps=3, context_templates=TEMPLATES)
    own = dict(mode="single", single_batch_size=2, guard=dict(action="keep"))

    def study(name, **keys):
        every = dict(perplexity_every=2)
        config = study_config("rome", IN_PARIS, ONE_TEXT, hyper, every, **{**own, **keys})
        return loop.run_study(config, folder / name)

    return study


@pytest.fixture(scope="module")
def shards(run):
    """The folder of two finished shards."""
    for i in (1, 2):
        folder = run(f"scan/shard-{i}-of-2", shard=f"{i}/2")
    return folder.parent


def test_batches_are_assigned_round_robin():
    assert [shard_steps(5, 2, f"{i}/2") for i in (1, 2)] == [(1, 2, 5), (3, 4)]
    assert shard_steps(5, 2, "") == (1, 2, 3, 4, 5)
    assert shard_steps(3, 2, "3/3") == ()
    for wrong in ("0/2", "3/2", "2", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="expected i/n with i from 1 to n"):
            shard_steps(5, 2, wrong)


def test_merged_shards_are_the_whole(run, shards):
    whole, merged = read_journal(run("whole")), read_journal(merge_shards(shards))
    for one, other in zip(whole.steps, merged.steps, strict=True):
        records = [
            {
                key: value
                for key, value in to_json(step.record.to_dict()).items()
                if key not in TIMED
            }
            for step in (one, other)
        ]
        assert records[0] == records[1]
        assert one.arrays.read_bytes() == other.arrays.read_bytes()
    assert merged.run == whole.run
    assert merge_shards(shards) == shards / "merged"  # again, in its place


def test_a_shard_goes_on_after_an_interruption(run, shards):
    shard = read_journal(shards / "shard-1-of-2")
    assert [step.record.step for step in shard.steps] == [0, 1, 2, 5]
    lines = shards / "shard-1-of-2" / "journal.jsonl"
    before = lines.read_bytes()
    lines.write_bytes(b"".join(before.splitlines(keepends=True)[:3]))
    with pytest.raises(
        ValueError, match="edit 5 is not there yet; run the shards to their end first"
    ):
        merge_shards(shards)
    run("scan/shard-1-of-2", shard="1/2")  # the unfinished batch whole
    untimed = [
        [
            {key: value for key, value in json.loads(line).items() if key not in TIMED}
            for line in content.splitlines()
        ]
        for content in (before, lines.read_bytes())
    ]
    assert untimed[0] == untimed[1]


def test_shards_of_which_one_went_on_under_this_version_are_merged(run, shards, tmp_path, caplog):
    """The other one's lines have no digests, and its run.json no fingerprints: that is said."""
    copy = shutil.copytree(shards, tmp_path / "copy")
    for name in ("shard-1-of-2", "shard-2-of-2"):
        as_older(copy / name)
    run(copy / "shard-2-of-2", shard="2/2")  # upgraded; nothing is left to do
    merged = read_journal(merge_shards(copy))
    assert [step.record.step for step in merged.steps] == list(range(1 + len(IN_PARIS)))
    assert "fingerprints" in merged.run
    assert "shard-1-of-2: its first 4 lines were written by an older version" in caplog.text
    said = "5 edits were merged from shards that an older version wrote without digests"
    assert any(remark.startswith(said) for remark in journal_remarks(merged))
    assert journal_remarks(read_journal(merge_shards(shards))) == []

    # What only a newer version writes is compared where both have it.
    rewrite_run(copy / "shard-2-of-2", texts_sha256="other")
    with pytest.raises(ValueError, match=r"another study than .*run\.json differ in texts_"):
        merge_shards(copy)


def test_what_cannot_be_merged(run, shards, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no shards; make them with `jaxedit study --config\.shard=I/N"
    ):
        merge_shards(tmp_path)
    copy = shutil.copytree(shards, tmp_path / "copy")
    rewrite_run(copy / "shard-2-of-2", texts_sha256="other")
    with pytest.raises(
        ValueError, match=r"shard-2-of-2 is a shard of another study than .*shard-1-of-2"
    ):
        merge_shards(copy)
    shutil.rmtree(copy / "shard-2-of-2")
    with pytest.raises(ValueError, match="lacks shard-2-of-2"):
        merge_shards(copy)
    with pytest.raises(
        ValueError, match="only single edits, none of which ends the study, can be made in shards"
    ):
        run("wrong", shard="1/2", mode="sequential")


def test_shards_of_before_version_0_1_go_on_and_are_merged(run, tmp_path, shards):
    """Their folders are called part-i-of-n, and so is what is still to be made of them."""
    shutil.copytree(shards / "shard-1-of-2", tmp_path / "part-1-of-2")
    shutil.copytree(shards / "shard-2-of-2", tmp_path / "shard-2-of-2")
    assert shard_folder(tmp_path, "1/2") == tmp_path / "part-1-of-2"
    assert shard_folder(tmp_path, "2/2") == tmp_path / "shard-2-of-2"
    assert len(read_journal(merge_shards(tmp_path)).steps) == 1 + len(IN_PARIS)
