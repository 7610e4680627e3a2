"""State of one command: nothing of it is the process's, and no task or command hands on what it must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from invoke import Context

from devstack.wording import wording
from tasks import ns
from tasks.executor import StackExecutor
from tasks.program import Nv
from tasks.runstate import RunState, StackConfig, state_of
from tests.conftest import ROOT, Project
from tests.runner import run

IMPORT = """
import gc, json, logging, os, signal, sys

def process():
    return {
        "environ": dict(os.environ),
        "directory": os.getcwd(),
        "signals": {int(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "excepthook": str(sys.excepthook),
        "gc": [gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()],
        "bytecode": sys.dont_write_bytecode,
        "streams": [(s.errors, s.encoding) for s in (sys.stdin, sys.stdout, sys.stderr)],
        "handlers": str(logging.root.handlers),
        "argv": sys.argv,
    }

before = process()
import tasks
import tasks.program
print(json.dumps([before, process()]))
"""


def test_importing_the_tasks_changes_nothing_in_the_process() -> None:
    env = {**os.environ, "NV_ENV": "a", "NV_ON_HOST": "1", "PGHOST": "x", "INVOKE_DB_PORT": "1"}
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert after == before


# one state, on the configuration


def test_the_state_is_no_key_of_the_configuration_and_goes_with_its_copies() -> None:
    config = StackConfig()
    state = state_of(Context(config))
    assert "_run_state" not in config
    assert "run_state" not in config
    assert state_of(config.clone()) is state
    assert state_of(StackConfig()) is not state


def test_a_connection_of_fabric_has_the_state_of_its_command() -> None:
    from fabric import Connection

    config = StackConfig(run_state=RunState({"NV_ENV": "a"}, None))
    assert state_of(Connection("nowhere", config=config)).environment == "a"


def test_a_task_hands_nothing_on_to_the_next_one() -> None:
    config = StackConfig()
    state = state_of(config)
    released: list[object] = []

    class Lock:
        def release(self) -> None:
            released.append(self)

    class Commands:
        def withdraw(self, *, engine: bool) -> None:
            released.append(self)

    class Stack:
        lock, data_lock, context = Lock(), Lock(), Commands()

    def context(name: str, **flags: bool) -> object:
        made = next(one for one in ns.to_contexts() if one.name == name)
        for flag, value in flags.items():
            made.args[flag].value = value
        return made

    with pytest.raises(KeyError), state.task(context("data.undo", json=True)):  # type: ignore[arg-type]
        assert state.flags["json"] is True
        state.stack = Stack()  # type: ignore[assignment]
        raise KeyError
    assert (state.stack, state.flags, len(released)) == (None, {}, 3)


def test_signals_are_handled_after_a_task_as_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ignore(*_: object) -> dict[str, str]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return {}

    monkeypatch.setattr("invoke.Executor.execute", ignore)
    context = next(one for one in ns.to_contexts() if one.name == "health")
    StackExecutor(ns, StackConfig()).execute_here([context])
    assert signal.getsignal(signal.SIGTERM) is before


# two commands in one process


@pytest.fixture
def projects(tmp_path: Path) -> tuple[Path, Path]:
    """Two projects with names of their own, where nothing was ever started."""
    tmp_path.chmod(0o755)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "invoke.yaml").write_text(f"db: {{name: {name}, port: {7001 if name == 'one' else 8001}}}\n")
    return tmp_path / "one", tmp_path / "two"


def surroundings(root: Path, **env: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "INVOKE_STACK_RUNTIME": "native", "INVOKE_STACK_STATE_DIR": str(root / "state"), **env}


def test_two_commands_for_two_projects_do_not_see_each_other(projects: tuple[Path, Path]) -> None:
    one, two = projects
    first = run("db.status", "-e", "a", directory=one, env=surroundings(one, INVOKE_DB_PORT="7777"))
    second = run("db.status", directory=two, env=surroundings(two))
    assert (first.returncode, second.returncode) == (1, 1)
    assert "nv-a-db" in first.stdout
    assert ":7777" in first.stdout
    assert "nv-db " in second.stdout
    assert ":8001" in second.stdout

    # what is wrong with one project is not with the other
    (one / "invoke.yaml").write_text("db: [1,\nx: y\n")
    broken = run("dev.up", directory=one, env=surroundings(one))
    assert broken.returncode == 2
    assert "not valid YAML" in broken.stderr
    assert run("db.status", directory=two, env=surroundings(two)).stderr == ""
    wrong = run("db.status", directory=two, env=surroundings(two, INVOKE_DB_MAX_CONNECTIONS="many"))
    assert "a setting is wrong" in wrong.stderr
    again = run("db.status", directory=two, env=surroundings(two))
    assert (again.stdout, again.stderr) == (second.stdout, "")


def test_each_command_looks_at_the_ports_and_directories_of_its_own_project(projects: tuple[Path, Path]) -> None:
    texts = [run("system-info", directory=root, env=surroundings(root)).stdout for root in projects]
    for root, other, text in zip(projects, reversed(projects), texts, strict=True):
        assert str(root / "state") in text
        assert str(other) not in text


def test_commands_are_named_as_each_user_types_them(projects: tuple[Path, Path]) -> None:
    one, two = projects
    first = run("dev.logs", "-e", "a", directory=one, env=surroundings(one), program=Nv)
    second = run("dev.logs", directory=two, env=surroundings(two))
    assert first.stderr.endswith("fix:   nv dev.up -e a\n")
    assert second.stderr.endswith("fix:   inv dev.up\n")
    assert wording() == ("inv", "")


def test_commands_of_two_threads_do_not_word_each_others_answers(projects: tuple[Path, Path]) -> None:
    found: dict[str, str] = {}

    def word(name: str) -> None:
        from devstack.errors import StackError
        from devstack.wording import worded

        with worded(environment=name):
            barrier.wait(10)
            found[name] = StackError("it failed", fix="inv dev.up").text()

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=word, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: text.splitlines()[-1] for name, text in found.items()} == {
        "a": "fix:   inv dev.up -e a",
        "b": "fix:   inv dev.up -e b",
    }


def test_a_command_leaves_the_process_as_it_was(projects: tuple[Path, Path]) -> None:
    one, _ = projects

    def process() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        return dict(os.environ), os.getcwd(), sys.argv, sys.stdout, sys.stderr, sys.excepthook, *handlers

    before = process()
    run("data.backup", "--debug", directory=one, env=surroundings(one, NV_ON_HOST="1"))
    run("--list", directory=one, env=surroundings(one))
    assert process() == before


def test_the_help_of_flags_is_there_for_the_next_command_too(projects: tuple[Path, Path]) -> None:
    one, _ = projects
    helps = [run("--help", "data.backup", directory=one, env=surroundings(one)).stdout for _ in range(2)]
    assert helps[0] == helps[1]
    assert "a note to find it by" in helps[1]


def test_one_command_is_for_one_environment(projects: tuple[Path, Path]) -> None:
    one, _ = projects
    done = run("db.status", "-e", "a", "api.status", "--env=b", directory=one, env=surroundings(one))
    assert (done.returncode, done.stdout) == (2, "")
    assert "one command is for one environment, not for a and b" in done.stderr


# each typed task runs whole


def test_each_typed_task_runs_with_its_own_pre_and_post_tasks(project: Project) -> None:
    project.inv("dev.up", "dev.down", "dev.up")
    status = project.inv("dev.status", "--json")
    assert [one["state"] for one in json.loads(status.stdout)["services"]] == ["running"] * 3
    assert project.http("/health")[0] == 200
    before = project.pids()

    restarted = project.inv("dev.up", "dev.restart")
    assert restarted.stdout.count("already running") == 3
    assert restarted.stdout.count("stopped in") == 3
    after = project.pids()
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())

    project.inv("dev.up", "db.stop", "dev.up")
    project.inv("health", "--wait", "30")


def test_hooks_run_for_each_typed_task(project: Project) -> None:
    hook: Any = {"INVOKE_HOOKS_PRE_UP": 'echo "up $NV_ENV" >> order', "INVOKE_HOOKS_POST_DOWN": "echo down >> order"}
    for name in ("INVOKE_DB_PORT", "INVOKE_PGB_PORT", "INVOKE_API_PORT"):
        project.env.pop(name)
    project.inv("dev.up", "-e", "a", "dev.down", "dev.up", "dev.down", **hook)
    assert (project.root / "order").read_text().split("\n")[:-1] == ["up a", "down", "up a", "down"]
    assert project.processes() == []
