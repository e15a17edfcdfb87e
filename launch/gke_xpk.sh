#!/usr/bin/env bash
# TPU slices of a GKE cluster, through xpk (pip install xpk; project and zone from gcloud config).
#   export CLUSTER=my-cluster
#   bash launch/gke_xpk.sh create edits v6e-16 --num-slices=1 --storage=results -- \
#       study --config=configs/sequential.py:memit --workdir=/results/edits
#   bash launch/gke_xpk.sh list
#   bash launch/gke_xpk.sh logs edits
#   bash launch/gke_xpk.sh delete edits
# What stands before -- goes to xpk, what stands after it to jaxedit.
# The storage is a bucket, made known before with `xpk storage attach results --type=gcsfuse
# --mount-point=/results ...`: a work directory on the container's own disk is lost with it.
# The checkout goes into the image and installs itself at the start. DOCKER_IMAGE=... names an image
# that has jaxedit already, such as one of launch/Dockerfile with ACCELERATOR=tpu.
# --dry-run before the sub-command prints the commands and runs none.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry=""
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi

fail() { echo "gke_xpk.sh: $1" >&2 && exit 2; }
call() {
    if [[ -n "$dry" ]]; then
        printf '%q' "$1" && printf ' %q' "${@:2}" && echo
    else
        "$@"
    fi
}
named() {
    [[ "${2:-}" == [a-z]* ]] ||
        fail "$1 '${2:-}': expected the name of a workload, e.g. $1 edits"
}

[[ -n "${CLUSTER:-}" ]] ||
    fail "CLUSTER is not set: export CLUSTER=NAME (one made with xpk cluster create)"
command="${1:-}"
shift || true
case "$command" in
create)
    named create "${1:-}"
    [[ "${2:-}" == [a-z]* ]] ||
        fail "create $1 '${2:-}': expected a type of TPU, e.g. create $1 v6e-16 -- study ..."
    # Restarts are for preempted hosts; an error of jaxedit itself (exit codes below 42) is final.
    flags=(--cluster="$CLUSTER" --workload="$1" --tpu-type="$2" --max-restarts=20)
    shift 2
    while [[ $# -gt 0 && "$1" != -- ]]; do
        flags+=("$1") && shift
    done
    [[ $# -gt 1 ]] ||
        fail "create: nothing to run was given, e.g. ... -- study --workdir=/results/edits"
    shift
    if [[ -n "${DOCKER_IMAGE:-}" ]]; then
        flags+=(--docker-image="$DOCKER_IMAGE")
        run="jaxedit"
    else
        flags+=(--base-docker-image=python:3.12 --script-dir="$root")
        run="bash launch/setup.sh tpu && .venv/bin/jaxedit"
    fi
    call xpk workload create "${flags[@]}" --command="$run$(printf ' %q' "$@")" ;;
list) call xpk workload list --cluster="$CLUSTER" "$@" ;;
logs)
    named logs "${1:-}"
    # xpk itself shows none; kubectl knows the cluster after `create` or `list`.
    call kubectl logs --selector=xpk.google.com/workload="$1" --follow --prefix --tail=-1 \
        --max-log-requests=256 "${@:2}" ;;
delete)
    named delete "${1:-}"
    call xpk workload delete --cluster="$CLUSTER" --workload="$1" "${@:2}" ;;
*) fail "unknown sub-command '$command'; expected create, list, logs or delete" ;;
esac
