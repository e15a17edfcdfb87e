"""The .npz files of other repositories: read and written in their form, others refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

import jaxedit
from jaxedit.stats.npz import write_npz
from jaxedit.stats.second_moments import Stats

MODULE = "transformer.h.{}.mlp.c_proj"
NOT_WHOLE = r"h\.3\.npz \(.* bytes\) is not a whole \.npz file"
KEY_QF = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
SUM_FF = KEY_QF.T @ KEY_QF


def save_npz(path: Path, total_FF: np.ndarray, n_tokens: int, **others) -> None:
    """Write a running sum under the names that the repositories give it."""
    np.savez(path, **{"mom2.mom2": total_FF, "mom2.count": n_tokens, **others})


@pytest.fixture
def published(tmp_path) -> Path:
    """Make a folder of files as the repositories publish them, of layers 3 and 17."""
    for layer in (3, 17):
        path = tmp_path / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz"
        save_npz(path, layer * SUM_FF, 50, sample_size=100000)
    return tmp_path


def test_published_sums_become_means_by_the_layer_in_a_files_name(published):
    stats = Stats.load(published)
    assert sorted(stats.moments) == [3, 17]
    assert stats.n_tokens == 50
    np.testing.assert_allclose(stats.moments[17], 17 * SUM_FF / 50, rtol=1e-6)


def test_one_published_file_is_read_by_itself(published):
    one = Stats.load(published / "transformer.h.3.mlp.c_proj_float32_mom2_100000.npz")
    assert list(one.moments) == [3]
    np.testing.assert_array_equal(one.moments[3], Stats.load(published).moments[3])


def test_a_layer_can_be_given_where_the_name_does_not_tell_it(tmp_path):
    save_npz(tmp_path / "mom2.npz", 10 * np.eye(3, dtype=np.float32), 5)
    stats = Stats.load(tmp_path / "mom2.npz", layer=7)
    assert list(stats.moments) == [7]
    np.testing.assert_array_equal(stats.moments[7], 2 * np.eye(3))


def test_a_layer_cannot_be_given_for_several_files(published):
    with pytest.raises(ValueError, match=r"layer=7 is for one file; .* holds 2 \.npz files"):
        Stats.load(published, layer=7)


def test_a_layer_cannot_be_given_for_a_file_of_our_own(published):
    Stats.load(published).save(published / "own.safetensors")
    with pytest.raises(ValueError, match=r"own\.safetensors says its layers itself"):
        Stats.load(published / "own.safetensors", layer=7)


@pytest.fixture(scope="module")
def written(tmp_path_factory, golden, golden_expected) -> tuple[Stats, list[Path]]:
    """Write a golden model's second moments; return them and the files."""
    texts = golden_expected("gpt2")[0]["texts"]
    stats = jaxedit.collect_stats(golden("gpt2"), texts, [1, 2])
    folder = tmp_path_factory.mktemp("npz")
    return stats, write_npz(folder, dict(stats.moments), stats.n_tokens, MODULE)


def test_files_are_written_in_the_repositories_form(written):
    stats, paths = written
    assert paths[0].name == "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
    with np.load(paths[0]) as file:
        assert int(file["mom2.count"]) == stats.n_tokens
        # They compare it with their own setting, and collect anew where it differs.
        assert file["sample_size"] == 100000
        assert file["mom2.mom2"].dtype == np.float32
        assert str(file["mom2.constructor"]) == "util.runningstats.SecondMoment()"
        np.testing.assert_allclose(file["mom2.mom2"] / stats.n_tokens, stats.moments[1], rtol=1e-6)


