"""An import into a model split over eight simulated devices is that of one device."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adapter_examples import logits

import jaxedit

HERE = Path(__file__).parent
PATHS = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE)))


@pytest.mark.parametrize(
    ("family", "mesh"), [("llama", "data:2,model:4"), ("gpt2", "data:4,model:2")]
)
def test_eight_devices(family, mesh, adapter, golden, shared, tmp_path):
    """Llama has two key-value heads, so that four devices hold copies of them."""
    folder, _ = adapter(family)
    arguments = [str(shared / "golden" / family), str(folder), mesh, str(tmp_path / "found.npz")]
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, str(HERE / "on_mesh.py"), *arguments],
        env=os.environ | {"PYTHONPATH": PATHS, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    imported = jaxedit.import_adapter(golden(family), folder)
    np.testing.assert_allclose(found["logits"], logits(imported.model), atol=1e-4, rtol=0)
    assert found["fingerprint"] == imported.base.fingerprint
    norms = [weight.relative_norm for weight in imported.weights]
    np.testing.assert_allclose(found["relative_norms"], norms, rtol=1e-5)
