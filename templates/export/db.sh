# Becomes PostgreSQL: makes the cluster where there is none, and has the role, the database and its extensions as the
# settings say before anybody is let in. Plain sh(1); its values are the variables NV_*, its words the server's.
set -eu
ulimit -c 0 # no crash leaves a file with what is secret
if [ -e /nv/words.sh ]; then . /nv/words.sh; fi
. /nv/account.sh # how to become PostgreSQL's account, in $as
set -eu
# the role's verifier, in a file that only its owner may read: its password is not here
[ -n "${NV_VERIFIER-}" ] || . /run/secrets/nv-db
if [ -n "$as" ]; then
    export NV_VERIFIER
    exec $as /bin/sh "$0" "$@"
fi
verifier=$NV_VERIFIER
unset NV_VERIFIER
mkdir -p "$NV_RULES"
cp /nv/pg_hba.conf /nv/pg_ident.conf "$NV_RULES"
NV_MAJOR=$(postgres --version | sed 's/^[^)]*) *//; s/[^0-9].*//')
. /nv/initdb.sh
. /nv/setup.sh # the cluster in $NV_DATA
set -eu

# without an address: nobody gets in but the superuser, through the socket
"$@" -c listen_addresses= &
server=$!
trap 'kill -INT "$server"; wait "$server"; exit 143' INT TERM
. /nv/options.sh # nothing that the application's role has set for its database counts for the superuser
export PGHOST="$NV_SOCKETS" PGPORT=5432 PGUSER=postgres PGOPTIONS
until pg_isready -q -d postgres; do
    kill -0 "$server" 2>/dev/null || fail "PostgreSQL did not start: its own words are above"
    sleep 0.1
done
psql="psql -X -q -v ON_ERROR_STOP=1"
done=yes
# what they print is not for the log: one of them is the verifier
NV_VERIFIER=$verifier PGDATABASE=postgres $psql -f /nv/role.sql >/dev/null &&
    PGDATABASE=$NV_DATABASE $psql -f /nv/database.sql >/dev/null || done=
kill -INT "$server"
wait "$server" || true
trap - INT TERM
[ -n "$done" ] || fail "the database could not be set up: PostgreSQL's words are above"
unset PGHOST PGPORT PGUSER PGOPTIONS
exec "$@"
