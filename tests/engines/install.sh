#!/bin/sh
# Installs what the tests of container engines and of completion need, on a machine that is there for them: Debian, as
# root. Elsewhere it does nothing, and those tests run with the engines and shells that they find.
set -eu
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
missing=
for pair in podman:podman runc:runc dockerd:docker.io debootstrap:debootstrap iptables:iptables \
    zsh:zsh fish:fish; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
for helper in netavark aardvark-dns; do
    [ -e "/usr/lib/podman/$helper" ] || missing="$missing $helper"
done
[ -n "$missing" ] || exit 0
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    # the tests start a daemon of their own; that of the package stays down
    trap 'rm -f "$policy"' EXIT
    printf '%s\n' '#!/bin/sh' 'exit 101' >"$policy"
    chmod 755 "$policy"
fi
# shellcheck disable=SC2086  # words
install() { apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $missing; }
install || { apt-get -o DPkg::Lock::Timeout=120 update && install; }
