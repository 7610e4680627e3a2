"""Beginning anew: an environment's data and state are put aside in a moment, then removed.

The data are renamed into ``.reset`` first. A reset that was cut off before that has changed nothing; one that was cut
off after it is finished by the next command that starts or stops a service.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from devstack import console
from devstack.errors import StackError

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup
    from devstack.paths import Paths
    from devstack.stack import Stack

LABEL = "pre-reset"
"""Of the backup that is made before."""


class Doomed(Struct, frozen=True):
    """Something that a reset removes."""

    what: str
    place: str
    bytes: int | None
    """None where the engine alone knows."""


def doomed(stack: Stack, *, logs: bool) -> list[Doomed]:
    """What a reset would remove now."""
    paths = stack.paths
    found = [Doomed("data", str(path), bytes_of(path)) for path in _visible(paths.volumes)]
    if stack.context.runtime.contained and stack.db.data_is_there():
        found.append(Doomed("data", stack.db.place, None))
    rest = [path for path in _going(paths) if path != paths.volumes]
    if rest:
        found.append(Doomed("state", str(paths.state), sum(map(bytes_of, rest))))
    if logs and (files := list(log_files(paths))):
        found.append(Doomed("logs", str(paths.log), sum(map(bytes_of, files))))
    return found


def check(stack: Stack) -> None:
    """Check that a fresh stack could be started, before anything is backed up, stopped or removed.

    :raises StackError: it could not; nothing was touched.
    """
    stack.check([service.label for service in stack.services], fresh=True)


def back_up(stack: Stack, *, label: str = LABEL, command: str = "inv dev.reset") -> Backup | None:
    """A proven backup of the database, which is started for it; None if there is none yet.

    :raises StackError: it could not be made.
    """
    from devstack.data import backup, recovery

    if not stack.db.data_is_there():
        return None
    ran = stack.context.states(stack.names)[stack.db.name].running
    try:
        stack.start("db")
        recovery.begin(stack, changes=True)
        return backup.create(stack, backup.Request(label=label))
    except StackError as error:
        if not ran:
            stack.stop("db")
        raise StackError(
            "there is no backup of the data, so nothing was removed",
            why=": ".join(filter(None, [error.what, error.why])),
            evidence=error.evidence,
            fix=[*error.fix, f"or go without one, and lose the data: {command} --no-backup"],
        ) from None


def remove(stack: Stack, *, logs: bool) -> None:
    """Stop everything, then remove data and state, and the logs if asked.

    :raises StackError: somebody else has a port that the fresh stack needs, or the volume; nothing is removed then.
    """
    stop_everything(stack)
    for service in () if stack.context.dry else stack.services:
        stack.free_port(service)
    stack.db.check_removable()
    if logs:
        remove_logs(stack)
    if stack.context.dry:
        say_what_goes(stack)
    else:
        _finish(stack)


def stop_everything(stack: Stack) -> None:
    """Stop all services, and keep other commands out of the environment."""
    if not stack.context.dry:
        stack.lock.acquire()
        stack.data_lock.acquire()
    for service in reversed(stack.services):
        stack.stop(service.label)


def say_what_goes(stack: Stack) -> None:
    """What a dry run prints."""
    stack.db.remove_data()
    for path in _going(stack.paths):
        console.out(f"# remove {path}")


def recover(stack: Stack) -> bool:
    """Finish a reset that was cut off, with the lock held; whether there was one to finish."""
    paths = stack.paths
    if not paths.aside.is_dir():
        return False
    if paths.volumes.is_dir() or (stack.context.runtime.contained and stack.db.data_is_there()):
        paths.aside.rmdir()
        console.note("a reset was cut off before it removed anything: the data are as they were")
        return False
    console.note("finishing a reset that was cut off")
    _finish(stack)
    return True


def _finish(stack: Stack) -> None:
    clear(stack)
    stack.renew()


def clear(stack: Stack) -> None:
    """Remove data and state. One rename decides, or the engine's removal of a volume: once the data are not in their
    place, the reset is to be finished."""
    paths, host = stack.paths, stack.context.host
    paths.aside.mkdir(mode=0o700, exist_ok=True)
    stack.db.remove_data()
    if paths.volumes.is_dir():
        paths.volumes.rename(paths.aside / paths.volumes.name)
        _sync(paths.state)
    for path in _going(paths):
        host.remove(path)
    host.remove(paths.aside)  # last: as long as it is there, the rest is to be removed


def _going(paths: Paths) -> Iterator[Path]:
    """Yield what the state's directory has, apart from what outlives a reset: held locks, the ports, the schedule, and
    the key that backups are signed with."""
    kept = (paths.lock, paths.data_lock, paths.ports, paths.schedule, paths.signing_key, paths.aside)
    stays = {path.name for path in kept}
    stays |= {f"{name}-holder" for name in (paths.lock.name, paths.data_lock.name)}
    if paths.state.is_dir():
        yield from (path for path in sorted(paths.state.iterdir()) if path.name not in stays)


def remove_logs(stack: Stack) -> None:
    for path in log_files(stack.paths):
        _remove(stack, path)


def log_files(paths: Paths) -> Iterator[Path]:
    """The environment's logs; the folder may also hold those of other environments, and what is not ours."""
    if paths.log.is_dir():
        for pattern in ("*.log", "*.log.[0-9]*"):
            yield from (path for path in sorted(paths.log.glob(pattern)) if path.is_file())


def _visible(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(stack: Stack, path: Path) -> None:
    if stack.context.dry:
        console.out(f"# remove {path}")
    elif path.name == "devstack.log":
        os.truncate(path, 0)  # this command goes on writing to it
    else:
        stack.context.host.remove(path)


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what goes meanwhile counts as nothing."""
    if path.is_symlink():
        return 0
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
