"""`jaxedit bench` measures every phase and how costs scale; its committed record is consistent."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import jaxedit
from jaxedit import bench, timing
from jaxedit.bench import BenchConfig, run_bench, scaling
from jaxedit.cli import run
from jaxedit.editors import make_editor
from jaxedit.edits.edit import make_edit
from jaxedit.flops import attention_flops, layer_flops, scoring_flops, value_flops
from jaxedit.reports.comparison_figures import scaling_figure

RECORD = json.loads((Path(__file__).parent / "bench_record.json").read_text(encoding="utf-8"))
LAYER, N_STEPS = 3, 3
TEMPLATES = ("{}", "I am. {}")
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl.",
]
BP = jaxedit.Request("{} is based in", "BP", "Munich")
REQUESTS = [jaxedit.Request("{} lives in", name, "Paris") for name in ("Bob", "Ann")]


@pytest.fixture(scope="module")
def config(shared):
    return BenchConfig(
        model=str(shared / "golden" / "gpt2"),
        mesh="",
        dtype=None,
        layer=LAYER,
        v_num_grad_steps=N_STEPS,
        templates=TEMPLATES,
        request=BP,
        requests=REQUESTS,
        texts=TEXTS,
    )


@pytest.fixture(scope="module")
def measured(config):
    """(what a run returns, the phases that it gave on the way), at a layer published for ROME."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        published = {"rome": {"layer": LAYER}}
        patch.setattr(bench, "published_hyper", lambda method, model: published[method])
        found = run_bench(config._replace(layer=None), seen.append)
    return found, seen


def by_name(measured):
    return {phase.name: phase for phase in measured[1]}


def test_the_phases_are_returned_as_they_were_given(measured):
    found, seen = measured
    for phase, given in zip(found["phases"], seen, strict=True):
        assert {key: phase[key] for key in given._fields} == given._asdict()


def test_every_phase_takes_time_and_memory(measured):
    for phase in measured[1]:
        assert phase.time_s > 0 or phase.name == "compile"  # a program may come from the cache
        assert phase.peak_bytes > 1e7


def test_a_share_is_that_of_the_matmul_rate(measured):
    found, seen = measured
    rate = found["matmul_gflops"] * 1e9
    for phase in seen:
        if phase.flops is not None:
            assert phase.share == pytest.approx(phase.flops / phase.time_s / rate)
            assert 0 < phase.share < 1.5
            per_s = phase.moved_bytes / phase.time_s
            assert phase.bandwidth_share == pytest.approx(per_s / found["memory_gb_per_s"] / 1e9)
            assert phase.bandwidth_share > 0
    for phase in found["phases"]:
        assert phase["gflop_equivalents"] == pytest.approx(phase["time_s"] * rate / 1e9)


def test_without_a_layer_the_published_one_is_edited(measured):
    assert by_name(measured)["perplexity"].about.endswith(f"layers from {LAYER}")
    assert by_name(measured)["stats"].about.startswith(f"layer {LAYER},")


def test_the_flops_of_texts_are_those_of_their_layers(measured, golden):
    model, phases = golden("gpt2"), by_name(measured)
    config, encode = model.config, model.tokenizer.encode
    lengths = np.array([len(encode(text)) for text in TEXTS])
    for name, n_layers in (("perplexity", config.L - LAYER), ("perplexity, all layers", config.L)):
        assert phases[name].flops == scoring_flops(config, lengths, n_layers)
    square = 2 * config.F**2
    assert phases["stats"].flops == lengths.sum() * ((LAYER + 1) * layer_flops(config) + square)


def test_the_flops_of_keys_are_those_of_own_and_shared_tokens(measured, golden):
    """What a template begins with runs once, through the whole layer; prompts up to its key."""
    model = golden("gpt2")
    config, encode = model.config, model.tokenizer.encode
    n_own = n_shared = 0
    for template in TEMPLATES:
        first, second = (encode(template.format(request.subject)) for request in REQUESTS)
        differs = [one != other for one, other in zip(first, second, strict=False)]
        shared = differs.index(True)
        n_shared += shared
        n_own += len(first) + len(second) - 2 * shared
    assert n_shared > 0
    below = LAYER * layer_flops(config)
    own, whole = below + attention_flops(config), below + layer_flops(config)
    assert by_name(measured)["keys"].flops == n_own * own + n_shared * whole


