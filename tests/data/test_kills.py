"""Commands on the data that are killed while a client commits rows: nothing is lost, and the next command goes on."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Rounds
from tests.data.campaigns import LONGEST, Busy, Ledger, busy_stack, commands, telling

STEPS = """
import atexit, os, signal, sys
limit, alone = int(sys.argv[1]), sys.argv[2] == "alone"
seen = 0
def step():
    global seen
    seen += 1
    if seen != limit:
        return
    if alone:
        import psutil
        for child in psutil.Process().children():
            if any("devstack.data.recovery" in word for word in child.cmdline()):
                child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
def audit(event, _):
    if event in ("os.link", "os.remove", "os.rename", "os.rmdir", "subprocess.Popen"):
        step()
sys.path.insert(0, os.getcwd())
from devstack.data.session import Session
send = Session._send
def counted(*args):
    step()
    send(*args)
Session._send = counted
sys.addaudithook(audit)
atexit.register(lambda: print("steps:", seen, file=sys.stderr))
from invoke.main import program
program.run(["inv", *sys.argv[3:]])
"""
"""``inv``, killed at the n-th of its steps, which are changes of files, programs that it starts and statements that it
sends to the server; with ``alone`` its guard is killed as well."""

OPERATIONS = {
    "restore": 4,
    "merge": 3,
    "undo": 3,
    "backup": 2,
    "incremental": 2,
    "cluster": 2,
}
"""Operations that are killed, with their weights."""
HALF_OR_WHOLE = ("1500", "3000")
"""Rows of the table that the client does not write to. Half of them are removed before each operation: what brings them
back brings back all or none."""
NEXT = ["dev.up", "dev.heal", "data.list", "data.backup"]
"""One of these has to put all right."""


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Busy]:
    with busy_stack(workspace, cache) as made:
        yield made


class Usual(NamedTuple):
    """An operation that nobody killed: its steps, and its time in seconds."""

    steps: int
    seconds: float


def stepwise(stack: Busy, words: list[str], *, limit: int = 0, alone: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command that is killed at a step; 0 for none."""
    source = stack.code(STEPS, str(limit), "alone" if alone else "guarded", *words)
    return subprocess.run(source, cwd=stack.root, env=stack.env, capture_output=True, text=True, timeout=LONGEST)


def usual(stack: Busy, operation: str, chance: random.Random) -> Usual:
    """Run an operation to its end."""
    words = commands(stack, chance)[operation]
    began = time.monotonic()
    done = stepwise(stack, words)
    assert done.returncode == 0, done.stderr
    steps = re.search(r"^steps: (\d+)$", done.stderr, re.MULTILINE)
    assert steps
    return Usual(int(steps[1]), time.monotonic() - began)


def kill(stack: Busy, words: list[str], expected: Usual, chance: random.Random) -> str:
    """Run a command, and kill it at a random step or moment.

    :returns: when it was killed; empty if it ended before.
    """
    if chance.random() < 0.6:
        # half of them towards the end, where databases change their names
        first = chance.choice([1, expected.steps * 3 // 4])
        limit, alone = chance.randint(first, expected.steps), chance.random() < 0.5
        code = (done := stepwise(stack, words, limit=limit, alone=alone)).returncode
        said = done.stderr
        when = f"at step {limit} of {expected.steps}{', with its guard' if alone else ''}"
    else:
        moment = chance.uniform(0.2, expected.seconds)
        process = stack.popen(*words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.kill()
        _, said = process.communicate()
        code = process.returncode
        when = f"after {moment:.2f} s"
    assert code in (0, -signal.SIGKILL), said
    return when if code else ""


@pytest.mark.campaign
def test_a_killed_command_loses_no_acknowledged_row_and_the_next_one_puts_all_right(
    stack: Busy, chance: random.Random, rounds: Rounds
) -> None:
    expected = {operation: usual(stack, operation, chance) for operation in OPERATIONS}
    ledger = Ledger(stack)
    counts: Counter[str] = Counter()
    for number in rounds(1_000, share=100):
        (operation,) = chance.choices(list(OPERATIONS), list(OPERATIONS.values()))
        words, following = commands(stack, chance)[operation], chance.choice(NEXT)
        story = [f"round {number}: inv {' '.join(words)}, then {following}"]
        with telling(story):
            ledger.mark()
            stack.sql("DELETE FROM bulk WHERE id % 2 = 0")
            with stack.written() as acknowledged:
                when = kill(stack, words, expected[operation], chance)
                story += [f"killed {when or 'too late'}; left {stack.cut_off()}"]
                done = stack.inv(following)
                story += [done.stdout, done.stderr]
            stack.check_well()
            replaced = ledger.check(acknowledged)
            assert stack.sql("SELECT count(*) FROM bulk") in HALF_OR_WHOLE
            assert stack.json("data.list")["unreadable"] == []
            if number % 20 == 19:
                stack.tidy()
        counts[f"{operation}{', killed' if when else ''}{', replaced' if replaced else ''}"] += 1
    print(dict(sorted(counts.items())))
    stack.check_nothing_left()
