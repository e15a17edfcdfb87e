"""Compiled programs are kept in a folder that only the same kind of machine reads."""

import os
import subprocess
import sys

from jaxedit.compilation_cache import cpu_kind

SCRIPT = """
import jax, jax.numpy as jnp
from jaxedit.compilation_cache import keep_compiled
print(keep_compiled())
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))))
"""


def run(home, **more) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu",
        **more,
    }
    environment["XDG_CACHE_HOME"] = str(home)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    folder = run(tmp_path)
    assert folder.startswith(str(tmp_path / "jaxedit" / "xla-"))
    assert folder.endswith(cpu_kind())
    held = {path.name for path in (tmp_path / "jaxedit").rglob("*-cache")}
    assert held
    run(tmp_path)
    assert {path.name for path in (tmp_path / "jaxedit").rglob("*-cache")} == held
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")


def test_machines_differ_by_model_and_abilities(tmp_path):
    one = "processor\t: 0\nmodel name\t: A\nflags\t\t: avx avx2\ncpu MHz\t\t: 2000.1\n\nprocessor\t: 1\n"
    names = []
    for i, text in enumerate(
        (
            one,
            one.replace("2000.1", "1800"),
            one.replace("avx2", "avx512"),
            one.replace(": A", ": B"),
        )
    ):
        (tmp_path / str(i)).write_text(text)
        names.append(cpu_kind(tmp_path / str(i)))
    assert names[0] == names[1]
    assert len(set(names)) == 3
