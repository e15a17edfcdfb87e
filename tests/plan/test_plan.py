"""Plans of tiny models against analytic counts, of a real one against what its weights weigh, and
the command.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxedit.bench import attention_flops, layer_flops
from jaxedit.cli import plan as command
from jaxedit.cli import run
from jaxedit.mesh import make_mesh
from jaxedit.plan import chips, models
from jaxedit.plan.chips import find_chip, mesh_of, parse_mesh
from jaxedit.plan.models import CONFIGS, device_bytes, edited_layers, model_on, parameter, read
from jaxedit.plan.phases import PHASES, TARGET, Phase, Workload, moment_length
from jaxedit.plan.plan import PlanConfig, compile_phase, make_plan, no_compilation_cache

SIZES = dict(
    model_type="llama",
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_hidden_layers=6,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    vocab_size=1024,
)
WORK = Workload(layers=(2, 3), requests=20, templates=3, steps=4, length=128)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(SIZES))
    return str(folder)


@pytest.fixture
def pod():
    with no_compilation_cache():
        yield find_chip("v5e:2x4")


def phase(name: str):
    return next(phase for phase in PHASES if phase.name == name)


def forward_flops(config, n_tokens: int, length: int, n_layers: float) -> float:
    """Layers with attention's scores and sums over rows of a length, masked or not."""
    return n_tokens * n_layers * (layer_flops(config) + 4 * config.N * config.H * length)


def overlay_flops(config, n_tokens: int) -> float:
    return 2 * n_tokens * config.F * config.D * len(WORK.layers)


def model_at(mesh, directory: str, dtype=jnp.bfloat16):
    return model_on(mesh, directory, read(directory), dtype, WORK.layers)


@pytest.mark.parametrize(
    ("sizes", "name"), [((1, 8), "perplexity"), ((2, 4), "perplexity, all layers")]
)
def test_counts_are_the_analytic_ones(directory, pod, sizes, name):
    """All that eight devices multiply is what the model multiplies; so loops count as often as they
    run.

    Key-value heads that a larger `model` axis needs copies of are computed as often.
    """
    devices, chip = pod
    model = model_at(mesh_of(devices, *sizes), directory)
    config, n_tokens = model.config, 2048 * sizes[0]
    found = compile_phase(phase(name), model, WORK, chip)
    n_layers = config.L - (WORK.layers[0] if name == "perplexity" else 0)
    head = 2 * n_tokens * config.D * config.V
    expected = (
        forward_flops(config, n_tokens, 128, n_layers) + overlay_flops(config, n_tokens) + head
    )
    assert 8 * found.flops == pytest.approx(expected, rel=0.03)
    assert set(found.flops_by_passes) == {1, 6}  # attention and the overlay are float32
    assert not found.unknown_loops


def test_second_moments_are_counted_in_their_layers(directory, pod):
    devices, chip = pod
    model = model_at(mesh_of(devices, 2, 4), directory)
    config, n_tokens, T = model.config, 2 * 2048, moment_length(model)
    found = compile_phase(phase("second moments"), model, WORK, chip)
    square = n_tokens * 2 * len(WORK.layers) * config.F**2
    # Layers 0 to 3; of the last one, the compiler may leave out what comes after the key.
    whole, less = (forward_flops(config, n_tokens, T, n_layers) for n_layers in (4, 3))
    assert (
        less + square < 8 * found.flops < 1.03 * (whole + square + overlay_flops(config, n_tokens))
    )


def test_a_value_counts_its_steps(directory, pod):
    """A pass over the suffixes and its gradient, in the layers above; the last one's MLP only where
    the loss reads.
    """
    devices, chip = pod
    model = model_at(mesh_of(devices, 1, 8), directory)
    few, many = (
        compile_phase(phase("target"), model, WORK._replace(steps=steps), chip) for steps in (2, 12)
    )
    config = model.config
    n_positions = WORK.requests * (WORK.templates + 1) * TARGET.suffix
    n_read = WORK.requests * (TARGET.n_read * WORK.templates + 1)
    in_layers = n_positions * ((config.L - 2 - 3) * layer_flops(config) + attention_flops(config))
    a_pass = in_layers + n_read * (
        layer_flops(config) - attention_flops(config) + 2 * config.D * config.V
    )
    # More than twice: attention's scores and sums, which the gradient computes again.
    assert 2 < 8 * (many.flops - few.flops) / 10 / a_pass < 2.5
    assert few.bound_s < many.bound_s


