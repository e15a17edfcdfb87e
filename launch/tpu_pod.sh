#!/usr/bin/env bash
# A TPU slice of one or many hosts on Google Compute Engine. gcloud knows the project; for several
# hosts it needs `ssh-add ~/.ssh/google_compute_engine` first.
#   export TPU_NAME=edits ZONE=us-east5-b
# Make a slice; further flags go to gcloud:
#   bash launch/tpu_pod.sh create v6e-16 --spot
# Copy the checkout (without runs/) and PATHS of it, such as runs/all, to every host; install:
#   bash launch/tpu_pod.sh sync [PATHS]
# Run on every host at once:
#   bash launch/tpu_pod.sh run study --config=configs/sequential.py:memit --workdir=runs/all
# Follow host 0 (`logs 3`: host 3); ends with the run's exit code:
#   bash launch/tpu_pod.sh logs
# Bring host 0's work directory here, also while the run goes on:
#   bash launch/tpu_pod.sh fetch runs/all
# End the run; delete the slice:
#   bash launch/tpu_pod.sh stop
#   bash launch/tpu_pod.sh delete
# --dry-run before the sub-command prints the commands and runs none.
# shellcheck disable=SC2016 # what is in single quotes is expanded on the hosts
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry=""
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi

fail() { echo "tpu_pod.sh: $1" >&2 && exit 2; }
call() {
    if [[ -n "$dry" ]]; then
        printf '%q' "$1" && printf ' %q' "${@:2}" && echo
    else
        "$@"
    fi
}
tpu() { call gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$ZONE"; }
on() { tpu ssh "$TPU_NAME" --worker="$1" --command="set -e; ${*:2}"; }

command="${1:-}" && shift || true
[[ -n "${TPU_NAME:-}" && -n "${ZONE:-}" ]] || fail "TPU_NAME='${TPU_NAME:-}' ZONE='${ZONE:-}':\
 set both, e.g. export TPU_NAME=edits ZONE=us-east5-b"
case "$command" in
create)
    case "${1:-}" in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v[234]-*) version=tpu-ubuntu2204-base ;;
    *) fail "create '${1:-}': expected a type of TPU, v6e-N, v5p-N, v5litepod-N, v4-N ...,\
 e.g. create v6e-16 --spot" ;;
    esac
    version="${RUNTIME_VERSION:-$version}"
    tpu create "$TPU_NAME" --accelerator-type="$1" --version="$version" "${@:2}" ;;
sync)
    archive="$root/build/jaxedit.tar.gz"
    call mkdir -p "$root/build"
    call tar -czf "$archive" --exclude=./{.venv,.git,build,runs} -C "$root" . "$@"
    tpu scp "$archive" "$TPU_NAME:jaxedit.tar.gz" --worker=all
    # The hosts' own Python is 3.10.
    on all 'mkdir -p jaxedit; tar -xzf jaxedit.tar.gz -C jaxedit; cd jaxedit;' \
        'export PATH="$HOME/.local/bin:$PATH"; python3 -m pip install --quiet --user uv;' \
        'uv python install --quiet 3.12; bash launch/setup.sh tpu' ;;
run)
    [[ $# -gt 0 ]] || fail "run: nothing to run was given,\
 e.g. run study --config=configs/laptop.py --workdir=runs/all"
    # Nothing in a host's environment says that there are others: only the metadata server, which
    # JAX asks when it joins.
    case "$1" in report | doctor) ;; *) set -- "$1" --distributed=on "${@:2}" ;; esac
    # Detached, it outlives the connection; its exit code is kept for `logs`.
    on all 'cd jaxedit; if [ -f run.pid ] && kill -0 -- "-$(cat run.pid)"; then' \
        'echo "a run goes on: stop"; exit 1; fi 2>&-; rm -f run.status;' \
        "setsid nohup sh -c 'echo \$\$ >run.pid; \"\$@\"; echo \$? >run.status' run" \
        ".venv/bin/jaxedit$(printf ' %q' "$@") >run.log 2>&1 </dev/null &" ;;
logs)
    on "${1:-0}" 'cd jaxedit; ls run.log; tail -n +1 -f run.log &' \
        'until [ -s run.status ]; do sleep 1; done; sleep 0.2; kill $!;' \
        'exit "$(cat run.status)"' ;;
fetch)
    [[ "${1:-}" == [!/-]* ]] || fail "fetch '${1:-}': expected run's --workdir,\
 a path below the checkout, e.g. fetch runs/all"
    # Journals before arrays: arrays that no line names yet do no harm, a line whose arrays are
    # missing does.
    on 0 "cd jaxedit; at=$(printf '%q' "$1");" 'ls -d "$at"; (find "$at" -name journal.jsonl;' \
        'find "$at" -type f ! -name journal.jsonl ! -name "*.part") |' \
        'tar -czf fetch.tar.gz -T - || [ $? -eq 1 ]'
    archive="$root/build/fetch.tar.gz"
    call mkdir -p "$root/build"
    tpu scp "$TPU_NAME:jaxedit/fetch.tar.gz" "$archive" --worker=0
    call tar -xzf "$archive" -C "$root" ;;
stop) on all 'cd jaxedit; kill -- "-$(cat run.pid)"; echo 143 >run.status' ;;
delete) tpu delete "$TPU_NAME" --quiet ;;
*) fail "sub-command '$command': expected create, sync, run, logs, fetch, stop or delete" ;;
esac
