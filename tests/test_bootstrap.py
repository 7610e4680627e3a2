"""scripts/bootstrap.sh: what it decides to do, with stand-ins for the programs that would do it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib as toml
else:
    import tomli as toml

ROOT = Path(__file__).parent.parent
TOOLS = (
    "bash",
    "cat",
    "cksum",
    "grep",
    "ln",
    "mkdir",
    "mv",
    "ps",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "sh",
    "sleep",
    "tail",
)
MODES = ["run", "dev"]


class Machine:
    """A copy of the project on a machine of which we decide what it has."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / 'it\'s a $(touch x) "ü"'
        self.bin = folder / "bin"
        self.system = folder / "system"
        self.calls = folder / "calls"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
            shutil.copy(ROOT / name, self.root)
        # This machine's own PgBouncer and libraries must not be found; the variable is the only way in.
        script = (ROOT / "scripts/bootstrap.sh").read_text()
        for prefix in ("/usr/", "/opt/homebrew/"):
            script = script.replace(prefix, f"{self.system}{prefix}")
        self.passwd = self.system / "etc/passwd"
        self.passwd.parent.mkdir(parents=True)
        self.passwd.write_text("root:x:0:0::/root:/bin/sh\nnv-devstack:x:999:999::/nonexistent:/bin/false\n")
        script = script.replace("/etc/passwd", shlex.quote(str(self.passwd)))
        (self.root / "scripts/bootstrap.sh").write_text(script)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.add_python("python3")

    def add(self, name: str, body: str = ":") -> Path:
        """A program on PATH, which also notes how it was called."""
        path = self.bin / name
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >>{shlex.quote(str(self.calls))}\n{body}\n')
        path.chmod(0o755)
        return path

    def add_python(self, name: str, *, lie: str = "") -> Path:
        """A Python that answers questions truly, but for a lie, and only notes what it is to install."""
        path = self.bin / name
        itself = f"import sys; sys._base_executable = {str(path)!r}; {lie}\nexec(sys.argv[1])"
        return self.add(
            name,
            f'case "$1 $2" in\n'
            f'-c*) exec {shlex.quote(sys.executable)} -c {shlex.quote(itself)} "$2" ;;\n'
            f'"-m venv") mkdir -p "$3/bin" && ln -s {shlex.quote(str(path))} "$3/bin/python" ;;\n'
            f'"-m pip") {shlex.quote(str(self.bin))}/pip "$@" ;;\n'
            "esac",
        )

    def complete(self) -> Machine:
        """All that the project needs of the system."""
        for name in ("pgbouncer", "curl", "pip"):
            self.add(name)
        return self

    def setup(self, mode: str = "run", **env: str) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        return subprocess.run(
            ["bash", "scripts/bootstrap.sh", mode],
            cwd=self.root,
            env={"PATH": str(self.bin), "LANG": "C.UTF-8", **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )

    def called(self, name: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(name)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_help(machine: Machine) -> None:
    done = machine.setup("--help")
    assert done.returncode == 0
    assert "Usage: scripts/bootstrap.sh run|dev" in done.stdout
    assert "NV_NO_INSTALL" in done.stdout
    assert machine.setup("nonsense").returncode == 2


PIP = "pip -m pip install --disable-pip-version-check --no-input"


@pytest.mark.parametrize(("mode", "lock"), [("run", "requirements.lock"), ("dev", "requirements-dev.lock")])
def test_a_fresh_checkout_gets_a_venv_with_the_packages_of_the_lock(machine: Machine, mode: str, lock: str) -> None:
    done = machine.complete().setup(mode)
    assert done.returncode == 0, done.stderr
    assert machine.called("python3 -m venv") == ["python3 -m venv .venv"]
    assert machine.called("pip") == [
        f"{PIP} --require-hashes --only-binary :all: -r {lock}",
        f"{PIP} --no-index --no-deps --no-build-isolation -e .",
    ]
    assert done.stdout == ""


def test_no_other_directory_is_set_up_than_its_own(machine: Machine, tmp_path: Path) -> None:
    """``CDPATH`` has ``cd`` look for a relative directory elsewhere first, and print where it went."""
    (tmp_path / "decoy/scripts").mkdir(parents=True)
    done = machine.complete().setup(CDPATH=str(tmp_path / "decoy"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (machine.root / ".venv").is_dir()
    assert [path.name for path in (tmp_path / "decoy").iterdir()] == ["scripts"]


def test_nothing_to_do_is_quick_and_silent(machine: Machine) -> None:
    machine.complete().setup("dev")
    for mode in MODES:
        started = time.perf_counter()
        done = machine.setup(mode)
        assert time.perf_counter() - started < 1  # about 0.01 s; the rest is for a busy machine
        assert (done.returncode, done.stdout, done.stderr, machine.calls.read_text()) == (0, "", "", "")


def test_packages_of_tests_and_lint_are_added_to_those_of_the_runtime(machine: Machine) -> None:
    machine.complete().setup("run")
    machine.setup("dev")
    assert machine.called("python3 -m venv") == []
    assert len(machine.called("pip")) == 2


def test_a_changed_pyproject_is_installed_again_into_the_same_venv(machine: Machine) -> None:
    machine.complete().setup()
    with (machine.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    machine.setup()
    assert machine.called("python3 -m venv") == []
    assert len(machine.called("pip")) == 2


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_changed_lock_is_installed(machine: Machine, name: str) -> None:
    machine.complete().setup("dev")
    with (machine.root / name).open("a") as file:
        file.write("# changed\n")
    machine.setup("dev")
    assert len(machine.called("pip")) == 2


def test_without_a_lock_nothing_is_installed(machine: Machine) -> None:
    (machine.root / "requirements.lock").unlink()
    done = machine.complete().setup()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3:] == [
        "error: requirements.lock is missing",
        "cause: it has the versions and hashes of what is installed",
        "fix:   git checkout requirements.lock",
    ]
    assert machine.called("pip") == []


def test_another_package_than_that_of_the_lock_is_not_installed(machine: Machine) -> None:
    machine.complete().add(
        "pip", "echo ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.; exit 1"
    )
    done = machine.setup()
    assert done.returncode == 1
    assert "cause: a package is not the one that requirements.lock names: the registry or a proxy" in done.stderr
    assert "fix:   do not install it; " in done.stderr


def test_a_system_without_a_wheel_is_told_what_to_do(machine: Machine) -> None:
    machine.complete().add("pip", "echo ERROR: No matching distribution found for isal==1.8.0; exit 1")
    done = machine.setup()
    assert done.returncode == 1
    assert "cause: requirements.lock has no wheel of a package for this system and Python" in done.stderr
    assert "fix:   try another Python: NV_PYTHON=/path/to/python3; or newer packages: make lock\n" in done.stderr


def test_alpine_goes_without_py_spy(machine: Machine) -> None:
    script = machine.root / "scripts/bootstrap.sh"
    script.write_text(script.read_text().replace("/lib/ld-musl-*", f"{machine.system}/musl"))
    machine.system.mkdir(exist_ok=True)
    (machine.system / "musl").touch()
    assert machine.complete().setup().returncode == 0
    assert machine.called("pip")[0] == f"{PIP} --require-hashes -r .venv/requirements.lock"
    whole, taken = ((machine.root / name).read_text() for name in ("requirements.lock", ".venv/requirements.lock"))
    assert set(locked(whole)) - set(locked(taken)) == {"py-spy"}
    assert locked(taken).items() <= locked(whole).items()


def test_an_interrupted_setup_is_repaired(machine: Machine) -> None:
    machine.complete().add("pip", "kill -9 $(readlink logs/bootstrap.lock); exit 1")
    assert machine.setup().returncode != 0
    assert (machine.root / "logs/bootstrap.lock").is_symlink()
    machine.complete()
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "it was not finished" in done.stderr
    assert len(machine.called("python3 -m venv")) == 1
    assert not (machine.root / "logs/bootstrap.lock").is_symlink()


def test_a_failed_installation_says_why_and_keeps_what_was_whole(machine: Machine) -> None:
    machine.complete().setup("run")
    machine.add("pip", "echo no route to PyPI; exit 1")
    done = machine.setup("dev")
    assert done.returncode == 1
    assert "no route to PyPI" in done.stderr
    assert machine.setup("run").stderr == ""


def test_a_moved_checkout_gets_a_new_venv(machine: Machine) -> None:
    machine.complete().setup()
    machine.root = machine.root.rename(machine.root.with_name("moved"))
    done = machine.setup()
    assert "it was made in" in done.stderr
    assert len(machine.called("python3 -m venv")) == 1


def test_a_venv_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    machine.complete().setup()
    machine.add_python("python3.12")
    (machine.bin / "python3").unlink()
    done = machine.setup()
    assert "its Python is gone" in done.stderr
    assert len(machine.called("python3.12 -m venv")) == 1


def test_another_python_can_be_asked_for(machine: Machine) -> None:
    machine.complete().setup()
    own = machine.add_python("my own python")
    machine.setup(NV_PYTHON=str(own))
    assert len(machine.called("my own python -m venv")) == 1
    assert machine.setup(NV_PYTHON=str(own)).stderr == ""
    assert machine.setup().stderr == ""


def test_an_unfit_python_is_refused_with_its_version(machine: Machine) -> None:
    machine.complete().add_python("python3", lie="sys.version_info = (3, 8, 18)")
    machine.add("apt-get")
    done = machine.setup()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: no Python 3.10 or newer was found",
        f"cause: python3 is Python 3.8.18 ({machine.bin / 'python3'}) and is too old",
        f"fix:   {sudo()}apt-get install -y --no-install-recommends python3 python3-venv",
        "       or name the one to use: NV_PYTHON=/path/to/python3",
    ]


def test_a_later_candidate_is_taken_when_the_first_is_unfit(machine: Machine) -> None:
    machine.complete().add_python("python3.13", lie="sys.version_info = (3, 8, 18)")
    assert machine.setup().returncode == 0
    assert len(machine.called("python3 -m venv")) == 1


def test_debians_missing_venv_is_named(machine: Machine) -> None:
    machine.complete().add_python("python3", lie="sys.version_info = (3, 11, 2); sys.modules['ensurepip'] = None")
    machine.add("apt-get")
    done = machine.setup(NV_NO_INSTALL="1")
    assert done.returncode == 1
    assert f"fix:   {sudo()}apt-get install -y --no-install-recommends python3.11-venv" in done.stderr


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "apt-get install -y --no-install-recommends pgbouncer curl libossp-uuid16"),
        ("dnf", "dnf install -y pgbouncer curl uuid"),
        ("pacman", "pacman -Sy --needed --noconfirm pgbouncer curl ossp-uuid"),
        ("apk", "apk add --no-cache pgbouncer curl"),
        ("brew", "brew install pgbouncer curl"),
    ],
)
def test_without_leave_to_install_the_command_is_printed(machine: Machine, manager: str, command: str) -> None:
    machine.add("pip")
    machine.add(manager)
    done = machine.setup(NV_NO_INSTALL="1")
    assert done.returncode == 0
    by = "" if manager == "brew" else sudo()
    assert done.stderr.splitlines()[-1] == f"setup: missing, and NV_NO_INSTALL is set: {by}{command}"
    assert machine.called(manager) == []


