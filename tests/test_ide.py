"""Editors: files that keep what is in them, and configurations whose commands really run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from devstack.ide import jsonc
from tests.conftest import Project, free_ports, wait_for

# text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([None, 2, "\t"]))
def test_what_json_writes_is_read_as_json_reads_it(value: Any, indent: Any) -> None:
    node = jsonc.parse(json.dumps(value, indent=indent, ensure_ascii=False))
    assert node
    assert node.value == value


@given(st.lists(VALUES, max_size=4), VALUES, st.sampled_from(["", ",", " // end\n", ", /* end */\n", "\n"]))
def test_what_is_appended_is_there_and_the_rest_stays(items: list[Any], value: Any, end: str) -> None:
    end = end.replace(",", "") if not items else end
    text = '// head\n{ "a": [' + ", ".join(map(json.dumps, items)) + end + "] /* tail */ }\n"
    root = jsonc.parse(text)
    assert root
    changed = jsonc.appended(text, root.items[0], value)
    after = jsonc.parse(changed)
    assert after
    assert after.value == {"a": [*items, value]}
    left = iter(changed)
    assert all(character in left for character in text)  # nothing of it is gone, and all is in its order


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": }', (1, 7)),
        ('{\n  "a": 1\n  "b": 2\n}', (3, 3)),
        ("{'a': 1}", (1, 2)),
        ("{ /* no end", (1, 3)),
        ('{"a": [1, 2}', (1, 12)),
        ('{"a": 1} x', (1, 10)),
        ('{"a": "x\ny"}', (1, 7)),
        ('{"a": 1', (1, 8)),
        ("[" * 100_000, (1, 1)),
    ],
)
def test_what_is_no_json_is_named_with_its_place(text: str, place: tuple[int, int]) -> None:
    with pytest.raises(jsonc.Wrong) as wrong:
        jsonc.parse(text)
    assert (wrong.value.line, wrong.value.column) == place


TASKS = """\
// mine, all of it
{
\t"version": "2.0.0", /* as it was */
\t"tasks": [
\t\t{ "label": "lint",   "type": "shell", "command": "ruff check" }, // often
\t\t// "label": "nv: up" was here once
\t],
\t"inputs": [], // none yet
}
"""
SETTINGS = '\ufeff{\r\n  "editor.rulers": [120], // wide\r\n  "files.eol": "\\n"\r\n}\r\n'
EXTENSIONS = '{"recommendations": ["a.b"], "unwantedRecommendations": ["mtxr.sqltools"]}'


def ide(project: Project, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return project.inv("dev.ide", *args, **kwargs)


@pytest.fixture
def folder(project: Project) -> Path:
    made = project.root / ".vscode"
    made.mkdir()
    return made


def test_files_keep_every_byte_and_a_second_time_changes_nothing(project: Project, folder: Path) -> None:
    (folder / "tasks.json").write_bytes(TASKS.encode())
    (folder / "settings.json").write_bytes(SETTINGS.encode())
    (folder / "extensions.json").write_bytes(EXTENSIONS.encode())
    (folder / "settings.json").chmod(0o600)
    done = ide(project, "--vscode")
    assert f"wrote  {folder}/tasks.json\n  added       nv: up\n" in done.stdout
    assert "left alone  mtxr.sqltools: it is unwanted in this file" in done.stdout
    tasks = (folder / "tasks.json").read_bytes().decode()
    head, _, tail = TASKS.partition(" // often\n")
    assert tasks.startswith(
        f'{head} // often\n\t\t{{\n\t\t\t"label": "nv: up",\n\t\t\t"detail": "nv-devstack: start the stack",\n'
    )
    assert tasks.endswith(f"\t\t}},\n{tail}")
    settings = (folder / "settings.json").read_bytes().decode()
    kept, end = SETTINGS[: -len("\r\n}\r\n")], "\r\n}\r\n"
    assert settings.startswith(f'{kept},\r\n  "sqltools.connections": [\r\n    {{\r\n      "name": "nv: database",\r\n')
    assert settings.endswith(f"    }}\r\n  ]{end}")
    assert "\n" not in settings.replace("\r\n", "")
    assert (folder / "settings.json").stat().st_mode & 0o777 == 0o600
    assert (folder / "extensions.json").read_text().startswith(EXTENSIONS.partition(', "unwanted')[0][:-1])
    password = project.secrets()["db_password"]
    for file in folder.iterdir():
        assert password not in file.read_text()
        node = jsonc.parse(file.read_bytes().decode())
        assert node
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    again = ide(project, "--vscode")
    assert "wrote" not in again.stdout
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()} == before


def test_a_link_out_of_the_project_is_not_written_through(project: Project, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "somebody's.json"
    for there in (False, True):
        if there:
            outside.write_text('{"tasks": []}')
        (folder / "tasks.json").unlink(missing_ok=True)
        (folder / "tasks.json").symlink_to(outside)
        refused = ide(project, "--vscode", expect=2)
        assert f"{folder}/tasks.json leads out of {project.root}" in refused.stderr
        assert [path.name for path in folder.iterdir()] == ["tasks.json"]
        assert not there or outside.read_text() == '{"tasks": []}'
    (folder / "tasks.json").unlink()
    os.mkfifo(folder / "tasks.json")
    assert "is no regular file" in ide(project, "--vscode", expect=2).stderr


def parsed(file: Path) -> Any:
    node = jsonc.parse(file.read_text())
    assert node
    return node.value


def test_our_older_entries_are_replaced_and_those_of_others_stay(project: Project, folder: Path) -> None:
    ide(project, "--vscode")
    file = folder / "tasks.json"
    text = file.read_text()
    file.write_text(
        text.replace('"dev.down"', '"dev.down.old"').replace("nv-devstack: is everything", "mine: is everything")
    )
    done = ide(project, "--vscode", "--json")
    (tasks,) = [f for f in json.loads(done.stdout)["files"] if f["file"].endswith("tasks.json")]
    did = {entry["name"]: entry["did"] for entry in tasks["entries"]}
    assert (did["nv: down"], did["nv: health"], did["nv: up"]) == ("replaced", "left alone", "unchanged")
    assert file.read_text() == text.replace("nv-devstack: is everything", "mine: is everything")


@pytest.mark.variations
@pytest.mark.parametrize(
    ("file", "content", "place"),
    [
        (".vscode/launch.json", '{\n  "configurations": [\n    {"name": "x"\n', "launch.json:4:1"),
        (".vscode/settings.json", "[]", "settings.json:1:1"),
        (".vscode/tasks.json", '{"tasks": {}}', "tasks.json:1:11"),
        (".idea/dataSources.xml", "<project>\n  <component>\n</project>", "dataSources.xml:3:3"),
        (".run/nv-up.run.xml", "not xml", "nv-up.run.xml:1:1"),
    ],
)
def test_a_file_that_is_broken_is_named_and_nothing_is_written(
    project: Project, file: str, content: str, place: str
) -> None:
    path = project.root / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    done = ide(project, "--vscode", "--jetbrains", expect=2)
    assert place in done.stderr
    assert "no file was changed" in done.stderr
    assert path.read_text() == content
    left = [p.name for name in (".vscode", ".run", ".idea") for p in (project.root / name).glob("*")]
    assert left == [path.name]


def test_misuse_and_a_dry_run(project: Project) -> None:
    done = ide(project, expect=2)
    assert "dev.ide takes --vscode, --jetbrains, or both" in done.stderr
    assert "is no folder" in ide(project, "--vscode", "--folder", "nowhere", expect=2).stderr
    done = project.inv("--dry", "dev.ide", "--vscode", "--jetbrains")
    assert "would write" in done.stdout
    assert not (project.root / ".vscode").exists()
    assert json.loads(project.inv("--dry", "dev.ide", "--vscode", "--json").stdout)["files"][0]["written"] is False
    assert not project.state_base.exists() or not list(project.state_base.rglob("ide.env"))


SOURCES = b"""<?xml version="1.0" encoding="UTF-8"?>
<project version="4">
  <!-- theirs: \xc3\xa4 -->
  <component name="DataSourceManagerImpl" format="xml" multifile-model="true">
    <data-source source="LOCAL" name="other" uuid="1">
      <jdbc-url>jdbc:postgresql://elsewhere/x</jdbc-url>
    </data-source>
  </component>
  <component name="Else" />
