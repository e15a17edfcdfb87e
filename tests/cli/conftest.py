"""The commands in a folder of their own, run as a person or a script runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_examples import FACTS, TEXTS

import jaxedit


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """A folder with a model, facts and texts under short names; the commands run in it."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(shared / "golden" / "gpt2", folder / "tiny")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """The folder of compiled programs that all commands share."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def run(folder, compiled):
    """A function: arguments -> the finished process of `python -m jaxedit`; all share a cache of
    compiled programs.
    """
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "COLUMNS": "160",
        "HF_HUB_OFFLINE": "1",
    }

    def command(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "jaxedit", *arguments],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )

    return command


@pytest.fixture(scope="module")
def tiny(folder):
    return jaxedit.load(str(folder / "tiny"))
