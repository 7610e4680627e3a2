# Becomes the application. Plain sh(1).
set -eu
ulimit -c 0 # no crash leaves a file with what is secret
if [ -e /nv/words.sh ]; then . /nv/words.sh; fi
. /nv/drop.sh
$as mkdir -p /tmp/nv
if [ -e /nv/reload.py ]; then $as sh -c 'cat >/tmp/nv/reload.py' </nv/reload.py; fi
. /run/secrets/nv-api # its variables
[ -z "$as" ] || export HOME=/ # root's can't be looked into
exec $as "$@"
