"""Tests that need a process of their own, as their programs are compiled in another way."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

OUTCOMES = "failure", "error", "skipped"  # in a report of pytest


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