</project>
"""


@pytest.mark.variations
@pytest.mark.parametrize(
    "before",
    [
        SOURCES,
        b'<project version="4">\n  <component name="DataSourceManagerImpl" format="xml"/>\n</project>\n',
        b'<project version="4"><component name="Else"/></project>',
        b'<project version="4"/>',
    ],
)
def test_data_sources_are_merged_by_the_byte(project: Project, before: bytes) -> None:
    file = project.root / ".idea" / "dataSources.xml"
    file.parent.mkdir()
    file.write_bytes(before)
    ide(project, "--jetbrains")
    after = file.read_bytes()
    (ours,) = [e for e in ElementTree.fromstring(after).iter("data-source") if e.get("name") == "nv: database"]
    assert ours.findtext("jdbc-url") == f"jdbc:postgresql://127.0.0.1:{project.db_port}/nina?user=nina"
    if before == SOURCES:
        start, end = after.index(b'    <data-source source="LOCAL" name="nv'), after.rindex(b"  </component>\n  <comp")
        assert after[:start] + after[end:] == before
    assert "wrote" not in ide(project, "--jetbrains").stdout
    # another port: ours is replaced, in its place
    (port,) = free_ports(1)
    ide(project, "--jetbrains", INVOKE_DB_PORT=str(port))
    assert file.read_bytes() == after.replace(f":{project.db_port}/".encode(), f":{port}/".encode())


def test_run_configurations_are_whole_and_those_of_others_stay(project: Project) -> None:
    runs = project.root / ".run"
    runs.mkdir()
    theirs = '<component name="ProjectRunConfigurationManager"><configuration name="nv: up" /></component>\n'
    (runs / "nv-up.run.xml").write_text(theirs)
    done = project.process("dev.ide", "--jetbrains")  # the program is the project's own copy
    assert "left alone  nv: up: it is not from this tool" in done.stdout
    assert (runs / "nv-up.run.xml").read_text() == theirs
    kinds = {}
    for file in runs.iterdir():
        (configuration,) = ElementTree.fromstring(file.read_text())
        kinds[configuration.get("name")] = configuration.get("type")
    assert kinds["nv: the application under the debugger"] == "PythonConfigurationType"
    assert kinds["nv: tests"] == "tests"
    health = ElementTree.fromstring((runs / "nv-down.run.xml").read_text())
    script = next(o.get("value") or "" for o in health.iter("option") if o.get("name") == "SCRIPT_TEXT")
    script = script.replace("$PROJECT_DIR$", str(project.root)).replace("dev.down", "--version")
    assert "Invoke" in subprocess.run(script, shell=True, cwd=project.root, capture_output=True, text=True).stdout


# debugging, for real


class Dap:
    """As much of a client of the Debug Adapter Protocol as attaching takes.
    https://microsoft.github.io/debug-adapter-protocol/overview"""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self._socket.makefile("rwb")
        self._sent = 0

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def send(self, command: str, **arguments: Any) -> None:
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._file.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._file.flush()

    def until(self, name: str) -> dict[str, Any]:
        """The next event, or answer to a command, of this name."""
        while True:
            length = 0
            while line := self._file.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            message: dict[str, Any] = json.loads(self._file.read(length))
            if name in (message.get("event"), message.get("command")):
                return message

    def attach(self) -> None:
        """:raises AssertionError: the debugger refuses."""
        self.send("initialize", adapterID="debugpy", pathFormat="path")
        assert self.until("initialize")["success"]
        self.send("attach", justMyCode=False)
        self.until("initialized")


