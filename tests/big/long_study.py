"""Long studies: seconds to go on with one, and to write its report and page.

    python tests/big/long_study.py --model=MODEL --workdir=FOLDER --n_edits=2000,5000

A measurement, not a test. ROME writes facts of one length into a tiny model, one after the other,
all kept. At each of the numbers of edits a new process goes on with the study by one more edit, and
another one writes its report; the seconds of both, and the sizes of the journal and of the page, go
to tests/big/long_study.json.
"""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

from jaxedit.files import read_json, write_atomic

MODEL = flags.DEFINE_string("model", None, "a tiny model", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "the study's folder", required=True)
N_EDITS = flags.DEFINE_list("n_edits", ["2000", "5000"], "measured after so many edits")

RESULTS = Path(__file__).with_suffix(".json")
NAMES = ("Ann", "Bob", "Tim", "Sam", "Joe", "Kim", "Max", "Eva", "Ben", "Mia")
TARGETS = ("Paris", "London", "Rome", "Berlin")
MB = 1e6


def main(_) -> None:
    """Make the study, and measure it at each length."""
    folder = Path(WORKDIR.value)
    for n_edits in map(int, N_EDITS.value):
        _study(folder, n_edits)
        going_on = _study(folder, n_edits + 1)
        began = time.perf_counter()
        _run("report", f"--workdir={folder / 'run'}")
        report = time.perf_counter() - began
        journal = (folder / "run" / "journal.jsonl").stat().st_size
        found = {
            "one more edit, s": round(going_on, 1),
            "report, s": round(report, 1),
            "journal, MB": round(journal / MB, 1),
            "page, MB": round((folder / "run" / "report.html").stat().st_size / MB, 1),
        }
        results = read_json(RESULTS) if RESULTS.is_file() else {}
        write_atomic(RESULTS, json.dumps(results | {str(n_edits): found}, indent=1) + "\n")
        print(n_edits, found, flush=True)


def _study(folder: Path, n_edits: int) -> float:
    """Run the study up to so many edits; return the seconds."""
    names = itertools.product(NAMES, NAMES, NAMES, NAMES)
    facts = [
        {"prompt": "{} lives in", "subject": " ".join(name), "target_new": TARGETS[i % 4]}
        for i, name in enumerate(names)
    ]
    write_atomic(folder / "facts.json", json.dumps(facts))
    write_atomic(folder / "texts.json", json.dumps(["Ann lives in London.", "Bob is in Rome."]))
    began = time.perf_counter()
    _run(
        "study",
        f"--workdir={folder / 'run'}",
        f"--config.model={MODEL.value}",
        f"--config.n_facts={n_edits}",
        f"--config.facts={folder / 'facts.json'}",
        f"--config.texts={folder / 'texts.json'}",
        "--config.editor.layer=3",
        "--config.editor.v_num_grad_steps=4",
        "--config.guard.action=keep",
        "--config.eval.perplexity_every=20",
    )
    return time.perf_counter() - began


def _run(*arguments: str) -> None:
    """Run a command of jaxedit."""
    command = [sys.executable, "-m", "jaxedit", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    app.run(main)
