#!/bin/sh
# Installs what the tests of container engines, of completion and of other hosts need, on a machine that is there for them: Debian, as
# root. Elsewhere it does nothing, and those tests run with the engines and shells that they find.
set -eu
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
missing=
for pair in podman:podman runc:runc dockerd:docker.io mmdebstrap:mmdebstrap iptables:iptables \
    zsh:zsh fish:fish sshd:openssh-server ip:iproute2; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
for helper in netavark aardvark-dns; do
    [ -e "/usr/lib/podman/$helper" ] || missing="$missing $helper"
done
# Podman's generator of units, for the tests of dev.export: Debian 12's Podman has none yet, and 13's runs there too
quadlet=/usr/local/libexec/nv-tests/quadlet
if [ ! -e "$quadlet" ] && [ ! -e /usr/libexec/podman/quadlet ] && . /etc/os-release && [ "${VERSION_ID:-}" = 12 ]; then
    (
        folder=$(mktemp -d) && cd "$folder" || exit 1
        trap 'rm -rf "$folder"' EXIT
        mkdir -p lists/partial cache/archives/partial
        keys=/usr/share/keyrings/debian-archive-keyring.gpg
        echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >sources.list
        set -- -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root
        apt-get "$@" -q update && apt-get "$@" -q download podman && dpkg-deb -x podman_*.deb unpacked &&
            install -D -m 755 unpacked/usr/libexec/podman/quadlet "$quadlet"
    ) || echo "no generator of Podman's: the tests that need it are skipped" >&2
fi
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
