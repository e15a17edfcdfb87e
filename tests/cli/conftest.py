"""The commands in a folder of their own."""

import functools
import json
import shutil

import pytest
from command_examples import FACTS, TEXTS
from run_command import run_command

import jaxedit


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """A folder with a model, facts and texts under short names; the commands run in it."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(shared / "golden" / "gpt2", folder / "tiny")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A function: arguments -> what `jaxedit` did in the folder; see `run_command`."""
    return functools.partial(run_command, folder)


@pytest.fixture(scope="module")
def tiny(folder):
    return jaxedit.load(str(folder / "tiny"))
