"""`jaxedit stats` and what uses its file, as a person runs them."""

import json

import numpy as np
import pytest
from run_command import run_command

import jaxedit
from jaxedit.stats.collect import shuffle_texts
from jaxedit.stats.second_moments import Stats
from jaxedit.stats.spectra import compare_stats


@pytest.fixture(scope="module")
def corpus_folder(shared, tmp_path_factory):
    """A work folder with a corpus of two files and a link to the tiny model."""
    folder = tmp_path_factory.mktemp("stats")
    lines = (
        (shared / "data" / "text" / "wikitext2_valid.txt").read_text(encoding="utf-8").split("\n")
    )
    sentences = [line[:300] for line in lines if len(line) > 100][:80]
    (folder / "corpus").mkdir()
    for i in range(2):
        (folder / "corpus" / f"{i}.txt").write_text("\n".join(sentences[i::2]), encoding="utf-8")
    (folder / "tiny").symlink_to(shared / "golden" / "gpt2")
    return folder


@pytest.fixture(scope="module")
def made(corpus_folder):
    return run_command(
        corpus_folder,
        "stats",
        "--model=tiny",
        "--layers=2,3",
        "--corpus=corpus",
        "--max_tokens=2000",
        "--check",
        "--npz=npz",
        "--value_norm",
        "--requests=4",
        "--json",
    )


def test_it_is_what_the_library_gathers(made, corpus_folder):
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert (found["out"], found["n_tokens"], sorted(found["layers"])) == (
        "stats.safetensors",
        2000,
        ["2", "3"],
    )
    texts = [
        text
        for i in range(2)
        for text in (corpus_folder / "corpus" / f"{i}.txt").read_text().split("\n")
    ]
    expected = jaxedit.collect_stats(
        jaxedit.load(str(corpus_folder / "tiny")), texts, [2, 3], max_tokens=2000
    )
    stats = Stats.load(corpus_folder / "stats.safetensors")
    for layer in (2, 3):
        np.testing.assert_allclose(
            stats.moments[layer], expected.moments[layer], rtol=1e-5, atol=1e-7
        )
        assert found["layers"][str(layer)]["trace"] == pytest.approx(
            np.trace(expected.moments[layer]), rel=1e-5
        )
    assert stats.made_from["corpus"] == "corpus"
    n_texts = expected.made_from["n_texts"]
    assert sorted(path.name for path in (corpus_folder / "npz").iterdir()) == [
        f"transformer.h.{layer}.mlp.c_proj_float32_mom2_{n_texts}.npz" for layer in (2, 3)
    ]
    assert not (corpus_folder / "stats.part").exists()


def test_it_is_checked_against_the_other_texts(made, corpus_folder):
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)["check"]
    model = jaxedit.load(str(corpus_folder / "tiny"))
    texts = [
        text
        for i in range(2)
        for text in (corpus_folder / "corpus" / f"{i}.txt").read_text().split("\n")
    ]
    stats = Stats.load(corpus_folder / "stats.safetensors")
    others = shuffle_texts(texts, 0)[stats.made_from["n_texts_read"] :]
    assert 0 < len(others) < len(texts)
    expected = jaxedit.collect_stats(model, others, [2, 3], max_tokens=8000)
    assert found["n_tokens"] == expected.n_tokens
    if expected.n_tokens < 8000:
        assert (
            f"holds {expected.n_tokens:,} tokens, fewer than the 8,000 asked for; all were taken"
            in made.stderr
        )
    for layer, numbers in compare_stats(stats, expected).items():
        for name, value in numbers.items():
            assert found["layers"][str(layer)][name] == pytest.approx(value, rel=1e-3)


def test_an_edit_uses_the_file(made, corpus_folder):
    assert made.returncode == 0, made.stderr
    edit = [
        "edit",
        "--model=tiny",
        "--prompt={} is based in",
        "--subject=BP",
        "--target=Munich",
        "--layer=2,3",
        "--json",
    ]
    quick = [
        "--set=editor.v_num_grad_steps=4",
        '--set=editor.context_templates=[["{}"], ["I am. {}"]]',
    ]
    done = run_command(
        corpus_folder,
        *edit,
        "--method=memit",
        "--set=editor.mom2_update_weight=1",
        *quick,
        "--stats=stats.safetensors",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["optimisation"]["norm_layer_2"] > 0
    assert "n_skipped_facts" not in found["optimisation"]


def test_the_mean_norm_of_values_is_kept_and_scaled_to(made, corpus_folder):
    """Of four of the built-in facts, optimised with MEMIT's own values."""
    assert made.returncode == 0, made.stderr
    (layer, norm), *others = json.loads(made.stdout)["value_norms"].items()
    assert (layer, others, norm["n_requests"], norm["n_dropped"]) == ("3", [], 4, 0)
    assert norm["mean"] > 0 < norm["stderr"]
    stats = Stats.load(corpus_folder / "stats.safetensors")
    model = jaxedit.load(str(corpus_folder / "tiny"))
    assert stats.value_norm_of(model, 3) == norm["mean"]
    quick = dict(v_num_grad_steps=2, context_templates=(("{}",),), norm_anchor_scaling=True)
    editor = jaxedit.make_editor("memit", layers=(2, 3), mom2_update_weight=1.0, **quick)
    request = jaxedit.Request("{} is based in", "BP", "Munich")
    _, _, info = editor.edit(model, [request], editor.init(model, stats))
    assert info["n_skipped_facts"] in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--corpus=corpus", "--layers=two"], ["--layers=two", "expected numbers"]),
        (
            ["--corpus=corpus", "--layers=2", "--max_tokens=20"],
            ["gave 20 tokens, fewer than the 192"],
        ),
    ],
)
def test_wrong_input_is_told_in_a_line(corpus_folder, arguments, words):
    done = run_command(
        corpus_folder, "stats", "--model=tiny", "--out=other.safetensors", *arguments
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("jaxedit: error: ")]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line
    assert not (corpus_folder / "other.safetensors").exists()
