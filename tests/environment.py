"""How tests compute: variables that jax, torch and NumPy read when they are imported.

They are set where this module is imported, which tests/conftest.py does before it imports those.
"""

import importlib.metadata
import os
from pathlib import Path

# Thousands of small programs run once: compiling them well would take longer than running them. Of
# two ways to write fused loops the older compiles in a fifth of the time; jaxlib 0.10 has it.
FAST_COMPILATION, FAST_EXECUTION = (f"--xla_backend_optimization_level={level}" for level in (0, 1))
HAS_OLDER_FUSIONS = importlib.metadata.version("jaxlib").startswith("0.10.")
OLDER_FUSIONS = "--xla_cpu_use_fusion_emitters=false" if HAS_OLDER_FUSIONS else ""
# There is a process for each core: in each one thread computes, and one compiles.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
ONE_COMPILER = "--xla_cpu_parallel_codegen_split_count=1"

DEFAULTS = {
    "JAX_PLATFORMS": "cpu",
    # Modules compile much the same programs, and so does the next run: they share what takes long.
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "XLA_FLAGS": " ".join([FAST_COMPILATION, ONE_THREAD, ONE_COMPILER, OLDER_FUSIONS]).strip(),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)


def flags_of_own_process(item) -> str | None:
    """Return the XLA_FLAGS of the process that a test needs for itself; None: it needs none.

    Where bits are compared, programs are compiled as users' are: the older fusions round
    differently from program to program. A real model computes for so long that it is worth
    compiling it better.
    """
    here = os.environ.get("XLA_FLAGS", "")
    if item.get_closest_marker("same_bits") is not None:
        flags = here.replace(OLDER_FUSIONS, "").replace(ONE_THREAD, "")
    elif item.get_closest_marker("real_model") is not None:
        flags = here.replace(FAST_COMPILATION, FAST_EXECUTION)
    else:
        return None
    return None if flags == here else flags
