"""Eight simulated devices give what one gives: perplexity, second moments, logits, edits, generation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MESHES = ("data:8,model:1", "data:4,model:2")


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_eight_devices_equal_one(shared, family):
    """Relative to one device: 1e-5 before, 1e-4 after an optimisation."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "NPROC": "16"}
    script = Path(__file__).parent / "compare.py"
    command = [sys.executable, str(script), str(shared / "golden" / family), *MESHES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["n_available"] == 8
    for mesh, differences in found["differences"].items():
        assert differences.pop("n_devices") == 8, mesh
        for name, difference in differences.items():
            assert difference <= (1e-4 if "rome" in name or name == "logits" else 1e-5), (mesh, name, difference)
