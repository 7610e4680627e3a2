"""dev.watch: a change reaches the services that it concerns, and no others; what is wrong changes nothing."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Project, directory_of_its_own, ended, free_ports, wait_for


class Watched(Project):
    """A running stack with its ports in invoke.yaml, and a command that watches it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        super().__init__(folder, cache)
        del self.env["INVOKE_PGB_PORT"]
        self.edit("invoke.yaml", "port: 6432 ", f"port: {self.pgb_port} ")
        self.output = folder / "watch.log"

    def edit(self, file: str, before: str, after: str) -> None:
        """Replace a text in a file, as an editor does: by a new file in its place."""
        path = self.root / file
        text = path.read_text()
        assert text.count(before) == 1, (before, text)
        aside = path.with_name(f".{path.name}.swp")
        aside.write_text(text.replace(before, after))
        aside.replace(path)

    def watch(self) -> subprocess.Popen[str]:
        with self.output.open("w") as output:
            process = subprocess.Popen(
                self.command("dev.watch"), cwd=self.root, env=self.env, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, text=True,
            )  # fmt: skip
        self.commands.append(process)
        wait_for(lambda: "watching invoke.yaml" in self.said())
        # it then looks for what changed before that, and would apply an edit before it says that there is one
        settings = self.root / "invoke.yaml"
        settings.write_text(settings.read_text())
        wait_for(lambda: "no running service is concerned" in self.said(), 40)
        return process

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def said_since(self, before: str, text: str) -> str:
        """What it said after ``before``, once the text is in it."""
        return str(wait_for(lambda: text in (new := self.said().removeprefix(before)) and new, 40))


@pytest.fixture(scope="module")
def watched(workspace: Path, cache: Path) -> Iterator[Watched]:
    with directory_of_its_own(workspace) as folder, ended(Watched(folder, cache)) as made:
        made.inv("dev.up")
        made.watch()
        yield made


def test_another_port_of_pgbouncer_restarts_it_and_the_application_alone(watched: Watched) -> None:
    before, said, old = watched.pids(), watched.said(), watched.pgb_port
    (watched.pgb_port,) = free_ports(1)
    watched.edit("invoke.yaml", f"port: {old} ", f"port: {watched.pgb_port} ")
    new = watched.said_since(said, "nv-api ")
    assert new.splitlines()[0] == "invoke.yaml changed"
    assert "nv-pgbouncer  restarted, ready in" in new
    assert "nv-api        restarted, ready in" in new
    assert "nv-db" not in new
    after = watched.pids()
    assert after["nv-db"] == before["nv-db"]
    assert after["nv-pgbouncer"] != before["nv-pgbouncer"]
    assert watched.query("SELECT 1", port=watched.pgb_port) == [(1,)]
    assert watched.http("/health")[0] == 200


@pytest.mark.slow
def test_what_pgbouncer_can_reload_interrupts_nobody(watched: Watched) -> None:
    before, said = watched.pids(), watched.said()
    client = watched.connect(watched.pgb_port)
    watched.edit("invoke.yaml", "default_pool_size: 20 ", "default_pool_size: 7 ")
    new = watched.said_since(said, "nv-pgbouncer")
    assert "configuration reloaded" in new
    with client.cursor() as cursor:
        cursor.execute("SELECT 1")
    client.close()
    assert watched.pids() == before
    assert "default_pool_size = 7" in (watched.state / "config/pgbouncer.ini").read_text()


def test_a_change_of_a_template_is_applied(watched: Watched) -> None:
    before, said = watched.pids(), watched.said()
    path = watched.root / "templates/pg_hba.conf"
    path.write_text(f"# another comment\n{path.read_text()}")
    new = watched.said_since(said, "nv-db ")
    assert new.splitlines()[0] == "templates/pg_hba.conf changed"
    assert "nv-db         restarted, ready in" in new
    rendered = watched.state / "config/pg_hba.conf"
    assert rendered.read_text().startswith("# another comment\n")
    after = watched.pids()
    assert after.pop("nv-db") != before.pop("nv-db")
    assert after == before