def launch(project: Project, name: str) -> dict[str, Any]:
    configurations = parsed(project.root / ".vscode" / "launch.json")["configurations"]
    (found,) = [c for c in configurations if c["name"] == name]
    return expanded(found, project)


def task(project: Project, label: str) -> dict[str, Any]:
    (found,) = [t for t in parsed(project.root / ".vscode" / "tasks.json")["tasks"] if t["label"] == label]
    return expanded(found, project)


def expanded(value: dict[str, Any], project: Project) -> dict[str, Any]:
    done: dict[str, Any] = json.loads(json.dumps(value).replace("${workspaceFolder}", str(project.root)))
    return done


def run_task(project: Project, label: str) -> subprocess.CompletedProcess[str]:
    it = task(project, label)
    done = subprocess.run(
        [it["command"], *it["args"]],
        cwd=it["options"]["cwd"],
        env={**project.env, **it["options"].get("env", {})},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_a_debugger_attaches_to_the_application_that_runs(stack: Project) -> None:
    (port,) = free_ports(1)
    ide(stack, "--vscode", INVOKE_API_DEBUG_PORT=str(port))
    attach = launch(stack, "nv: attach to the application")
    assert attach["connect"] == {"host": "127.0.0.1", "port": port}
    before = stack.pids()
    run_task(stack, attach["preLaunchTask"])
    client = Dap(port)
    try:
        client.attach()
        client.send("setBreakpoints", source={"path": str(stack.root / "api" / "health.py")}, breakpoints=[])
        assert client.until("setBreakpoints")["success"]
        client.send("configurationDone")
        assert client.until("configurationDone")["success"]
        client.send("threads")
        assert client.until("threads")["body"]["threads"]
        assert stack.http("/health")[0] == 200
        listening = [tuple(c.laddr) for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
        assert [address for address in listening if port in address] == [("127.0.0.1", port)]
    finally:
        client.close()
    now = stack.pids()
    assert (now["nv-db"], now["nv-pgbouncer"]) == (before["nv-db"], before["nv-pgbouncer"])
    run_task(stack, attach["preLaunchTask"])  # it listens already: nothing is restarted
    assert stack.pids() == now
    stack.inv("dev.up")  # and without a debugger again
    assert stack.pids()["nv-api"] != now["nv-api"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


@pytest.mark.slow
def test_the_application_starts_under_the_debugger_with_the_stack_s_variables(stack: Project) -> None:
    ide(stack, "--vscode")
    started = launch(stack, "nv: the application under the debugger")
    run_task(stack, started["preLaunchTask"])
    assert "nv-api" not in stack.pids()
    variables = Path(started["envFile"])
    assert variables.stat().st_mode & 0o777 == 0o600
    assert stack.root not in variables.parents
    env = {k: v or "" for k, v in dotenv_values(variables, interpolate=False).items()}
    assert env["NINAIVALAIGAL_JWT_SECRET"] == stack.secrets()["jwt_secret"]
    assert env["PGREQUIREAUTH"] == "scram-sha-256"
    (port,) = free_ports(1)
    debugger = [started["python"], "-m", "debugpy", "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*debugger, "-m", started["module"], *started["args"]],
        cwd=started["cwd"],
        env={**stack.env, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_for(lambda: stack.http("/health"), 40)[0] == 200
        client = Dap(port)
        client.attach()
        client.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        wait_for(lambda: stack.api_port not in stack.listening())
    stack.inv("dev.up")
    assert stack.http("/health")[0] == 200


def test_without_debugpy_it_says_what_to_install(project: Project, tmp_path: Path) -> None:
    (project.root / "debugpy.py").write_text('raise ModuleNotFoundError("No module named debugpy")\n')
    (port,) = free_ports(1)
    done = project.inv("dev.up", expect=1, INVOKE_API_DEBUG_PORT=str(port))
    assert f"install debugpy there: {sys.executable} -m pip install debugpy" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as two users")
def test_a_folder_of_somebody_else_is_not_written_into(project: Project) -> None:
    """Whoever owns it could exchange a directory in it for a link while files are written."""
    his = project.folder / "his"
    his.mkdir(mode=0o755)
    os.chown(his, 65534, 65534)
    refused = ide(project, "--vscode", "--jetbrains", "--folder", str(his), expect=2)
    assert f"an editor's files can't be kept in {his}/.vscode" in refused.stderr
    assert list(his.iterdir()) == []
