# Finds how to give up root: the secrets are read as root, from files that only their owner may read, and nothing else
# is done so. Leaves the command in $as, nothing where this is not root.
as=
if [ "$(id -u)" = 0 ]; then
    for tool in "setpriv --reuid=65532 --regid=65532 --clear-groups --" "gosu 65532:65532" "su-exec 65532:65532"; do
        if $tool true 2>/dev/null; then
            as=$tool
            break
        fi
    done
    if [ -z "$as" ]; then
        echo "nv-devstack: the image has none of setpriv (util-linux), gosu and su-exec to give up root" >&2
        exit 78
    fi
fi
