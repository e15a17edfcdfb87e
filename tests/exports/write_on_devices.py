"""Write an edited model as a checkpoint on eight devices: FOLDER ORIGIN CONVERTED.

FOLDER holds edit.safetensors and gets eight-golden and eight-converted.
"""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

from jaxedit.exports.hf import write_hf
from jaxedit.exports.written import ExportOptions
from jaxedit.study.edited import open_edit


def main() -> None:
    """Open the edit on both bases and write."""
    folder, origin, converted = map(Path, sys.argv[1:])
    for source, name in ((origin, "golden"), (converted, "converted")):
        edited = open_edit(folder / "edit.safetensors", source=str(source), mesh="data:2,model:4")
        assert edited.model.config.kv_replication == 2
        write_hf(edited, folder / f"eight-{name}", ExportOptions())


if __name__ == "__main__":
    main()
