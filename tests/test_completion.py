"""Tab in bash, zsh and fish: what is completed, that it is quick, and that it follows the tasks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack.data.backup import FORMATS
from devstack.engines import ENGINES
from tests.conftest import Project

SHELLS = ("bash", "zsh", "fish")
START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
ZEBRA = """
@task(help={"colour": "which"})
def zebra(c: Context, colour: str = "") -> None: ...
"""
NV = """
import sys
sys.path.insert(0, {root!r})
open({runs!r}, "a").write("nv " + " ".join(sys.argv[1:]) + "\\n")
from tasks import ns
from tasks.commandline import StackProgram
StackProgram(namespace=ns, name="nv", binary="nv", binary_names=["nv"]).run()
"""
BACKUP = "backup-20261124-042351.sql.gz"


@pytest.fixture(scope="module")
def checkout(workspace: Path, cache: Path) -> Iterator[Project]:
    """A copy of the project in a folder with a hard name, with backups, and a program ``inv`` that notes its runs."""
    folder = workspace / "completion"
    folder.mkdir()
    made = Project(folder, cache, root=folder / "a project's")
    made.have_program()
    (made.root / "backups/review").mkdir(parents=True)
    for name in (BACKUP, f"review/other-{BACKUP}"):
        (made.root / "backups" / name).touch()
        (made.root / "backups" / f"{name}.json").touch()
    (made.root / "backups/back$(touch oops).json").touch()
    programs = folder / "bin"
    programs.mkdir()
    for name in ("inv", "invoke"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "$*" >>{folder}/runs\nexec {sys.executable} -m invoke "$@"\n')
        program.chmod(0o755)
    # a program of its own name, as an installed one: its tasks come from elsewhere than the folder that it works in
    program = programs / "nv"
    program.write_text(f"#!{sys.executable}\n{NV.format(root=str(made.root), runs=str(folder / 'runs'))}")
    program.chmod(0o755)
    made.env |= {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "xterm", "PS1": "> "}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR", "INPUTRC"):
        made.env.pop(name, None)
    for shell in SHELLS:
        script = made.inv("dev.completion", shell).stdout
        (folder / f"completion.{shell}").write_text(script.replace("inv invoke", "inv invoke nv"))
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


def runs(checkout: Project) -> list[str]:
    file = checkout.folder / "runs"
    return file.read_text().splitlines() if file.exists() else []


def completed(checkout: Project, shell: str, line: str, **env: str) -> str:
    """The line after the key was pressed at its end."""
    return all_completed(checkout, shell, [line], **env)[0]


def all_completed(checkout: Project, shell: str, lines: list[str], **env: str) -> list[str]:
    """The same of several lines, one after the other in one shell."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = checkout.folder / f"completion.{shell}"
    variables = {**checkout.env, **env}
    if shell == "fish":
        return in_fish(script, lines, checkout.root, variables)
    return on_terminal(START[shell], script, lines, checkout.root, variables)


def in_fish(script: Path, lines: list[str], folder: Path, env: dict[str, str]) -> list[str]:
    """fish answers without a terminal: all that may come there, each with its meaning."""
    question = "source $argv[1]; for line in $argv[2..]; complete -C $line; echo; end"
    command = ["fish", "--no-config", "-c", question, str(script), *lines]
    answer = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert answer.stderr == ""
    after = []
    for line, found in zip(lines, re.findall(r"((?:.+\n)*)\n", answer.stdout), strict=True):
        words = [one.partition("\t")[0] for one in found.splitlines()]
        after.append(f"{line.rpartition(' ')[0]} {words[0]}" if len(words) == 1 else f"{line}{words or ''}")
    return after


def on_terminal(start: list[str], script: Path, lines: list[str], folder: Path, env: dict[str, str]) -> list[str]:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        start,
        cwd=folder,
        env=env,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    try:
        emacs = b"bindkey -e; " if start[0] == "zsh" else b""
        os.write(leader, emacs + b"source '" + os.fsencode(script) + b"'; echo re''ady\n")
        read_until(leader, rb"\bready\b")
        after = []
        for number, line in enumerate(lines):
            # the key, and then the line between quotes, so that the shell says what it is now
            os.write(leader, line.encode() + b"\t\x01printf '[%%s]%%s\\n' '\x05' done%d\n" % number)
            shown = read_until(leader, rb"\[([^\r\n]*)\]done%d\r?\n" % number)
            after.append(shown[1].decode().rstrip())
        return after
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def read_until(leader: int, pattern: bytes) -> re.Match[bytes]:
    text, deadline = b"", time.monotonic() + 60
    while not (found := re.search(pattern, text)):
        assert time.monotonic() < deadline, text
        if select.select([leader], [], [], 1)[0]:
            with contextlib.suppress(OSError):
                text += os.read(leader, 10_000)
    return found


