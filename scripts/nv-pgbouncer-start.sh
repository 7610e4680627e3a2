#!/usr/bin/env bash
# Start PgBouncer: the same as `inv pgb.start`, with its flags, from any folder.
set -euo pipefail

self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do
    link=$(readlink "$self")
    [[ $link == /* ]] || link=$(dirname -- "$self")/$link
    self=$link
done
exec "$(dirname -- "$self")/_task.sh" pgb.start "$@"
