"""Repair what an examination found, as far as no person is needed for it. Data are never touched."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from msgspec import Struct

from devstack.data import recovery
from devstack.errors import StackError
from devstack.health.examination import examine
from devstack.health.records import Health, Remedy, ServiceHealth
from devstack.stack import Stack

ROUNDS = 4
"""A repair may bring the next fault to light; after so many of them a person should look."""

SETTLING = 5.0
"""Seconds in which the others recover from what was repaired."""

DID: dict[Remedy, str] = {
    "start": "started",
    "resume": "what was frozen goes on (SIGCONT)",
    "restart": "restarted",
    "settle": "role, database and extensions set up as the settings say",
    "reload": "configuration rendered again and read",
    "unpause": "its databases are open to clients again",
    "recover": "what was cut off is finished or undone",
}


class Repair(Struct, frozen=True):
    """Something that was done. ``failure`` says why it did not work."""

    name: str
    cause: str
    did: str
    failure: str = ""


def heal(stack: Stack, found: Health, *, asked: bool = True) -> Generator[Repair, None, Health]:
    """Repair, look again, until nothing is left that can be repaired. What a command stopped is started only if
    somebody asks for it now.

    :returns: what the last look found.
    """
    tried: set[tuple[str, Remedy]] = set()
    again = False
    for _ in range(ROUNDS):
        faults = [s for s in found.services if s.remedy and s.because_of is None and (s.service, s.remedy) not in tried]
        todo = [service for service in faults if asked or not _on_purpose(stack, service)]
        if not todo:
            return found
        try:
            if _others_were_at_it(stack) or not (again or _is_as_seen(stack, found)):
                # what was seen may have been the middle of their work
                again = True
                stack.forget()
                found = examine(stack)
                continue
            for service in todo:
                tried.add((service.service, service.remedy))
                repair = _repair(stack, service)
                yield repair
                if service.verdict == "unknown" and not repair.failure:
                    break  # one reason for all of them, which is gone
                if repair.failure and service.verdict != "degraded":
                    return found  # those after it need it: they would fail for a reason that is not theirs
        except StackError as error:
            yield _not_repaired(todo[0], error)
            return found
        finally:
            stack.forget()
        if stack.context.dry:
            return found
        again = False
        found = examine_again(stack)
    return found


def _others_were_at_it(stack: Stack) -> bool:
    """Take the stack, and say whether another command had it until now.

    :raises StackError: it has it for too long.
    """
    return not stack.context.dry and stack.paths.lock.exists() and stack.lock.acquire()


def _is_as_seen(stack: Stack, found: Health) -> bool:
    """Check that the same processes run as at an examination: another command may have stopped one since."""
    if stack.context.dry:
        return True
    try:
        states = stack.context.states(stack.names)
    except StackError:
        return found.verdict == "unknown"
    return all((states[service.name].pid or None) == service.pid for service in found.services)


def _on_purpose(stack: Stack, service: ServiceHealth) -> bool:
    """Whether a service was stopped by a command: it has not been ready since then."""
    return service.verdict == "stopped" and not stack.ready_since(stack.service(service.service))


def examine_again(stack: Stack) -> Health:
    """Examine after a repair: what depended on it needs a moment, PgBouncer for one tries a database that was away
    only once a second."""
    deadline = time.monotonic() + SETTLING
    while True:
        found = examine(stack)
        if found.verdict in ("healthy", "degraded") or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _repair(stack: Stack, service: ServiceHealth) -> Repair:
    assert service.remedy
    actions: dict[str, Callable[[], object]] = {
        "start": lambda: _start(stack, service.service),
        "resume": stack.resume,
        "restart": lambda: stack.restart(service.service),
        "settle": stack.settle_database,
        "reload": lambda: _reload(stack),
        "unpause": stack.unpause_pooler,
        "recover": lambda: recovery.put_right(stack),
    }
    try:
        actions[service.remedy]()
    except StackError as error:
        return _not_repaired(service, error)
    return Repair("supervisord" if service.verdict == "unknown" else service.name, service.cause, DID[service.remedy])


def _not_repaired(service: ServiceHealth, error: StackError) -> Repair:
    return Repair(service.name, service.cause, "", f"{error.what}: {error.why}" if error.why else error.what)


def _start(stack: Stack, label: str) -> None:
    recovery.put_right(stack)  # which brings back data that a restore has moved
    if label == "db" and not stack.db.data_is_there():
        raise StackError(f"there are no data at {stack.db.place}", why="inv dev.up makes a new, empty database")
    stack.start(label)


def _reload(stack: Stack) -> None:
    if kept := stack.reload_pooler():
        raise StackError(
            f"PgBouncer kept its {', '.join(kept)}", why="these take effect at a start only: inv pgb.stop api.start"
        )