def test_the_command_on_the_devices_here(directory, capsys):
    """Without the TPU compiler; no rates are published for them, so there are no bounds."""
    flags = [
        f"--model={directory}",
        "--topology=local",
        "--mesh=data:1",
        "--dtype=float32",
        "--layers=2,3",
        "--requests=20",
    ]
    assert run(["jaxedit", "plan", *flags, "--templates=3", "--steps=4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["phases"]] == [phase.name for phase in PHASES]
    assert found["fits"]
    assert found["smallest"]["mesh"] == {"data": 1, "model": 1}
    assert all(each["bound_s"] is None and not each["unknown_loops"] for each in found["phases"])
    by_name = {each["name"]: each for each in found["phases"]}
    model = model_at(make_mesh("data:1,model:1"), directory, jnp.float32)
    assert by_name["load"]["peak_bytes"] == device_bytes(model.base)
    config, n_tokens = model.config, 2048
    head = 2 * n_tokens * config.D * config.V
    expected = (
        forward_flops(config, n_tokens, 128, config.L) + overlay_flops(config, n_tokens) + head
    )
    assert by_name["perplexity, all layers"]["flops"] == pytest.approx(expected, rel=0.03)
    assert jax.config.values["jax_enable_compilation_cache"]
    command.show(found)
    shown = capsys.readouterr().out
    assert "perplexity, all layers" in shown
    assert "smallest mesh that fits: data:1,model:1" in shown


def test_llama_2_7b_on_eight_chips(pod):
    """Its weights lie in eighths, and devices exchange activations only: twice a layer."""
    devices, chip = pod
    work = WORK._replace(layers=edited_layers("llama-2-7b", read("llama-2-7b")))
    assert work.layers == (4, 5, 6, 7, 8)
    model = model_on(
        mesh_of(devices, 1, 8), "llama-2-7b", read("llama-2-7b"), jnp.bfloat16, work.layers
    )
    found = compile_phase(phase("perplexity, all layers"), model, work, chip)
    assert found.fits
    assert found.argument_bytes == pytest.approx(
        device_bytes((model.base, model.overlay)), rel=0.01
    )
    assert found.argument_bytes == pytest.approx((2 * 6.738e9 + 4 * 5 * 11008 * 4096) / 8, rel=0.01)
    assert found.temporary_bytes < 0.5e9
    assert {name.split()[0] for name in found.sent} == {"all-reduce"}
    activations = 2 * 7 / 8 * 2048 * 4096 * 4
    assert found.sent_bytes == pytest.approx((2 * 32 + 5) * activations, rel=0.01)


def test_what_does_not_fit(directory, pod):
    """The compiler refuses it, and says what it would take; or it fits, but not beside what lies
    there already.
    """
    devices, chip = pod
    model = model_at(mesh_of(devices, 1, 8), directory)
    huge = parameter(model.mesh, "MF", (400_000, 400_000))
    refused = Phase(
        "huge",
        lambda model, work, call: call(jax.jit(lambda w_MF: 2 * w_MF), huge),
        lambda *_: 0,
        lambda *_: "",
    )
    found = compile_phase(refused, model, WORK, chip)
    assert not found.fits
    assert found.peak_bytes == pytest.approx(
        2 * 4 * 400_000**2 / 8, rel=1e-3
    )  # the compiler rounds
    assert found.bound_s is None
    solve = phase("solve")
    crowded = solve._replace(held=lambda model, work: chip.hbm_bytes)
    assert [compile_phase(each, model, WORK, chip).fits for each in (solve, crowded)] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        ("gpt2-xl", 1.558e9),
        ("gpt-j-6b", 6.051e9),
        ("llama-2-7b", 6.738e9),
        ("llama-3-8b", 8.030e9),
        ("llama-3-70b", 70.55e9),
        ("qwen2.5-72b", 72.71e9),
    ],
)
def test_known_models_are_as_large_as_published(name, n_parameters):
    config = read(name)
    model = model_on(
        make_mesh("data:1,model:1"), name, config, jnp.bfloat16, edited_layers(name, config)
    )
    assert sum(array.size for array in model.base.values()) == pytest.approx(n_parameters, rel=1e-3)
    assert set(models.EDITED) <= set(CONFIGS)


def test_two_processes_have_the_compiler_at_once(pod):
    script = "from jaxedit.plan.chips import find; print(len(find('v5p:2x2x2')[0]))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.strip(), done.returncode) == ("8", 0), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read("llama-9"), "expected one of gpt2-xl"),
        (lambda: find_chip("v9:2x4"), "expected CHIP:SHAPE"),
        (lambda: parse_mesh("data=4"), "not one of data:NUMBER, model:NUMBER"),
        (lambda: mesh_of(jax.devices(), 64, 64), "needs 4096 devices"),
        (
            lambda: make_plan(PlanConfig("gpt2-xl", "local", "", "int8", None, 1, 1, 1, 1, True)),
            "float32 or bfloat16",
        ),
        (
            lambda: make_plan(
                PlanConfig("gpt2-xl", "local", "", "float32", None, 0, 1, 1, 1, True)
            ),
            "requests=0: expected at least 1",
        ),
        (
            lambda: make_plan(
                PlanConfig("gpt2-xl", "local", "data:1", "float32", (47,), 1, 1, 1, 1, False)
            ),
            "give some of 0 to 46",
        ),
    ],
)
def test_wrong_input_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jaxedit\[plan\]'"):
        find_chip("v5e:2x4")
