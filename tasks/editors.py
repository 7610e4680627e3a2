"""How the files of editors are written about."""

from __future__ import annotations

from invoke import Context

from devstack import console
from devstack.errors import UsageError
from tasks import session

SHADES = {"added": "good", "replaced": "good", "left alone": "warn"}


def ide(c: Context, *, vscode: bool, jetbrains: bool, folder: str, variables: bool, as_json: bool) -> None:
    from devstack.ide import editors

    asked = [name for name, wanted in (("vscode", vscode), ("jetbrains", jetbrains)) if wanted]
    if not asked and not variables:
        raise UsageError("dev.ide takes --vscode, --jetbrains, or both", fix="inv dev.ide --vscode")
    stack = session.stack(c)
    dry = stack.context.dry
    plans = editors.planned(stack, asked, folder)
    if plans:
        editors.write(stack, plans)
    elif variables:
        editors.write_variables(stack)
    if as_json:
        rows = [
            {
                "file": str(plan.path),
                "written": plan.changes and not dry,
                "changes": plan.changes,
                "entries": [{"name": e.name, "did": e.did, "why": e.why} for e in plan.entries],
            }
            for plan in plans
        ]
        console.data({"files": rows})
        return
    for plan in plans:
        verb = ("would write" if dry else "wrote") if plan.changes else "unchanged"
        console.out(f"{verb}  {plan.path}")
        for entry in plan.entries:
            if plan.changes or entry.did == "left alone":
                did = console.paint(console.pad(entry.did, 10), SHADES.get(entry.did, "dim"))
                console.out(f"  {did}  {entry.name}{f': {entry.why}' if entry.why else ''}")
    if plans and not dry:
        console.note(f"the editor asks for the database's password when it connects: it is in {stack.paths.secrets}")
