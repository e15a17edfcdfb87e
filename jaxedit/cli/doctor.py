"""Check this installation: versions, devices, memory, the model package; one remedy for each thing
amiss.

jaxedit doctor
"""

import importlib.metadata
import os
import sys
from typing import Any

from jaxedit.cli._flags import FLAGS, json_flag
from jaxedit.cli._output import print_json

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
    """The flags of this command."""
    json_flag()


def main() -> None:
    """Looks and prints; raises where the default run could not work."""
    found, amiss = check_installation()
    if FLAGS.json:
        print_json({**found, "amiss": amiss})
    else:
        for name, value in found.items():
            print(f"{name:14s}{value}")
        print(
            "\n"
            + (
                "\n".join(f"amiss: {what}\n  remedy: {remedy}" for what, remedy in amiss.items())
                or "all is well"
            )
        )
    if amiss:
        raise ValueError(f"{len(amiss)} thing{'s' * (len(amiss) > 1)} amiss: {'; '.join(amiss)}")


def check_installation() -> tuple[dict[str, Any], dict[str, str]]:
    """What there is, and what is amiss with its remedy."""
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    amiss: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            amiss[f"{package} is not installed"] = f"pip install {package}"
    try:
        import jax

        devices = jax.devices()
        found["devices"] = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    except Exception as error:  # whatever a broken driver raises
        amiss[f"jax finds no device: {str(error).splitlines()[0]}"] = (
            "JAX_PLATFORMS=cpu runs on the CPU"
        )
    total_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    found["memory"] = f"{total_gb:.1f} GB, {os.cpu_count()} cores"
    if "SC_AVPHYS_PAGES" in os.sysconf_names:  # not on a Mac
        found["memory"] += (
            f", {os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB free"
        )
    if total_gb < NEEDED_GB:
        amiss[f"{total_gb:.1f} GB of memory"] = (
            f"{NEEDED_GB:.0f} GB are needed; --config.dtype=bfloat16 halves the model"
        )
    try:
        from jaxedit.models.load import built_in_file

        path = built_in_file()
        found["smollm2-135m"] = f"{path.name}, {path.stat().st_size / 1e6:.0f} MB"
    except ValueError as error:
        what, _, remedy = str(error).partition("; ")
        amiss[what] = remedy
    return found, amiss
