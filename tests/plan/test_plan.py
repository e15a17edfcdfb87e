"""Plans of tiny models against analytic counts, of a real one against what its weights weigh."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from planned import WORK, phase_called, tiny_model

from jaxedit.cli import plan as command
from jaxedit.cli import run
from jaxedit.flops import attention_flops, layer_flops
from jaxedit.mesh import make_mesh, parse_mesh
from jaxedit.plan import chips
from jaxedit.plan.chips import build_mesh, find_chip
from jaxedit.plan.compile import compile_phase
from jaxedit.plan.floor import load_floor
from jaxedit.plan.models import (
    abstract_model,
    abstract_parameter,
    device_bytes,
    edited_layers,
    read_decoder_config,
)
from jaxedit.plan.phases import PHASES, Phase, whitener_bytes
from jaxedit.plan.plan import PlanConfig, make_plan, smallest_mesh
from jaxedit.plan.workload import VALUE_SHAPE, moment_tokens

LOCAL = PlanConfig(
    model="gpt2-xl",
    topology="local",
    mesh="",
    dtype="float32",
    layers=None,
    n_requests=1,
    n_templates=1,
    v_num_grad_steps=1,
    row_tokens=1,
    suggest=False,
)


def forward_flops(config, n_tokens: int, row_tokens: int, n_layers: float) -> float:
    """Layers with attention's scores and sums over whole rows, masked or not."""
    return n_tokens * n_layers * (layer_flops(config) + 4 * config.N * config.H * row_tokens)


def overlay_flops(config, n_tokens: int, n_parts: int = 2) -> float:
    """A TPU multiplies an edit of bfloat16 weights in two parts."""
    return n_parts * 2 * n_tokens * config.F * config.D * len(WORK.layers)


def scoring_flops(config, n_tokens: int, n_layers: int, n_parts: int = 2) -> float:
    """Rows of texts through some layers, two of them edited, and all their logits."""
    head = 2 * n_tokens * config.D * config.V
    layers = forward_flops(config, n_tokens, WORK.row_tokens, n_layers)
    return layers + overlay_flops(config, n_tokens, n_parts) + head


@pytest.mark.parametrize(
    ("sizes", "name"), [((1, 8), "perplexity"), ((2, 4), "perplexity, all layers")]
)
def test_counts_are_the_analytic_ones(directory, pod, sizes, name):
    """All that eight devices multiply is what the model multiplies; so loops count as they run.

    Key-value heads that a larger `model` axis needs copies of are computed as often.
    """
    devices, chip = pod
    model = tiny_model(build_mesh(devices, *sizes), directory)
    found = compile_phase(phase_called(name), model, WORK, chip)
    n_layers = model.config.L - (WORK.layers[0] if name == "perplexity" else 0)
    expected = scoring_flops(model.config, 2048 * sizes[0], n_layers)
    assert 8 * found.flops == pytest.approx(expected, rel=0.03)
    assert set(found.flops_by_passes) == {1, 3}  # attention's are float32
    assert not found.unknown_loops


def test_second_moments_are_counted_in_their_layers(directory, pod):
    devices, chip = pod
    model = tiny_model(build_mesh(devices, 2, 4), directory)
    config, n_tokens, T = model.config, 2 * 2048, moment_tokens(model.config)
    found = compile_phase(phase_called("second moments"), model, WORK, chip)
    square = n_tokens * 2 * len(WORK.layers) * config.F**2
    # Layers 0 to 3; of the last one, the compiler may leave out what comes after the key.
    most, least = (forward_flops(config, n_tokens, T, n_layers) for n_layers in (4, 3))
    assert least + square < 8 * found.flops
    assert 8 * found.flops < 1.03 * (most + square + overlay_flops(config, n_tokens))


