"""Tasks whose stack is on another host: what was typed here runs there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke import Exit

from devstack import console
from devstack.errors import FAILED, StackError, UsageError
from devstack.files import load_json, read_regular
from devstack.remote.agent import RECORD
from tasks.runstate import state_of

if TYPE_CHECKING:
    from devstack.data.catalogue import Backup
    from devstack.host import Host
    from devstack.paths import Paths
    from devstack.remote.backups import Exchange
    from devstack.remote.project import Remote
    from devstack.settings import Settings
    from tasks.executor import StackExecutor

HERE = {
    *("data.list", "data.pin", "data.unpin"),
    *("dev.init", "dev.export", "dev.ide", "dev.completion", "dev.env", "dev.exec"),
    *("remote.accept", "remote.bootstrap", "remote.check", "remote.tunnel"),
}
"""What is about this machine, or about files that are here."""
BOTH = {"data.cleanup"}
"""What is about files on both sides."""
MAKE_BACKUPS = {
    *("data.backup", "data.restore", "data.undo", "data.migrate", "data.verify"),
    *("dev.reset", "dev.remove", "dev.move"),
}
NO_FILES = {"data.backup": "output", "dev.bundle": "output", "dev.images": "save"}
"""Flags that name a file to write, which would be written there."""


def host_of(config: Any) -> str:
    """The host that the stack is on; empty where it is this machine. Cheap where nothing names one."""
    state = state_of(config)
    environ = state.environ
    if not state.has_root or (state.root / RECORD).exists():
        return ""  # this is the host, whose settings came along
    named = bool(environ.get("INVOKE_STACK_HOST") or environ.get("NV_HOST") or state.host)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        named = named or "_HOST" in read_regular(state.root / ".env").decode("utf-8")
    section = config.get("stack")
    if not named and not (hasattr(section, "get") and section.get("host")):
        return ""
    return settings_of(config).stack.host


def settings_of(config: Any) -> Settings:
    """The project's settings.

    :raises UsageError: one can't be used.
    """
    from devstack.settings import Entry, from_invoke
    from devstack.tolerance import Memory, tolerant_settings

    state = state_of(config)
    root, environ = state.root, state.environ
    given = [*state.given, *([Entry("stack.host", state.host, "the flag -H", True)] if state.host else [])]
    if tolerance := state.tolerance:
        # what runs on a host is recorded there, and the command judges the settings there again
        return tolerant_settings(config, root, environ, given, tolerance, Memory(lambda _: root / "none", list))
    return from_invoke(config, root, environ, given)


def hosted(config: Any) -> Settings:
    """The settings of a project whose stack is on another host.

    :raises UsageError: it is on this machine, or a setting can't be used.
    """
    settings = settings_of(config)
    if not settings.stack.host:
        raise UsageError(
            "no host is set", why="the stack is on this machine", fix="name one: NV_HOST=user@host, or stack.host"
        )
    return settings


@contextlib.contextmanager
def remote(config: Any) -> Iterator[Remote]:
    """The project on its host.

    :raises StackError: the host can't be reached.
    """
    from concurrent.futures import ThreadPoolExecutor

    from devstack.remote.link import connect
    from devstack.remote.project import Remote, sent_of

    settings, environ = hosted(config), state_of(config).environ
    with ThreadPoolExecutor(1) as beside:
        looked = beside.submit(sent_of, settings)
        link = connect(
            settings.stack.host, config, timeout=settings.remote.connect_timeout, silence=settings.remote.silence
        )
    try:
        yield Remote(link, settings, environ, state_directory(settings, environ), looked)
    finally:
        link.close()


def state_directory(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Return the project's directory of state here.

    :raises UsageError: somebody else could exchange what is in it.
    """
    return places_of(settings, environ)[0].state.parent


def places_of(settings: Settings, environ: Mapping[str, str]) -> tuple[Paths, Host]:
    """Return where the environment's files are here, and this machine.

    :raises UsageError: somebody else could exchange them.
    """
    from devstack import trust
    from devstack.host import Host
    from devstack.paths import paths_of

    xdg = {name: value for name, value in environ.items() if name.startswith("XDG_")}
    paths = paths_of(settings, home=Path.home(), xdg=xdg, uid=os.getuid())
    host = Host(friends={*trust.uids(environ), settings.root.stat().st_uid})
    host.check_places(paths)
    return paths, host


def tunnel_of(settings: Settings, environ: Mapping[str, str]) -> Path:
    """The file in which the environment's tunnel says how it is."""
    return state_directory(settings, environ) / settings.stack.env / "tunnel.json"


def execute(executor: StackExecutor, tasks: Sequence[Any]) -> None:
    """Run the tasks of a command, those of the stack on its host.

    :raises Exit: one of them has failed there.
    """
    with contextlib.ExitStack() as stack:
        host: list[Remote] = []
        for where, contexts in _groups(tasks):
            if where != "there":
                executor.execute_here(contexts)
            if where == "here" or (where == "both" and _value(contexts[0], "json")):
                continue
            if not host:
                host.append(stack.enter_context(remote(executor.config)))
            if code := _there(host[0], executor.args, contexts, state_of(executor.config).env):
                raise Exit(code=code)


