"""Floors by hand, and below what compiled phases need."""

import json

import pytest
from planned import WORK, phase_called, tiny_model

from jaxedit.bytes_moved import NOTHING_MOVED, BytesMoved
from jaxedit.cli import plan as command
from jaxedit.cli import run
from jaxedit.flops import layer_flops
from jaxedit.needs import Need
from jaxedit.plan import plan
from jaxedit.plan.chips import build_mesh
from jaxedit.plan.compile import compile_phase
from jaxedit.plan.floor import floor_seconds
from jaxedit.plan.phases import PHASES
from jaxedit.plan.workload import moment_tokens


def test_no_phase_is_planned_below_its_floor(directory, pod):
    """Products and memory of each floor by hand, for a tiny model on two by four chips."""
    devices, chip = pod
    model = tiny_model(build_mesh(devices, 2, 4), directory)
    config, E = model.config, len(WORK.layers)
    weights = config.L * layer_flops(config) // 2 + config.D * config.V
    n_tokens = 2 * 2048
    whole = phase_called("perplexity, all layers").floor(model, WORK)
    head = 2 * (n_tokens - n_tokens / WORK.row_tokens) * config.D * config.V
    assert whole.flops == n_tokens * config.L * layer_flops(config) + head
    streams = 2 * 4 * config.D * config.L * n_tokens / 2
    assert whole.moved.of_device(model.mesh) == 2 * weights / 4 + streams
    squares = phase_called("second moments").floor(model, WORK)
    n_tokens = 2 * 8 * moment_tokens(config)
    in_layers = 4 * layer_flops(config) - 2 * config.D * config.F
    assert squares.flops == n_tokens * (in_layers + 2 * E * config.F**2)
    for phase in PHASES[1:]:
        floor_s = floor_seconds(phase.floor(model, WORK), model.mesh, chip)
        assert floor_s is not None
        found = compile_phase(phase, model, WORK, chip)
        assert found.floor_s == floor_s
        assert 0 < floor_s < found.bound_s


def test_a_floor_is_the_longer_of_products_and_memory(pod):
    devices, chip = pod
    mesh = build_mesh(devices, 2, 4)
    floor = Need(8 * chip.flops_per_s, BytesMoved(weights=8 * chip.hbm_bandwidth, streams=0.0))
    assert floor_seconds(floor, mesh, chip) == 2
    assert floor_seconds(floor._replace(moved=NOTHING_MOVED), mesh, chip) == 1
    assert floor_seconds(floor, mesh, chip._replace(hbm_bandwidth=None)) is None


def test_phases_are_priced_by_the_hours_of_all_chips(directory, pod, capsys):
    """A plan of one phase, at two a chip-hour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PHASES", (phase_called("solve"),))
        flags = ("--topology=v5e:2x4", "--mesh=data:2,model:4", "--layers=2,3", "--nosuggest")
        assert run(["jaxedit", "plan", f"--model={directory}", *flags, "--price=2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    chip_hours = found["phases"][0]["bound_s"] * 8 / 3600
    assert found["chip_hours"] == pytest.approx(chip_hours)
    assert found["price"] == pytest.approx(2 * chip_hours)
    command.show(found)
    shown = capsys.readouterr().out
    assert "all phases once" in shown
    assert "bound / floor" in shown
