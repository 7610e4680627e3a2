# Runs in the database's container as long as that is root's. Root gives the volume to PostgreSQL's account, and nothing
# else: no link can be in the place of a mount, but of anything that the account may write to. Leaves in $as how to
# become the account, which does all the rest; nothing where this is not root. Plain sh(1), no placeholders: the values
# are the variables NV_*.
set -eu
fail() {
    echo "nv-devstack: $*" >&2
    exit 78
}
as=
if [ "$(id -u)" = 0 ]; then
    account=$(id -u postgres)
    [ "$account" != 0 ] || fail "the image's account postgres is root itself"
    # a fresh volume is root's, and on some engines has a folder lost+found: the data are one level below
    chown "$account:$(id -g postgres)" "$NV_VOLUME"
    for tool in "gosu postgres" "su-exec postgres" "setpriv --reuid=postgres --regid=postgres --init-groups --"; do
        if command -v "${tool%% *}" >/dev/null; then
            as=$tool
            break
        fi
    done
    [ -n "$as" ] || fail "the image has none of gosu, su-exec and setpriv to run PostgreSQL under its own account"
fi
set +eu