def _groups(contexts: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Tasks in order, those together that run at the same place; each that has to do with backups alone."""
    group: list[Any] = []
    place = ""
    for context in contexts:
        where = "here" if context.name in HERE else "both" if context.name in BOTH else "there"
        if context.name == "data.list" and _value(context, "kept"):
            where = "there"  # the databases are where the stack is, the backups here
        alone = context.name in MAKE_BACKUPS | BOTH
        if group and (where != place or alone or group[-1].name in MAKE_BACKUPS | BOTH):
            yield place, group
            group = []
        group, place = [*group, context], where
    if group:
        yield place, group


def _there(host: Remote, args: Any, contexts: list[Any], env: str) -> int:
    """Run tasks on the host; the exit code.

    :param args: parsed flags of the program itself.
    :param env: environment that the command names.
    """
    core = [f"--{name}" for name in ("debug", "dry", "echo") if args[name].value]
    file = args.config.value
    options: dict[str, Any] = {"folder": _folder(host), "settings": Path(file).read_text() if file else ""}
    if contexts[0].name in MAKE_BACKUPS and not args.dry.value:
        with _backups(host, contexts[0]) as changes:
            code = host.run([*core, *words_of(contexts[0], env, changes)], **options)
        unreadable = _report_unreadable(host, contexts[0])
        return code or unreadable
    for context in contexts:
        if context.name == "data.seed":
            _check_sent(host, _value(context, "path"))
    words = [word for context in contexts for word in words_of(context, env)]
    if contexts[-1].name == "db.shell":
        options.update(given=True, raw=True)  # it reads what is piped into it, or has the terminal
    if contexts[-1].name == "dev.watch":
        with _followed(host):
            return host.run([*core, *words], **options)
    return host.run([*core, *words], **options)


def _report_unreadable(host: Remote, context: Any) -> int:
    """Print which backups here could not go to the host to be verified; the exit code."""
    from devstack.data import catalogue

    if context.name != "data.verify" or not _value(context, "all"):
        return 0
    _, unreadable = catalogue.survey(catalogue.folder_of(host.settings))
    for other in unreadable:
        console.notes(other.error().text())
    return FAILED if unreadable else 0


def _check_sent(host: Remote, name: str) -> None:
    """:raises UsageError: a file is not among those that go to the host."""
    try:
        path = str(Path(name).expanduser().resolve().relative_to(host.settings.root.resolve()))
    except ValueError:
        path = ""
    if not path or not any(one.name == path or one.name.startswith(f"{path}/") for one in host.sent()):
        raise UsageError(
            f"{name} does not go to {host.link.host}",
            why="what goes there is the project, without what Git ignores",
            fix="put it into the project",
        )


def _folder(host: Remote) -> str:
    """Where one is below the project: paths that are typed count from there."""
    with contextlib.suppress(ValueError):
        return str(Path.cwd().resolve().relative_to(host.settings.root.resolve()))
    return "."


def words_of(context: Any, env: str, changes: dict[str, Any] | None = None) -> list[str]:
    """A parsed task as words again. ``changes`` are values by the name of the flag; None leaves it out.

    :raises UsageError: a flag makes no sense for a stack that is not here.
    """
    changes = changes or {}
    name = context.name
    if (flag := NO_FILES.get(name)) and _value(context, flag):
        raise UsageError(
            f"--{flag} names a file here, and the stack is on another host",
            fix="leave it out: it is made in the project's folder there",
        )
    words = [name, *([f"--env={env}"] if env else [])]
    for argument in context.args.values():
        flag = argument.names[0].replace("_", "-")
        value = changes[flag] if flag in changes else _given(argument)
        if value is None or flag in ("env", "keep-remote"):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}={one}" for one in value]
        else:
            words.append(f"--{flag}={value}")
    return words


def _given(argument: Any) -> Any:
    """What was typed for a flag; None if nothing was."""
    if argument.kind is list:
        return argument.value or None
    return None if argument.raw_value is None else argument.value


def _value(context: Any, flag: str) -> Any:
    return _given(context.args[flag]) if flag in context.args else None


@contextlib.contextmanager
def _backups(host: Remote, context: Any) -> Iterator[dict[str, Any]]:
    """What a task needs of the backups here goes to the host, what it makes there comes; changed flags."""
    from devstack.lock import StackLock
    from devstack.remote.backups import Exchange

    lock = StackLock(host.state / "exchange-lock", host.settings.stack.lock_timeout)
    host.state.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    exchange = Exchange(host)
    exchange.begin()
    try:
        yield _lend(exchange, context)
    finally:
        if not host.link.gone():
            exchange.end(keep=bool(_value(context, "keep-remote")))


def _lend(exchange: Exchange, context: Any) -> dict[str, Any]:
    """Bring what the task needs to the host; the flags that name it there."""
    from devstack.data import catalogue

    folder, name = exchange.folder, context.name
    changes: dict[str, Any] = {}

    def latest(at: str = "") -> Backup:
        # those of this machine, and of other hosts, are not what is meant there
        return catalogue.latest(folder, lambda b: b.manifest.fetched_from == exchange.remote.settings.stack.host, at=at)

    if url := _value(context, "url"):
        changes["url"] = f"@{exchange.lend_text(_address(url))}"
    if name == "data.restore":
        file, at = _value(context, "file") or "", _value(context, "at") or ""
        if at:
            backup = latest(at)
        elif _value(context, "choose"):
            raise UsageError(
                "--choose works where the stack is", fix="inv data.list shows them; then inv data.restore --file NAME"
            )
        elif file in ("", "latest"):
            backup = latest()
        else:
            backup = _own(folder, file)
        there = exchange.lend(backup) if backup else exchange.lend_file(_dump(file))
        return {**changes, "file": there, "latest": None, "at": None}
    if name == "data.verify":
        if _value(context, "all"):
            for backup in catalogue.backups(folder):
                exchange.lend(backup)
            return changes
        file = _value(context, "file") or "latest"
        return {**changes, "file": exchange.lend(latest() if file == "latest" else catalogue.named(folder, file))}
    return changes


def _address(url: str) -> str:
    """What ``--url`` means; a file that it names is one here."""
    if not url.startswith("@"):
        return url
    try:
        return Path(url[1:]).expanduser().read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{url[1:]} can't be read", why=str(error), fix="--url=@FILE names one here") from None


def _own(folder: Path, file: str) -> Any:
    from devstack.data import catalogue

    places = (folder / file, Path(os.path.abspath(Path(file).expanduser())))
    return next((backup for place in places if (backup := catalogue.read(place))), None)


def _dump(file: str) -> Path:
    path = Path(os.path.abspath(Path(file).expanduser()))
    if not path.is_file():
        raise UsageError(f"there is no file {file}", fix="see inv data.list")
    return path


@contextlib.contextmanager
def _followed(host: Remote) -> Iterator[None]:
    """The project's files go to the host as they change."""
    import threading

    from watchfiles import DefaultFilter, watch

    ended = threading.Event()

    def follow() -> None:
        changes: Iterable[Any] = watch(
            host.settings.root,
            watch_filter=DefaultFilter(),
            stop_event=ended,
            debounce=300,
            rust_timeout=1_000,
            yield_on_timeout=True,
        )
        owed, said = False, ""
        for found in changes:
            if not found and not owed:
                continue
            try:
                with host.talk() as talk:
                    host.sync(talk)
                owed, said = False, ""
            except StackError as error:
                owed = not host.link.gone()
                if owed and error.what != said:
                    said = error.what
                    console.note(f"changes were not sent: {error.what}; trying again")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)