def test_only_what_is_missing_is_asked_for(machine: Machine) -> None:
    machine.complete().add("apt-get")
    (machine.bin / "curl").unlink()
    library = machine.system / "usr/lib/x86_64-linux-gnu/libossp-uuid.so.16"
    library.parent.mkdir(parents=True)
    library.touch()
    done = machine.setup(NV_NO_INSTALL="1")
    assert done.stderr.endswith("apt-get install -y --no-install-recommends curl\n")


def test_homebrew_installs_without_sudo(machine: Machine) -> None:
    machine.complete().add("brew")
    (machine.bin / "pgbouncer").unlink()
    machine.setup()
    assert machine.called("brew") == ["brew install pgbouncer"]


@pytest.mark.skipif(os.getuid() != 0, reason="sudo would be needed")
def test_a_missing_package_of_the_library_does_not_cost_us_pgbouncer(machine: Machine) -> None:
    machine.complete().add("dnf", 'case "$*" in *uuid*) echo "No match for argument: uuid"; exit 1 ;; esac')
    (machine.bin / "pgbouncer").unlink()
    done = machine.setup()
    assert done.returncode == 0
    assert machine.called("dnf") == ["dnf install -y pgbouncer uuid", "dnf install -y pgbouncer"]
    assert "going on without uuid" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="sudo would be needed")
