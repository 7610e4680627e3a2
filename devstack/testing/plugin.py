"""The pytest plugin: fixtures for a running stack and for fresh databases. See docs/testing.md.

Every pytest run of an environment that has this package loads this file: what the fixtures need is imported when one
is asked for, and nothing is printed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

    from devstack.testing.bench import Bench, Options, RunningStack
    from devstack.testing.databases import Database, Databases

TEMPLATES = ("migrations", "data", "empty")
USED = "nv_devstack_used"
"""Under which a worker of pytest-xdist tells that it used the stack."""
users: pytest.StashKey[bool] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nv-devstack", "the local stack (nv-devstack)")
    group.addoption("--nv-env", metavar="NAME", help="environment of the stack; as NV_ENV=NAME inv dev.up")
    group.addoption("--nv-template", choices=TEMPLATES, help="what fresh databases are clones of")
    group.addoption("--nv-rebuild", action="store_true", help="make the template of fresh databases anew")
    group.addoption("--nv-keep", action="store_true", help="leave running what the tests have started")
    parser.addini("nv_env", "environment of the stack (--nv-env)", default="")
    parser.addini(
        "nv_template",
        "what fresh databases are clones of (--nv-template): migrations (an empty database, migrated), data (a copy of"
        " the environment's own) or empty",
        default="migrations",
    )
    parser.addini("nv_seed", "SQL and CSV files, or folders of them, in every fresh database", type="linelist")
    parser.addini("nv_template_files", "globs of the files that the migrations are made from", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    kind = config.getini("nv_template")
    if kind not in TEMPLATES:
        raise pytest.UsageError(f"nv_template is {kind!r} in {config.inipath}; there are: {', '.join(TEMPLATES)}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended (a hook of pytest-xdist, in the process that the user called)."""
    if getattr(node, "workeroutput", {}).get(USED):
        node.config.stash[users] = True


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The workers are gone: what they used is given back by who started them."""
    if session.config.stash.get(users, False):
        from devstack.errors import StackError
        from devstack.testing.bench import Bench

        try:
            Bench(_options(session.config)).give_back()
        except StackError as error:
            session.config.get_terminal_writer().line(f"\n{error.text()}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What the engine says, without a traceback of ours."""
    from devstack.errors import StackError

    try:
        yield
    except StackError as error:
        raise pytest.fail.Exception(error.text(), pytrace=False) from None


def _options(config: pytest.Config) -> Options:
    from devstack.testing.bench import Options
    from devstack.testing.template import Recipe

    kind = config.getoption("nv_template") or config.getini("nv_template")
    return Options(
        rootdir=Path(config.rootpath),
        env=config.getoption("nv_env") or config.getini("nv_env"),
        recipe=Recipe(
            kind=kind,
            seeds=tuple(config.getini("nv_seed")),
            files=tuple(config.getini("nv_template_files")),
            run=_run_of(config),
        ),
        rebuild=config.getoption("nv_rebuild"),
        keep=config.getoption("nv_keep"),
    )


def _run_of(config: pytest.Config) -> str:
    """A name of this run, the same in all its workers."""
    import secrets

    if hasattr(config, "workerinput"):
        return str(config.workerinput["testrunuid"])
    return secrets.token_hex(8)


@pytest.fixture(scope="session")
def _nv_bench(pytestconfig: pytest.Config) -> Iterator[Bench]:
    from devstack.testing.bench import Bench

    told: dict[str, Any] | None = getattr(pytestconfig, "workeroutput", None)
    with _explained():
        bench = Bench(_options(pytestconfig))
    if told is not None:
        told[USED] = True
    yield bench
    with _explained():
        bench.close(last=told is None)


@pytest.fixture(scope="session")
def nv_stack(_nv_bench: Bench) -> RunningStack:
    """The stack, up and healthy: root, env, api_url, database_url (through PgBouncer) and direct_url. What did not
    run is started as `inv dev.up` does, and stopped when the tests are over."""
    with _explained():
        return _nv_bench.running()


@pytest.fixture(scope="session")
def nv_databases(_nv_bench: Bench) -> Databases:
    """Fresh databases for fixtures of your own, of any scope: with nv_databases.one() as database: ..."""
    with _explained():
        return _nv_bench.databases


@pytest.fixture
def nv_db(nv_databases: Databases) -> Iterator[Database]:
    """A fresh database for this test: name, url, libpq_url, url_for(scheme), pooled_url, environment, connect()."""
    with _explained():
        database = nv_databases.fresh()
    yield database
    nv_databases.drop(database)


@pytest.fixture(scope="session")
def nv_session_db(nv_databases: Databases) -> Iterator[Database]:
    """A fresh database that the tests of this process share; under pytest-xdist each worker has its own."""
    with _explained():
        database = nv_databases.fresh()
    yield database
    nv_databases.drop(database)


@pytest.fixture
def nv_connection(nv_db: Database) -> Iterator[Connection]:
    """A psycopg2 connection to this test's fresh database, in a transaction as psycopg2 begins them."""
    with _explained():
        connection = nv_db.connect()
    yield connection
    connection.close()
