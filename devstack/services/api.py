"""nv-api: the application, served by uvicorn."""

from __future__ import annotations

import contextlib
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from devstack.container import ContainerContext
from devstack.credentials import Credentials
from devstack.errors import StackError, UsageError
from devstack.inherited import POSTGRES_VARIABLES, without_foreign
from devstack.runtimes import ServiceSpec
from devstack.services import NotReady
from devstack.services.application import Application
from devstack.services.configuration import items_of
from devstack.settings import Settings, reachable_address
from devstack.shell import Command, sh

ANSWER_BYTES = 16 << 20
"""More than any application says of itself; a path that streams for ever would fill the memory."""

UNSET = (*POSTGRES_VARIABLES, "PYTHONHOME", "VIRTUAL_ENV")
"""Variables that the application must not see, whoever has set them. The caller's other ones for Python do not come
that far: the supervisor is started without them, and a container has an environment of its own."""


FIND_MODULES = """\
import sys

def found(name):
    path, whole = None, ""
    for part in name.split("."):
        whole = f"{whole}.{part}".strip(".")
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(whole, path) for finder in finders)), None)
        if spec is None or (path := spec.submodule_search_locations) is None and whole != name:
            return False
    return True

print(*(name for name in sys.argv[1:] if not found(name)))
"""
"""Print the modules that can't be found. Nothing is imported: that would run the application's code."""

FIND_SECONDS = 20.0
"""Time for an interpreter to look for modules."""


def request_path(path: str) -> str:
    """Return a path as a request has it: in ASCII."""
    return quote(path, safe=string.punctuation)


class Beside(Struct, frozen=True):
    """How a command of the application's own is run here."""

    command: Command
    folder: Path
    env: Mapping[str, str]