@pytest.mark.variations
@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("pool_mode: session ", "pool_mode: [[[ ", '/invoke.yaml", line '),
        ("pool_mode: session ", "pool_mod: session ", "did you mean pgb.pool_mode?"),
        ("  env: dev ", "  env: other ", "stack.env can't change while the stack is watched"),
    ],
)
def test_an_edit_that_can_not_be_used_is_said_and_changes_nothing_until_it_is_mended(
    watched: Watched, before: str, after: str, says: str
) -> None:
    pids, said = watched.pids(), watched.said()
    watched.edit("invoke.yaml", before, after)
    assert says in watched.said_since(said, "everything goes on as it was")
    assert watched.query("SELECT 1", port=watched.pgb_port) == [(1,)]
    said = watched.said()
    assert [folder.name for folder in watched.state.parent.iterdir()] == ["dev"]
    watched.edit("invoke.yaml", after, before)
    assert "no running service is concerned" in watched.said_since(said, "no running")
    assert watched.pids() == pids


@pytest.mark.slow
def test_what_is_refused_for_a_later_service_restarts_no_earlier_one(watched: Watched) -> None:
    pids, said = watched.pids(), watched.said()
    text = (watched.root / "invoke.yaml").read_text()
    changed = text.replace("max_connections: 100 ", "max_connections: 95 ").replace("api.main:app ", "api.nosuch:app ")
    (watched.root / "invoke.yaml").write_text(changed)
    new = watched.said_since(said, "everything goes on as it was")
    assert "the application's module api.nosuch was not found" in new
    assert watched.pids() == pids
    said = watched.said()
    (watched.root / "invoke.yaml").write_text(text)
    watched.said_since(said, "no running service is concerned")
    assert watched.pids() == pids


@pytest.mark.slow
def test_settings_that_a_service_does_not_come_up_with_are_taken_back(watched: Watched) -> None:
    said = watched.said()
    watched.edit("invoke.yaml", "max_connections: 100 ", "max_connections: 90 # ")
    watched.said_since(said, "nv-db         restarted")
    said = watched.said()
    # nobody but a server that opens its socket looks for the group
    given = "unix_socket_group: nosuch"
    watched.edit("invoke.yaml", "parameters: {}        # further PostgreSQL", f"parameters: {{{given}}} # further")
    new = watched.said_since(said, "everything goes on as it was")
    assert "nv-db did not become ready" in new
    assert 'group "nosuch" does not exist' in new
    assert watched.query("SHOW max_connections") == [("90",)]
    said = watched.said()
    watched.edit("invoke.yaml", given, "work_mem: 5MB")
    watched.said_since(said, "nv-db         restarted")
    assert watched.query("SHOW work_mem") == [("5MB",)]


@pytest.mark.slow
def test_a_variable_of_the_application_restarts_it_alone(watched: Watched) -> None:
    before, said = watched.pids(), watched.said()
    (watched.root / ".env").write_text("COLOUR=blue\n")
    assert ".env changed\nnv-api        restarted" in watched.said_since(said, "nv-api ")
    after = watched.pids()
    assert after.pop("nv-api") != before.pop("nv-api")
    assert after == before


@pytest.mark.slow
def test_a_new_password_reaches_the_database_pgbouncer_and_the_application(watched: Watched) -> None:
    said = watched.said()
    watched.edit("invoke.yaml", "# password: ", "password: quite-another-one # ")
    watched.said_since(said, "nv-api ")
    assert watched.query("SELECT 1", port=watched.db_port, password="quite-another-one") == [(1,)]
    assert watched.query("SELECT 1", port=watched.pgb_port, password="quite-another-one") == [(1,)]
    assert watched.http("/memories")[0] == 200
    assert "quite-another-one" not in watched.said()


def test_what_is_stopped_stays_stopped_and_ctrl_c_ends_it(watched: Watched) -> None:
    watched.inv("api.stop")
    said = watched.said()
    with (watched.root / "invoke.yaml").open("a") as file:
        file.write("\n# a comment\n")
    assert "no running service is concerned" in watched.said_since(said, "no running")
    assert "nv-api" not in watched.pids()
    watched.inv("dev.up")
    (process,) = [command for command in watched.commands if command.args[-1] == "dev.watch"]  # type: ignore[index]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert "Traceback" not in watched.said()
    assert len(watched.pids()) == 3
