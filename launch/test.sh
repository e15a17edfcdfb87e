#!/usr/bin/env bash
# Installs what the tests need (once), checks style and types, runs the tests.
#   bash launch/test.sh            everything: about 20 minutes on two cores (tests/README.md)
#   bash launch/test.sh -m fast    the files that take seconds: about 4 minutes
# Arguments pass through to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
# A file stays in one process: its tests share what they compile. Files in the order of
# tests/conftest.py, the slow ones first.
JAX_PLATFORMS=cpu exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder "$@"
