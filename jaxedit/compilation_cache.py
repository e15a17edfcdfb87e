"""The folder where compiled programs are kept between runs, so that a second run compiles nothing.

A program compiled for one CPU may not run on another, and home folders are shared between machines:
each kind of CPU and each version of jaxlib has a folder of its own. $JAX_COMPILATION_CACHE_DIR
overrides the place, $JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
"""

import hashlib
import logging
import math
import platform
import tempfile
from pathlib import Path

import jax
import jaxlib

from jaxedit.files import cache_folder
from jaxedit.remote import is_remote

MAX_BYTES = 2 * 2**30
MAPS = Path("/proc/self/maps")  # of Linux: a line each
MAX_MAPS = Path("/proc/sys/vm/max_map_count")
CPU_FIELDS = ("model name", "flags", "Features")  # of /proc/cpuinfo; the last on ARM


def enable_compilation_cache() -> str | None:
    """Enable JAX's compilation cache in a folder of the user's cache, and return the folder.

    None where it is off: it was turned off, or nothing can be written there, as a line of the log
    says then. A folder of programs that can only be read is read.
    """
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    chosen = jax.config.values["jax_compilation_cache_dir"]
    folder = chosen or str(cache_folder() / f"xla-{jaxlib.__version__}-{cpu_kind()}")
    if not is_remote(folder):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            if not any(Path(folder).glob("*")):
                logging.getLogger("jaxedit").warning(
                    f"{folder} cannot be written ({error.strerror}): what is compiled is not kept "
                    "for the next run. $XDG_CACHE_HOME or $JAX_COMPILATION_CACHE_DIR names another "
                    "folder"
                )
                jax.config.update("jax_compilation_cache_dir", None)
                return None
            # Nothing is written, nor thrown out for room, which takes a lock file in the folder.
            jax.config.update("jax_compilation_cache_dir", folder)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
            return folder
    if chosen:
        return folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    # Every program is kept, however small and however fast to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def cpu_kind(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return eight hex digits for the kind of CPU: its model and its instruction sets."""
    about = platform.machine() + platform.processor()
    if cpuinfo.is_file():
        first_cpu = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        for line in first_cpu.splitlines():
            if line.split(":")[0].strip() in CPU_FIELDS:
                about += line
    return hashlib.sha256(about.encode()).hexdigest()[:8]


def forget_programs_if_many() -> bool:
    """Forget all compiled programs where they take half of the memory maps that there may be.

    A program on a CPU takes hundreds of maps, and where a process has no more it dies. What is
    needed again comes back from the compilation cache. Returns whether they were forgotten.
    """
    if not (MAPS.is_file() and MAX_MAPS.is_file()):
        return False
    with MAPS.open("rb") as lines:
        n_maps = sum(1 for _ in lines)
    if n_maps <= int(MAX_MAPS.read_text()) // 2:
        return False
    jax.clear_caches()
    return True
