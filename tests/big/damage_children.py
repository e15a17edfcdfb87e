"""The studies of `damage_study.py`, and processes that run them: to be killed, or two at once."""

import json
import resource
import time
from pathlib import Path
from typing import Any

UNLIMITED = resource.RLIM_INFINITY
NAMES = ("BP", "Bob", "Sony", "Ann", "Tim", "Sam")
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl who lived in the forest.",
]
TEMPLATES = ("{}", "I am. {}")
GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "gpt2"
ROME: dict[str, Any] = dict(layer=3, v_num_grad_steps=3, context_templates=TEMPLATES)
MEMIT: dict[str, Any] = dict(
    layers=(2, 3),
    v_num_grad_steps=3,
    mom2_adjustment=False,
    mom2_update_weight=1.0,
    context_templates=(("{}",), ("I am. {}",)),
)
# Name -> method, hyper-parameters, keys.
STUDIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rome": ("rome", ROME, dict(eval=dict(retention_every=2))),
    "memit-sequential": ("memit-sequential", MEMIT, {}),
    "single": ("rome", ROME, dict(mode="single", single_batch_size=2)),
    "ft": ("ft", dict(layers=(3,), num_steps=2), dict(journal_dense_every=2)),
}


def config_of(name: str, inputs: Path, model: str = str(GOLDEN)) -> Any:
    """Return the configuration of a study by its name; facts and texts lie in `inputs`."""
    from jaxedit.study.config import default_config

    method, hyper, keys = STUDIES[name]
    config = default_config(method, **hyper)
    facts, texts = inputs / "facts.json", inputs / "texts.json"
    config.update(model=model, facts=str(facts), texts=str(texts))
    config.guard.update(max_ppl_ratio=1e6, action="keep")
    for key, value in keys.items():
        config[key].update(value) if isinstance(value, dict) else config.update({key: value})
    return config


def write_inputs(folder: Path) -> None:
    """Write the facts and texts of all studies."""
    fact = {"prompt": "{} lives in", "target_new": "Paris"}
    folder.mkdir(parents=True, exist_ok=True)
    facts = [{**fact, "subject": name} for name in NAMES]
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "texts.json").write_text(json.dumps(TEXTS))


def set_up(cache: Path, n_devices: int = 1) -> None:
    """Set up JAX in a process that has not used it yet."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", n_devices)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def run_child(
    name: str,
    inputs: Path,
    workdir: Path,
    said: Path,
    *,
    pause_s: float = 0.0,
    process: tuple[int, int] | None = None,
    locks: bool = True,
    max_file_bytes: int | None = None,
) -> None:
    """Run or continue a study in this process, and write to `said` how it ended.

    Args:
      name: of the study.
      inputs: the folder of its facts and texts.
      workdir: its folder.
      said: a file; while the study runs it holds the last step.
      pause_s: how long each step waits.
      process: the port of process 0, and which of two processes this is; None: it is alone.
      locks: whether the file system has locks.
      max_file_bytes: the disk is full for a file at so many bytes.
    """
    from jaxedit.distributed import process_workdir, start_processes
    from jaxedit.study.loop import run_study

    set_up(inputs / "cache", 1 if process is None else 2)
    if not locks:
        take_locks_away()
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, UNLIMITED))
    try:
        if process is not None:
            start_processes(f"localhost:{process[0]}", 2, process[1])
            workdir = process_workdir(workdir)

        def on_step(record: Any, total: int) -> None:
            said.write_text(f"step {record.step}")
            time.sleep(pause_s)

        run_study(config_of(name, inputs), workdir, on_step)
        end = "done"
    except (ValueError, OSError) as error:
        end = f"refused: {error}"
    except BaseException as error:
        end = f"traceback: {error!r}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
    said.write_text(end)


def take_locks_away() -> None:
    """Make the file system one without locks."""
    import filelock

    def acquire(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no locks here")

    filelock.FileLock.acquire = acquire  # type: ignore[method-assign]


def undo_child(workdir: Path, said: Path) -> None:
    """Take the first edit out of a study in this process."""
    from jaxedit.study.undo import undo_steps

    try:
        undo_steps(workdir, [1])
        said.write_text("done")
    except (ValueError, OSError) as error:
        said.write_text(f"refused: {error}")
    except BaseException as error:
        said.write_text(f"traceback: {error!r}")
