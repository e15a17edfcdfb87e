"""Endurance: seconds an edit and memory over a long sequence of edits.

    python tests/big/endurance.py --model=MODEL --facts=counterfact.json --workdir=FOLDER \\
        --name="tiny llama" --n_facts=2000 --n_passes=4 [--layer=3] [--texts=ME-PPL_50.json]

A measurement, not a test. ROME writes the facts one after the other into one model, all kept; after
each edit the perplexity is measured, and the wall time, the processor time and the resident memory
of the process are noted. Results go to tests/big/endurance.json as they come. The same command goes
on where it was interrupted; seconds and memory of the edits after that are a new process's, as the
figure shows. The figure goes to tests/big/endurance.png, one row a model in the results.
"""

import json
import time
from pathlib import Path

import numpy as np
import psutil
from absl import app, flags

from jaxedit.files import read_json, write_atomic
from jaxedit.reports.figures import new_figure, save_figure
from jaxedit.study.config import default_config
from jaxedit.study.loop import run_study

MODEL = flags.DEFINE_string("model", "smollm2-135m", "the model, as --config.model takes it")
FACTS = flags.DEFINE_string("facts", "builtin", "facts, as --config.facts takes them")
TEXTS = flags.DEFINE_string("texts", "builtin", "texts for the perplexity")
WORKDIR = flags.DEFINE_string("workdir", None, "the study's folder", required=True)
NAME = flags.DEFINE_string("name", None, "what the model is called in the figure", required=True)
N_FACTS = flags.DEFINE_integer("n_facts", 200, "how many facts")
N_PASSES = flags.DEFINE_integer("n_passes", 20, "forward passes for a value")
LAYER = flags.DEFINE_integer("layer", 5, "the edited layer")

RESULTS = Path(__file__).with_suffix(".json")
MIB = 2**20


def study_config():
    """Return a study that keeps every edit, however bad."""
    config = default_config("rome", v_num_grad_steps=N_PASSES.value, layer=LAYER.value)
    config.update(
        model=MODEL.value,
        facts=FACTS.value,
        texts=TEXTS.value,
        n_facts=N_FACTS.value,
        guard=dict(action="keep"),
    )
    return config


def run() -> None:
    """Run the study, or go on with it, and note what each new edit costs."""
    results = read_json(RESULTS) if RESULTS.is_file() else {}
    rows = results.setdefault(NAME.value, [])
    process, began, cpu = psutil.Process(), time.perf_counter(), time.process_time()

    def note(record, total) -> None:
        nonlocal began, cpu
        now, cpu_now = time.perf_counter(), time.process_time()
        if record.step > len(rows):
            rows.append(
                {
                    "step": record.step,
                    "time_s": round(now - began, 4),
                    "cpu_s": round(cpu_now - cpu, 4),
                    "memory_mib": round(process.memory_info().rss / MIB, 1),
                    "process": process.pid,
                }
            )
            if record.step % 10 == 0 or record.step == total:
                write_atomic(RESULTS, json.dumps(results) + "\n")
        began, cpu = time.perf_counter(), time.process_time()

    run_study(study_config(), Path(WORKDIR.value), note)
    write_atomic(RESULTS, json.dumps(results) + "\n")


def summarise() -> None:
    """Print seconds and memory at the beginning, in the middle and at the end."""
    for name, rows in read_json(RESULTS).items():
        n_rows = len(rows)
        width = max(n_rows // 20, 1)
        print(f"{name}: {n_rows} edits")
        for at in (width, n_rows // 2, n_rows - width):
            part = rows[at : at + width]
            cpu, memory = (np.median([row[key] for row in part]) for key in ("cpu_s", "memory_mib"))
            print(f"  edits {at + 1} to {at + len(part)}: {cpu:.3f} s of CPU, {memory:,.0f} MiB")


def draw() -> None:
    """Draw the seconds of CPU and the memory of each edit, a row a model."""
    results = read_json(RESULTS)
    figure = new_figure(9, 2.6 * len(results))
    axes = figure.subplots(len(results), 2, squeeze=False)
    for (name, rows), (left, right) in zip(results.items(), axes, strict=True):
        steps = [row["step"] for row in rows]
        cpu_s = np.array([row["cpu_s"] for row in rows])
        top = 2 * float(np.median(cpu_s))
        left.plot(steps, cpu_s, ".", markersize=3, color="#2166ac")
        left.set_ylim(bottom=0, top=top)
        above = f"above the figure, compiling: {np.sum(cpu_s > top):,} of {len(rows):,}"
        left.text(0.02, 0.05, above, transform=left.transAxes, fontsize=8)
        left.set_ylabel("CPU, seconds an edit")
        right.plot(steps, [row["memory_mib"] for row in rows], color="#b2182b")
        right.set_ylim(bottom=0)
        right.set_ylabel("resident memory, MiB")
        for axis in (left, right):
            axis.set_title(f"{name}, {len(rows):,} edits", fontsize=10)
            axis.set_xlabel("edit")
    save_figure(figure, RESULTS.with_suffix(""))


def main(argv: list[str]) -> None:
    """Run what is left, print the summary, draw the figure."""
    run()
    summarise()
    draw()


if __name__ == "__main__":
    app.run(main)
