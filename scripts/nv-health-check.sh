#!/usr/bin/env bash
# Show a health summary: the same as `inv health`, with its flags, from any folder.
set -euo pipefail

self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do
    link=$(readlink "$self")
    [[ $link == /* ]] || link=$(dirname -- "$self")/$link
    self=$link
done
exec "$(dirname -- "$self")/_task.sh" health "$@"