LINES = {
    "inv dev.sta": "inv dev.status",
    "invoke dev.sta": "invoke dev.status",
    "inv --dry dev.down dev.sta": "inv --dry dev.down dev.status",
    "inv --deb": "inv --debug",
    "inv data.backup --for": "inv data.backup --format",
    "inv data.backup --label x --schema": "inv data.backup --label x --schema-only",
    "inv data.backup --format c": "inv data.backup --format custom",
    "inv data.backup --format=c": "inv data.backup --format=custom",
    "inv dev.move --to pod": "inv dev.move --to podman",
    "inv health --watch 3 --stri": "inv health --watch 3 --strict",
    "inv data.restore --file back": f"inv data.restore --file {BACKUP}",
    "inv data.pin back": f"inv data.pin {BACKUP}",
    f"inv data.pin {BACKUP} dev.sta": f"inv data.pin {BACKUP} dev.status",
    "inv data.seed READ": "inv data.seed README.md",
    "inv dev.completion fi": "inv dev.completion fish",
    "inv dev.export --format q": "inv dev.export --format quadlet",
    "inv dev.exec -- READ": "inv dev.exec -- README.md",
    "inv dev.exec -- dev.st": "inv dev.exec -- dev.st",
    "inv dev.init READ": "inv dev.init README.md",
    "inv dev.init . dev.sta": "inv dev.init . dev.status",
    "inv dev.up --form": "inv dev.up --form",
    "inv READ": "inv READ",
}


@pytest.mark.variations
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes(checkout: Project, shell: str) -> None:
    after = all_completed(checkout, shell, list(LINES))
    assert dict(zip(LINES, after, strict=True)) == LINES


@pytest.mark.variations
@pytest.mark.parametrize("shell", SHELLS)
def test_the_backups_are_those_of_the_environment(checkout: Project, shell: str) -> None:
    line = "inv data.restore --file "
    assert completed(checkout, shell, f"{line}oth", NV_ENV="review") == f"{line}other-{BACKUP}"
    assert completed(checkout, shell, f"{line}oth") == f"{line}oth"


@pytest.mark.variations
@pytest.mark.parametrize("shell", SHELLS)
def test_a_task_that_is_added_is_known_and_nothing_is_asked_otherwise(checkout: Project, shell: str) -> None:
    completed(checkout, shell, "inv dev.sta")
    before = runs(checkout)
    completed(checkout, shell, "inv dev.sta")
    assert runs(checkout) == before
    api, text = checkout.root / "tasks/api.py", (checkout.root / "tasks/api.py").read_text()
    try:
        api.write_text(f"{text}{ZEBRA}")
        assert completed(checkout, shell, "inv api.z") == "inv api.zebra"
        assert completed(checkout, shell, "inv api.zebra --col") == "inv api.zebra --colour"
        assert runs(checkout) == [*before, "dev.completion table"]
        environments = next(Path(row[2]) for row in table(checkout) if row[:2] == ["folder", "environments"])
        (environments / "review").mkdir(parents=True, exist_ok=True)
        assert completed(checkout, shell, "inv api.zebra --env rev") == "inv api.zebra --env review"
        assert completed(checkout, shell, "inv api.zebra -e rev") == "inv api.zebra -e review"
    finally:
        api.write_text(text)


@pytest.mark.variations
@pytest.mark.parametrize("shell", SHELLS)
def test_while_the_tasks_are_broken_the_last_ones_are_offered(checkout: Project, shell: str) -> None:
    completed(checkout, shell, "inv dev.sta")
    api, text = checkout.root / "tasks/api.py", (checkout.root / "tasks/api.py").read_text()
    try:
        api.write_text("def (")
        assert completed(checkout, shell, "inv dev.sta") == "inv dev.status"
    finally:
        api.write_text(text)