def test_the_flops_of_edits_are_those_of_their_steps(measured, golden):
    """Of the sweep they are the mean over its edits, which may stop early, and a perplexity."""
    model, phases = golden("gpt2"), by_name(measured)
    n_steps = int(phases["edit"].about.split()[-2])
    assert phases["edit"].flops == value_flops(model, BP, TEMPLATES, LAYER, n_steps)
    least, most = (
        np.mean([value_flops(model, request, TEMPLATES, LAYER, n) for request in REQUESTS])
        for n in (1, N_STEPS)
    )
    assert least <= phases["sweep"].flops - phases["perplexity"].flops <= most


def test_a_model_without_a_published_layer_needs_one(config):
    with pytest.raises(ValueError, match=r"no layer is published for rome .*give --layer"):
        scaling(config._replace(layer=None))


class Clock:
    """A clock that goes on by what is done; repetitions differ, and the least is the true time."""

    delays = (100.0, 3.0, 0.0, 2.0)  # of the first run, which compiles, the second, ...

    def __init__(self):
        self.now = 0.0
        self.n_runs = {}

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float, name: str) -> None:
        n_before = self.n_runs.get(name, 0)
        self.n_runs[name] = n_before + 1
        self.now += seconds + self.delays[n_before]


@pytest.fixture
def scaled(config, monkeypatch):
    """What is measured where an edit takes a second for each edit that the model has already, and
    a perplexity a second for each token."""
    clock, rome = Clock(), make_editor("rome", layer=LAYER, context_templates=TEMPLATES)

    def edit(model, requests, state):
        n_edits = len(model.metadata.history)
        clock.spend(n_edits, f"edit after {n_edits}")
        u_FR, v_RD = np.ones((model.config.F, 1)), np.ones((1, model.config.D))
        delta = jaxedit.LowRank("mlp/w_down", LAYER, u_FR, v_RD)
        return make_edit(model, [delta]), state, {}

    def perplexity(model, texts):
        n_tokens = np.count_nonzero(np.concatenate(texts.packed.segment_GBT))
        clock.spend(n_tokens, f"perplexity of {n_tokens}")

    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(bench, "make_editor", lambda name, **hyper: rome._replace(edit=edit))
    monkeypatch.setattr(bench, "perplexity", perplexity)
    return scaling(config, counts=(1, 5, 12))


def test_edits_scale_with_those_made_before(scaled):
    assert scaled["edits"] == [(1, 1.0), (5, 5.0), (12, 12.0)]


def test_perplexities_scale_with_their_tokens(scaled, golden):
    n_tokens = sum(len(golden("gpt2").tokenizer.encode(text)) for text in TEXTS)
    expected = [(times * n_tokens, float(times * n_tokens)) for times in (1, 2, 4, 8)]
    assert scaled["tokens"] == expected


def test_the_figure_shows_what_was_measured():
    found = {"edits": [(1, 2.0), (10, 3.0)], "tokens": [(7, 0.5), (14, 1.5), (28, 2.5)]}
    drawn = [axes.lines[0].get_xydata().tolist() for axes in scaling_figure(found).axes]
    assert drawn == [[list(point) for point in found[name]] for name in ("edits", "tokens")]


RECORDED = RECORD["printed"]
RATE = RECORDED["matmul_gflops"]  # GFLOPs a second


def digits(value: float, places: int = 4):
    """What was rounded to so many places."""
    return pytest.approx(value, abs=0.5 * 10**-places)


def test_the_record_has_what_the_command_prints(measured):
    found, _ = measured
    assert set(RECORDED) == set(found)
    assert [set(phase) for phase in RECORDED["phases"]] == [set(p) for p in found["phases"]]
    assert [phase["name"] for phase in RECORDED["phases"]] == [p["name"] for p in found["phases"]]
    for recorded, phase in zip(RECORDED["phases"], found["phases"], strict=True):
        assert (recorded["flops"] is None) == (phase["flops"] is None)


