"""The database that tests' databases are clones of: made once, and anew when what it is made from has changed."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from glob import iglob
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from devstack.errors import StackError, UsageError
from devstack.testing.claims import claim, is_claimed, release
from devstack.testing.project import stack_on, surroundings

if TYPE_CHECKING:
    from devstack.stack import Stack
    from devstack.testing.loan import Loan

Kind = Literal["migrations", "data", "empty"]
KINDS: tuple[Kind, ...] = ("migrations", "data", "empty")

RECIPE = 1
"""Part of every fingerprint: templates of an older way of making them are not used."""
PREFIX = "nv_test_template_"
MAKING = "_making"
KEPT = 3
"""Templates that stay, the last used ones: branches, and runs with other options, take turns."""

SOURCES = (".py", ".sql", ".ini", ".toml", ".mako")
"""What a migration may be made of, where nothing says more."""
ASIDE = ("__pycache__", "node_modules", "site-packages")


class Recipe(Struct, frozen=True):
    """What a template is made from. Paths are absolute, or from the project's folder."""

    kind: Kind = "migrations"
    seeds: Sequence[str] = ()
    """Files or folders of SQL and CSV, as ``inv data.seed`` takes them, applied one after the other."""
    files: Sequence[str] = ()
    """Globs of the files that the migrations are made from; without any it is guessed."""
    run: str = ""
    """Name of the test run: a copy of the data is as old as that."""


class Template:
    """A template, claimed for as long as this process makes clones of it."""

    def __init__(self, name: str, path: Path, handle: int) -> None:
        self.name = name
        self._path = path
        self._handle = handle

    def release(self) -> None:
        release(self._path, self._handle)


def prepared(loan: Loan, recipe: Recipe, *, rebuild: bool = False) -> Template:
    """The template of a recipe, made if it is not there, or if it is to be made anew and nobody uses it.
    Old ones go. PostgreSQL runs.

    :raises StackError: it could not be made; nothing of it stays.
    """
    stack = loan.stack
    with surroundings():
        name = PREFIX + fingerprint(stack, recipe)
    path = loan.folder / "templates" / name
    with loan.turn(), surroundings():
        known = _known(stack)
        if rebuild and name in known and not is_claimed(path):
            _drop(stack, name)
            known.discard(name)
        if name not in known:
            _make(stack, name, recipe)
        handle = claim(path, shared=True)
        assert handle is not None  # it is our turn, nobody else looks after claims
        os.utime(path)
        _sweep(loan, known - {name})
    return Template(name, path, handle)