@pytest.mark.variations
@pytest.mark.parametrize("shell", SHELLS)
def test_other_projects_are_invoke_s_own(checkout: Project, shell: str) -> None:
    other = checkout.folder / "other"
    other.mkdir(exist_ok=True)
    (other / "tasks.py").write_text("from invoke import task\n@task\ndef bake(c): pass\n")
    here, checkout.root = checkout.root, other
    try:
        assert completed(checkout, shell, "inv ba") == "inv bake"
    finally:
        checkout.root = here


@pytest.mark.variations
@pytest.mark.parametrize("shell", SHELLS)
def test_the_program_of_its_own_name_works_where_there_are_settings(checkout: Project, shell: str) -> None:
    adopted = checkout.folder / "adopted"
    (adopted / "below").mkdir(parents=True, exist_ok=True)
    (adopted / "invoke.yaml").touch()
    here, checkout.root = checkout.root, adopted / "below"
    try:
        completed(checkout, shell, "nv dev.sta")
        before = runs(checkout)
        after = all_completed(checkout, shell, ["nv dev.sta", "nv data.backup --schema"])
        assert after == ["nv dev.status", "nv data.backup --schema-only"]
        assert runs(checkout) == before
    finally:
        checkout.root = here


def test_it_works_from_a_folder_below_and_with_any_sh(checkout: Project) -> None:
    """The part that all three shells ask, by itself."""
    program = checkout.root / "tasks/completion/candidates.sh"
    done = subprocess.run(
        ["sh", program, "inv", "dev.re"],
        cwd=checkout.root / "devstack/data",
        env=checkout.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "dev.restart\tStop and start the stack.",
        "dev.reset\tBack up the data, remove them, and start anew.",
        "dev.remove\tBack up an environment's data, and remove it for good.",
    ]


def table(checkout: Project, **env: Any) -> list[list[str]]:
    return [line.split("\t") for line in checkout.inv("dev.completion", "table", **env).stdout.splitlines()]


def test_every_task_and_flag_is_in_the_table(checkout: Project) -> None:
    rows = table(checkout)
    flags = {(task, name) for kind, task, name, *_ in rows if kind == "flag"}
    for task in (row[1] for row in rows if row[0] == "task"):
        shown = checkout.inv("--help", task).stdout if task in ("data.backup", "health", "data.pin") else ""
        for flag in re.findall(r"--[a-z-]+(?=[=\[ ,])", shown.partition("Options:")[2]):
            assert (task, flag) in flags
    listed = checkout.inv("--list").stdout
    assert {row[1] for row in rows if row[0] == "task"} == set(re.findall(r"^  (\S+) ", listed, re.MULTILINE))


def test_what_the_values_belong_to_is_there_and_they_are_what_the_tasks_take(checkout: Project) -> None:
    script = "import json, tasks.completion as c; print(json.dumps([c.VALUES, list(c.SHELLS)]))"  # the tasks, elsewhere
    done = subprocess.run(
        checkout.code(script), cwd=checkout.root, env=checkout.env, capture_output=True, text=True, check=True
    )
    values, shells = json.loads(done.stdout)
    valued = {f"{task} {name}".strip() for kind, task, name, *rest in table(checkout) if kind == "flag" and rest[1]}
    assert set(values) <= valued
    assert tuple(values["data.backup --format"]) == FORMATS
    assert values["dev.move --to"] == [*(engine.name for engine in ENGINES), "native"]
    assert tuple(shells) == SHELLS


def test_a_wrong_setting_leaves_the_tasks(checkout: Project) -> None:
    rows = table(checkout, INVOKE_DB_PORT="nonsense")
    assert [row[1] for row in rows if row[0] == "folder"] == ["tasks"]
    assert {"task", "flag"} < {row[0] for row in rows}


@pytest.mark.parametrize("name", ["tcsh", "", "BASH"])
def test_another_shell_is_refused_with_those_that_there_are(checkout: Project, name: str) -> None:
    done = checkout.inv("dev.completion", name, expect=2)
    assert done.stdout == ""
    assert done.stderr == (
        f"error: there is no completion for the shell {name!r}\nfix:   inv dev.completion bash, zsh or fish\n"
    )
