"""The published values: every row is a study that can be built, and configs/README.md says the same
of it.
"""

import runpy
from pathlib import Path

import pytest

import jaxedit
from jaxedit.editors import find_published, method_names
from jaxedit.study.config import editor_from, plain_config, read_config

ROOT = Path(jaxedit.__file__).parents[1]
PATH = ROOT / "configs" / "published.py"
ENTRIES = runpy.run_path(str(PATH))["VARIANTS"]
VALUE_COLUMNS = ("v_num_grad_steps", "v_lr", "v_weight_decay", "kl_factor")
FT_COLUMNS = ("num_steps", "lr", "weight_decay", "kl_factor")
EPOCH_COLUMNS = ("epochs", "lr", "", "")  # no decay, no KL
COLUMNS = {"ft": FT_COLUMNS}
COLUMNS |= dict.fromkeys(("locft-bf", "lora", "crispedit"), EPOCH_COLUMNS)
NO_COLUMNS = ("", "", "", "")
COLUMNS |= dict.fromkeys(("mend", "ultraedit", "stableedit"), NO_COLUMNS)
SHORT = {"λ": "mom2_update_weight", "b": "update_norm_lambda"}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_a_study(entry):
    keys = plain_config(read_config(PATH, entry))
    editor = editor_from(keys["editor"])
    method, model, _ = entry.split("/")
    assert editor.name == method
    assert keys["model"].lower().split("/")[-1].removeprefix("meta-").startswith(model)
    assert keys["mode"] == "sequential"
    assert keys["guard"]["action"] == "keep"


def test_no_method_is_forgotten_and_no_entry_is_there_twice():
    assert {entry.split("/")[0] for entry in ENTRIES} == set(method_names())
    assert len(set(ENTRIES)) == len(ENTRIES)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [  # the released settings of 2402.09656
        (
            "rome/gpt2-xl",
            dict(
                layer=17,
                v_num_grad_steps=20,
                v_weight_decay=0.5,
                clamp_norm_factor=4,
                mom2_adjustment=False,
            ),
        ),
        (
            "rome/gpt-j-6b/paper",
            dict(layer=5, v_num_grad_steps=20, v_lr=0.5, kl_factor=0.0625, mom2_adjustment=False),
        ),
        (
            "rome/llama-2-7b",
            dict(layer=5, v_num_grad_steps=25, v_weight_decay=1e-3, clamp_norm_factor=4),
        ),
        (
            "memit/gpt2-xl",
            dict(
                layers=(13, 14, 15, 16, 17),
                v_num_grad_steps=20,
                clamp_norm_factor=0.75,
                mom2_update_weight=2e4,
            ),
        ),
        (
            "memit/gpt-j-6b",
            dict(
                layers=(3, 4, 5, 6, 7, 8),
                v_num_grad_steps=25,
                v_weight_decay=0.5,
                mom2_update_weight=15000,
            ),
        ),
        (
            "memit/llama-2-7b",
            dict(
                layers=(4, 5, 6, 7, 8),
                v_weight_decay=1e-3,
                clamp_norm_factor=4,
                mom2_adjustment=True,
            ),
        ),
        (
            "ft/gpt2-xl",
            dict(layers=(0,), num_steps=25, lr=5e-4, weight_decay=0, norm_constraint=5e-4),
        ),
        ("ft/llama-2-7b", dict(layers=(21,), norm_constraint=False, objective="last_position")),
        (
            "locft-bf/llama-3-8b",
            dict(layers=(22,), weights=("mlp/w_down",), lr=5e-4, epochs=25, minibatch=100),
        ),
        # where sources differ, the one asked for
        ("rome/gpt2-xl/authors", dict(layer=17, mom2_adjustment=True)),
        (
            "pmet/gpt-j-6b/authors",
            dict(mom2_update_weight=6000, kl_factor=1, v_num_grad_steps=30, v_lr=0.2),
        ),
        ("pmet/gpt-j-6b/easyedit", dict(mom2_update_weight=15000)),
        ("alphaedit/qwen2.5-7b/easyedit", dict(L2=1, nullspace_threshold=2e-2)),
        ("nse/llama-3-8b", dict(alpha=2.5, upper_bound=50, max_iterations=3, neuron_threshold=1)),
    ],
)
def test_values(entry, expected):
    hyper = editor_from(plain_config(read_config(PATH, entry))["editor"]).hyper
    assert {key: getattr(hyper, key) for key in expected} == expected


