"""The launch scripts with stand-ins for the tools they call, which write down what they were called
with.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
ROOT = LAUNCH.parent
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci" / "run"]
TOOLS = ("gcloud", "xpk", "kubectl", "sbatch", "srun", "tar")
AWKWARD = ("edit", "--prompt={} is based in", "--set=facts=a b.json", '--target=It\'s "here"')
STAND_IN = """
import pathlib, shlex, sys
folder = pathlib.Path(FOLDER)
with (folder / "calls").open("a") as file:
    file.write(shlex.join([NAME, *sys.argv[1:]]) + "\\n")
fail = folder / "fail"
sys.exit(7 if fail.is_file() and fail.read_text() == NAME else 0)
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder of stand-ins at the front of the path; each adds its arguments to `calls` and fails
    where `fail` names it.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        tool = folder / name
        tool.write_text(
            f"#!{sys.executable}\nFOLDER, NAME = {str(tmp_path)!r}, {name!r}\n{STAND_IN}"
        )
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in (
        "TPU_NAME",
        "ZONE",
        "CLUSTER",
        "DOCKER_IMAGE",
        "SLURM_JOB_ID",
        "SLURM_NTASKS",
        "JAX_PLATFORMS",
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def call(
    script: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a script."""
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(
        command,
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def calls(tools: Path) -> list[list[str]]:
    """What the stand-ins were called with."""
    path = tools / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.is_file() else []


def printed(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that a dry run printed."""
    bash = (
        'while IFS= read -r line; do eval "set -- $line"; printf "%s\\0" "$@"; printf "\\n"; done'
    )
    words = subprocess.run(
        ["bash", "-c", bash], input=done.stdout, capture_output=True, text=True, check=True
    ).stdout
    return [line.removesuffix("\0").split("\0") for line in words.splitlines() if line]


TPU = {"TPU_NAME": "edits", "ZONE": "us-east5-b"}
RUNS = [
    ("tpu_pod.sh", ("create", "v6e-16", "--spot"), TPU),
    ("tpu_pod.sh", ("run", *AWKWARD), TPU),
    ("tpu_pod.sh", ("logs", "3"), TPU),
    ("tpu_pod.sh", ("stop",), TPU),
    ("tpu_pod.sh", ("delete",), TPU),
    (
        "gke_xpk.sh",
        ("create", "edits", "v6e-16", "--num-slices=2", "--", *AWKWARD),
        {"CLUSTER": "c"},
    ),
    ("gke_xpk.sh", ("list",), {"CLUSTER": "c"}),
    ("gke_xpk.sh", ("logs", "edits"), {"CLUSTER": "c"}),
    ("gke_xpk.sh", ("delete", "edits"), {"CLUSTER": "c"}),
]


@pytest.mark.parametrize(("script", "arguments", "environment"), RUNS)
def test_a_dry_run_prints_what_a_run_calls_and_calls_nothing(tools, script, arguments, environment):
    dry = call(script, "--dry-run", *arguments, **environment)
    assert dry.returncode == 0, dry.stderr
    assert calls(tools) == []
    done = call(script, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert calls(tools) == printed(dry)
    assert calls(tools)


@pytest.mark.parametrize(("script", "arguments", "environment"), RUNS)
def test_a_tool_that_fails_ends_the_script_with_its_code(tools, script, arguments, environment):
    (tools / "fail").write_text(
        call(script, "--dry-run", *arguments, **environment).stdout.split()[0]
    )
    assert call(script, *arguments, **environment).returncode == 7


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "message"),
    [
        ("tpu_pod.sh", ("create", "v6e-16"), {}, "TPU_NAME='' ZONE='': set both"),
        ("tpu_pod.sh", ("create", "h100"), TPU, "create 'h100': expected a type of TPU"),
        ("tpu_pod.sh", ("run",), TPU, "nothing to run was given"),
        ("tpu_pod.sh", ("fetch", "/abs"), TPU, "fetch '/abs': expected"),
        ("tpu_pod.sh", ("fly",), TPU, "sub-command 'fly': expected"),
        ("gke_xpk.sh", ("list",), {}, "CLUSTER is not set"),
        ("gke_xpk.sh", ("create", "edits"), {"CLUSTER": "c"}, "expected a type of TPU"),
        ("gke_xpk.sh", ("create", "edits", "v6e-16"), {"CLUSTER": "c"}, "nothing to run was given"),
        ("slurm.sh", (), {}, "nothing to run was given"),
        ("slurm.sh", ("--nodes=2", "study"), {}, "no -- after --nodes=2 study"),
        ("gpu.sh", (), {}, "nothing to run was given"),
    ],
)
def test_wrong_use_says_what_to_do(tools, script, arguments, environment, message):
    done = call(script, *arguments, **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert calls(tools) == []


@pytest.mark.skipif(shutil.which("setsid") is None, reason="the hosts run Linux, which has setsid")
def test_a_run_on_a_pod_reaches_jaxedit_unharmed(tools, tmp_path):
    """What gcloud would run on a host is run here, with a stand-in for jaxedit."""
    call("tpu_pod.sh", "run", *AWKWARD, **TPU)
    ((*_, command, _),) = calls(tools)
    host = tmp_path / "host"
    (host / "jaxedit" / ".venv" / "bin").mkdir(parents=True)
    jaxedit = host / "jaxedit" / ".venv" / "bin" / "jaxedit"
    jaxedit.write_text(
        f"#!{sys.executable}\nimport shlex, sys\nprint(shlex.join(sys.argv[1:]))\nsys.exit(5)\n"
    )
    jaxedit.chmod(0o755)
    subprocess.run(
        ["bash", "-c", command.removeprefix("--command=")], cwd=host, check=True, timeout=30
    )
    logs = ["bash", "-c", "until [ -s run.status ]; do sleep 0.05; done; cat run.log run.status"]
    words = subprocess.run(
        logs, cwd=host / "jaxedit", capture_output=True, text=True, timeout=30, check=True
    ).stdout.splitlines()
    assert shlex.split(words[0]) == [AWKWARD[0], "--distributed=on", *AWKWARD[1:]]
    assert words[1] == "5"  # `logs` ends with it


def test_a_workload_reaches_jaxedit_unharmed(tools):
    call(
        "gke_xpk.sh", "create", "edits", "v6e-16", "--", *AWKWARD, CLUSTER="c", DOCKER_IMAGE="image"
    )
    ((*_, command),) = calls(tools)
    assert shlex.split(command.removeprefix("--command=")) == ["jaxedit", *AWKWARD]


def test_a_slurm_job_is_submitted_and_runs_with_srun(tools, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    done = call("slurm.sh", "--nodes=2", "--", *AWKWARD)
    assert done.returncode == 0, done.stderr
    assert calls(tools)[0] == [
        "sbatch",
        f"--chdir={ROOT}",
        "--nodes=2",
        str(LAUNCH / "slurm.sh"),
        *AWKWARD,
    ]
    (tools / "calls").unlink()
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "jaxedit").touch(mode=0o755)
    done = call("slurm.sh", *AWKWARD, cwd=checkout, SLURM_JOB_ID="1")
    assert done.returncode == 0, done.stderr
    environment = ["env", "JAX_PLATFORMS=cuda,cpu", "XLA_FLAGS=--xla_gpu_deterministic_ops=true"]
    wanted = ["srun", "--kill-on-bad-exit=1", *environment, ".venv/bin/jaxedit", *AWKWARD]
    assert calls(tools) == [wanted]
    dry = call("slurm.sh", "--dry-run", *AWKWARD)
    assert printed(dry)[-1] == wanted
    uneven = call(
        "slurm.sh",
        *AWKWARD,
        cwd=checkout,
        SLURM_JOB_ID="1",
        SLURM_NTASKS="4",
        SLURM_GPUS_PER_NODE="8",
        SLURM_NTASKS_PER_NODE="4",
    )
    assert "--ntasks-per-node=4 with --gpus-per-node=8: give both the same number" in uneven.stderr
    (checkout / ".venv" / "bin" / "jaxedit").unlink()
    assert (
        "submit from the checkout"
        in call("slurm.sh", *AWKWARD, cwd=checkout, SLURM_JOB_ID="1").stderr
    )


def test_gpu_installs_and_runs(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    dry = call("gpu.sh", "--dry-run", *AWKWARD)
    assert printed(dry) == [
        ["bash", "launch/setup.sh", "cuda"],
        [
            "env",
            "JAX_PLATFORMS=cuda,cpu",
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true",
            ".venv/bin/jaxedit",
            *AWKWARD,
        ],
    ]


@pytest.mark.parametrize(
    ("n_nodes", "joins"),
    [("1", []), ("2", ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"])],
)
def test_skypilot_runs_jaxedit(tmp_path, n_nodes, joins):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"]
    jaxedit = tmp_path / ".venv" / "bin" / "jaxedit"
    jaxedit.parent.mkdir(parents=True)
    jaxedit.write_text(f"#!{sys.executable}\nimport shlex, sys\nprint(shlex.join(sys.argv[1:]))\n")
    jaxedit.chmod(0o755)
    environment = os.environ | {
        "ARGS": shlex.join(AWKWARD),
        "SKYPILOT_NUM_NODES": n_nodes,
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1",
    }
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shlex.split(done.stdout) == [*AWKWARD, *joins]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_clean(script):
    lines = script.read_text().splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 100
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [str(checker), "-x", "-P", "SCRIPTDIR", str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
