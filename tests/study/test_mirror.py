"""Work directories in buckets, of which fsspec's own memory:// stands for all."""

import os
import shutil
import threading
from pathlib import Path, PurePosixPath

import fsspec
import pytest
from study_examples import assert_same_study, interrupt, records

import jaxedit
from jaxedit.files import LOCK_FILES, cache_folder
from jaxedit.remote import Place, open_place
from jaxedit.study import loop, mirror
from jaxedit.study.mirror import Mirror, fetch_workdir, local_workdir

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


def test_a_mark_that_is_replaced_while_it_is_read_is_written_again(monkeypatch, bucket):
    read = Path.read_bytes

    def read_and_replace(path: Path) -> bytes:
        content = read(path)
        if path.name == "journal_end.json" and content == b"1":
            path.write_bytes(b"2")
        return content

    with local_workdir(ADDRESS) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "journal_end.json").write_bytes(b"1")
        os.utime(folder / "journal_end.json", (1, 1))
        monkeypatch.setattr(Path, "read_bytes", read_and_replace)
        Mirror(open_place(ADDRESS), folder).push()
        there = "/bucket/runs/study/journal_end.json"
        assert bucket.cat_file(there) == b"1"
        own = Mirror(open_place(ADDRESS), folder)
        own.pull()
        own.push()
        assert bucket.cat_file(there) == b"2"


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


def test_a_write_that_fails_once_is_made_up_for(configure, monkeypatch):
    """Whether or not the bucket took what it gave no reply to."""
    put, failed = Place.put, []

    def write(self, content):
        if self.path.endswith("journal.jsonl") and len(failed) < 2:
            failed.append(self.path)
            if len(failed) == 2:
                put(self, content)
            raise ValueError("no reply")
        put(self, content)

    mine = local_workdir(ADDRESS)
    loop.run_study(configure(), mine.__enter__())
    monkeypatch.setattr(Place, "put", write)
    for _ in range(2):
        with pytest.raises(ValueError, match="no reply"):
            mine.__exit__(None, None, None)
        mine = local_workdir(ADDRESS)
        mine.__enter__()
    mine.__exit__(None, None, None)
    forget_copy()
    assert len(records(fetch_workdir(ADDRESS))) == 5


def test_a_second_machine_overwrites_nothing(configure, bucket, monkeypatch, tmp_path):
    """It began before the first one wrote anything, and is refused at its first write."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    other = local_workdir(ADDRESS)
    loop.run_study(configure(ratio=1.02), other.__enter__())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
    before = {path: bucket.cat_file(path) for path in bucket.find("/bucket")}
    with pytest.raises(ValueError, match="another process writes to this work directory"):
        other.__exit__(None, None, None)
    assert {path: bucket.cat_file(path) for path in bucket.find("/bucket")} == before


def test_what_is_there_already_is_not_written_again(configure, monkeypatch):
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
    written = []
    monkeypatch.setattr(Place, "put", lambda self, content: written.append(self.path))
    with local_workdir(ADDRESS):
        pass
    assert written == []


def test_files_of_no_study_are_as_they_were_written_last(monkeypatch, tmp_path):
    """As of a training: one machine goes on with what another one wrote."""
    for cache, found, text in (("a", None, "1"), ("b", "1", "2"), ("a", "2", "3")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        with local_workdir(ADDRESS) as folder:
            path = folder / "state.json"
            assert (path.read_text() if path.exists() else None) == found
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def test_a_copy_in_use_is_read_as_it_is(configure):
    with local_workdir(ADDRESS) as folder:
        loop.run_study(configure(), folder)
        assert fetch_workdir(ADDRESS) == folder
        with pytest.raises(ValueError, match="in use by"), local_workdir(ADDRESS):
            pass
    forget_copy()
    with pytest.raises(ValueError, match="there is nothing at memory://bucket/none"):
        fetch_workdir("memory://bucket/none")


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
