#!/usr/bin/env bash
# One machine with NVIDIA GPUs: installs jaxedit with CUDA into .venv (once), then runs it.
#   bash launch/gpu.sh study --config=configs/paper.py:gpt2-xl --config.mesh=data:2,model:2
# --dry-run as the first argument prints the commands and runs none.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry=""
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi

call() {
    if [[ -n "$dry" ]]; then
        printf '%q' "$1" && printf ' %q' "${@:2}" && echo
    else
        "$@"
    fi
}

if [[ $# -eq 0 ]]; then
    echo "gpu.sh: nothing to run was given, e.g. bash launch/gpu.sh study --workdir=runs/all" >&2
    exit 2
fi
cd "$root"
call bash launch/setup.sh cuda
# Without GPUs it ends with an error instead of running on the CPU.
platforms="${JAX_PLATFORMS:-cuda,cpu}"
# By default XLA's sums on GPUs differ from run to run.
flags="${XLA_FLAGS:---xla_gpu_deterministic_ops=true}"
call env JAX_PLATFORMS="$platforms" XLA_FLAGS="$flags" .venv/bin/jaxedit "$@"
