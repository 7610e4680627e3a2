#!/usr/bin/env bash
# Show everything that is known of the stack: the same as `inv health --details`, with its flags, from any folder.
set -euo pipefail

self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do
    link=$(readlink "$self")
    [[ $link == /* ]] || link=$(dirname -- "$self")/$link
    self=$link
done
exec "$(dirname -- "$self")/_task.sh" health --details "$@"
