"""The programs that the stack uses or could use, each asked for its version; none may hold the answer up."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from devstack import providers
from devstack.container import Probed
from devstack.engines import ENGINES, Engine
from devstack.errors import StackError
from devstack.providers import BOOTSTRAP, Candidate, Programs
from devstack.shell import Command, argv, sh
from devstack.system import Fact
from devstack.templates import CHECKOUT

if TYPE_CHECKING:
    from devstack.stack import Stack

PATIENCE = 2.0
"""Seconds that a program may take to answer."""

SAFE_MINORS = {14: 23, 15: 18, 16: 14, 17: 10, 18: 4}
"""PostgreSQL's oldest releases whose client programs have no known hole (CVE-2026-6475, CVE-2026-6477):
https://www.postgresql.org/support/security/"""

CLIENTS = ("psql", "pg_dump", "pg_restore", "pg_isready")


class Tool(NamedTuple):
    """A program besides the services: what for, and whether the stack can't start without it."""

    name: str
    use: str
    needed: bool


TOOLS = (
    Tool("bash", "runs every command", True),
    Tool("curl", "asks the application from a shell", False),
    Tool("make", "runs the Makefile", False),
    Tool("jq", "reads --json in scripts", False),
)


class Survey:
    """Questions to many programs at once, asked at the beginning and read one by one."""

    def __init__(self, stack: Stack, pool: Executor) -> None:
        self._context = stack.context
        self._pool = pool
        names = (*(engine.program for engine in ENGINES), *(tool.name for tool in TOOLS))
        self._paths = {name: shutil.which(name) for name in names}
        self._versions = {name: self.ask(argv([path, "--version"])) for name, path in self._paths.items() if path}
        self._alive = {engine.program: self.ask(engine.alive) for engine in ENGINES if self._paths[engine.program]}
        bootstrap = CHECKOUT / BOOTSTRAP  # our own: a project's script of that name is another one
        self._install = self.ask(sh("$bootstrap command", bootstrap=bootstrap)) if bootstrap.is_file() else None

    def ask(self, command: Command) -> Future[Probed]:
        """The command's answer, later."""
        return self._pool.submit(self._context.probe, command, PATIENCE)

    def install(self, package: str) -> str:
        """What to type to get a package on this system."""
        answer = self._install.result() if self._install else None
        return f"{answer.text} {package}" if answer and answer.ok and answer.text else f"install {package}"

    def answers(self, engine: Engine) -> bool:
        """Whether an engine is here and works."""
        return self._paths[engine.program] is not None and self._alive[engine.program].result().ok

    def engines(self) -> list[Fact]:
        """Every container engine that a stack could run on: none is needed."""
        return [self._engine(engine) for engine in ENGINES]

    def _engine(self, engine: Engine) -> Fact:
        path = self._paths[engine.program]
        if path is None:
            return Fact("container engines", engine.title, "not installed")
        version, alive = self._versions[engine.program].result(), self._alive[engine.program].result()
        named = f"{version.version() or 'of unknown version'} at {path}"
        if alive.ok:
            return Fact("container engines", engine.title, f"{named}, answers", True)
        if alive.exited is None:
            why = f"did not answer within {PATIENCE:g} s"
        else:
            why = f"does not answer: {self._context.mask((alive.text.splitlines() or ['no reason given'])[-1])}"
        return Fact("container engines", engine.title, f"{named}, {why}", False, engine.start)

    def tools(self) -> list[Fact]:
        """The other programs."""
        return [self._tool(tool) for tool in TOOLS]

    def _tool(self, tool: Tool) -> Fact:
        path = self._paths[tool.name]
        if path is None:
            advice = f"{self.install(tool.name)}  (it {tool.use})"
            return Fact("tools", tool.name, "not found", False, advice, tool.needed)
        version = self._versions[tool.name].result()
        if version.ok:
            return Fact("tools", tool.name, f"{version.version()} at {path}", True, "", tool.needed)
        return Fact("tools", tool.name, f"{path} does not run", False, self.install(tool.name), tool.needed)


def runtime(stack: Stack, survey: Survey) -> Fact:
    """What the services run under, and why."""
    wanted, name = stack.settings.stack.runtime, stack.context.runtime.name
    if stack.chosen.runtime == name:
        why = "recorded at this environment's first start"
    elif wanted == name:
        why = f"stack.runtime says so, from {stack.settings.origin('stack.runtime')}"
    else:
        passed = [engine.title for engine in ENGINES if not survey.answers(engine)]
        without = f" ({', '.join(passed)}: not here, or no answer)" if passed else ""
        why = f"the first that answers{without}; the first start records it"
    return Fact("runtime", "in force", f"{name}: {why}", True)