def test_the_model_that_was_edited():
    assert read_config(PATH).model == "openai-community/gpt2-xl"
    assert (
        read_config(PATH, "alphaedit/llama-3-8b/authors").model
        == "meta-llama/Meta-Llama-3-8B-Instruct"
    )
    assert read_config(PATH, "alphaedit/llama-3-8b/easyedit").model == "meta-llama/Meta-Llama-3-8B"


@pytest.mark.parametrize(
    "entry", ["pmet/qwen2.5-7b", "pmet/gpt-j-6b/paper", "pmet/gpt-j-6b/authors/more", "pmet"]
)
def test_what_was_not_published_raises_and_says_what_was(entry):
    with pytest.raises(
        ValueError,
        match=rf"no values published as '{entry}'; .*MODEL/SOURCE of pmet/gpt2-xl/blue, pmet/gpt-j",
    ):
        read_config(PATH, entry)


def test_an_unknown_method_lists_all():
    known = r"rome/gpt2-xl/paper, .*, ft/qwen2\.5-7b"
    with pytest.raises(ValueError, match=f"no values published as 'grace/gpt2-xl'; .* of {known}"):
        read_config(PATH, "grace/gpt2-xl")


PAPER = PATH.with_name("paper.py")


@pytest.mark.parametrize("entry", runpy.run_path(str(PAPER))["KNOWN"])
def test_the_papers_experiments(entry):
    """A study each: single edits, or a sequence of the facts that the entry names, with the
    published values.
    """
    keys = plain_config(read_config(PAPER, entry))
    name, _, facts = entry.partition("@")
    assert keys["mode"] == ("sequential" if facts else "single")
    assert keys["facts"] == (f"runs/{facts}.json" if facts else "builtin")
    published = name if "/" in name else f"rome/{name}"
    model = published.rpartition("/")[2]
    source = "measured" if model == "smollm2-135m" else "paper"
    editor = plain_config(read_config(PATH, f"{published}/{source}"))["editor"]
    if editor["method"] == "mend":
        editor["network"] = f"runs/mend-{model}/network.safetensors"  # as train-mend writes it
    assert keys["editor"] == editor
    assert keys["guard"]["action"] == "keep"


def test_an_unknown_experiment_lists_all():
    with pytest.raises(
        ValueError,
        match="unknown experiment 'pmet/gpt2-xl'; this configuration knows gpt2-xl, gpt-j-6b",
    ):
        read_config(PAPER, "pmet/gpt2-xl")


def read_cell(name: str, value: str):
    """Read a value of the table: a number, layers as 11-15, or weights as w_gate+w_up."""
    if name == "weights":
        return tuple(f"mlp/{weight}" for weight in value.split("+"))
    if name.endswith("layers"):
        first, last = map(int, value.split("-"))
        return tuple(range(first, last + 1))
    return float(value)


def test_the_table_of_the_readme_has_these_values():
    """Every row of the code is a row of configs/README.md, with all that is the method's own."""
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Published values\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    documented = {
        f"{method}/{model}/{source}": cells
        for method, model, sources, *cells in rows
        for source in sources.split(", ")
    }
    assert set(documented) == set(ENTRIES)
    for entry, (layers, steps, lr, decay, clamp, kl, own, mom2) in documented.items():
        published = plain_config(read_config(PATH, entry))["editor"]
        hyper = editor_from(published).hyper
        edited = getattr(hyper, "layers", None) or (hyper.layer,)
        assert layers == "-".join(map(str, sorted({edited[0], edited[-1]}))), entry
        is_tuning = entry.split("/")[0] in COLUMNS
        columns = COLUMNS.get(entry.split("/")[0], VALUE_COLUMNS)
        found = [float(cell) if cell else "" for cell in (steps, lr, decay, kl)]
        assert found == [getattr(hyper, name) if name else "" for name in columns], entry
        if is_tuning:
            assert (clamp, mom2) == ("", ""), entry
        else:
            assert float(clamp) == hyper.clamp_norm_factor, entry
            assert mom2 == str(hyper.mom2_adjustment).lower(), entry
        named = dict(part.split(" ") for part in own.split(", ") if part)
        named = {SHORT.get(name, name): read_cell(name, value) for name, value in named.items()}
        assert named == {name: published[name] for name in named}, entry
        elsewhere = {"method", "layer", "layers", "mom2_adjustment", "clamp_norm_factor", *columns}
        assert find_published(entry).hyper.keys() - elsewhere == named.keys(), entry
