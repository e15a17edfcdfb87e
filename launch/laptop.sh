#!/usr/bin/env bash
# The main job on a laptop's CPU: installs what is needed (once), then runs the built-in study.
# Flags pass through, e.g.: bash launch/laptop.sh --config.n_facts=40 --workdir=runs/all
set -euo pipefail
# No extra; without an argument the sourced script would see this script's arguments.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
cd "$root"
JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" exec .venv/bin/jaxedit study "$@"
