"""How a project comes by its ``invoke.yaml``: what ``dev.init`` does and says."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from invoke import Context

from devstack import console
from devstack.adoption.findings import Findings
from devstack.shell import typed
from tasks.runstate import CHECKOUT, state_of


def init(c: Context, given: str, *, app: str, force: bool, as_json: bool) -> None:
    """Look at a project and write its file of settings; a dry run shows the file."""
    from devstack.adoption import writing
    from devstack.adoption.document import document
    from devstack.adoption.survey import Survey

    environ = state_of(c).environ
    dry = bool(c.config.run.dry)
    with writing.opened(given, Path.cwd(), environ) as project:
        if not dry:
            project.check_free(force=force)
        found = Survey(project.root, environ, app).findings()
        text = console.spoken(document(found))
        project.check_same()
        if not dry:
            project.write(text, force=force)
    if as_json:
        console.data({"written": not dry, "file": str(project.file), **msgspec.to_builtins(found)})
    elif dry:
        console.lines(text.rstrip())
    else:
        console.out(f"{project.file}")
        _show(found, project.root)


def _show(found: Findings, root: Path) -> None:
    rows = [(one.path, _value(one.value), one.why) for one in found.settings]
    for line in console.table([("setting", "value", "why"), *rows]):
        console.out(line)
    for note in found.notes:
        console.out()
        console.out(note)
    for one in found.missing:
        console.out()
        console.out(f"{console.paint('not found', 'warn')}: {one.what}")
        console.out(f"fix: {one.fix}")
    cd = "" if root == Path.cwd() else f"cd {typed(root)} && "
    install = "" if shutil.which("nv") else f"pipx install {typed(CHECKOUT)}; "
    known = any(one.path == "api.app" for one in found.settings)
    first = "" if known else "set api.app and api.dir in invoke.yaml; "
    console.out()
    console.out(f"next: {first}{install}{cd}nv dev.up")


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"
