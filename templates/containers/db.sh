# Runs in the database's container before the server, as PostgreSQL's account: after account.sh, whose fail it uses.
# Plain sh(1), no placeholders: the values are the variables NV_*.
set -eu
rm -rf "$NV_VOLUME"/.nv-passage-*
mkdir -p "$NV_SOCKETS"
chmod 700 "$NV_SOCKETS"
if [ -s "$NV_DATA/PG_VERSION" ]; then
    major=$(cat "$NV_DATA/PG_VERSION")
    [ "$major" = "$NV_MAJOR" ] || fail "the data were made by PostgreSQL $major, this is $NV_MAJOR"
else
    # aside, then renamed: a data folder with its final name is whole
    rm -rf "$NV_DATA.partial"
    eval "initdb -D \"\$NV_DATA.partial\" $NV_INITDB" >/dev/null
    mv "$NV_DATA.partial" "$NV_DATA"
fi
set +eu
