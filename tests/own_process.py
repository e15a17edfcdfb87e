"""Tests that need a process of their own, as their programs are compiled in another way."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

OLDER_FUSIONS = "--xla_cpu_use_fusion_emitters=false"
FAST_COMPILATION, FAST_EXECUTION = (f"--xla_backend_optimization_level={level}" for level in (0, 1))
OUTCOMES = "failure", "error", "skipped"  # in a report of pytest


def flags_of_own_process(item) -> str | None:
    """Return the XLA_FLAGS of the process that a test needs for itself; None: it needs none.

    The older fusions round differently from program to program. A real model computes for so long
    that it is worth compiling it better.
    """
    here = os.environ.get("XLA_FLAGS", "")
    if item.get_closest_marker("same_bits") is not None:
        flags = here.replace(OLDER_FUSIONS, "")
    elif item.get_closest_marker("real_model") is not None:
        flags = here.replace(FAST_COMPILATION, FAST_EXECUTION)
    else:
        return None
    return None if flags == here else flags


@functools.cache
def run_tests(path: Path, names: tuple[str, ...], flags: str) -> dict[str, tuple[str | None, str]]:
    """Run tests of a file in another process; return what became of each.

    Args:
      path: of the file.
      names: of the tests.
      flags: its XLA_FLAGS.

    Returns:
      For each test "failure", "error" or "skipped" and what was said of it; None and "" where it
      passed.
    """
    tests = [f"{path}::{name}" for name in names]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "0", f"--junitxml={report}", *tests]
        environment = os.environ | {"XLA_FLAGS": flags}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        found: dict[str, tuple[str | None, str]] = dict.fromkeys(names, ("error", done.stdout))
        for case in cases:
            outcome = next((each for each in case if each.tag in OUTCOMES), None)
            text = "" if outcome is None else outcome.text or outcome.get("message", "")
            found[case.attrib["name"]] = (None if outcome is None else outcome.tag, text)
    return found