def test_a_failed_package_installation_names_the_command(machine: Machine) -> None:
    machine.complete().add("dnf", "echo no network; exit 1")
    (machine.bin / "pgbouncer").unlink()
    done = machine.setup()
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert "fix:   dnf install -y pgbouncer\n" in done.stderr


@pytest.mark.skipif(os.getuid() == 0, reason="root needs no sudo")
def test_without_sudo_the_command_is_named(machine: Machine) -> None:
    machine.complete().add("dnf")
    (machine.bin / "pgbouncer").unlink()
    done = machine.setup()
    assert done.returncode == 1
    assert "fix:   as root: dnf install -y pgbouncer uuid\n" in done.stderr


def test_two_at_once_set_up_once(machine: Machine) -> None:
    machine.complete().add("pip", "sleep 0.3")
    command = ["bash", "scripts/bootstrap.sh", "run"]
    both = [
        subprocess.Popen(command, cwd=machine.root, env={"PATH": str(machine.bin)}, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=20)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(machine.called("pip")) == 2
    assert sum("waiting for another setup of this folder" in text for text in said) == 1


# the services' account


@pytest.fixture
def without_account(machine: Machine) -> Machine:
    """A machine that has everything but the account, and an `id` that knows nobody."""
    machine.complete()
    machine.passwd.write_text("root:x:0:0::/root:/bin/sh\nother-nv-devstack:x:9:9::/:/bin/sh\n")
    machine.add("id", "exit 1")
    return machine


@pytest.mark.skipif(os.getuid() != 0, reason="only root needs the account")
@pytest.mark.parametrize(
    ("programs", "called"),
    [
        (
            ("useradd", "adduser"),  # Debian has an adduser with other flags
            "useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /bin/false nv-devstack",
        ),
        (("addgroup", "adduser"), "adduser -S -D -H -h /nonexistent -s /bin/false -G nv-devstack nv-devstack"),
    ],
)
def test_the_services_account_is_made_once_and_said(
    without_account: Machine, programs: tuple[str, ...], called: str
) -> None:
    machine = without_account
    for name in programs:
        machine.add(name)
    said = machine.setup().stderr
    assert "setup: creating the account nv-devstack, which PostgreSQL and PgBouncer run under ... " in said
    assert machine.called(called.partition(" ")[0]) == [called]
    with machine.passwd.open("a") as file:
        file.write("nv-devstack:x:999:999::/nonexistent:/bin/false\n")
    assert machine.setup().stderr == ""
    assert machine.called("useradd") == machine.called("adduser") == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root needs the account")
def test_the_account_is_not_made_where_nothing_is_to_be_installed(without_account: Machine) -> None:
    without_account.add("useradd")
    done = without_account.setup(NV_NO_INSTALL="1")
    assert done.returncode == 0
    assert "the account nv-devstack is missing, and NV_NO_INSTALL is set: useradd --system" in done.stderr
    assert without_account.called("useradd") == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root needs the account")
def test_an_account_that_can_not_be_made_stops_nothing(without_account: Machine) -> None:
    without_account.add("useradd", "echo 'cannot lock /etc/passwd' >&2; exit 1")
    done = without_account.setup()
    assert done.returncode == 0
    assert "cannot lock" in done.stderr
    assert "going on without; as root: useradd --system" in done.stderr


@pytest.mark.skipif(os.getuid() == 0, reason="root needs the account")
def test_nobody_but_root_needs_the_account(without_account: Machine) -> None:
    without_account.add("useradd")
    without_account.setup()
    assert without_account.called("useradd") == []


def sudo() -> str:
    return "" if os.getuid() == 0 else "sudo "


# the locks


class Locked(NamedTuple):
    version: str
    marker: str
    hashes: tuple[str, ...]


def locked(text: str) -> dict[str, list[Locked]]:
    """What a lock holds, by package; a line that is nothing of the kind fails."""
    found: dict[str, list[Locked]] = {}
    for entry in text.replace(" \\\n", " ").splitlines():
        if not entry.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==(\S+)(?: ; (.*?))?((?: +--hash=sha256:[0-9a-f]{64})*)", entry)
            assert match, entry
            hashes = tuple(match[4].split())
            found.setdefault(match[1], []).append(Locked(match[2], match[3] or "", hashes))
    return found


@pytest.mark.parametrize(
    ("lock", "extras"), [("requirements.lock", ["profile"]), ("requirements-dev.lock", ["profile", "dev"])]
)
def test_the_lock_holds_what_pyproject_asks_for(lock: str, extras: list[str]) -> None:
    project = toml.loads((ROOT / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    entries = locked((ROOT / lock).read_text())
    for text in [*wanted, *(text for extra in extras for text in optional[extra])]:
        requirement = Requirement(text)
        there = entries.get(canonicalize_name(requirement.name))
        assert there, f"{lock} lacks {text}: make lock"
        unfit = [
            entry.version for entry in there if not requirement.specifier.contains(entry.version, prereleases=True)
        ]
        assert not unfit, f"{lock} has {requirement.name} {unfit}, pyproject.toml asks for {text}: make lock"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_entry_of_the_lock_has_hashes_and_none_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert [name for name, entries in locked(text).items() if not all(entry.hashes for entry in entries)] == []
    assert "://" not in text
    assert "index" not in text


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine_", ["x86_64", "aarch64", "arm64"])
def test_of_each_package_there_is_one_version_for_a_system(python: str, machine_: str) -> None:
    system = {"python_version": python, "python_full_version": f"{python}.1", "platform_machine": machine_}
    system["sys_platform"] = "darwin" if machine_ == "arm64" else "linux"
    for name, entries in locked((ROOT / "requirements-dev.lock").read_text()).items():
        fit = [entry.version for entry in entries if not entry.marker or Marker(entry.marker).evaluate(system)]
        assert len(fit) <= 1, (name, fit)


def test_both_locks_name_the_same_versions() -> None:
    run, dev = (locked((ROOT / name).read_text()) for name in ("requirements.lock", "requirements-dev.lock"))
    assert {name: dev.get(name) for name in run} == run