def test_a_value_counts_its_steps(directory, pod):
    """A step is a pass over the suffixes and its gradient, in the layers above.

    The last layer's MLP runs only where the loss reads."""
    devices, chip = pod
    model = tiny_model(build_mesh(devices, 1, 8), directory)
    few, many = (
        compile_phase(phase_called("values"), model, WORK._replace(v_num_grad_steps=n), chip)
        for n in (2, 12)
    )
    config = model.config
    n_positions = WORK.n_requests * (WORK.n_templates + 1) * VALUE_SHAPE.suffix
    n_read = WORK.n_requests * (VALUE_SHAPE.n_read * WORK.n_templates + 1)
    mlp_flops = layer_flops(config) - attention_flops(config)
    above = n_positions * ((config.L - 2 - 3) * layer_flops(config) + attention_flops(config))
    forward = above + n_read * (mlp_flops + 2 * config.D * config.V)
    # More than twice: attention's scores and sums, which the gradient computes again.
    assert 2 < 8 * (many.flops - few.flops) / 10 / forward < 2.5
    assert few.bound_s < many.bound_s


@pytest.fixture(scope="module")
def local_plan(directory):
    """The plan that the command prints for the devices of this machine, without the compiler."""
    flags = ("--topology=local", "--mesh=data:1", "--dtype=float32", "--layers=2,3")
    sizes = ("--n_requests=20", "--n_templates=3", "--v_num_grad_steps=4", "--row_tokens=128")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(command, "print_json", printed.append)
        assert run(["jaxedit", "plan", f"--model={directory}", *flags, *sizes, "--json"]) == 0
    return printed[0]


def test_the_command_plans_what_its_flags_say(local_plan):
    assert local_plan["work"] == WORK._asdict()
    assert [each["name"] for each in local_plan["phases"]] == [phase.name for phase in PHASES]
    assert local_plan["fits"]
    assert local_plan["smallest"]["mesh"] == {"data": 1, "model": 1}
    assert all(not each["unknown_loops"] for each in local_plan["phases"])


def test_without_published_rates_there_are_no_bounds(local_plan):
    assert all(each["bound_s"] is None for each in local_plan["phases"])


def test_a_plan_for_this_machine_counts_the_same(local_plan, directory):
    by_name = {each["name"]: each for each in local_plan["phases"]}
    model = tiny_model(make_mesh("data:1,model:1"), directory, jnp.float32)
    assert by_name["load"]["peak_bytes"] == device_bytes(model.base)
    expected = scoring_flops(model.config, 2048, model.config.L, n_parts=1)
    assert by_name["perplexity, all layers"]["flops"] == pytest.approx(expected, rel=0.03)


def test_a_plan_leaves_the_compilation_cache_on(local_plan):
    assert jax.config.values["jax_enable_compilation_cache"]


def test_a_plan_is_shown_for_people(local_plan, capsys):
    command.show(local_plan)
    shown = capsys.readouterr().out
    assert "perplexity, all layers" in shown
    assert "smallest mesh that fits: data:1,model:1" in shown


def test_llama_2_7b_on_eight_chips(pod):
    """Its weights lie in eighths, and devices exchange activations only: twice a layer.

    An edit's term is summed over the devices together with the output of its layer.
    """
    devices, chip = pod
    config = read_decoder_config("llama-2-7b")
    work = WORK._replace(layers=edited_layers(config))
    mesh = build_mesh(devices, 1, 8)
    model = abstract_model(mesh, "llama-2-7b", config, jnp.dtype("bfloat16"), work.layers)
    found = compile_phase(phase_called("perplexity, all layers"), model, work, chip)
    assert found.fits
    stored = device_bytes((model.base, model.overlay))
    assert found.argument_bytes == pytest.approx(stored, rel=0.01)
    assert found.argument_bytes == pytest.approx((2 * 6.738e9 + 4 * 5 * 11008 * 4096) / 8, rel=0.01)
    assert found.temporary_bytes < 0.5e9
    assert {name.split()[0] for name in found.sent} == {"all-reduce"}
    activations = 2 * 7 / 8 * 2048 * 4096 * 4
    assert found.sent_bytes == pytest.approx(2 * 32 * activations, rel=0.01)


