"""What takes long to import is imported where it is used, and nothing keeps a global figure."""

import pkgutil
import subprocess
import sys

import jaxedit.analyses
import jaxedit.reports

SLOW = (
    "matplotlib",
    "plotly",
    "sklearn",
    "jinja2",
    "tensorboardX",
    "wandb",
    "mlflow",
    "trackio",
)
DRAW = """
import sys
for name in {modules}:
    __import__(name)
print(*(name for name in {slow} if name in sys.modules))
from jaxedit.reports.comparison_figures import scaling_figure
from jaxedit.reports.figures import save_figure
from pathlib import Path
save_figure(scaling_figure(dict(edits=[(1, 1.0)], tokens=[(1, 1.0)])), Path("figure"))
print("matplotlib.pyplot" in sys.modules)
"""


def test_importing_is_quick_and_drawing_needs_no_pyplot(tmp_path):
    modules = [
        found.name
        for package in (jaxedit.reports, jaxedit.analyses)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    assert {"jaxedit.reports.plots", "jaxedit.reports.trackers.wandb"} <= set(modules)
    program = DRAW.format(modules=modules, slow=SLOW)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "False"]
    assert (tmp_path / "figure.png").is_file()