class Api(Application):
    """The application service."""

    stop_signal = "TERM"

    def __init__(self, context: ContainerContext, settings: Settings, credentials: Credentials) -> None:
        super().__init__(settings, credentials)
        self.context = context

    @property
    def name(self) -> str:
        return self.settings.service_name("api")

    @property
    def inside(self) -> Path:
        """The application's folder as the application itself sees it."""
        return self.folder

    @property
    def python(self) -> str:
        """Its Python where it runs."""
        return self.interpreter

    # the service

    def peer_urls(self, *, direct: bool = False) -> dict[str, str]:
        """What the application itself reaches the database by: what the values of ``api.env`` may use."""
        return self.urls(direct=direct)

    def places(self) -> dict[str, str]:
        """Where the application and its interpreter look for modules and programs."""
        return self.places_here()

    @property
    def listens(self) -> tuple[str, int]:
        """What uvicorn itself binds to."""
        return self.bind, self.port

    def environment(self, *, direct: bool = False) -> dict[str, str]:
        """The application's variables: those of ``.env``, the specification's, and ``api.env``, which wins."""
        return self._environment(self.peer_urls(direct=direct), self.places(), self.inside)

    def server_words(self) -> list[str]:
        """The arguments of uvicorn."""
        api, (address, port) = self.settings.api, self.listens
        app = ["--factory", api.app.removesuffix("()")] if api.app.endswith("()") else [api.app]
        words = [*app, "--host", address, "--port", str(port)]
        return [*words, "--log-level", api.log_level.lower(), "--timeout-graceful-shutdown", "5"]

    def _debugger(self) -> list[str]:
        """Have a debugger in the server's own process. Who reaches its port can do anything: it never leaves loopback.
        https://github.com/microsoft/debugpy#debugpy-cli-usage"""
        port = self.settings.api.debug_port
        return ["-Xfrozen_modules=off", "-m", "debugpy", "--listen", f"127.0.0.1:{port}"] if port else []

    def spec(self) -> ServiceSpec:
        api = self.settings.api
        words = [self.python, *self._debugger(), "-m", "uvicorn", *self.server_words()]
        if api.workers > 1:
            words += ["--workers", str(api.workers)]
        return ServiceSpec(
            name=self.name,
            argv=words,
            cwd=self.folder,
            env=self.environment(),
            unset=UNSET,
            stop_seconds=10,
            watch=[self.folder] if api.reload else [],
        )

    def configuration(self) -> Mapping[str, str]:
        items = items_of(self.spec())
        own = self.settings.api.env
        if "PATH" not in own:
            # the caller's, behind the interpreter's own directory: another terminal has another
            items.pop("env PATH", None)
        for name, written in self.settings.dotenv.of_terminal().items():
            if f"env {name}" in items and name not in own:
                items[f"env {name}"] = written
        return items

    def questions(self) -> Sequence[Command]:
        return ()

    def prepare(self) -> ServiceSpec:
        self.check_files()
        return self.spec()

    @contextlib.contextmanager
    def beside(self, command: str, environ: Mapping[str, str], extra: Mapping[str, str]) -> Iterator[Beside]:
        """A shell command of the application's own, with its packages and variables and ``extra``. It speaks to the
        database itself, not to PgBouncer."""
        kept = {name: value for name, value in without_foreign(environ).items() if name not in UNSET}
        yield Beside(Command(command), self.folder, {**kept, **self.environment(direct=True), **extra})

    def check(self, *, fresh: bool = False) -> None:
        """Check its directory, its interpreter, its variables, and that the modules that it begins with are there. What
        the modules do when they are imported is seen by a start alone.

        :raises StackError: one of them can't be used.
        """
        self.check_files()
        self.spec()
        if self._may_lack_modules():
            self._check_modules()

    def check_files(self) -> None:
        """:raises UsageError: its folder or its interpreter is not there."""
        self.check_folder()
        if not os.access(self.python, os.X_OK):
            raise UsageError(
                f"the application's interpreter {self.python} can't be run",
                why=f"api.python is {self.settings.api.python!r}, from {self.settings.origin('api.python')}",
                fix="set api.python to the python of its virtual environment, or leave it empty for the stack's own",
            )

    @property
    def module(self) -> str:
        """The module that uvicorn imports the application from."""
        return self.settings.api.app.partition(":")[0]

    def _may_lack_modules(self) -> bool:
        """Whether its interpreter has to be asked for the modules: the files show that of the application, and the
        stack's own interpreter has uvicorn."""
        api = self.settings.api
        parts = self.module.split(".")
        files = [place.joinpath(*parts) for place in (self.folder, self.folder.parent)]
        found = any(file.is_dir() or file.with_name(f"{file.name}.py").is_file() for file in files)
        return bool(not found or api.python or api.image or api.debug_port)

    def _check_modules(self) -> None:
        """:raises StackError: its interpreter finds one of the modules nowhere, or does not run."""
        wanted = ["uvicorn", *(["debugpy"] if self.settings.api.debug_port else []), self.module]
        with self.apart([self.python, "-c", FIND_MODULES, *wanted]) as command:
            answer = self.context.probe(command, FIND_SECONDS)
        if answer.exited is None:
            return  # a slow machine is no reason to refuse
        missing = answer.text.split() if answer.ok else []
        if not answer.ok:
            raise StackError(
                f"the application's interpreter {self.python} does not run",
                evidence=[self.context.mask(line) for line in answer.text.splitlines()[-5:]],
                fix="correct api.python, or the virtual environment that it is of",
            )
        if self.module in missing:
            raise StackError(
                f"the application's module {self.module} was not found",
                why=f"api.app is {self.settings.api.app!r}, from {self.settings.origin('api.app')}; it is neither in"
                f" {self.folder}, nor in {self.folder.parent}, nor among the packages of {self.python}",
                fix=f"correct api.app, or api.dir ({self.settings.api.dir})",
            )
        if missing:
            why = f"No module named {missing[0]}"
            raise StackError(
                f"the application's interpreter {self.python} lacks a package", why=why, fix=self.hint([why])
            )

    @contextlib.contextmanager
    def apart(self, words: Sequence[str]) -> Iterator[Command]:
        """Yield a command that runs where the application does, with its modules and without its secrets."""
        path = self.environment()["PYTHONPATH"]
        yield sh("cd $folder && PYTHONPATH=$path $words", folder=self.folder, path=path, words=words)

    def check_folder(self) -> None:
        """:raises UsageError: its folder is not there."""
        if not self.folder.is_dir():
            raise UsageError(
                f"the application's folder {self.folder} does not exist",
                why=f"api.dir is {self.settings.api.dir!r}, from {self.settings.origin('api.dir')}",
                fix="set api.dir to the folder that `uvicorn` is to run in",
            )

    # asking it

    def answers(self) -> None:
        """The health path answers 2xx.

        :raises NotReady: it does not, or not within five seconds.
        """
        path = self.settings.api.health_path
        try:
            status, body = self.get(path)
        except OSError as error:
            raise NotReady(str(error) or type(error).__name__) from None
        if not 200 <= status < 300:
            raise NotReady(f"{path} answered {status}: {body[:500].decode(errors='replace').strip()}")

    def get(self, path: str, *, seconds: float = 5) -> tuple[int, bytes]:
        """The status and body that a path of the application answers with, up to :data:`ANSWER_BYTES` of it.

        :raises OSError: no answer within ``seconds``, or none that is HTTP.
        """
        import http.client

        connection = http.client.HTTPConnection(reachable_address(self.bind), self.port, timeout=seconds)
        try:
            connection.request("GET", request_path(path))
            response = connection.getresponse()
            return response.status, response.read(ANSWER_BYTES)
        except http.client.HTTPException as error:
            raise OSError(f"it does not answer with HTTP ({type(error).__name__})") from None
        finally:
            connection.close()

    def accepts(self) -> None:
        """Nothing: there is nothing to settle before it answers."""

    def settle(self) -> bool:
        """Nothing: the application settles itself."""
        return False

    def hint(self, evidence: list[str]) -> str:
        text = "\n".join(evidence)
        if "No module named debugpy" in text:
            return f"install debugpy there: {self.python} -m pip install debugpy; or leave api.debug_port at 0"
        if "No module named uvicorn" in text:
            # as `uv` makes them, an environment has no pip of its own
            pip = sorted(Path(self.python).parent.glob("pip*"))
            by = f"{self.python} -m pip install" if pip or not self.settings.api.python else "uv pip install"
            where = f" --python {self.python}" if by.startswith("uv") else ""
            return f"install uvicorn there: {by}{where} uvicorn; or set api.python to an interpreter that has it"
        if "Error loading ASGI app" in text or "ModuleNotFoundError" in text or "ImportError" in text:
            if "ModuleNotFoundError" in text and not self.settings.api.python:
                return "set api.python to an interpreter with the application's packages; or correct api.app or api.dir"
            return f"correct api.app ({self.settings.api.app}) or api.dir ({self.settings.api.dir}), or mend the import"
        if "authentication method requirement" in text:
            return (
                'if that server may be logged in to by another way: PGREQUIREAUTH: "" below api.env (docs/settings.md)'
            )
        if " answered 404" in text:
            return f"set api.health_path; {self.settings.api.health_path} is not there"
        return f"mend the application, then inv api.start; the whole log: inv {self.label}.logs"
