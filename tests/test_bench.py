"""What `jaxedit bench` counts, against torch's own count of a forward pass; that every phase is
measured.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import jaxedit
from jaxedit.bench import (
    BenchConfig,
    Phase,
    attention_flops,
    layer_flops,
    run_bench,
    scaling,
    scoring_flops,
    target_flops,
)
from jaxedit.cli import run
from jaxedit.reports import figures_of_models

TEMPLATES = ("{}", "I am. {}")
NAMES = [
    "load",
    "compile",
    "target",
    "solve",
    "apply",
    "perplexity",
    "perplexity, all layers",
    "stats",
    "keys",
    "sweep",
]
FAMILIES = ("gpt2", "gptj", "llama")


@pytest.fixture
def setup(shared):
    return BenchConfig(
        model=str(shared / "golden" / "gpt2"),
        mesh="",
        dtype=None,
        layer=3,
        n_steps=3,
        templates=TEMPLATES,
        request=jaxedit.Request("{} is based in", "BP", "Munich"),
        requests=[jaxedit.Request("{} lives in", name, "Paris") for name in ("Bob", "Ann")],
        texts=[
            "The Eiffel Tower is located in the city of Paris.",
            " Once upon a time there was a little girl.",
        ],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_a_pass_are_torchs(golden, shared, family):
    """All products with weights; the attention's scores and sums, which depend on lengths, are left
    out.
    """
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / family, attn_implementation="eager"
    ).eval()
    lengths = np.array([7, 12])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        for length in lengths:
            hf_model(torch.ones((1, int(length)), dtype=torch.long))
    by_operation = counter.get_flop_counts()["Global"]
    counted = sum(flops for operation, flops in by_operation.items() if "bmm" not in str(operation))
    config = golden(family).config
    last = (
        2 * config.D * config.V * len(lengths)
    )  # torch also computes the logits of the last tokens
    assert scoring_flops(config, lengths, config.L) + last == counted
    assert 0 < attention_flops(config) < layer_flops(config)


def test_flops_of_a_target(golden):
    """By hand for two templates of known lengths."""
    model = golden("gpt2")
    request = jaxedit.Request("{} lives in", "Bob", "Paris")
    encode = model.tokenizer.encode
    rows = [encode(template.format("Bob lives in Paris")) for template in TEMPLATES]
    n_subject = [len(encode(template.format("Bob"))) for template in TEMPLATES]
    prefix = sum(n - 1 for n in n_subject) + n_subject[0] - 1
    suffix = (
        sum(len(row) - n for row, n in zip(rows, n_subject, strict=True)) + 1
    )  # without the last target token; the KL prompt
    n_target = len(rows[0]) - len(encode("Bob lives in"))
    config, layer = model.config, 3
    above = config.L - 1 - layer
    a_pass = suffix * above * layer_flops(config) + (2 * n_target + 1) * 2 * config.D * config.V
    once = ((prefix + suffix) * (layer + 1) + prefix * above) * layer_flops(config)
    assert target_flops(model, request, TEMPLATES, layer, 1) == once + a_pass
    assert target_flops(model, request, TEMPLATES, layer, 5) == once + 9 * a_pass


def test_every_phase_is_measured(setup):
    seen = []
    found = run_bench(setup, seen.append)
    assert [phase["name"] for phase in found["phases"]] == [phase.name for phase in seen]
    assert [phase.name for phase in seen] == NAMES
    assert all(phase.time_s > 0 for phase in seen if phase.name != "compile")
    assert all(0 < phase.share < 1.5 for phase in seen if phase.share is not None)
    for phase in found["phases"]:
        assert phase["gflop_equivalents"] == pytest.approx(phase["time_s"] * found["matmul_gflops"])
    assert all(phase.peak_bytes > 1e7 for phase in seen)


def test_the_committed_record_is_of_this_command():
    record = json.loads((Path(__file__).parent / "bench_record.json").read_text(encoding="utf-8"))
    assert {"machine", "command", "printed", "others"} <= set(record)
    printed = record["printed"]
    assert set(printed) == {"device", "mesh", "matmul_gflops", "matmul_width", "phases"}
    fields = {*Phase._fields, "gflop_equivalents"}
    assert [phase["name"] for phase in printed["phases"]] == NAMES
    assert all(set(phase) == fields for phase in printed["phases"])


def test_growth(setup, tmp_path):
    found = scaling(setup, counts=(1, 5))
    assert [count for count, _ in found["edits"]] == [1, 5]
    tokens = [count for count, _ in found["tokens"]]
    assert [n / tokens[0] for n in tokens] == [1, 2, 4, 8]
    figures_of_models.draw_scaling(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5_000


def test_templates_are_a_list(tmp_path, capsys):
    (tmp_path / "t.json").write_text(json.dumps({"a": 1}))
    assert run(["jaxedit", "bench", f"--templates={tmp_path / 't.json'}"]) == 2
    assert "expected a JSON list of texts" in capsys.readouterr().err


def test_commands_of_one_process_have_their_own_flags(capsys):
    """Both define --model; neither leaves it behind."""
    for name in ("bench", "plan", "bench"):
        assert run(["jaxedit", name, "--model=no-such-model", "--no_such_flag=1"]) == 2
        assert "no_such_flag" in capsys.readouterr().err
