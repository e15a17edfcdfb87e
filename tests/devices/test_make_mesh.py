"""Meshes from text: sizes, the rest of the devices, idle ones, and what is refused."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxedit.mesh
from jaxedit.mesh import make_mesh

# Text -> sizes of data and model on eight devices.
WHOLE = {
    "": (8, 1),
    "data:8": (8, 1),
    "data:4,model:2": (4, 2),
    "model:2,data:4": (4, 2),
    "data:-1": (8, 1),
    "model:-1": (1, 8),
    "data:-1,model:4": (2, 4),
    "data:2,model:-1": (2, 4),
}
# Text -> sizes, how many of eight devices are idle, and what would use all.
IDLE = {
    "model:4": ((1, 4), 4, "give --mesh=data:-1,model:4 to use all"),
    "data:2,model:2": ((2, 2), 4, "give --mesh=data:-1,model:2 to use all"),
    "data:1": ((1, 1), 7, "give --mesh=data:-1,model:1 to use all"),
    "data:2,model:3": ((2, 3), 2, "give sizes whose product is 8 to use all"),
}
REFUSED = {
    "data:-1,model:-1": "only one of the sizes can be -1",
    "data:-1,model:3": "8 devices are not divided by 3, so there is no rest for data",
    "model:-1,data:16": "8 devices are not divided by 16, so there is no rest for model",
    "data:4,model:4": "needs 16 devices, 8 are there (cpu); on a CPU, JAX_NUM_CPU_DEVICES=8",
    "data:-2": "'data:-2' is not one of data:NUMBER, model:NUMBER; e.g. --mesh=data:4,model:2",
    "data:0": "'data:0' is not one of data:NUMBER",
    "rows:2": "'rows:2' is not one of data:NUMBER",
    "data": "'data' is not one of data:NUMBER",
}


@pytest.fixture(scope="module")
def found() -> dict:
    """Find what eight devices make of each text: number of hosts -> text -> outcome."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    script = str(Path(__file__).parent / "meshes.py")
    command = [sys.executable, script, *WHOLE, *IDLE, *REFUSED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("spec", WHOLE)
@pytest.mark.parametrize("hosts", ["1", "2"])
def test_a_mesh_of_all_devices_is_made_without_a_word(found, hosts, spec):
    data, model = WHOLE[spec]
    assert found[hosts][spec] == {"shape": {"data": data, "model": model}, "logged": []}


@pytest.mark.parametrize("spec", IDLE)
def test_idle_devices_are_logged_on_one_host(found, spec):
    (data, model), n_idle, remedy = IDLE[spec]
    made = found["1"][spec]
    assert made["shape"] == {"data": data, "model": model}
    (message,) = made["logged"]
    assert message == (
        f"WARNING: mesh {spec!r} uses {8 - n_idle} of 8 devices, {n_idle} would be idle; {remedy}"
    )


@pytest.mark.parametrize("spec", IDLE)
def test_idle_devices_are_an_error_on_several_hosts(found, spec):
    _, n_idle, remedy = IDLE[spec]
    error = found["2"][spec]["error"]
    assert f"{n_idle} would be idle; {remedy}" in error


@pytest.mark.parametrize("spec", REFUSED)
@pytest.mark.parametrize("hosts", ["1", "2"])
def test_texts_that_name_no_mesh_are_refused(found, hosts, spec):
    error = found[hosts][spec]["error"]
    assert error.startswith(f"mesh {spec!r}")
    assert REFUSED[spec] in error


def test_one_device_is_a_mesh_by_itself(caplog):
    with caplog.at_level(logging.WARNING, "jaxedit"):
        mesh = make_mesh("data:-1,model:1")
    assert dict(mesh.shape) == {"data": 1, "model": 1}
    assert not caplog.records


def test_several_hosts_do_not_matter_where_no_device_is_idle(monkeypatch):
    monkeypatch.setattr(jaxedit.mesh.jax, "process_count", lambda: 2)
    assert dict(make_mesh("model:1").shape) == {"data": 1, "model": 1}
