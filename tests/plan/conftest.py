import json

import pytest
from planned import SIZES

from jaxedit.plan.chips import find_chip
from jaxedit.plan.compile import no_compilation_cache


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(SIZES))
    return str(folder)


@pytest.fixture
def pod():
    """Eight chips: (their devices, what one of them is)."""
    with no_compilation_cache():
        yield find_chip("v5e:2x4")
