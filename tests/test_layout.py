"""The house: arrows run one way, starting is light, and what a person types explains itself."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("devstack", "tasks")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
HEAVY = ("psycopg2", "psutil", "fabric", "requests", "fastapi", "xmlrpc.client", "http.client", "supervisor", "pg0")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a file of the package names, wherever in it; those for the type checker alone too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    return name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


FORBIDDEN = [
    ("devstack", ("tasks", "api", "tests")),
    ("tasks", ("api", "tests")),
    ("devstack.runtimes", ("devstack.services", "devstack.container", "devstack.stack", "devstack.settings")),
    ("devstack.services", ("devstack.stack", "devstack.health", "devstack.metrics", "devstack.data")),
    ("devstack.services", ("devstack.profiling",)),
    ("devstack.container", ("devstack.services", "devstack.stack", "devstack.health", "devstack.data")),
    (
        "devstack.shell",
        ("devstack.container", "devstack.runtimes", "devstack.services", "devstack.stack", "devstack.settings"),
    ),
    ("devstack.escapes", ("devstack",)),
    ("devstack.wording", ("devstack",)),
    ("devstack.errors", ("devstack",)),
    ("devstack.console", ("devstack",)),
]
LEAVES = ("devstack.escapes", "devstack.wording")
"""What the others may use that use nothing."""


@pytest.mark.parametrize(("who", "what"), FORBIDDEN)
def test_arrows_run_one_way(who: str, what: tuple[str, ...]) -> None:
    looked_at = [path for path in SOURCES if below(name_of(path), who)]
    assert looked_at, f"{who} is gone: this test looks at nothing"
    found = [(name_of(path), module) for path in looked_at for module in imports(path.read_text(), package_of(path))]
    forbidden = [(by, module) for by, module in found if below(module, *what) and not below(module, *LEAVES)]
    assert [(by, module) for by, module in forbidden if module != "devstack"] == []


def python(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("INVOKE_", "NV_", "PYTHONPATH"))}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env={**surroundings, **env}, capture_output=True, text=True, check=False
    )


def test_starting_imports_nothing_heavy() -> None:
    done = python("-c", "import sys, tasks; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "tasks.db" in loaded
    assert [module for module in loaded if below(module, *HEAVY)] == []


def test_the_engine_can_be_imported_without_the_tasks_and_is_light_too() -> None:
    done = python("-c", "import sys, devstack.stack; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert [module for module in done.stdout.split() if below(module, "tasks", "api", "tests", *HEAVY)] == []


def test_the_pytest_plugin_imports_nothing_until_a_fixture_is_asked_for() -> None:
    done = python(
        "-c",
        "import sys, pytest; was = set(sys.modules); import devstack.testing.plugin; print(*sys.modules.keys() - was)",
    )
    assert done.returncode == 0, done.stderr
    ours = {"devstack", "devstack.testing", "devstack.testing.plugin"}
    assert {module for module in done.stdout.split() if module.partition(".")[0] not in sys.stdlib_module_names} == ours


def test_tasks_is_the_package_whoever_imports_it() -> None:
    done = python("-c", "import tasks; print(tasks.__file__, type(tasks.ns).__name__)")
    assert done.stdout == f"{ROOT}/tasks/__init__.py Collection\n"


def listed(cwd: Path) -> list[dict[str, object]]:
    """All tasks, as `inv --list` has them."""
    done = python("-m", "invoke", "--list", "--list-format=json", cwd=cwd)
    assert done.returncode == 0, done.stderr

    def walk(collection: dict[str, object], prefix: str) -> Iterator[dict[str, object]]:
        for task in collection["tasks"]:  # type: ignore[attr-defined]
            yield {**task, "name": prefix + task["name"]}
        for sub in collection["collections"]:  # type: ignore[attr-defined]
            yield from walk(sub, f"{prefix}{sub['name']}.")

    return list(walk(json.loads(done.stdout), ""))


SPECIFIED = [
    *(f"dev.{verb}" for verb in ("up", "down", "status", "logs", "restart")),
    *(f"db.{verb}" for verb in ("start", "stop", "status", "stats", "logs")),
    *(f"pgb.{verb}" for verb in ("start", "stop", "status", "stats", "logs")),
    *(f"api.{verb}" for verb in ("start", "stop", "status", "logs")),
    "system-info",
    "metrics",
]


@pytest.mark.parametrize("folder", [".", "devstack/runtimes"])
def test_the_list_of_tasks_is_the_specification_s_from_any_folder(folder: str) -> None:
    tasks = listed(ROOT / folder)
    assert set(SPECIFIED) <= {str(task["name"]) for task in tasks}
    for task in tasks:
        first = str(task["help"] or "")
        assert 0 < len(first) < 60, task
        assert first[0].isupper(), task
        assert first.endswith("."), task


def test_the_list_of_tasks_fits_a_screen() -> None:
    done = python("-m", "invoke", "--list")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "Traceback" not in done.stderr


FLAGS = """
import json, inspect
from tasks import ns
out = {}
for name in ns.task_names:
    task = ns[name]
    flags = [p for p in inspect.signature(task.body).parameters][1:]
    out[name] = [flags, {k: v for k, v in (task.help or {}).items()}, task.__doc__ or ""]
print(json.dumps(out))
"""


def test_every_flag_says_what_it_does() -> None:
    done = python("-c", FLAGS)
    assert done.returncode == 0, done.stderr
    tasks = json.loads(done.stdout)
    assert len(tasks) >= len(SPECIFIED)
    for name, (flags, help_, doc) in tasks.items():
        assert sorted(flags) == sorted(help_), name
        assert all(text.strip() for text in help_.values()), name
        assert doc.strip(), name


def test_help_of_a_task_is_shown_by_invoke() -> None:
    done = python("-m", "invoke", "--help", "db.start")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Docstring:\n  Start PostgreSQL, ready for queries.\n" in done.stdout


def test_one_namespace_of_tasks_is_one_file() -> None:
    done = python("-m", "invoke", "--list", "--list-format=json")
    collections = {collection["name"] for collection in json.loads(done.stdout)["collections"]}
    assert collections >= {"dev", "db", "pgb", "api"}
    for name in collections:
        assert (ROOT / "tasks" / f"{name}.py").is_file()


def test_every_template_is_used_and_every_one_used_is_there() -> None:
    text = "\n".join(path.read_text() for path in SOURCES)
    for template in (ROOT / "templates").iterdir():
        assert f'"{template.name}"' in text, f"{template.name} is rendered by nobody"
