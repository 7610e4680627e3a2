"""A host whose program answers something else than it should: nothing here is chosen by that."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator

import psycopg2
import pytest

from tests.conftest import free_ports
from tests.remote.host import Remote

pytestmark = pytest.mark.slow

OWN_PROGRAM = True
"""Also for dev.exec the program is sent as it is, and is at the same place there."""


@pytest.fixture
def tunnelled(up: Remote) -> Iterator[Remote]:
    """A tunnel that a test opens is closed."""
    yield up
    up.inv("remote.tunnel", "--stop")


@contextlib.contextmanager
def saying(up: Remote, module: str, function: str, answer: object) -> Iterator[None]:
    """Have the program on the host print something else than it should, without the next command noticing it."""
    file = up.there / "tasks" / f"{module}.py"
    source, info = file.read_text(), file.stat()
    file.write_text(f"{source}\n\ndef {function}(*_, **__):\n    print({json.dumps(answer)!r}, flush=True)\n")
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    try:
        yield
    finally:
        file.write_text(source)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))


SEEN = "import json, os; print(json.dumps(dict(os.environ)))"


def test_a_hostile_host_chooses_no_code_and_no_server_for_a_command_here(tunnelled: Remote) -> None:
    up = tunnelled
    evil = up.folder / "evil"
    evil.mkdir()
    (evil / "sitecustomize.py").write_text(f"open({str(evil / 'PWNED')!r}, 'w').close()\n")
    own = json.dumps({"PYTHONPATH": "$dir/src", "LD_LIBRARY_PATH": "$dir/lib", "DSN": "$database_url"})
    up.inv("remote.tunnel")
    true = json.loads(up.inv("dev.env", "--json", INVOKE_API_ENV=own).stdout)
    elsewhere = {name: value.replace("127.0.0.1", "192.0.2.1") for name, value in true.items()}
    login = {
        "user": true["PGUSER"],
        "password": true["PGPASSWORD"],
        "name": true["PGDATABASE"],
        "jwt_secret": true["NINAIVALAIGAL_JWT_SECRET"],
    }
    said = {**elsewhere, "PYTHONPATH": str(evil), "LD_LIBRARY_PATH": str(evil), **login}
    with saying(up, "variables", "show", said):
        done = up.inv("dev.exec", "--", up.python, "-c", SEEN, INVOKE_API_ENV=own)
        printed = json.loads(up.inv("dev.env", "--json", INVOKE_API_ENV=own).stdout)
    seen = json.loads(done.stdout)
    assert not (evil / "PWNED").exists()
    assert printed == true
    assert {name: seen[name] for name in true} == true
    assert seen["PYTHONPATH"] == f"{up.root}/api/src"
    assert "192.0.2.1" not in done.stdout
    for changes in ({"password": "x host=192.0.2.1"}, {"user": ""}, {"name": 1}):
        with saying(up, "variables", "show", {**said, **changes}):
            for words in (("dev.env",), ("dev.exec", "--", up.python, "-c", SEEN)):
                done = up.inv(*words, expect=1)
                assert "the host" in done.stderr
                assert done.stdout == ""


def test_a_host_chooses_no_port_here(tunnelled: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    up = tunnelled
    for name in ("INVOKE_DB_PORT", "INVOKE_PGB_PORT", "INVOKE_API_PORT"):
        monkeypatch.delitem(up.env, name)
    up.inv("db.start", "-e", "review")
    refused = up.inv("dev.env", "-e", "review", expect=1).stderr
    assert "there is no tunnel to box" in refused, "where it will be is not known yet"
    try:
        forwards = json.loads(up.inv("remote.tunnel", "-e", "review", "--json").stdout)["forwards"]
        found = json.loads(up.inv("dev.env", "-e", "review", "--json").stdout)
        here = {one["service"]: one["here"] for one in forwards}
        assert (found["PGHOST"], found["PGPORT"]) == ("127.0.0.1", str(here["db"]))
        with contextlib.closing(psycopg2.connect(found["DIRECT_URL"])) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW port")
            assert cursor.fetchone() == (str(next(one["there"] for one in forwards if one["service"] == "db")),)
        up.inv("remote.tunnel", "-e", "review", "--stop")
        chosen = free_ports(3)
        wanted = dict(zip(("db", "pgb", "api"), chosen, strict=True))
        with saying(up, "environments", "show_list", {"environments": [{"name": "review", "ports": wanted}]}):
            shown = json.loads(up.inv("remote.tunnel", "-e", "review", "--json").stdout)["forwards"]
        assert {one["service"]: one["there"] for one in shown} == wanted
        assert {one["service"]: one["here"] for one in shown} == here
        for port in chosen:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
        up.inv("remote.tunnel", "-e", "review", "--stop")
        for ports in ({}, {**wanted, "db": "22"}, {**wanted, "db": 0}, {**wanted, "db": 70_000}, [1, 2, 3], None):
            with saying(up, "environments", "show_list", {"environments": [{"name": "review", "ports": ports}]}):
                assert "does not answer as expected" in up.inv("remote.tunnel", "-e", "review", expect=1).stderr
    finally:
        up.inv("remote.tunnel", "-e", "review", "--stop")
        up.inv("db.stop", "-e", "review")