def test_a_program_that_the_compiler_refuses_does_not_fit(directory, pod):
    """The refusal says how much the program would take."""
    devices, chip = pod
    model = tiny_model(build_mesh(devices, 1, 8), directory)
    huge = abstract_parameter(model.mesh, "MF", (400_000, 400_000))

    def double(model, work, call):
        call(jax.jit(lambda w_MF: 2 * w_MF), huge)

    refused = Phase("huge", double, load_floor, lambda model, work: 0, lambda model, work: "")
    found = compile_phase(refused, model, WORK, chip)
    assert not found.fits
    n_bytes = 2 * 4 * 400_000**2 / 8
    assert found.peak_bytes == pytest.approx(n_bytes, rel=1e-3)  # the compiler rounds
    assert found.bound_s is None


def test_a_phase_fits_only_beside_what_lies_there_already(directory, pod):
    devices, chip = pod
    model = tiny_model(build_mesh(devices, 1, 8), directory)
    solve = phase_called("solve")
    crowded = solve._replace(held_bytes=lambda model, work: chip.hbm_bytes)
    assert compile_phase(solve, model, WORK, chip).fits
    assert not compile_phase(crowded, model, WORK, chip).fits


def test_the_smallest_mesh_is_the_first_that_the_study_fits(directory, pod):
    """A chip with too little memory for one device's share of the model and four whiteners."""
    devices, chip = pod

    def model_on(mesh):
        return tiny_model(mesh, directory)

    alone = model_on(build_mesh(devices, 1, 1))
    needed = device_bytes((alone.base, alone.overlay)) + 4 * whitener_bytes(alone, WORK)
    small = chip._replace(hbm_bytes=needed - 1)
    found = smallest_mesh(read_decoder_config(directory), devices, small, WORK, model_on)
    assert dict(found.mesh.shape) == {"data": 1, "model": 2}
    halves = model_on(found.mesh)
    resident = device_bytes((halves.base, halves.overlay)) + whitener_bytes(halves, WORK)
    assert found.resident_bytes == resident
    tiny = chip._replace(hbm_bytes=1)
    assert smallest_mesh(read_decoder_config(directory), devices, tiny, WORK, model_on) is None


@pytest.mark.parametrize(
    ("name", "n_parameters", "layers"),
    [
        ("gpt2-xl", 1.558e9, (13, 17)),
        ("gpt-j-6b", 6.051e9, (3, 8)),
        ("llama-2-7b", 6.738e9, (4, 8)),
        ("llama-3-8b", 8.030e9, (4, 8)),
        ("llama-3-70b", 70.55e9, (10, 14)),  # nothing published: from an eighth of the depth on
        ("qwen2.5-72b", 72.71e9, (10, 14)),
    ],
)
def test_known_models_are_as_published(name, n_parameters, layers):
    """Their number of parameters, and the layers that MEMIT edits."""
    config = read_decoder_config(name)
    assert edited_layers(config) == tuple(range(layers[0], layers[1] + 1))
    mesh, dtype = make_mesh("data:1,model:1"), jnp.dtype("bfloat16")
    model = abstract_model(mesh, name, config, dtype, edited_layers(config))
    assert sum(array.size for array in model.base.values()) == pytest.approx(n_parameters, rel=1e-3)


def test_two_processes_have_the_compiler_at_once(pod):
    script = "from jaxedit.plan.chips import find_chip; print(len(find_chip('v5p:2x2x2')[0]))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.strip(), done.returncode) == ("8", 0), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_decoder_config("llama-9"), "expected one of gpt2-xl"),
        (lambda: find_chip("v9:2x4"), "expected CHIP:SHAPE"),
        (lambda: parse_mesh("data=4", 4), "not one of data:NUMBER, model:NUMBER"),
        (lambda: build_mesh(jax.devices(), 64, 64), "needs 4096 devices"),
        (lambda: make_plan(LOCAL._replace(dtype="int8")), "float32 or bfloat16"),
        (lambda: make_plan(LOCAL._replace(n_requests=0)), "n_requests=0: expected at least 1"),
        (lambda: make_plan(LOCAL._replace(layers=(47,), mesh="data:1")), "give some of 0 to 46"),
    ],
)
def test_wrong_input_is_told_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_the_compiler_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jaxedit\[plan\]'"):
        find_chip("v5e:2x4")
