#!/usr/bin/env bash
# A Slurm job on one or many nodes. The checkout and --workdir lie on a file system that all nodes
# share; in the checkout, once: bash launch/setup.sh cuda
# One node with one GPU; one process with eight GPUs; sixteen processes on two nodes:
#   bash launch/slurm.sh study --workdir=/shared/edits
#   bash launch/slurm.sh --gpus-per-node=8 -- study --workdir=/shared/edits
#   bash launch/slurm.sh --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --partition=spot -- \
#       study --workdir=/shared/edits
# What stands before -- goes to sbatch. `sbatch launch/slurm.sh study ...` in the checkout does the
# same. A preempted job goes back to the queue, and the study goes on from its --workdir; after a
# time limit submit the same line again.
# --dry-run as the first argument prints the commands and runs none.
#SBATCH --job-name=jaxedit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail
dry=""
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi

fail() { echo "slurm.sh: $1" >&2 && exit 2; }
call() {
    if [[ -n "$dry" ]]; then
        printf '%q' "$1" && printf ' %q' "${@:2}" && echo
    else
        "$@"
    fi
}

options=()
if [[ "${1:-}" == -* ]]; then
    while [[ $# -gt 0 && "$1" != -- ]]; do
        options+=("$1") && shift
    done
    [[ $# -gt 0 ]] || fail "no -- after ${options[*]}: expected [SBATCH OPTIONS --] COMMAND ...,\
 e.g. --nodes=2 -- study ..."
    shift
fi
[[ $# -gt 0 ]] ||
    fail "nothing to run was given, e.g. bash launch/slurm.sh study --workdir=/shared/edits"

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    call sbatch --chdir="$root" ${options[@]+"${options[@]}"} "$root/launch/slurm.sh" "$@"
    [[ -n "$dry" ]] || exit 0
    echo "# and in the job:"
# Slurm runs a copy of this file, so the checkout is where the job was submitted.
elif [[ ! -x .venv/bin/jaxedit ]]; then
    fail "no .venv/bin/jaxedit in $PWD: submit from the checkout, after bash launch/setup.sh cuda"
fi
# JAX gives each of several processes the GPU of its number on the node.
gpus="${SLURM_GPUS_PER_NODE:-}" tasks="${SLURM_NTASKS_PER_NODE:-}"
if [[ "${SLURM_NTASKS:-1}" -gt 1 && -n "$gpus" && "${gpus##*:}" != "$tasks" ]]; then
    fail "--ntasks-per-node=$tasks with --gpus-per-node=$gpus: give both the same number"
fi
# srun does not take it over from sbatch.
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi
# Without GPUs it ends with an error instead of running on the CPU.
platforms="${JAX_PLATFORMS:-cuda,cpu}"
# By default XLA's sums on GPUs differ from run to run.
flags="${XLA_FLAGS:---xla_gpu_deterministic_ops=true}"
call srun --kill-on-bad-exit=1 \
    env JAX_PLATFORMS="$platforms" XLA_FLAGS="$flags" .venv/bin/jaxedit "$@"
