"""A study that was interrupted, by whatever, goes on to what it would have been."""

import errno
import itertools
import os
import shutil

import pytest
from study_examples import (
    FACTS,
    TIGHT,
    assert_same_edit,
    assert_same_study,
    by_hand,
    content,
    interrupt,
    no_space,
    records,
)

from jaxedit.edits.edit import read_edit
from jaxedit.study import loop
from jaxedit.study.journal import read_journal

TOO_LONG = {
    "case_id": 15,
    "prompt": "{} lives in",
    "subject": "Bob and " * 200 + "Ann",
    "target_new": "Paris",
}
STUDIES = [
    dict(),
    dict(ratio=TIGHT),
    dict(ratio=TIGHT, action="keep"),
    dict(mode="single", single_batch_size=2),
]


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("keys", STUDIES, ids=str)
def test_an_interruption_does_not_show(whole, configure, tmp_path, keys, after):
    with pytest.raises(KeyboardInterrupt):
        loop.run_study(configure(**keys), tmp_path / "run", interrupt(after))
    assert len(read_journal(tmp_path / "run").steps) == after + 1
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    seen = []
    loop.run_study(
        configure(**keys),
        tmp_path / "run",
        lambda record, total: seen.append((record.step, total)),
    )
    assert seen == [(n, 4) for n in range(5)]  # the steps found are shown too
    assert (
        (tmp_path / "run" / "journal.jsonl").read_bytes().startswith(before)
    )  # and not made again
    assert_same_study(tmp_path / "run", whole(**keys))


@pytest.mark.parametrize(
    "keys", [dict(ratio=1.2), dict(ratio=1.2, action="keep"), dict(mode="single")], ids=str
)
def test_an_interruption_does_not_show_in_an_editors_state(configure, remembering, tmp_path, keys):
    loop.run_study(configure(**keys), tmp_path / "whole")
    for after in range(4):
        with pytest.raises(KeyboardInterrupt):
            loop.run_study(configure(**keys), tmp_path / "run", interrupt(after))
        assert (
            len(read_journal(tmp_path / "run").steps) == after + 1
        )  # it went on from where it was
    loop.run_study(configure(**keys), tmp_path / "run")
    assert_same_study(tmp_path / "run", tmp_path / "whole")
    learnt = [r["optimisation"]["n_learnt"] for r in records(tmp_path / "run")[1:]]
    assert learnt == (
        [0] * 4 if "mode" in keys else [0, 1, 2, 3] if "action" in keys else [0, 1, 1, 2]
    )


def test_a_last_line_cut_short_does_not_show(whole, configure, tmp_path):
    shutil.copytree(whole(ratio=TIGHT), tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[: len(last) // 2])
    (tmp_path / "run" / "steps" / "000004.safetensors.part").write_bytes(b"half a file")
    loop.run_study(configure(ratio=TIGHT), tmp_path / "run")
    assert path.read_bytes().startswith(b"".join(lines))
    assert_same_study(tmp_path / "run", whole(ratio=TIGHT))


def test_a_finished_study_does_nothing_more(whole, configure, tmp_path):
    shutil.copytree(whole(), tmp_path / "run")
    before = content(tmp_path / "run")
    loop.run_study(configure(), tmp_path / "run")
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("at", [1, 3], ids=["arrays", "line"])  # 2: the folder
def test_a_full_disk_can_be_made_room_on(whole, configure, tmp_path, at):
    """The write fails at the third edit's arrays or at its line; the same study then goes on."""
    with pytest.MonkeyPatch.context() as patch:
        real, calls = os.fsync, itertools.count(1)

        def fill(record, total):
            if record.step == 2:
                patch.setattr(
                    os,
                    "fsync",
                    lambda descriptor: no_space() if next(calls) == at else real(descriptor),
                )

        with pytest.raises(OSError, match="No space left on device") as caught:
            loop.run_study(configure(), tmp_path / "run", fill)
        assert next(calls) == at + 1
    assert caught.value.errno == errno.ENOSPC
    assert f"step 3 could not be written to {tmp_path / 'run'}" in str(caught.value)
    assert (
        "the steps before it are whole: make room and run the same command again to go on"
        in str(caught.value)
    )
    assert [r["step"] for r in records(tmp_path / "run")] == [0, 1, 2]
    assert not list((tmp_path / "run").rglob("*.part"))
    loop.run_study(configure(), tmp_path / "run")
    assert_same_study(tmp_path / "run", whole())


def test_a_request_that_cannot_be_edited_is_recorded(whole, configure, model, editor, tmp_path):
    """A subject longer than the model's positions: the study says so, goes on, and can be
    interrupted there.
    """
    config = configure([FACTS[0], TOO_LONG, FACTS[2]])
    with pytest.raises(KeyboardInterrupt):
        loop.run_study(config, tmp_path / "run", interrupt(2))
    folder = loop.run_study(config, tmp_path / "run")
    _, _, failed, after = records(folder)
    assert "more than the 256 positions of this gpt2 model" in failed["error"]
    assert (failed["kept"], failed["case_id"]) == (False, 15)
    assert "guard_code" not in failed
    assert "perplexity" not in failed
    assert after["kept"]
    assert_same_edit(
        read_edit(folder / after["arrays"]), by_hand(model, editor, [FACTS[0], FACTS[2]])
    )
    uninterrupted = loop.run_study(config, tmp_path / "whole")
    assert_same_study(folder, uninterrupted)


def test_n_facts_may_grow(whole, configure, tmp_path):
    folder = loop.run_study(configure(n_facts=1), tmp_path / "run")
    assert len(read_journal(folder).steps) == 2
    loop.run_study(configure(n_facts=3), folder)
    assert records(folder) == records(whole())[:4]
    assert read_journal(folder).run["config"]["n_facts"] == 3
    loop.run_study(configure(n_facts=0), folder)
    assert_same_study(folder, whole())