def in_images(stack: Stack) -> list[Fact]:
    """What the services run from, in containers."""
    from devstack.services.contained import ContainedApi

    assert isinstance(stack.api, ContainedApi)
    try:
        found = stack.api.images.listing()
    except StackError as error:
        return [Fact("images", "in use", f"{error.what}: {error.why}", False, "; ".join(error.fix))]
    built = {"pgb": not stack.settings.pgb.image, "api": not stack.settings.api.image}
    return [
        Fact(
            "images",
            label,
            image if here else f"{image}, {'built' if built.get(label) else 'pulled'} at the next start",
        )
        for label, image, here in found
    ]


def postgres(stack: Stack, survey: Survey) -> list[Fact]:
    """Every place that PostgreSQL could come from, with the reason it was taken or passed over; its programs."""
    facts: list[Fact] = []
    taken: Candidate | None = None
    recorded = stack.chosen.postgres_bin
    for candidate in providers.search_postgres(stack.context, stack.settings, unpack=False):
        version = f"PostgreSQL {candidate.programs.version}" if candidate.programs else ""
        refused = bool(stack.settings.db.bin_dir) and not facts and candidate.problem
        if candidate.problem:
            words = [version, candidate.problem]
        elif taken:
            words = [version, "would do too"]
        else:
            taken = candidate
            words = [version, "taken, unpacked at the first start" if candidate.packed else "taken"]
        value = ", ".join(filter(None, words))
        advice = "correct db.bin_dir, or leave it empty" if refused else ""
        facts.append(Fact("PostgreSQL", candidate.place, value, not candidate.problem, advice, bool(refused)))
        if refused:
            break
    if taken is None and not any(fact.needed for fact in facts):
        lacking = " and ".join(stack.settings.db.extensions) or "no extension"
        facts.append(
            Fact("PostgreSQL", "in use", f"none with {lacking}", False, "; ".join(providers.REMEDIES), needed=True)
        )
    programs = taken.programs if taken else None
    if programs and recorded and recorded != str(programs.bin) and not stack.settings.db.bin_dir:
        # what was chosen at the first start stays, as long as it is there
        kept = providers.programs_at(Path(recorded), stack.chosen.postgres_version, tracks_statements=False)
        if os.access(kept.path("postgres"), os.X_OK):
            facts.append(Fact("PostgreSQL", "in use", f"{recorded}, recorded at this environment's first start", True))
            programs, taken = kept, None
    if programs is None or (taken and taken.packed):
        return facts
    return [*facts, *_clients(programs, survey, stack)]


def _clients(programs: Programs, survey: Survey, stack: Stack) -> list[Fact]:
    asked = {
        name: survey.ask(stack.context.exec("", [programs.path(name), "--version"], programs.env)) for name in CLIENTS
    }
    facts = []
    for name, answer in asked.items():
        version = answer.result().version()
        value = f"{version} at {programs.path(name)}" if version else f"{programs.path(name)} does not run"
        facts.append(Fact("client programs", name, value, bool(version)))
    if warning := unsafe(programs.version):
        facts.append(
            Fact(
                "client programs",
                "safety",
                warning,
                False,
                "use them with servers that you trust, as this stack's own; or set db.bin_dir to a newer PostgreSQL",
            )
        )
    return facts


def unsafe(version: str) -> str:
    """What is wrong with the client programs of a PostgreSQL version; empty when nothing is known.

    >>> unsafe("18.1")
    'PostgreSQL 18.1 is older than 18.4: a hostile server can attack pg_dump (CVE-2026-6475, CVE-2026-6477)'
    """
    major, _, minor = version.partition(".")
    if int(major) < min(SAFE_MINORS):
        return f"PostgreSQL {major} gets no fixes any more"
    least = SAFE_MINORS.get(int(major), 0)
    if int(minor or 0) >= least:
        return ""
    return (
        f"PostgreSQL {version} is older than {major}.{least}: a hostile server can attack pg_dump"
        " (CVE-2026-6475, CVE-2026-6477)"
    )


def pgbouncer(stack: Stack) -> list[Fact]:
    """The pooler's program."""
    try:
        binary = providers.pgbouncer_binary(stack.settings)
        version = providers.pgbouncer_version(stack.context, binary)
    except StackError as error:
        value = f"{error.what}: {error.why}" if error.why else error.what
        return [Fact("PgBouncer", "in use", value, False, "; ".join(error.fix), needed=True)]
    return [Fact("PgBouncer", "in use", f"{version} at {binary}", True)]
