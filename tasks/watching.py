"""What ``inv dev.watch`` does and says."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from invoke import Context

from devstack import console
from tasks import session
from tasks.problems import problem_of

if TYPE_CHECKING:
    from devstack.watch import Watched


def watch(c: Context) -> None:
    """Apply each change to what it concerns, until Ctrl-C."""
    from devstack.watch import Watched, changes

    stack = session.stack(c)
    if stack.context.dry:
        console.out("# watch invoke.yaml, .env and templates/, and apply what changes to the services that it concerns")
        return
    watched, ended = Watched(stack), _Ended()
    signal.signal(signal.SIGINT, ended.interrupt)
    for number, files in enumerate(changes(stack.settings.root, stack.settings.templates.own, ended)):
        ended.applying = True
        if number == 0:
            console.note("watching invoke.yaml, .env and templates/ until Ctrl-C; what is stopped stays stopped")
        if files:
            console.out(f"{', '.join(files)} changed")
        _apply(c, watched, said=bool(files))
        ended.applying = False


def _apply(c: Context, watched: Watched, *, said: bool) -> None:
    """Apply what the files say now; what is wrong with them is said, and everything goes on as before."""
    from devstack.watch import check_same

    did = []
    try:
        check_same(watched.stack, session.afresh(c, looking=True))  # nothing is made of another stack
        width = max(map(len, watched.stack.names))
        for done in watched.apply(session.afresh(c)):
            did.append(done)
            console.out(f"{done.name:<{width}}  {done.did} in {console.duration(done.seconds)}")
        if said and not did:
            console.out("no running service is concerned")
    except Exception as error:
        problem = problem_of(error, watched.stack.settings.root)
        console.notes(problem.text())
        down = [watched.stack.service(label).name for label in ("db", "pgb", "api") if label in watched.owed]
        rest = f"but for {', '.join(down)}, everything" if down else "everything"
        console.note(f"{rest} goes on as it was until this is mended")


class _Ended(threading.Event):
    """Set by Ctrl-C. What is being applied meanwhile is finished first, unless Ctrl-C comes again."""

    applying = False

    def interrupt(self, *_: object) -> None:
        if self.is_set():
            raise KeyboardInterrupt
        self.set()
        if self.applying:
            console.note("ending once this is applied; Ctrl-C again ends at once")
