"""What the first of several processes does not own, none of them waits for."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from jaxedit.files import exclusive_lock, exclusive_target

PATIENCE_S = 120


def test_what_the_first_process_is_refused_no_process_waits_for(shared, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script, model = Path(__file__).parent / "owners.py", shared / "golden" / "gpt2"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, str(script), str(model), str(tmp_path), f"localhost:{port}"]
    with contextlib.ExitStack() as held:
        for name in ("converted", "stats.safetensors"):
            held.enter_context(exclusive_target(tmp_path / name))
        held.enter_context(exclusive_lock(tmp_path / "work"))
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        both = [subprocess.Popen([*command, str(i)], **pipes) for i in range(2)]
        try:
            outputs = [process.communicate(timeout=PATIENCE_S) for process in both]
        finally:
            for process in both:
                process.kill()
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    for name in ("convert", "stats", "study"):
        assert f"in use by process {os.getpid()}" in first[name], name
        assert "the first process of this run does not own" in second[name], name
    assert first["free"] == second["free"] == ""
    assert not (tmp_path / "converted").exists()
