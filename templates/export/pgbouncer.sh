# Becomes PgBouncer. Plain sh(1).
set -eu
ulimit -c 0 # no crash leaves a file with what is secret
if [ -e /nv/words.sh ]; then . /nv/words.sh; fi
. /nv/drop.sh
umask 077
# root opens what is read; PgBouncer's account writes, in its own directory
$as mkdir -p /tmp/nv
$as sh -c 'cat >/tmp/nv/pgbouncer.ini' </nv/pgbouncer.ini
$as sh -c 'cat >/tmp/nv/userlist.txt' </run/secrets/nv-pgbouncer
exec $as "$@"
