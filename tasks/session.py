"""The stack of a command, and the settings that it goes on without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from invoke import Context

from devstack import console
from devstack.settings import PROJECT_FILES, check_files
from tasks.runstate import RunState, StackConfig, state_of

if TYPE_CHECKING:
    from devstack.settings import Settings
    from devstack.stack import Stack


def stack(c: Context, *, looking: bool = False, begins: bool = True) -> Stack:
    """Return the stack of this command: made once for each task of the command line, which so shares the lock and the
    timings with its pre- and post-tasks. A task that only looks gets one that makes nothing, not even folders; so does
    one that reports (not ``begins``) on an environment that there is not, which may be a slip of the pen."""
    from devstack.stack import open_stack

    state = state_of(c)
    if state.stack:
        return state.stack
    found = open_stack(
        c, state.root, state.environ, looking=looking, begins=begins, given=state.given, tolerance=state.tolerance
    )
    say_wrong(state, found.settings)
    if found.looking:
        return found
    state.stack = found
    if found.paths.window.exists():
        from devstack.profiling import explain

        explain.put_right(found)
    return found


def say_wrong(state: RunState, settings: Settings) -> None:
    """Say, once for each command, which settings it goes on without."""
    if settings.wrong and not state.told_wrong:
        from devstack.tolerance import note

        state.told_wrong = True
        console.notes(note(settings.wrong))


def on(c: Context, runtime: str) -> Stack:
    """Return the same environment on a runtime, whatever it is on now."""
    from devstack.stack import open_stack

    state = state_of(c)
    return open_stack(c, state.root, state.environ, runtime=runtime, given=state.given)


def afresh(c: Context, *, looking: bool = False) -> Stack:
    """Return the stack of this command as its files are now; one that is only looked at makes nothing.

    :raises UsageError: one of them can't be used.
    """
    from devstack.stack import open_stack

    state = state_of(c)
    if problem := state.distrust() or check_files(state.root / name for name in PROJECT_FILES):
        raise problem
    path = object.__getattribute__(c.config, "_runtime_path")
    config = configuration(state, {"run": {"echo": c.config.run.echo}}, runtime=path)
    return open_stack(Context(config), state.root, state.environ, looking=looking, given=state.given)


def configuration(state: RunState, overrides: dict[str, Any], *, runtime: Any, **values: Any) -> StackConfig:
    """Return a configuration of the project as its files are now, with the file of ``-f``; ``values`` that are not None
    win.

    :raises UsageError: the project is not trusted.
    """
    given = {name: value for name, value in values.items() if value is not None}
    own = state.anew()
    config = StackConfig(
        run_state=own, overrides={**overrides, **given}, project_location=state.root, runtime_path=runtime
    )
    config.load_project()
    if own.untrusted:
        raise own.untrusted
    config.load_runtime()
    return config