def fingerprint(stack: Stack, recipe: Recipe) -> str:
    """Of all that decides what is in the template.

    :raises UsageError: a file that is named is not there, or how to migrate is not known.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            digest.update(f"{part!r}\n".encode(errors="surrogateescape"))

    db = stack.settings.db
    add(RECIPE, recipe.kind, stack.db.programs.version, db.name, db.user, db.extensions)
    if recipe.kind == "data":
        add(recipe.run)
    if recipe.kind == "migrations":
        add(_command(stack), stack.api.python, sorted(stack.settings.api.env.items()))
        for file in migration_files(stack, recipe.files):
            add(str(file), _sha256(file))
    for seed in recipe.seeds:
        for file in seed_files(stack.settings.root, seed):
            add(str(file), _sha256(file))
    return ("data_" if recipe.kind == "data" else "") + digest.hexdigest()[:12]


def _command(stack: Stack) -> str:
    from devstack.data import migrations

    try:
        return migrations.command_of(stack, "up")
    except UsageError as error:
        raise UsageError(
            error.what,
            why=error.why,
            fix=[*error.fix, "or have no migrations in the tests: nv_template = empty, or data, in pytest's settings"],
        ) from None


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{file} can't be read", why=error.strerror or str(error)) from None


def seed_files(root: Path, seed: str) -> list[Path]:
    """:raises UsageError: there is nothing."""
    start = root / Path(seed).expanduser()
    if start.is_dir():
        return sorted(path for path in start.iterdir() if path.is_file() and path.name[0] != ".")
    if start.is_file():
        return [start]
    raise UsageError(f"{start} does not exist", why="nv_seed names it", fix="name an .sql or .csv file, or a folder")


def migration_files(stack: Stack, globs: Sequence[str]) -> list[Path]:
    """The files that decide what the migrations do: those that are named, Alembic's, or all source in api.dir.

    :raises UsageError: a glob that finds nothing.
    """
    found: set[Path] = set()
    for glob in globs:
        pattern = str(stack.settings.root / Path(glob).expanduser())
        files = [Path(name) for name in iglob(pattern, recursive=True) if os.path.isfile(name)]
        if not files:
            raise UsageError(
                f"nv_template_files finds nothing for {glob!r}",
                why=f"it counts from {stack.settings.root}",
                fix="correct it: app/migrations/**/*.py",
            )
        found.update(files)
    if not globs:
        folders = [] if stack.settings.data.migrate else _alembic_folders(stack.api.folder)
        for folder in folders or [stack.api.folder]:
            found.update(_source_in(folder))
        if folders:
            found.add(stack.api.folder / "alembic.ini")
    return sorted(found)


def _alembic_folders(folder: Path) -> list[Path]:
    """Where Alembic's environment and its versions are; none if alembic.ini says it in another way than by paths.
    https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file"""
    parser = configparser.ConfigParser({"here": str(folder)})
    try:
        parser.read(folder / "alembic.ini", encoding="utf-8")
        section = parser["alembic"]
        texts = [section["script_location"], *section.get("version_locations", "").replace(os.pathsep, " ").split()]
    except (configparser.Error, KeyError, UnicodeDecodeError):
        return []
    folders = [folder / text.strip() for text in texts]
    return folders if all(path.is_dir() for path in folders) else []


def _source_in(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        folders[:] = [
            name
            for name in folders
            if name not in ASIDE and name[0] != "." and not (inside / name / "pyvenv.cfg").exists()
        ]
        yield from (inside / name for name in files if name.endswith(SOURCES))


# on the server


def _known(stack: Stack) -> set[str]:
    from devstack.data.switch import databases

    return {name for name in databases(stack) if name.startswith(PREFIX)}


def _drop(stack: Stack, name: str) -> None:
    from devstack.data.load import drop

    drop(stack, name)


def _make(stack: Stack, name: str, recipe: Recipe) -> None:
    """Make it under another name, and give it its own when it is whole and closed."""
    from devstack.data.load import create
    from devstack.data.session import session
    from devstack.services.postgres import identifier, literal

    aside = name + MAKING
    try:
        _drop(stack, aside)
        create(stack, aside)
        _fill(stack, aside, recipe)
        with session(stack.db, "postgres", "close the tests' template") as sql:
            sql.run(
                f"ALTER DATABASE {identifier(aside)} ALLOW_CONNECTIONS false;"
                f" SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {literal(aside)}"
            )
            # a session on it would be in the way of every clone
            sql.run(f"ALTER DATABASE {identifier(aside)} RENAME TO {identifier(name)}")
    except BaseException:
        with contextlib.suppress(StackError):  # the next run does it
            _drop(stack, aside)
        raise


def _fill(stack: Stack, name: str, recipe: Recipe) -> None:
    from devstack.data import extensions, fixtures, load, migrations
    from devstack.data.session import session

    there = stack_on(stack, name)
    extensions.create(stack, extensions.in_use(stack) if recipe.kind == "data" else {}, name, stack.settings.db.user)
    load.hand_over(stack, name)
    if recipe.kind == "migrations":
        request = migrations.Request("up")
        migrations.check(there, request)
        migrations.run(there, request, None)
    elif recipe.kind == "data":
        # through a dump: cloning would need everybody to leave the database in use
        stack.db.check_restricts()
        load.copy_database(stack, name)
    for seed in recipe.seeds:
        fixtures.apply(there, str(stack.settings.root / Path(seed).expanduser()), again=True)
    with session(stack.db, name, "analyze the tests' template", role="owner") as sql:
        sql.run("SET client_min_messages = error; ANALYZE")


def tidy(loan: Loan) -> None:
    """Remove the copies of data that no run uses any more."""
    with loan.turn(), surroundings():
        _sweep(loan, _known(loan.stack), keep=None)


def _sweep(loan: Loan, others: set[str], *, keep: int | None = KEPT - 1) -> None:
    """Remove what was never finished, copies of data, and all but some of the rest: none of it if somebody uses it."""

    def used(name: str) -> float:
        try:
            return (loan.folder / "templates" / name).stat().st_mtime
        except OSError:
            return 0.0

    passing = {name for name in others if name.endswith(MAKING) or name.startswith(f"{PREFIX}data_")}
    old = sorted(others - passing, key=used, reverse=True)
    for name in [*passing, *([] if keep is None else old[keep:])]:
        path = loan.folder / "templates" / name
        if not is_claimed(path):
            _drop(loan.stack, name)
            path.unlink(missing_ok=True)