def json_of(config: Any, words: Sequence[str]) -> Any:
    """What a task prints on the host as JSON.

    :raises Exit: it failed there, and has said why.
    """
    file = object.__getattribute__(config, "_runtime_path")
    state = state_of(config)
    env = [f"--env={state.env}"] if state.env else []
    with remote(config) as host:
        code, printed = host.output([*words, *env], settings=Path(file).read_text() if file else "")
    if code:
        raise Exit(code=code)
    try:
        return load_json(printed)
    except ValueError:
        raise unexpected(config, f"{words[0]} printed no JSON") from None


def unexpected(config: Any, why: str) -> StackError:
    """Return the error for an answer of the host that no stack gives."""
    return StackError(f"{host_of(config)} does not answer as expected", why=why, fix="inv remote.check")


def variables(config: Any, *, direct: bool, tunnelled: bool) -> dict[str, str]:
    """Return what leads to the stack on its host, for a command or a shell here.

    :param tunnelled: refuse to where there is no tunnel. The ports of ``dev`` are known without one.
    :raises StackError: there is no tunnel.
    :raises Exit: the login is not known there.
    """
    from devstack.ports import MAIN
    from devstack.remote import tunnel as tunnels
    from devstack.remote.variables import from_host, through

    settings = settings_of(config)
    tunnel = tunnels.read(tunnel_of(settings, state_of(config).environ))
    if tunnel is None or tunnel.host != settings.stack.host:
        if tunnelled or settings.stack.env != MAIN:
            raise StackError(
                f"there is no tunnel to {settings.stack.host}",
                why="what a command here reaches on localhost would be something else",
                fix="inv remote.tunnel",
            )
        tunnel = None
    ports = {one.service: one.here for one in tunnel.forwards} if tunnel else {}
    found = json_of(config, ["dev.env", "--format=login"])
    return from_host(found, through(settings, ports), direct=direct)


def hosts_of(executor: StackExecutor) -> list[str]:
    """The hosts of ``fab -H``; none for another program."""
    args = executor.args
    return [host for host in (args["hosts"].value or "").split(",") if host] if "hosts" in args else []
