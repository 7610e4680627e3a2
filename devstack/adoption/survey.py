"""All questions to a project, and the settings that answer them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from devstack.adoption import applications, compose, database, interpreter, migrations, variables
from devstack.adoption.applications import Application, Home
from devstack.adoption.findings import Findings, Found, Missing
from devstack.adoption.names import Names, module_parts
from devstack.adoption.routes import Routes, healths, metrics
from devstack.adoption.tree import Tree
from devstack.errors import StackError, UsageError
from devstack.settings import (
    LEVELS,
    SECTIONS,
    SPECIFIED,
    DataSettings,
    StackSettings,
    load,
    variable_entries,
    yaml_entries,
)
from devstack.shell import typed

EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist", "env.example")
SERVING = re.compile(r"api|app|web|backend|server|fastapi", re.IGNORECASE)
"""Names of the compose service that is the application."""


class Survey:
    """One look at a project."""

    def __init__(self, root: Path, environ: Mapping[str, str], wanted: str = "") -> None:
        self.tree = Tree(root)
        self.environ = environ
        self.wanted = wanted
        self.missing: list[Missing] = []
        self.notes: list[str] = []
        self.dotenv = self._dotenv(root / ".env")
        self.example, self.example_file = self._example()
        self.services = compose.services(self.tree, {**self.example, **self.dotenv})
        self.names = Names(self.tree)
        self.routes = Routes(self.names)
        self.read = variables.variables(self.tree, self.names)
        self.app = self._application()
        self.home = applications.home_of(self.tree, self.app) if self.app else Home(root, root, "")
        self.tool = interpreter.tool_of(self.tree, self.home.folder)
        self.packages = self._packages()

    def findings(self) -> Findings:
        """Everything; the settings are such that they can be loaded."""
        found = [*database.database(self), *self._api(), *self._data()]
        self._needed(found)
        self._check(found)
        for path, why in self.tree.unread[:5]:
            self.notes.append(f"{self.tree.shown(path)} can't be read: {why}")
        if self.dotenv:
            self.notes.append(f".env: its {len(self.dotenv)} variables go to the application")
        if ignored := self._to_ignore():
            self.notes.append(f"git would show what the stack writes: put {' and '.join(ignored)} into .gitignore")
        return Findings(root=str(self.tree.root), settings=found, missing=self.missing, notes=self.notes)

    def _to_ignore(self) -> list[str]:
        """The stack's folders that git does not ignore, as far as a line of .gitignore says so."""
        if not any((place / ".git").exists() for place in [self.tree.root, *self.tree.root.parents]):
            return []
        lines = {line.strip().strip("/") for line in self.tree.text(self.tree.root / ".gitignore").splitlines()}
        folders = (StackSettings().log_dir, DataSettings().dir)
        return [f"{folder}/" for folder in folders if not lines & {folder, f"{folder}/*", "*"}]

    # files of variables

    def _dotenv(self, path: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        try:
            return self.tree.dotenv(path, environ)
        except StackError as error:
            missing = Missing(f"{error.what}: {error.why}", "; ".join(error.fix))
            if missing not in self.missing:
                self.missing.append(missing)
            return {}

    def _example(self) -> tuple[dict[str, str], str]:
        for name in EXAMPLES:
            path = self.tree.root / name
            if path.is_file():
                try:
                    return self.tree.dotenv(path), name
                except StackError:
                    return {}, name
        return {}, ""

    def _packages(self) -> set[str]:
        """The packages that the project asks for, in lower case, as far as its files say plainly."""
        found: set[str] = set()
        for place in self.tree.folders_to(self.home.folder):
            lists = [*place.glob("requirements*.txt"), *place.glob("requirements/*.txt"), place / "Pipfile"]
            for file in lists:
                found.update(re.findall(r"^[\"']?([A-Za-z0-9][\w.-]*)", self.tree.text(file), re.MULTILINE))
            content = self.tree.toml(place / "pyproject.toml")
            for text in content.get("project", {}).get("dependencies", []):
                found.update(re.findall(r"^[A-Za-z0-9][\w.-]*", str(text)))
            found.update(content.get("tool", {}).get("poetry", {}).get("dependencies", {}))
        return {name.lower().replace("_", "-") for name in found}

    # the application

    def _application(self) -> Application | None:
        found = applications.applications(self.tree, self.names, self.routes)
        if self.wanted:
            module, _, name = self.wanted.partition(":")
            words = module.split(".")
            fitting = [
                one
                for one in found
                if one.what.removesuffix("()") == name.removesuffix("()")
                and module_parts(one.path)[-len(words) :] == words
            ]
            if not fitting:
                raise UsageError(
                    f"--app {self.wanted} was not found in {self.tree.root}",
                    evidence=[f"there is {self._shown(one)}" for one in found],
                    fix="name one of these as package.module:name"
                    if found
                    else "no file there has a FastAPI object; name another folder",
                )
            return fitting[0]
        if not found:
            self.missing.append(
                Missing(
                    "a FastAPI object, or a function that makes one", "set api.app to package.module:name, and api.dir"
                )
            )
            return None
        served = [one for one in found if not one.mounted]
        if len(served) > 1:
            others = ", ".join(self._shown(one) for one in served[1:6])
            self.notes.append(f"other applications: {others}; --app package.module:name takes one of them")
        return found[0]

    def _shown(self, one: Application) -> str:
        return f"{one.what} in {self.tree.shown(one.path)}"

    def _api(self) -> Iterator[Found]:
        if self.app is None:
            yield Found("api.detail_path", "", "nothing known")
            yield Found("api.metrics_path", "", "nothing known")
            return
        app, home = self.app, self.home
        because = f", which {app.named} starts" if app.named else ""
        yield from self._port()
        yield Found("api.app", f"{home.module}:{app.what}", f"{app.what} in {self.tree.shown(app.path)}{because}")
        where = "its modules are named from here" if home.folder == home.path else "where its people work"
        yield Found("api.dir", self.tree.shown(home.folder), where)
        yield from self._python()
        yield from self._scheme()
        if home.folder != home.path:
            value = f"$dir/{os.path.relpath(home.path, home.folder)}"
            yield Found("api.env.PYTHONPATH", value, "its modules are named from there")
        yield from self._environment()
        yield from self._paths(app)

    def _port(self) -> Iterator[Found]:
        for service in self.services:
            serves = applications.SERVERS.search(service.command) or (service.builds and SERVING.search(service.name))
            if serves and not service.is_postgres and service.ports:
                here = service.ports[0][0]
                if here >= 1024:
                    yield Found("api.port", here, f"service {service.name} in {service.file}")
                return

    def _python(self) -> Iterator[Found]:
        found = interpreter.interpreter_of(self.tree, self.home.folder, self.tool, self.environ)
        if found is None:
            self.missing.append(
                Missing(
                    "a virtual environment with the application's packages; until then the stack's own Python runs it",
                    f"{self.tool.make}; then set api.python to {self.tree.shown(self.tool.python)}"
                    if self.tool
                    else "list its packages in requirements.txt, then inv dev.init --force says how to make one",
                )
            )
            return
        python, why = found
        path = self.tree.shown(python) if python.is_relative_to(self.tree.root) else str(python)
        version, lacking = interpreter.has(python, "fastapi", "uvicorn", *(["alembic"] if self._alembic() else []))
        yield Found("api.python", path, f"{why}, Python {version}" if version else why)
        if not version:
            self.missing.append(
                Missing(
                    f"a virtual environment around {path}: it has no pyvenv.cfg and no packages",
                    self.tool.make if self.tool else "make it anew",
                )
            )
        elif "fastapi" in lacking and self.tool:
            self.missing.append(Missing(f"the application's packages: {path} does not have them", self.tool.make))
        elif lacking:
            add = self.tool.add if self.tool else f"{path} -m pip install uvicorn"
            fix = add.replace(" uvicorn", f" {' '.join(lacking)}")
            self.missing.append(
                Missing(f"{' and '.join(lacking)}: {path} does not have {'it' if len(lacking) == 1 else 'them'}", fix)
            )

    def _alembic(self) -> bool:
        return any(path.name == "alembic.ini" for path in self.tree.files)

    def _paths(self, app: Application) -> Iterator[Found]:
        if well := healths(app.routes):
            yield Found(
                "api.health_path", well[0].path, f"{well[0].function}() in {self.tree.shown(well[0].scope.path)}"
            )
        else:
            described = self._openapi(app)
            yield Found("api.health_path", described or "/", "answers once it runs, and says nothing of its database")
            self.missing.append(
                Missing(
                    "a health route",
                    'add one, such as @app.get("/health"), that asks the database; set api.health_path',
                )
            )
        detailed = next((r for r in app.routes if r.path == "/health/detailed"), None)
        if detailed is None:
            yield Found("api.detail_path", "", "there is no /health/detailed")
        if path := metrics(app.routes):
            yield Found("api.metrics_path", path, "for Prometheus")
        else:
            yield Found("api.metrics_path", "", "there is no path of figures for Prometheus")

    def _openapi(self, app: Application) -> str:
        given = next((k.value for k in app.call.keywords if k.arg == "openapi_url"), None) if app.call else None
        return "/openapi.json" if given is None else self.names.text(app.key[0], given) or ""

    def _scheme(self) -> Iterator[Found]:
        self.scheme, why = database.url_scheme(self)
        if self.scheme != "postgresql":
            yield Found("api.url_scheme", self.scheme, why)

    # variables

    def _environment(self) -> Iterator[Found]:
        sources: dict[str, str] = {}
        for one in self.read.values():
            sources.setdefault(one.name, self.tree.shown(one.path))
        for file, values in ((".env", self.dotenv), (self.example_file, self.example)):
            for name in values:
                sources.setdefault(name, file)
        for name, where in sources.items():
            if value := self._value_for(name):
                yield Found(f"api.env.{name}", value, where)
        level = self.dotenv.get("LOG_LEVEL") or (self.read["LOG_LEVEL"].default if "LOG_LEVEL" in self.read else "")
        if level and level not in LEVELS:
            yield Found("api.env.LOG_LEVEL", level, "as it is written there")

    def _value_for(self, name: str) -> str:
        role = variables.role_of(name)
        value = (
            self.dotenv.get(name) or self.example.get(name) or (self.read[name].default if name in self.read else "")
        )
        if role == "database_url":
            scheme = variables.url_parts(value).get("scheme", "")
            if "://" in value and not scheme and not value.startswith("sqlite"):
                return ""  # of another kind of database
            scheme = scheme or self._by_name(name)
            if scheme in ("", "postgres", self.scheme):
                return "" if name in variables.GIVEN else "$database_url"
            return f"{scheme}://$db_user:$db_password@$db_host:$db_port/$db_name"
        if role:
            return f"${role}"
        one = self.read.get(name)
        if (
            one
            and one.needed
            and name not in variables.GIVEN
            and name not in self.dotenv
            and variables.SECRET.search(name)
        ):
            return "$jwt_secret"
        return ""

    def _by_name(self, name: str) -> str:
        if re.search(r"(^|_)SYNC(_|$)", name):
            return "postgresql"
        return "postgresql+asyncpg" if "ASYNC" in name and "asyncpg" in self.packages else ""

    def _needed(self, found: list[Found]) -> None:
        given = {path.removeprefix("api.env.") for path in (one.path for one in found) if path.startswith("api.env.")}
        given |= variables.GIVEN | set(SPECIFIED) | variables.EVERYWHERE | set(self.dotenv)
        if self.home.folder != self.tree.root:
            given |= set(self._dotenv(self.home.folder / ".env"))
        needed = sorted(name for name, one in self.read.items() if one.needed and name not in given)
        if not needed:
            return
        fix = "write them into .env beside invoke.yaml"
        if not (self.tree.root / ".env").exists() and set(needed) <= set(self.example):
            fix = f"cp {typed(self.example_file)} .env, and look through it"
        self.missing.append(Missing(f"values that the application can't start without: {', '.join(needed)}", fix))

    # migrations, and the last look

    def _data(self) -> Iterator[Found]:
        if self.app is None:
            return
        for one in migrations.migrations(self.tree, self.home.folder):
            if isinstance(one, Missing):
                self.missing.append(one)
            else:
                yield one
        yield Found("data.embed", "", "no function of the application that makes a text a vector is known")

    def _check(self, found: list[Found]) -> None:
        """:raises UsageError: never for what was found here; a value in .env that is no setting is said."""
        content = nested(found)
        entries = [
            *yaml_entries(content, "invoke.yaml"),
            *variable_entries(self._dotenv(self.tree.root / ".env", self.environ), f"{self.tree.root / '.env'} ({{}})"),
        ]
        try:
            load(entries, self.tree.root)
        except UsageError as error:
            self.missing.append(Missing(error.what, "; ".join(line.strip() for line in error.evidence)))


def nested(found: list[Found]) -> dict[str, dict[str, object]]:
    """The settings by section, as in the file."""
    content: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for one in found:
        section, key, *rest = one.path.split(".")
        if rest:
            env = content[section].setdefault(key, {})
            assert isinstance(env, dict)
            env[rest[0]] = one.value
        else:
            content[section][key] = one.value
    return {section: values for section, values in content.items() if values}
