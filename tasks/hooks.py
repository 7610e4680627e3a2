"""The user's own commands (section hooks of invoke.yaml) as tasks that others run before and after; not listed."""

from __future__ import annotations

from typing import Any

from invoke import Context, task

from tasks import session


def _hook(point: str) -> Any:
    def body(c: Context) -> None:
        session.stack(c, begins=not point.endswith("_down")).hook(point)

    return task(body, name=point)


pre_up = _hook("pre_up")
post_up = _hook("post_up")
pre_down = _hook("pre_down")
post_down = _hook("post_down")
pre_backup = _hook("pre_backup")
post_backup = _hook("post_backup")
pre_restore = _hook("pre_restore")
post_restore = _hook("post_restore")
