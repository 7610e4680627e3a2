#!/usr/bin/env bash
# Back up the data, remove them and start anew: the same as `inv dev.reset`, with its flags, from any folder.
set -euo pipefail

self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do
    link=$(readlink "$self")
    [[ $link == /* ]] || link=$(dirname -- "$self")/$link
    self=$link
done
exec "$(dirname -- "$self")/_task.sh" dev.reset "$@"
