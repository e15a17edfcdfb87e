"""Compiled programs are kept in a folder that only the same kind of machine reads."""

import os
import subprocess
import sys

import jax
import pytest

from jaxedit import compilation_cache
from jaxedit.compilation_cache import cpu_kind

SCRIPT = """
import jax, jax.numpy as jnp
from jaxedit.compilation_cache import enable_compilation_cache
print(enable_compilation_cache())
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))))
"""
CPUINFO = (
    "processor\t: 0\nmodel name\t: A\nflags\t\t: avx avx2\ncpu MHz\t\t: 2000.1\n\nprocessor\t: 1\n"
)


def compile_in(home, **variables) -> str:
    """Compile a program in a fresh process; return the folder that it is kept in."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), **variables}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def kept(home) -> set[str]:
    """Return the names of the programs that are kept."""
    return {path.name for path in (home / "jaxedit").rglob("*-cache")}


def test_the_folder_is_that_of_the_kind_of_cpu(tmp_path):
    folder = compile_in(tmp_path)
    assert folder.startswith(str(tmp_path / "jaxedit" / "xla-"))
    assert folder.endswith(cpu_kind())


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    compile_in(tmp_path)
    held = kept(tmp_path)
    assert held
    compile_in(tmp_path)
    assert kept(tmp_path) == held


def test_a_folder_of_the_environment_is_taken(tmp_path):
    mine = str(tmp_path / "mine")
    assert compile_in(tmp_path, JAX_COMPILATION_CACHE_DIR=mine) == mine


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_where_nothing_can_be_written_nothing_is_kept_and_it_is_said_once(tmp_path, variable):
    (tmp_path / "file").write_text("")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", variable: str(tmp_path / "file" / "x")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == "None"
    (line,) = done.stderr.decode().splitlines()
    assert "cannot be written (Not a directory): what is compiled is not kept" in line


def test_a_folder_that_can_only_be_read_is_read(tmp_path):
    """The test may run as a user who can write everywhere, so writing is made to fail."""
    compile_in(tmp_path)
    held = {path: path.stat() for path in (tmp_path / "jaxedit").rglob("*")}
    refuse = "import tempfile\ndef fail(**_): raise PermissionError(13, 'Permission denied')\n"
    refuse += "tempfile.TemporaryFile = fail\n"
    log = "import logging\nlogging.basicConfig(level=logging.DEBUG)\n"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", refuse + log + SCRIPT + "jax.jit(jnp.cos)(jnp.ones(5))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Persistent compilation cache hit" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in held} == {
        path: stat.st_mtime_ns for path, stat in held.items()
    }
    assert set((tmp_path / "jaxedit").rglob("*")) == set(held)


def test_a_cache_that_is_off_needs_no_folder(tmp_path):
    compile_in(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("old", "new"), [("avx2", "avx512"), (": A", ": B")])
def test_machines_differ_by_model_and_instruction_sets(tmp_path, old, new):
    assert kind_of(CPUINFO.replace(old, new), tmp_path) != kind_of(CPUINFO, tmp_path)


def test_machines_do_not_differ_by_their_clock(tmp_path):
    assert kind_of(CPUINFO.replace("2000.1", "1800"), tmp_path) == kind_of(CPUINFO, tmp_path)


def kind_of(text: str, folder) -> str:
    (folder / "cpuinfo").write_text(text)
    return cpu_kind(folder / "cpuinfo")


@pytest.mark.parametrize(("limit", "forgotten"), [("100", True), ("1000000000", False)])
def test_programs_are_forgotten_before_the_system_has_no_maps(
    tmp_path, monkeypatch, limit, forgotten
):
    """On Linux a process dies at the limit, which a few hundred programs reach."""
    (tmp_path / "max_map_count").write_text(limit)
    monkeypatch.setattr(compilation_cache, "MAX_MAPS", tmp_path / "max_map_count")
    traced = []

    @jax.jit
    def double(x):
        traced.append(x)
        return 2 * x

    assert double(1) == 2
    assert compilation_cache.forget_programs_if_many() == forgotten
    assert double(1) == 2
    assert len(traced) == (2 if forgotten else 1)
