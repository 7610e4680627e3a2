"""Settings and templates that change while the stack runs are applied to the services that they concern."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from devstack.errors import StackError, UsageError
from devstack.services import NotReady, Service

if TYPE_CHECKING:
    from devstack.stack import Stack

SETTINGS = ("invoke.yaml", "invoke.yml", "invoke.json", ".env")
PASSING = ("~", ".swp", ".swx", ".tmp", ".bak")
"""What editors write beside a file while they save it ends so."""


def changes(root: Path, templates: Path, ended: threading.Event) -> Iterator[list[str]]:
    """The files that changed, as paths from the project's folder, until ``ended`` is set.

    Their folders are watched: most editors put a new file in the place of the old one. The first answer comes at once
    and has no files: what changed before is looked for after the watch has begun.
    """
    from watchfiles import watch

    folders = [root, *(path for path in (templates, *templates.rglob("*")) if path.is_dir())]

    def concerns(_: object, path: str) -> bool:
        file = Path(path)
        if file.parent == root:
            return file.name in SETTINGS
        return not file.name.startswith(".") and not file.name.endswith(PASSING) and not file.name.isdigit()

    there = {str(path) for folder in folders for path in folder.iterdir()}
    first = True
    for found in watch(
        *folders,
        watch_filter=concerns,
        recursive=False,
        stop_event=ended,
        debounce=400,
        rust_timeout=500,
        yield_on_timeout=True,
    ):
        # not what an editor wrote beside a file, and took away again
        names = {path for _, path in found if path in there or Path(path).exists()}
        if names or first:
            first = False
            there |= names
            yield sorted(str(Path(path).relative_to(root)) for path in names)


class Applied(Struct, frozen=True):
    """What was done to a service."""

    name: str
    did: str
    seconds: float


class Watched(Struct):
    """A stack that follows its files."""

    stack: Stack
    """With the settings that were applied last."""
    owed: set[str] = field(default_factory=set)
    """Labels of services that a change has brought down: the next one that can be applied starts them."""

    def apply(self, new: Stack) -> Iterator[Applied]:
        """Have each running service be as the new settings of the same stack (:func:`check_same`) say, in order.

        :raises StackError: one can't be; all of them then go on with the settings before, where that is still possible.
        """
        old, touched = self.stack, list[str]()
        try:
            states = new.context.states(new.names)
            # all that are concerned by now, before the first is stopped
            new.check([s.label for s in new.services if self._is_due(s, new, running=states[s.name].running)])
            for service in new.services:
                running = states[service.name].running
                if not self._is_due(service, new, running=running):
                    continue
                touched.append(service.label)
                began = time.monotonic()
                did = _bring(service, old, new, running=running)
                self.owed.discard(service.label)
                yield Applied(service.name, did, time.monotonic() - began)
        except StackError:
            new.forget()
            self._return(touched)
            raise
        finally:
            new.forget()
        self.stack = new

    def _is_due(self, service: Service, new: Stack, *, running: bool) -> bool:
        return service.label in self.owed or (running and _concerns(service, self.stack, new))

    def _return(self, labels: list[str]) -> None:
        """Take services back to the settings before; those that do not come up are owed."""
        old = self.stack
        old.forget()
        for label in labels:
            try:
                old.start(label)
            except StackError:
                self.owed.add(label)
        old.forget()


def _concerns(service: Service, old: Stack, new: Stack) -> bool:
    """Whether a running service is not as the new settings say."""
    changed = old.db.credentials != new.db.credentials
    if service is new.db:  # what is set up in it is no part of how it was started
        changed |= old.settings.db != new.settings.db
    return new.outdated(service) or (changed and service is not new.api)


def _bring(service: Service, old: Stack, new: Stack, *, running: bool) -> str:
    """Have a service be as the new settings say, with as little as that takes; what was done.

    :raises StackError: it did not become ready.
    """
    if running and service is new.pgb and _reload(old, new):
        return "configuration reloaded"
    if running and service is new.db and not new.outdated(service):
        new.settle_database()
        return "role, database and extensions set up as the settings say"
    new.start(service.label)
    return "restarted, ready" if running else "started, ready"


def _reload(old: Stack, new: Stack) -> bool:
    """Have PgBouncer read its configuration, if that is all it takes: no client notices."""
    if (old.pgb.spec(), old.pgb.address) != (new.pgb.spec(), new.pgb.address):
        return False
    try:
        kept = new.reload_pooler()
        new.pgb.answers()
    except (StackError, NotReady):
        return False  # a restart is refused for the same reason, or mends it
    return not kept


def check_same(old: Stack, new: Stack) -> None:
    """:raises UsageError: the new settings are those of another stack."""
    if new.paths.state == old.paths.state and new.paths.log == old.paths.log:
        return
    path = next(
        path
        for path in ("stack.env", "stack.state_dir", "stack.log_dir")
        if getattr(new.settings.stack, path[6:]) != getattr(old.settings.stack, path[6:])
    )
    raise UsageError(
        f"{path} can't change while the stack is watched",
        why=f"it is another stack then ({new.settings.origin(path)})",
        fix="inv dev.down, change it, inv dev.up",
    )
