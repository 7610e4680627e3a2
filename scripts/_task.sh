#!/usr/bin/env bash
# What the scripts of this folder have in common: set up, then run one Invoke task with their arguments.
set -euo pipefail

root=$(CDPATH="" cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/bootstrap.sh" run
# The program itself, not `python -m invoke`, which would import from whatever folder the caller is in; and
# through the interpreter, because a shebang can't carry every path.
exec "$root/.venv/bin/python" "$root/.venv/bin/inv" --search-root "$root" "$@"
