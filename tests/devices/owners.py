"""Run as one of two processes: what is refused in the first one is refused in both.

    owners.py MODEL FOLDER HOST:PORT I

FOLDER is written by another process. Prints one JSON object: what each call said.
"""

import json
import sys
from pathlib import Path

import jaxedit
from jaxedit.distributed import own_target, own_workdir, start_processes
from jaxedit.models.orbax import write_orbax


def said(call) -> str:
    """Return what a call is refused with; empty where it is not."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def own(owner, place: Path) -> None:
    with owner(place):
        pass


def main() -> None:
    """Print what was said."""
    directory, folder, coordinator, number = sys.argv[1:]
    start_processes(coordinator, 2, int(number))
    model, folder = jaxedit.load(directory, mesh="data:2,model:1"), Path(folder)
    work = folder / "work" if number == "0" else folder / "temporary"
    found = {
        "convert": said(lambda: write_orbax(model, Path(directory), folder / "converted")),
        "stats": said(lambda: own(own_target, folder / "stats.safetensors")),
        "study": said(lambda: own(own_workdir, work)),
        "free": said(lambda: own(own_target, folder / "free")),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
