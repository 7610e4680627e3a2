"""VS Code: tasks, launch configurations, recommended extensions and a database connection.

https://code.visualstudio.com/docs/debugtest/tasks, https://code.visualstudio.com/docs/python/debugging,
https://vscode-sqltools.mteixeira.dev/en/drivers/postgre-sql
"""

from __future__ import annotations

from typing import Any

from devstack.ide.files import Part, Plan, merge
from devstack.ide.project import MARK, Command, Project
from devstack.settings import reachable_address

EXTENSIONS = ("ms-python.python", "ms-python.debugpy", "mtxr.sqltools", "mtxr.sqltools-driver-pg")
OPEN = "${workspaceFolder}"


def plans(project: Project) -> list[Plan]:
    """:raises UsageError: a file that is there can't be understood."""
    folder = project.folder / ".vscode"
    tasks = [_task(project, command) for command in project.commands + project.debugging]
    return [
        merge(folder / "tasks.json", [Part("tasks", tasks, "label")], {"version": "2.0.0"}),
        merge(folder / "launch.json", [Part("configurations", _launch(project), "name")], {"version": "0.2.0"}),
        merge(folder / "settings.json", [Part("sqltools.connections", [_connection(project)], "name")]),
        merge(folder / "extensions.json", [Part("recommendations", EXTENSIONS)]),
    ]


def _task(project: Project, command: Command) -> dict[str, Any]:
    program, *first = project.program
    env = {"env": dict(command.env)} if command.env else {}
    return {
        "label": command.name,
        "detail": f"{MARK}: {command.about}",
        "type": "process",
        "command": project.path(program, OPEN),
        "args": [*first, *command.words],
        "options": {"cwd": project.path(project.root, OPEN), **env},
        "presentation": {"reveal": "always", "panel": "dedicated"},
        "problemMatcher": [],
    }


def _launch(project: Project) -> list[dict[str, Any]]:
    api = project.api
    python = project.path(api.python, OPEN)
    common = {"presentation": {"group": MARK}, "justMyCode": True}
    attach = {
        "name": project.name("attach to the application"),
        "type": "debugpy",
        "request": "attach",
        "connect": {"host": "127.0.0.1", "port": project.debug_port},
        "preLaunchTask": project.listen.name,
        **common,
    }
    return [
        *([] if project.contained else [attach]),
        {
            "name": project.name("the application under the debugger"),
            "type": "debugpy",
            "request": "launch",
            "module": "uvicorn",
            "args": [project.path(word, OPEN) if word.startswith("/") else word for word in project.uvicorn],
            "python": python,
            "cwd": project.path(api.folder, OPEN),
            "envFile": str(project.variables),
            "subProcess": True,
            "preLaunchTask": project.make_room.name,
            **common,
        },
        {
            "name": project.name("tests of this file"),
            "type": "debugpy",
            "request": "launch",
            "module": "pytest",
            "args": ["${file}"],
            "python": python,
            "cwd": project.path(project.root, OPEN),
            "subProcess": True,
            **common,
        },
    ]


def _connection(project: Project) -> dict[str, Any]:
    settings = project.stack.settings
    return {
        "name": project.name("database"),
        "group": MARK,
        "driver": "PostgreSQL",
        "server": reachable_address(settings.db.bind),
        "port": settings.db.port,
        "database": settings.db.name,
        "username": settings.db.user,
        "askForPassword": True,
    }
