#!/usr/bin/env bash
# Installs what the tests need (once), checks style and types, runs the tests. Arguments pass through to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
JAX_PLATFORMS=cpu exec .venv/bin/python -m pytest "$@"
