# Becomes PgBouncer. Plain sh(1).
set -eu
ulimit -c 0 # no crash leaves a file with what is secret
if [ -e /nv/words.sh ]; then . /nv/words.sh; fi
. /nv/drop.sh
umask 077
mkdir -p /tmp/nv
cp /nv/pgbouncer.ini /tmp/nv/pgbouncer.ini
cp /run/secrets/nv-pgbouncer /tmp/nv/userlist.txt
[ -z "$as" ] || chown -R 65532:65532 /tmp/nv
exec $as "$@"
