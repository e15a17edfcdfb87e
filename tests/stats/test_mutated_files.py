"""Files that were changed in any way are read, or refused by our own words with their name.

Each reader is given files whose bytes were changed, cut or replaced, and files of its form whose
JSON is anything. `--hypothesis-seed` and HYPOTHESIS_MAX_EXAMPLES try others, and more of them.
"""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import jaxedit
from jaxedit.metrics.consistency import IDF, SNIPPETS, VOCABULARY, read_references
from jaxedit.models.conversion_record import RECORD, check_content, write_record
from jaxedit.models.fingerprints import Fingerprints
from jaxedit.reports.curves import read_curves
from jaxedit.solving.value import OptimisedValues
from jaxedit.solving.value_cache import read_values, write_values
from jaxedit.stats.npz import write_npz
from jaxedit.stats.second_moments import Stats
from jaxedit.stats.sums import read_sums, write_sums, zero_sums

N_EXAMPLES = int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "60"))
bounded = settings(
    max_examples=N_EXAMPLES,
    derandomize="HYPOTHESIS_MAX_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
)

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["inf", "²", "mom2/2", "\x00"]),
)
KEYS = st.sampled_from(
    ["n_tokens", "made_from", "digest", "fingerprints", "n_texts", "layers", "weights", "a", "x"]
    + ["y", "relation_id", "target_id", "samples", "text"]
)
JSONS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)


def mutate(content: bytes, changes: list[tuple[float, int]], cut: float) -> bytes:
    """Replace bytes at places given as shares of the length, and cut the end."""
    mutated = bytearray(content)
    for place, value in changes:
        mutated[min(int(place * len(mutated)), len(mutated) - 1)] = value
    return bytes(mutated[: int(cut * len(mutated)) or 1])


def assert_read_or_refused(path: Path, read: Callable[[], object]) -> None:
    """Read a file; an error must be of our wording and name the file."""
    said = path.name
    try:
        read()
    except (ValueError, OSError) as error:
        said = str(error)
    assert path.name in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return jaxedit.load(str(tiny_checkpoint("gpt2")))


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Write one file of each form; return it with its reader."""
    folder = tmp_path_factory.mktemp("files")
    stats = Stats.from_moments({2: np.eye(3, dtype=np.float32)}, 5, {"seed": 0})
    stats.save(folder / "stats.safetensors")
    (npz,) = write_npz(folder / "npz", {2: np.eye(3)}, 5, "h.{}.mlp")
    write_sums(folder / "stats.part", {"seed": 0}, [1], 3, zero_sums(model, [1]))
    (folder / "curves.json").write_text(json.dumps({"a": {"x": [1], "y": [2]}}))
    (folder / SNIPPETS).write_text('[{"relation_id": "P1", "target_id": "Q1", "samples": []}]')
    (folder / VOCABULARY).write_text('{"a": 0}')
    np.save(folder / IDF, np.ones(1))
    (folder / "weights").mkdir()
    (folder / "weights" / "d").write_bytes(b"content")
    write_record(folder, Fingerprints("1", "2", "3"))
    kept = {name: np.ones((1, 1), np.float32) for name in OptimisedValues._fields}
    write_values(folder / "kept.safetensors", OptimisedValues(**kept))
    references = str(folder)
    return {
        "stats": (folder / "stats.safetensors", lambda: Stats.load(folder / "stats.safetensors")),
        "npz": (npz, lambda: Stats.load(npz)),
        "part": (
            folder / "stats.part",
            lambda: read_sums(model, folder / "stats.part", {"seed": 0}, [1]),
        ),
        "kept": (
            folder / "kept.safetensors",
            lambda: read_values(folder / "kept.safetensors"),
        ),
        "curves": (folder / "curves.json", lambda: read_curves([f"{folder}/curves.json:a"])),
        "snippets": (folder / SNIPPETS, lambda: read_references(references)),
        "vocabulary": (folder / VOCABULARY, lambda: read_references(references)),
        "idf": (folder / IDF, lambda: read_references(references)),
        "record": (folder / RECORD, lambda: check_content(folder)),
        "weights": (folder / "weights" / "d", lambda: check_content(folder)),
    }


FORMS = ["stats", "npz", "part", "kept", "curves", "snippets", "vocabulary", "idf", "record"]


@pytest.mark.parametrize("form", [*FORMS, "weights"])
def test_changed_bytes_are_refused_with_the_files_name(files, form):
    path, read = files[form]
    content = path.read_bytes()

    @bounded
    @given(CHANGES, st.sampled_from([1.0, 1.0, 0.99, 0.5, 0.0]))
    def check(changes, cut):
        path.write_bytes(mutate(content, changes, cut))
        assert_read_or_refused(path, read)

    try:
        check()
    finally:
        path.write_bytes(content)
    read()


@pytest.mark.parametrize("form", ["curves", "snippets", "vocabulary", "record"])
def test_any_json_is_read_or_refused_with_the_files_name(files, form):
    path, read = files[form]
    content = path.read_bytes()

    @bounded
    @given(st.one_of(JSONS, st.fixed_dictionaries({"a": JSONS}), st.lists(JSONS, min_size=1)))
    def check(value):
        path.write_text(json.dumps(value))
        assert_read_or_refused(path, read)

    try:
        check()
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(("form", "entry"), [("stats", "stats"), ("part", "part")])
def test_any_metadata_is_read_or_refused_with_the_files_name(files, form, entry):
    path, read = files[form]
    content = path.read_bytes()
    names = {"stats": ("mom2/2",), "part": ("high", "low")}[form]
    arrays = {name: np.eye(3, dtype=np.float32) for name in names}
    fields = {name: JSONS for name in ("n_tokens", "made_from", "n_texts", "digest")}

    @bounded
    @given(JSONS | st.fixed_dictionaries({}, optional=fields))
    def check(value):
        path.write_bytes(save(arrays, {entry: json.dumps(value)}))
        assert_read_or_refused(path, read)

    try:
        check()
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("member", ["mom2.mom2.npy", "mom2.count.npy"])
def test_any_header_of_a_member_is_read_or_refused_with_the_files_name(files, member):
    path, read = files["npz"]
    content = path.read_bytes()
    arrays = {"mom2.mom2.npy": np.eye(3), "mom2.count.npy": np.array(5)}
    dtypes = st.sampled_from(["<f4", "<f8", "<i8", "|O", "<c16", "|b1", "<U3", "<f2", "zz", "|V9"])
    sizes = st.lists(st.integers(-2, 4) | st.integers(), max_size=3)

    @bounded
    @given(dtypes, sizes, st.binary(max_size=80))
    def check(dtype, shape, data):
        text = str({"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
        header = b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                own = header + b"\n" + data
                archive.writestr(name, own if name == member else buffer.getvalue())
        assert_read_or_refused(path, read)

    try:
        check()
    finally:
        path.write_bytes(content)
