"""The .npz files of other repositories: read as they publish them, written as they read them,
refused where they are not.
"""

import numpy as np
import pytest

import jaxedit
from jaxedit.stats.npz import write_npz
from jaxedit.stats.second_moments import Stats

MODULE = "transformer.h.{}.mlp.c_proj"


def test_as_the_repositories_publish_it(tmp_path):
    """Sums and counts under their names, the layer in the file's name."""
    key_NF = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    for layer in (3, 17):
        path = tmp_path / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz"
        np.savez(
            path,
            **{"mom2.mom2": layer * key_NF.T @ key_NF, "mom2.count": 50, "sample_size": 100000},
        )
    stats = Stats.load(tmp_path)
    assert sorted(stats.moments) == [3, 17]
    assert stats.n_tokens == 50
    np.testing.assert_allclose(stats.moments[17], 17 * key_NF.T @ key_NF / 50, rtol=1e-6)
    one = Stats.load(tmp_path / "transformer.h.3.mlp.c_proj_float32_mom2_100000.npz")
    np.testing.assert_array_equal(one.moments[3], stats.moments[3])


def test_whose_layer_is_given(tmp_path):
    path = tmp_path / "mom2.npz"
    np.savez(path, **{"mom2.mom2": 10 * np.eye(3, dtype=np.float32), "mom2.count": 5})
    stats = Stats.load(path, layer=7)
    assert list(stats.moments) == [7]
    np.testing.assert_array_equal(stats.moments[7], 2 * np.eye(3))
    np.savez(tmp_path / "h.3.npz", **{"mom2.mom2": np.eye(3), "mom2.count": 5})
    with pytest.raises(ValueError, match=r"layer=7 is for one file; .* holds 2 \.npz files"):
        Stats.load(tmp_path, layer=7)
    stats.save(tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"own\.safetensors says its layers itself"):
        Stats.load(tmp_path / "own.safetensors", layer=7)


def test_there_and_back(tmp_path, golden, golden_expected):
    texts = golden_expected("gpt2")[0]["texts"]
    stats = jaxedit.collect_stats(golden("gpt2"), texts, [1, 2])
    paths = write_npz(tmp_path / "npz", dict(stats.moments), stats.n_tokens, MODULE)
    assert paths[0].name == "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
    with np.load(paths[0]) as file:
        assert int(file["mom2.count"]) == stats.n_tokens
        assert (
            file["sample_size"] == 100000
        )  # they compare it with their own and gather anew where it differs
        assert (file["mom2.mom2"].dtype, str(file["mom2.constructor"])) == (
            np.float32,
            "util.runningstats.SecondMoment()",
        )
        np.testing.assert_allclose(file["mom2.mom2"] / stats.n_tokens, stats.moments[1], rtol=1e-6)
    again = Stats.load(tmp_path / "npz")
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
def test_that_is_something_else(tmp_path, name, held, message):
    np.savez(tmp_path / name, **held)
    with pytest.raises(ValueError, match=message):
        Stats.load(tmp_path / name)


def test_that_is_none(tmp_path):
    path = tmp_path / "h.3.npz"
    for write in (
        lambda file: np.save(file, np.eye(3)),
        lambda file: file.write(b"<html>not found</html>"),
        lambda file: None,
    ):
        with path.open("wb") as file:
            write(file)
        with pytest.raises(ValueError, match=r"h\.3\.npz \(.* bytes\) is not a whole \.npz file"):
            Stats.load(path)
    with pytest.raises(ValueError, match=r"there is no \.npz file at .*absent\.npz"):
        Stats.load(tmp_path / "absent.npz")


def test_damaged_inside(tmp_path):
    path = tmp_path / "h.3.npz"
    np.savez_compressed(
        path, **{"mom2.mom2": np.random.default_rng(0).standard_normal((30, 30)), "mom2.count": 5}
    )
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\xff" * 2000 + content[2200:])
    with pytest.raises(ValueError, match=r"h\.3\.npz \(.* bytes\) is not a whole \.npz file"):
        Stats.load(path)


def test_cut_short(tmp_path):
    path = tmp_path / "h.3.npz"
    np.savez(path, **{"mom2.mom2": np.eye(30), "mom2.count": 5})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"\(500 bytes\) is not a whole \.npz file"):
        Stats.load(path)