def test_what_is_written_is_read_back(written):
    stats, paths = written
    again = Stats.load(paths[0].parent)
    for layer in (1, 2):
        np.testing.assert_allclose(again.moments[layer], stats.moments[layer], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("moments.npz", {"mom2.mom2": np.eye(3), "mom2.count": 5}, "the name tells no layer"),
        ("h.3.npz", {"mean": np.eye(3)}, r"holds \['mean'\], expected mom2.mom2 and mom2.count"),
        ("h.3.npz", {"mom2.mom2": np.ones((3, 2)), "mom2.count": 5}, r"has shape \(3, 2\)"),
        ("h.3.npz", {"mom2.mom2": np.eye(3), "mom2.count": 0}, "mom2.count is 0"),
    ],
)
def test_files_with_another_content_are_refused(tmp_path, name, held, message):
    np.savez(tmp_path / name, **held)
    with pytest.raises(ValueError, match=message):
        Stats.load(tmp_path / name)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: np.save(file, np.eye(3)),
        lambda file: file.write(b"<html>not found</html>"),
        lambda file: None,
    ],
    ids=["a lone array", "a web page", "nothing"],
)
def test_files_of_another_kind_are_refused(tmp_path, write):
    with (tmp_path / "h.3.npz").open("wb") as file:
        write(file)
    with pytest.raises(ValueError, match=NOT_WHOLE):
        Stats.load(tmp_path / "h.3.npz")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no \.npz file at .*absent\.npz"):
        Stats.load(tmp_path / "absent.npz")


def test_a_file_that_is_damaged_inside_is_refused(tmp_path):
    path = tmp_path / "h.3.npz"
    noise_FF = np.random.default_rng(0).standard_normal((30, 30))
    np.savez_compressed(path, **{"mom2.mom2": noise_FF, "mom2.count": 5})
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\xff" * 2000 + content[2200:])
    with pytest.raises(ValueError, match=NOT_WHOLE):
        Stats.load(path)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "h.3.npz"
    save_npz(path, np.eye(30), 5)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"\(500 bytes\) is not a whole \.npz file"):
        Stats.load(path)


def header(shape: str, descr: str = "<f4") -> bytes:
    """Make a .npy header of version 1 that claims a shape."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


COUNT, EYE = npy(np.array(5)), npy(np.eye(3))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"mom2.mom2": EYE, "mom2.count.npy": COUNT}, r"expected mom2\.mom2 and mom2\.count"),
        ({"mom2.mom2.npy": header("(1000000, 1000000)")}, "4,000,000,000,000 bytes; 0 are there"),
        ({"mom2.mom2.npy": header("(3, 3)") + b"\0" * 40}, "36 bytes; 40 are there"),
        ({"mom2.mom2.npy": header("(-3, 3)")}, r"claims the shape \(-3, 3\)"),
        ({"mom2.mom2.npy": header("(" * 60)}, "is no array in NumPy's .npy form"),
        ({"mom2.mom2.npy": header("(3, 3)", "|O") + b"\0" * 72}, "holds object; expected real"),
        ({"mom2.mom2.npy": npy(np.eye(3) * 1j)}, "holds complex128; expected real numbers"),
        ({"mom2.mom2.npy": b"text"}, "is no array in NumPy's .npy form"),
        ({"mom2.mom2.npy": EYE, "mom2.count.npy": npy(np.ones(2))}, r"mom2\.count is \[1\. 1\.\]"),
        ({"mom2.mom2.npy": EYE, "mom2.count.npy": npy(np.array(np.inf))}, r"mom2\.count is inf"),
        ({"mom2.mom2.npy": EYE, "mom2.count.npy": npy(np.array(np.nan))}, r"mom2\.count is nan"),
        ({"mom2.mom2.npy": EYE, "mom2.count.npy": npy(np.array(1.5))}, r"mom2\.count is 1\.5"),
        ({"mom2.mom2.npy": EYE, "mom2.count.npy": npy(np.array(5j))}, "holds complex128"),
        ({"mom2.mom2.npy": EYE, "mom2.count.npy": npy(np.array("5"))}, "holds <U1"),
        ({"mom2.mom2.npy": npy(np.full((3, 3), np.nan)), "mom2.count.npy": COUNT}, "finite"),
    ],
)
def test_members_are_what_their_headers_say_and_what_can_be_meant(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "h.3.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=rf"h\.3\.npz.*{message}"):
        Stats.load(tmp_path / "h.3.npz")


def test_zeros_that_would_fill_the_memory_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "h.3.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mom2.count.npy", COUNT)
        with archive.open("mom2.mom2.npy", "w") as file:
            file.write(header("(5000, 5000)"))
            for _ in range(100):
                file.write(bytes(1_000_000))
    with pytest.raises(ValueError, match=r"h\.3\.npz.*100,000,128 bytes out of"):
        Stats.load(tmp_path / "h.3.npz")
