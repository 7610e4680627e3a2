# Runs in the database's container before the server, as root where the image allows. Plain sh(1), no placeholders:
# the values are the variables NV_*.
set -eu
fail() {
    echo "nv-devstack: $*" >&2
    exit 78
}
if [ "$(id -u)" = 0 ]; then
    # a fresh volume is root's, and on some engines has a folder lost+found: the data are one level below
    owner=$(id -u postgres):$(id -g postgres)
    chown "$owner" "$NV_VOLUME"
    chown -R "$owner" "$NV_RULES"
    for tool in "gosu postgres" "su-exec postgres" "setpriv --reuid=postgres --regid=postgres --init-groups --"; do
        if command -v "${tool%% *}" >/dev/null; then
            as=$tool
            break
        fi
    done
    [ -n "$as" ] || fail "the image has none of gosu, su-exec and setpriv to run PostgreSQL under its own account"
fi
rm -rf "$NV_VOLUME"/.nv-passage-*
mkdir -p "$NV_SOCKETS"
chmod 700 "$NV_SOCKETS"
[ "$(id -u)" != 0 ] || chown "$owner" "$NV_SOCKETS"
if [ -s "$NV_DATA/PG_VERSION" ]; then
    major=$(cat "$NV_DATA/PG_VERSION")
    [ "$major" = "$NV_MAJOR" ] || fail "the data were made by PostgreSQL $major, this is $NV_MAJOR"
else
    # aside, then renamed: a data folder with its final name is whole
    rm -rf "$NV_DATA.partial"
    eval "$as initdb -D \"\$NV_DATA.partial\" $NV_INITDB" >/dev/null
    mv "$NV_DATA.partial" "$NV_DATA"
fi
set +eu
