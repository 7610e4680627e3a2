"""Commands on the data that are killed while a client commits rows: nothing is lost, and the next command goes on."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Rounds
from tests.data.campaigns import LONGEST, Busy, Ledger, busy_stack, commands, telling

STEPS = """
import os, signal, sys
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
from invoke.main import program
program.run(["inv", *sys.argv[3:]])
"""
"""``inv``, killed at the n-th of its steps, which are changes of files, programs that it starts and statements that it
sends to the server; with ``alone`` its guard is killed as well."""


class Operation(NamedTuple):
    """An operation that is killed: its weight, and about how many steps and seconds it takes. A kill may come too late:
    the round has none then."""

    weight: int
    steps: int
    seconds: float


OPERATIONS = {
    "restore": Operation(4, 250, 1.5),
    "merge": Operation(3, 210, 1.2),
    "undo": Operation(3, 60, 0.8),
    "backup": Operation(2, 70, 0.8),
    "incremental": Operation(2, 35, 2.0),
    "cluster": Operation(2, 120, 4.0),
}
HALF_OR_WHOLE = ("1500", "3000")
"""Rows of the table that the client does not write to. Half of them are removed before each operation: what brings them
back brings back all or none."""
NEXT = ["dev.up", "dev.heal", "data.list", "data.backup"]
"""One of these has to put all right."""


@pytest.fixture(scope="module")
def stack(workspace: Path, cache: Path) -> Iterator[Busy]:
    with busy_stack(workspace, cache) as made:
        yield made


def kill(stack: Busy, words: list[str], operation: Operation, chance: random.Random) -> str:
    """Run a command, and kill it at a random step or moment.

    :returns: when it was killed; empty if it ended before.
    """
    if chance.random() < 0.6:
        # half of them towards the end, where databases change their names
        first = chance.choice([1, operation.steps * 3 // 4])
        step, guard = chance.randint(first, operation.steps), chance.choice(["guarded", "alone"])
        done = subprocess.run(
            stack.code(STEPS, str(step), guard, *words),
            cwd=stack.root, env=stack.env, capture_output=True, text=True, timeout=LONGEST,
        )  # fmt: skip
        code, said, when = done.returncode, done.stderr, f"at step {step}, {guard}"
    else:
        moment = chance.uniform(0.2, operation.seconds)
        process = stack.popen(*words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.kill()
        _, said = process.communicate()
        code, when = process.returncode, f"after {moment:.2f} s"
    assert code in (0, -signal.SIGKILL), said
    return when if code else ""


@pytest.mark.campaign
def test_a_killed_command_loses_no_acknowledged_row_and_the_next_one_puts_all_right(
    stack: Busy, chance: random.Random, rounds: Rounds
) -> None:
    ledger = Ledger(stack)
    counts: Counter[str] = Counter()
    for number in rounds(1_000, share=100):
        (operation,) = chance.choices(list(OPERATIONS), [known.weight for known in OPERATIONS.values()])
        words, following = commands(stack, chance)[operation], chance.choice(NEXT)
        story = [f"round {number}: inv {' '.join(words)}, then {following}"]
        with telling(story):
            ledger.mark()
            stack.sql("DELETE FROM bulk WHERE id % 2 = 0")
            with stack.written() as acknowledged:
                when = kill(stack, words, OPERATIONS[operation], chance)
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
