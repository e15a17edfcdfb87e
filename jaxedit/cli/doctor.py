"""Check this installation: versions, devices, memory, model package; a remedy for each problem.

jaxedit doctor
"""

import importlib.metadata
import os
import sys
from typing import Any

from jaxedit.cli._flags import FLAGS, json_flag
from jaxedit.cli._output import print_json
from jaxedit.messages import first_line

PACKAGES = (
    "jaxedit",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "numpy",
)
NEEDED_GB = 3.0


def define_flags() -> None:
    """Define the flags of this command."""
    json_flag()


def main() -> None:
    """Check and print; raise where the default run could not work."""
    found, problems = check_installation()
    if FLAGS.json:
        print_json({**found, "problems": problems})
    else:
        lines = [f"{name:14s}{value}" for name, value in found.items()]
        remedies = [f"problem: {what}\n  remedy: {how}" for what, how in problems.items()]
        print("\n".join([*lines, "", *(remedies or ["all is well"])]))
    if problems:
        counted = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise ValueError(f"{counted}: {'; '.join(problems)}")


def check_installation() -> tuple[dict[str, Any], dict[str, str]]:
    """Collect versions and devices; return them with the problems and their remedies."""
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    problems: dict[str, str] = {}
    # Packages and devices.
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            problems[f"{package} is not installed"] = f"pip install {package}"
    try:
        import jax

        devices = jax.devices()
        found["devices"] = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    except Exception as error:  # whatever a broken driver raises
        problems[f"jax finds no device: {first_line(error)}"] = "JAX_PLATFORMS=cpu runs on the CPU"

    # Memory, and the built-in models.
    page_gb = os.sysconf("SC_PAGE_SIZE") / 1e9
    total_gb = os.sysconf("SC_PHYS_PAGES") * page_gb
    found["memory"] = f"{total_gb:.1f} GB, {os.cpu_count()} cores"
    if "SC_AVPHYS_PAGES" in os.sysconf_names:  # not on a Mac
        found["memory"] += f", {os.sysconf('SC_AVPHYS_PAGES') * page_gb:.1f} GB free"
    if total_gb < NEEDED_GB:
        remedy = f"{NEEDED_GB:.0f} GB are needed; --config.dtype=bfloat16 halves the model"
        problems[f"{total_gb:.1f} GB of memory"] = remedy
    from jaxedit.models.built_in import BUILT_IN, DEFAULT, built_in_file

    for name in BUILT_IN:
        try:
            path = built_in_file(name)
            found[name] = f"{path.name}, {path.stat().st_size / 1e6:.0f} MB"
        except ValueError as error:
            if name == DEFAULT:  # others are there for who asked for them
                what, _, remedy = str(error).partition("; ")
                problems[what] = remedy
    return found, problems
