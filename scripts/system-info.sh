#!/usr/bin/env bash
# Show what this machine has and lacks: the same as `inv system-info`, with its flags, from any folder.
set -euo pipefail

self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do
    link=$(readlink "$self")
    [[ $link == /* ]] || link=$(dirname -- "$self")/$link
    self=$link
done
exec "$(dirname -- "$self")/_task.sh" system-info "$@"
