"""Work directories in buckets, of which fsspec's own memory:// stands for all."""

import shutil
import threading
from pathlib import PurePosixPath

import fsspec
import pytest
from study_examples import assert_same_study, interrupt, records

import jaxedit
from jaxedit.files import LOCK_FILES, cache_folder
from jaxedit.remote import Place
from jaxedit.study import loop, mirror
from jaxedit.study.mirror import fetch_workdir, local_workdir

ADDRESS = "memory://bucket/runs/study"


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
    """Return an empty bucket, beside an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def forget_copy():
    """Be another machine: one without a copy of what the bucket holds."""
    shutil.rmtree(cache_folder(), ignore_errors=True)


def assert_fetched_is(other):
    """Fetch the study and compare; locks are not there, as they are a machine's own."""
    folder = fetch_workdir(ADDRESS)
    assert not any((folder / name).exists() for name in LOCK_FILES)
    for name in LOCK_FILES:
        shutil.copy(other / name, folder)
    assert_same_study(folder, other)


def test_a_study_in_a_bucket_is_the_same_study(whole, configure):
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
    forget_copy()
    assert_fetched_is(whole())


@pytest.mark.parametrize("is_elsewhere", [True, False], ids=["elsewhere", "here"])
def test_an_interrupted_study_goes_on_from_the_bucket(whole, configure, is_elsewhere):
    with pytest.raises(KeyboardInterrupt), local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder, interrupt(2))
    if is_elsewhere:
        forget_copy()
    with local_workdir(ADDRESS) as folder:
        assert len(records(folder)) == 3
        loop.run_study(configure(), folder)
    forget_copy()
    assert_fetched_is(whole())


def test_whole_steps_are_there_while_the_study_runs(whole, configure, monkeypatch):
    """After each step the bucket is copied: every copy can go on to the whole study."""
    monkeypatch.setattr(mirror, "INTERVAL_S", 0.001)
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
        _wait_until(lambda: _n_steps_there() == 5)
    monkeypatch.setattr(mirror, "INTERVAL_S", 30.0)
    forget_copy()
    assert_fetched_is(whole())


def test_what_is_written_last_is_what_the_others_are_named_by(configure, monkeypatch):
    """The arrays of every line that is there are there, and no mark says of more lines."""
    written = []
    put = Place.put

    def record(self, content):
        written.append(PurePosixPath(self.path).name)
        put(self, content)

    monkeypatch.setattr(Place, "put", record)
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
    assert written[-2:] == ["journal.jsonl", "journal_end.json"]
    assert "000004.safetensors" in written[:-2]


def test_a_half_written_line_is_not_mirrored(configure, bucket):
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
        whole_lines = (folder / "journal.jsonl").read_bytes()
        with (folder / "journal.jsonl").open("ab") as file:
            file.write(b'{"kind": "step", "st')
    assert bucket.cat_file("/bucket/runs/study/journal.jsonl") == whole_lines


def test_another_process_that_writes_there_is_noticed(configure, bucket):
    path = "/bucket/runs/study/journal.jsonl"
    message = r"has 7 bytes, .* another process writes to this work"
    mine = local_workdir(ADDRESS)
    loop.run_study(configure(), mine.__enter__())
    bucket.pipe_file(path, b"others\n")
    with pytest.raises(ValueError, match=message):
        mine.__exit__(None, None, None)
    assert bucket.cat_file(path) == b"others\n"


def test_studies_that_went_different_ways_are_refused(configure, bucket):
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
    content = bucket.cat_file("/bucket/runs/study/journal.jsonl")
    bucket.pipe_file("/bucket/runs/study/journal.jsonl", content.replace(b"baseline", b"bassline"))
    with pytest.raises(ValueError, match="have gone different ways: delete the copy"):
        fetch_workdir(ADDRESS)


def test_a_bucket_that_fails_for_a_while_does_not_stop_a_study(configure, monkeypatch, caplog):
    put, failing = Place.put, threading.Event()

    def write(self, content):
        if failing.is_set():
            raise ValueError("the bucket is away")
        put(self, content)

    monkeypatch.setattr(Place, "put", write)
    monkeypatch.setattr(mirror, "INTERVAL_S", 0.001)
    failing.set()
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
        _wait_until(lambda: "not mirrored: the bucket is away" in caplog.text)
        failing.clear()
    forget_copy()
    assert len(records(fetch_workdir(ADDRESS))) == 5


def test_the_library_takes_addresses(configure, whole):
    study = jaxedit.run_study(configure(), ADDRESS)
    assert_same_study(study.folder, whole())
    forget_copy()
    assert len(jaxedit.open_study(ADDRESS).steps) == 4


def _n_steps_there() -> int:
    return sum(
        name.endswith(".safetensors") for name in fsspec.filesystem("memory").find("/bucket")
    )


def _wait_until(is_so) -> None:
    for _ in range(2000):
        if is_so():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come")