def test_the_records_command_has_the_commands_flags(capsys):
    """It gets as far as the file of templates, which is not here."""
    assert run(RECORD["command"].split()) == 2
    assert "templates.json" in capsys.readouterr().err


@pytest.mark.parametrize("phase", RECORDED["phases"], ids=lambda phase: phase["name"])
def test_the_records_numbers_belong_together(phase):
    """Seconds were rounded to four places, the rate to one."""
    seconds, rounded = phase["time_s"], 0.5e-4
    least, most = (seconds - rounded) * (RATE - 0.05), (seconds + rounded) * (RATE + 0.05)
    assert least <= phase["gflop_equivalents"] <= most
    if phase["flops"] is None:
        assert phase["share"] is phase["bandwidth_share"] is None
    else:
        gb_per_s = phase["moved_bytes"] / 1e9 / seconds
        assert phase["bandwidth_share"] == digits(gb_per_s / RECORDED["memory_gb_per_s"], places=2)
        assert phase["share"] == digits(phase["flops"] / 1e9 / phase["gflop_equivalents"])


def test_the_records_flops_are_those_of_its_texts():
    """SmolLM2-135M's sizes; 50 texts of 1352 tokens, edited at layer 5."""
    D, F, N, K, H, V, L = 576, 1536, 9, 3, 64, 49152, 30
    layer = 2 * D * H * (2 * N + 2 * K) + 6 * D * F
    flops = {phase["name"]: phase["flops"] for phase in RECORDED["phases"]}
    head = (1352 - 50) * 2 * D * V
    assert flops["perplexity"] == 1352 * (L - 5) * layer + head
    assert flops["perplexity, all layers"] == 1352 * L * layer + head
    assert flops["stats"] == 1352 * (6 * layer + 2 * F**2)


def test_the_records_peak_only_grows():
    peaks = [phase["peak_bytes"] for phase in RECORDED["phases"]]
    assert peaks == sorted(peaks)
    assert peaks[0] > 135e6 * 4  # the weights in float32


def test_the_records_other_measurements_belong_together():
    others = {each["command"]: each for each in RECORD["others"]}
    whole = others["the phase `perplexity` on the 1,000 texts of ME-PPL_1k"]
    assert whole["gflop_equivalents"] == pytest.approx(
        whole["time_s"] * whole["matmul_gflops"], rel=1e-3
    )
    growth = others["jaxedit bench --texts=ME-PPL_50.json --growth=growth.png"]
    assert [count for count, _ in growth["edits"]] == [1, 10, 100, 1000]
    assert [tokens / 1352 for tokens, _ in growth["tokens"]] == [1, 2, 4, 8]
    edits, tokens = ([seconds for _, seconds in growth[name]] for name in ("edits", "tokens"))
    assert max(edits) < 1.1 * min(edits)  # flat
    for earlier, later in itertools.pairwise(tokens):
        assert 1.8 < later / earlier < 2.2  # linear
    phases = {phase["name"]: phase["time_s"] for phase in RECORDED["phases"]}
    assert edits[0] == pytest.approx(phases["edit"], rel=0.1)
    assert tokens[0] == pytest.approx(phases["perplexity"], rel=0.1)


def test_a_trace_is_of_an_edit_with_its_perplexity(config, tmp_path, monkeypatch):
    ran = []
    for name in ("_time_texts", "_time_keys", "_time_sweep"):
        monkeypatch.setattr(bench, name, lambda *arguments: None)
    monkeypatch.setattr(bench, "perplexity", lambda model, texts: ran.append(model))
    run_bench(config._replace(profile=str(tmp_path / "trace")))
    assert len(ran[0].metadata.history) == 1
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_templates_are_a_list(tmp_path, capsys):
    (tmp_path / "t.json").write_text(json.dumps({"a": 1}))
    assert run(["jaxedit", "bench", f"--templates={tmp_path / 't.json'}"]) == 2
    assert "t.json must hold a list; it holds" in capsys.readouterr().err


def test_commands_of_one_process_have_their_own_flags(capsys):
    """Both define --model; neither leaves it behind."""
    for name in ("bench", "plan", "bench"):
        assert run(["jaxedit", name, "--model=no-such-model", "--no_such_flag=1"]) == 2
        assert "no_such_flag" in capsys.readouterr().err
