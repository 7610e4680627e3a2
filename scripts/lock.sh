#!/usr/bin/env bash
# Renews requirements.lock and requirements-dev.lock, from which scripts/bootstrap.sh installs: the exact version
# and the hashes of every package, for every platform and every Python from 3.10 on. Names no registry.
#
#   scripts/lock.sh [FLAG...]   flags go to `uv pip compile`, such as --upgrade or --upgrade-package NAME
set -euo pipefail
CDPATH="" cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if ! command -v uv >/dev/null; then
    printf 'error: uv is not installed\ncause: pip resolves packages for this machine alone, uv for all\n' >&2
    printf 'fix:   pipx install uv, then make lock\n' >&2
    exit 1
fi

# compile FILE FLAG...: hatchling builds our own package, which is then installed without downloading anything.
# The last cryptography with a wheel for Intel Macs stays for those: later ones would need a compiler for Rust there.
compile() {
    local file=$1
    shift
    uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-annotate \
        --custom-compile-command "make lock" --output-file "$file" "$@" pyproject.toml - <<'INPUT'
hatchling>=1.24
editables
cryptography<49 ; sys_platform == 'darwin' and platform_machine == 'x86_64'
cryptography>=49 ; sys_platform != 'darwin' or platform_machine != 'x86_64'
INPUT
}

compile requirements.lock --extra profile "$@"
compile requirements-dev.lock --extra profile --extra dev --constraint requirements.lock "$@"
