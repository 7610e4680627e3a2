"""Typed, validated configuration.

Values come from Invoke's own hierarchy (``/etc/invoke.yaml``, ``~/.invoke.yaml``, the project's ``invoke.yaml``,
``INVOKE_*`` variables, ``-f FILE``), from a ``.env`` file and from the variables of the specification. Later layers
win, in this order: invoke.yaml, ``.env``, the environment, ``-f FILE``. Every value remembers where it came from, so
that a refusal can name it.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
import string
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args
from urllib.parse import quote, unquote, urlsplit

import msgspec
from msgspec import Meta, Struct, field

from devstack.envfile import VARIABLE_NAME, EnvFile, checked, read_env_file
from devstack.errors import UsageError
from devstack.files import MAX_YAML_BYTES, load_yaml, read_regular
from devstack.masking import hide_url_passwords
from devstack.templates import Templates
from devstack.variables import without_answers

Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Text = Annotated[str, Meta(min_length=1)]
Environment = Annotated[
    str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?\Z", description="1 to 24 lower-case letters, digits and -")
]
App = Annotated[str, Meta(pattern=r"^[\w.]+:[\w.]+(\(\))?\Z", description="package.module:name, as uvicorn takes it")]
UrlScheme = Annotated[
    str, Meta(pattern=r"^postgres(ql)?(\+\w+)?\Z", description="postgresql, or with a driver: postgresql+asyncpg")
]
UrlPath = Annotated[str, Meta(pattern=r"^/\S*\Z", description="a path that begins with / and has no spaces")]
OptionalUrlPath = Annotated[
    str, Meta(pattern=r"^(/\S*)?\Z", description="a path that begins with / and has no spaces, or nothing")
]
_IMAGE = r"[A-Za-z0-9][\w.:/@-]*"
Image = Annotated[str, Meta(pattern=rf"^{_IMAGE}\Z", description="an image's name, such as pgvector/pgvector:pg17")]
OptionalImage = Annotated[str, Meta(pattern=rf"^({_IMAGE})?\Z", description="an image's name, or nothing")]
Host = Annotated[
    str,
    Meta(pattern=r"^([^\s/@:,-][^\s/@:,]*@)?[^\s/@,-][^\s/@,]*\Z|^\Z", description="user@host, host:port, or nothing"),
]
RemotePython = Annotated[
    str, Meta(pattern=r"^([~/].*)?\Z", description="a path on the host that begins with / or ~, or nothing")
]
HostName = Annotated[
    str, Meta(pattern=r"^(\*|(\*\.)?[A-Za-z0-9_.-]+)\Z", description="a host's name, *.example.com, or * for any")
]
Megabytes = Annotated[int, Meta(ge=8, le=10_000_000)]
Percent = Annotated[int, Meta(ge=1, le=100)]
LogLevel = Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"]
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
"""Numbers of the levels: https://docs.python.org/3/library/logging.html#logging-levels"""
LEVEL_NAMES = {"WARN": "WARNING", "FATAL": "CRITICAL", "NOTSET": "DEBUG", "TRACE": "DEBUG"}
"""Further names of :mod:`logging` and uvicorn, by the level that comes nearest."""


class _Section(Struct, frozen=True, kw_only=True):
    """A section of invoke.yaml. The comments there are the documentation of the fields."""


class StackSettings(_Section, frozen=True, kw_only=True):
    env: Environment = "dev"
    host: Host = ""
    runtime: Literal["auto", "apple", "docker", "podman", "native"] = "auto"
    bind: str = ""
    account: str = ""
    state_dir: str = ""
    cache_dir: str = ""
    log_dir: Text = "logs"
    ca_bundle: str = ""
    start_timeout: Seconds = 60
    stop_timeout: Seconds = 60
    lock_timeout: Seconds = 120


class DbSettings(_Section, frozen=True, kw_only=True):
    bind: Text = "127.0.0.1"
    port: Port = 5433
    name: Text = "nina"
    user: Text = "nina"
    password: str | None = None
    extensions: list[Text] = field(default_factory=lambda: ["vector", "uuid-ossp"])
    max_connections: Annotated[int, Meta(ge=10, le=10_000)] = 100
    parameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    memory_mb: Megabytes = 1024
    track_statements: bool = True
    bin_dir: str = ""
    prepared: bool = True
    image: Image = "pgvector/pgvector:pg17"


class PgbSettings(_Section, frozen=True, kw_only=True):
    bind: Text = "127.0.0.1"
    port: Port = 6432
    pool_mode: Literal["session", "transaction", "statement"] = "session"
    max_client_conn: Count = 100
    default_pool_size: Count = 20
    parameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    memory_mb: Megabytes = 64
    binary: str = ""
    image: OptionalImage = ""
    base_image: Image = "debian:bookworm-slim"


class ApiSettings(_Section, frozen=True, kw_only=True):
    bind: Text = "127.0.0.1"
    port: Port = 13370
    hosts: list[HostName] = field(default_factory=list)
    app: App = "api.main:app"
    dir: Text = "api"
    python: str = ""
    env: dict[str, str | int | float | bool] = field(default_factory=dict)
    url_scheme: UrlScheme = "postgresql"
    health_path: UrlPath = "/health"
    detail_path: OptionalUrlPath = "/health/detailed"
    metrics_path: OptionalUrlPath = "/metrics"
    reload: bool = True
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    log_level: LogLevel = "INFO"
    debug: bool = False
    debug_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    memory_provider: Text = "native"
    memory_mb: Megabytes = 512
    image: OptionalImage = ""
    base_image: Image = "python:3.12-slim"
    jwt_secret: str | None = None


class DataSettings(_Section, frozen=True, kw_only=True):
    dir: Text = "backups"
    retention_days: Annotated[int, Meta(ge=1, le=36_500)] = 7
    migrate: str = ""
    migrate_status: str = ""
    migrate_down: str = ""
    embed: str = "api.embedding:embed"


class HealthSettings(_Section, frozen=True, kw_only=True):
    timeout: Annotated[float, Meta(ge=1, le=60)] = 3
    api_response_ms: Count = 100
    query_ms: Count = 50
    connections_percent: Percent = 80
    pool_percent: Percent = 90
    waiting_seconds: Seconds = 1
    transaction_seconds: Seconds = 300
    lock_seconds: Seconds = 10
    disk_free_mb: Annotated[int, Meta(ge=0, le=100_000_000)] = 1000
    memory_percent: Percent = 90
    restarts: Count = 3


class RemoteSettings(_Section, frozen=True, kw_only=True):
    dir: str = ""
    python: RemotePython = ""
    connect_timeout: Seconds = 10
    silence: Annotated[float, Meta(ge=1, le=600)] = 20


WHOLE = {"whole": True}
"""Marks a text that a variable gives as it is: a command may have commas."""
Commands = list[Annotated[str, Meta(min_length=1, extra=WHOLE)]]


class HookSettings(_Section, frozen=True, kw_only=True):
    pre_up: Commands = field(default_factory=list)
    post_up: Commands = field(default_factory=list)
    pre_down: Commands = field(default_factory=list)
    post_down: Commands = field(default_factory=list)
    pre_backup: Commands = field(default_factory=list)
    post_backup: Commands = field(default_factory=list)
    pre_restore: Commands = field(default_factory=list)
    post_restore: Commands = field(default_factory=list)


class Refusal(NamedTuple):
    """Why a value is not taken, and what to write instead."""

    path: str
    origin: str
    why: str
    fix: str
    others: tuple[str, ...] = ()
    """Further settings that it contradicts."""

    def lines(self) -> list[str]:
        origin = [f"  from {self.origin}"] if self.origin else []
        return [": ".join(filter(None, [self.path, self.why])), *origin, f"  {self.fix}"]


class Replaced(NamedTuple):
    """What is refused, and what a command that goes on all the same uses in its place."""

    refusal: Refusal
    instead: str
    """Empty where nothing takes its place: there is no such setting."""


class Settings(_Section, frozen=True, kw_only=True):
    """All sections, the project's root and where each value came from (``{"db.port": "variable …"}``)."""

    root: Path
    stack: StackSettings = StackSettings()
    db: DbSettings = DbSettings()
    pgb: PgbSettings = PgbSettings()
    api: ApiSettings = ApiSettings()
    data: DataSettings = DataSettings()
    health: HealthSettings = HealthSettings()
    hooks: HookSettings = HookSettings()
    remote: RemoteSettings = RemoteSettings()
    dotenv: EnvFile = EnvFile()
    """Variables for the application."""
    origins: dict[str, str] = field(default_factory=dict)
    hidden: list[tuple[str, str]] = field(default_factory=list)
    """Name and value of every secret of every layer, also of those that another one won over: not for a report."""
    shared: list[str] = field(default_factory=list)
    """The files that every environment reads, in the order in which later ones win."""
    wrong: list[Replaced] = field(default_factory=list)
    """What is refused, for a command that goes on all the same."""

    @property
    def templates(self) -> Templates:
        return Templates(self.root / "templates")

    def exposure(self, label: str) -> str:
        """Return how far a service (``db``, ``pgb`` or ``api``) is open beyond this machine; empty if it is not."""
        path = f"{label}.bind"
        if path not in self.open_binds:
            return ""
        text = f"open beyond this machine: {path} is {self.open_binds[path]}, from {self.origin(path)}"
        unguarded = label == "api" and self.api.app == ApiSettings().app
        return f"{text}; the default application has no login" if unguarded else text

    @property
    def open_binds(self) -> dict[str, str]:
        """The addresses that others than this machine can reach, by setting: ``api.bind``."""
        addresses = {"db.bind": self.db.bind, "pgb.bind": self.pgb.bind, "api.bind": self.api.bind}
        return {path: address for path, address in addresses.items() if not is_loopback(address)}

    @property
    def application(self) -> Path:
        """The application's folder."""
        return (self.root / Path(self.api.dir).expanduser()).resolve()

    def origin(self, path: str) -> str:
        """Where a setting's value came from."""
        return self.origins.get(path, "the default")

    def service_name(self, service: str) -> str:
        """``nv-db``; ``nv-review-db`` in another environment."""
        return f"nv-{service}" if self.stack.env == "dev" else f"nv-{self.stack.env}-{service}"


SECTIONS: dict[str, type[Struct]] = {
    "stack": StackSettings,
    "db": DbSettings,
    "pgb": PgbSettings,
    "api": ApiSettings,
    "data": DataSettings,
    "health": HealthSettings,
    "hooks": HookSettings,
    "remote": RemoteSettings,
}

FIELDS: dict[str, msgspec.structs.FieldInfo] = {
    f"{section}.{info.name}": info for section, cls in SECTIONS.items() for info in msgspec.structs.fields(cls)
}
"""Every setting by its path, in the order of invoke.yaml."""

SPECIFIED = {
    "NV_ENV": "stack.env",
    "NV_HOST": "stack.host",
    "NINAIVALAIGAL_JWT_SECRET": "api.jwt_secret",
    "NINAIVALAIGAL_DEBUG": "api.debug",
    "MEMORY_PROVIDER": "api.memory_provider",
    "LOG_LEVEL": "api.log_level",
    "RELOAD_ON_CHANGE": "api.reload",
}
"""The variables of the specification, apart from the database's URL, and of every day; the setting that each is."""

PROJECT_FILES = ("invoke.yaml", "invoke.yml", "invoke.json")
"""A project's settings, as Invoke looks for them."""

URL_VARIABLE = "NINAIVALAIGAL_DATABASE_URL"
URL_SETTINGS = ("db.user", "db.password", "db.name", "db.port")
"""What is in the URL."""

SECRETS = ("db.password", "api.jwt_secret", "api.env")
"""The settings whose values are not shown."""

APPLICATION_VALUES = (
    *("database_url", "direct_url", "db_host", "db_port", "db_user", "db_password", "db_name", "jwt_secret", "dir"),
)
"""Names that values of ``api.env`` may use, each after a dollar sign."""

PATHS = (
    *("stack.state_dir", "stack.cache_dir", "stack.ca_bundle", "db.bin_dir", "pgb.binary"),
    *("api.dir", "api.python", "data.dir"),
)
"""Settings that may begin with ``~``."""

INVOKES = ("run", "runners", "sudo", "tasks", "timeouts")
"""Invoke's own sections."""
NOT_OURS = {
    *(*INVOKES, "debug"),
    *("authentication", "connect_kwargs", "forward_agent", "gateway", "inline_ssh_env", "load_ssh_configs"),
    *("port", "ssh_config_path", "user"),
}
"""Root keys of Invoke and of Fabric (https://docs.fabfile.org/en/stable/concepts/configuration.html)."""

VARIABLE_PREFIXES = tuple(f"INVOKE_{section.upper()}_" for section in SECTIONS)
"""What the variables of our settings begin with; the other ``INVOKE_*`` are Invoke's own."""

PLACEHOLDERS = {"change_me_securely", "development-jwt-secret-key"}
"""The specification's example secrets: fine on loopback, refused as soon as others can reach the stack."""

SHOWN = 200
"""Characters of a value that a message shows."""

SHORTEST_SECRET = 16
"""Characters of a secret that protects a service which others can reach."""

ALIAS, ALIASED = "stack.bind", "api.bind"
"""The setting that was the address of all services, and the one that it stands for: nothing but the application is
opened by it."""


class Entry(NamedTuple):
    """One value on its way in, or the refusal of a URL that gives none. ``text`` is set where it is raw text, from a
    variable, rather than typed, from YAML.
    """

    path: str
    value: Any
    origin: str
    text: bool


def project_of(folder: Path) -> Path | None:
    """The nearest folder upward that has a file of settings; None if there is none."""
    places = (folder, *folder.parents)
    return next((place for place in places if any((place / name).is_file() for name in PROJECT_FILES)), None)


def variable_of(path: str) -> str:
    """The environment variable that overrides a setting: ``db.port`` is ``INVOKE_DB_PORT``."""
    return "INVOKE_" + path.upper().replace(".", "_")


def yaml_entries(values: Mapping[str, Any], origin: str) -> Iterator[Entry]:
    """The settings in one level of Invoke's configuration; sections that are Invoke's own are left alone."""
    for section, content in values.items():
        if section in NOT_OURS:
            continue
        if content is None:
            continue
        if not isinstance(content, Mapping):
            yield Entry(section, content, origin, False)
            continue
        for key, value in content.items():
            yield Entry(f"{section}.{key}", value, origin, False)


def variable_entries(variables: Mapping[str, str], origin: str) -> Iterator[Entry]:
    """The settings among variables, raw: the specification's names, then ``INVOKE_*``."""
    if url := variables.get(URL_VARIABLE):
        yield from _url_entries(url, origin.format(URL_VARIABLE))
    for name, path in SPECIFIED.items():
        if (value := variables.get(name)) not in (None, ""):
            yield Entry(path, value, origin.format(name), True)
    known = {variable_of(path): path for path in FIELDS}
    for name, value in variables.items():
        if name.startswith(VARIABLE_PREFIXES):
            # an unknown name keeps its place among the paths, so that the refusal can show the nearest one
            _, section, key = name.lower().split("_", 2)
            yield Entry(known.get(name, f"{section}.{key}"), value, origin.format(name), True)


def _url_entries(url: str, origin: str) -> Iterator[Entry]:
    """Yield the parts of a PostgreSQL URL as settings
    (https://www.postgresql.org/docs/current/libpq-connect.html); for one that can't be used, the reason.
    """

    def refuse(why: str) -> Entry:
        fix = f'write it as {URL_VARIABLE}="postgresql://nina:PASSWORD@localhost:5433/nina"'
        return Entry(URL_VARIABLE, Refusal(URL_VARIABLE, origin, why, fix), origin, True)

    if _control(url) or url != url.strip():  # they would be taken out without a word
        yield refuse("it has white space at an end, or a control character; in a password write it as %20, %09 …")
        return
    if re.search(r"%(?![0-9A-Fa-f]{2})", url):
        yield refuse("it has a % that begins no two hexadecimal digits; in a password, % is written %25")
        return
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # its text may hold a part of the password: one with / or # ends up where the port is expected
        yield refuse("it is not a valid URL; in a password, / ? # @ and % are written %2F %3F %23 %40 %25")
        return
    if not re.fullmatch(r"postgres(ql)?(\+\w+)?", parts.scheme):
        yield refuse(f"its scheme is {parts.scheme!r}, not postgresql")
        return
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # a part of the password was taken for the port, the name of the database or another part
        yield refuse("it has an @ behind its host; in a password, / ? # @ and % are written %2F %3F %23 %40 %25")
        return
    if parts.hostname and not is_loopback(parts.hostname):
        yield refuse(f"its host is {parts.hostname!r}, but this stack runs on this machine")
        return
    try:
        values = [unquote(part or "", errors="strict") for part in (parts.username, parts.password, parts.path[1:])]
    except UnicodeDecodeError:
        yield refuse("what its % stand for is not valid UTF-8")
        return
    for path, value in zip(("db.user", "db.password", "db.name"), values, strict=True):
        if value:
            yield Entry(path, value, origin, True)
    if port is not None:
        yield Entry("db.port", port, origin, False)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load(layers: Iterable[Entry], root: Path, dotenv: EnvFile | None = None) -> Settings:
    """Merge entries (later ones win) into typed settings.

    :raises UsageError: all values that can't be taken, each with its path, origin and fix.
    """
    judged = judge(layers)
    _raise([*judged.refusals])
    settings = assemble(judged, root, dotenv)
    _raise(list(contradictions(settings)))
    return settings


class Judged(NamedTuple):
    """What the layers come to. Of a setting that is refused, the value of the layer before it stands."""

    values: dict[str, Any]
    origins: dict[str, str]
    refusals: list[Refusal]
    refused: set[str]
    """The settings whose last value is refused."""


def judge(layers: Iterable[Entry]) -> Judged:
    """Merge entries (later ones win), each checked by itself."""
    layers = list(layers)
    judged = Judged({}, {}, [*_ambiguous_alias(layers)], set())
    is_ambiguous = bool(judged.refusals)
    for entry in _with_alias(layers):
        value, refusal = _convert(entry)
        if refusal:
            judged.refusals.append(refusal)
            judged.refused.update(URL_SETTINGS if entry.path == URL_VARIABLE else (entry.path,))
            continue
        judged.values[entry.path], judged.origins[entry.path] = value, entry.origin
        judged.refused.discard(entry.path)
    if is_ambiguous:
        judged.refused.update((ALIAS, ALIASED))
        for path in (ALIAS, ALIASED):
            judged.values.pop(path, None)
            judged.origins.pop(path, None)
    return judged


def assemble(judged: Judged, root: Path, dotenv: EnvFile | None = None) -> Settings:
    """Return the settings that the values make, whatever they contradict."""
    values = judged.values
    sections = {
        section: cls(**{path.partition(".")[2]: v for path, v in values.items() if path.startswith(section + ".")})
        for section, cls in SECTIONS.items()
    }
    return Settings(root=root, dotenv=dotenv or EnvFile(), origins=judged.origins, **sections)  # type: ignore[arg-type]


def _with_alias(layers: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the entries, each of :data:`ALIAS` also as what it stands for."""
    for entry in layers:
        yield entry
        if entry.path == ALIAS and entry.value:
            origin = entry.origin if entry.text else f"{entry.origin} ({ALIAS})"
            yield entry._replace(path=ALIASED, origin=origin)


def _ambiguous_alias(layers: Iterable[Entry]) -> Iterator[Refusal]:
    """Refuse an alias beside its setting in one file, or among the variables, with another value: no order decides."""
    said: dict[str, Entry] = {}
    for entry in layers:
        if entry.path not in (ALIAS, ALIASED) or not entry.value:
            continue
        place = "variable" if entry.origin.startswith("variable ") else entry.origin.partition(" (")[0]
        other = said.setdefault(place, entry)
        if other.path != entry.path and other.value != entry.value:
            why = f"{other.path} is {other.value!r} and {entry.path} is {entry.value!r}: {ALIAS} means {ALIASED}"
            yield Refusal(ALIAS, entry.origin, why, f"leave {ALIAS} out")._replace(others=(ALIASED,))


def with_ports(settings: Settings, ports: Mapping[str, int], origin: str) -> Settings:
    """The settings with other ports, by service (``db``, ``pgb``, ``api``).

    :raises UsageError: two services would have the same.
    """
    sections = {label: msgspec.structs.replace(getattr(settings, label), port=port) for label, port in ports.items()}
    origins = {**settings.origins, **{f"{label}.port": origin for label in ports}}
    changed = msgspec.structs.replace(settings, origins=origins, **sections)
    _raise(list(contradictions(changed)))
    return changed


def _convert(entry: Entry) -> tuple[Any, Refusal | None]:
    info = FIELDS.get(entry.path)
    if isinstance(entry.value, Refusal):
        return None, entry.value
    if info is None:
        section, _, key = entry.path.partition(".")
        if section not in SECTIONS:
            return None, Refusal(entry.path, entry.origin, "there is no such section", _nearest(section, SECTIONS))
        if not key:
            return None, Refusal(
                entry.path,
                entry.origin,
                f"expected keys below it, got {shown_value(entry.value)}",
                f"write {section}: {{key: value}}",
            )
        return None, Refusal(entry.path, entry.origin, "there is no such setting", _nearest(entry.path, FIELDS))
    value = entry.value
    if why := next(filter(None, map(_unfit, _texts(value))), ""):
        return None, Refusal(entry.path, entry.origin, why, _example(info))
    try:
        if entry.path == "api.log_level":
            value = log_level(value)
        if entry.text:
            value = _untext(value, info.type)
        found = msgspec.convert(value, info.type, strict=not entry.text)
        if why := next(filter(None, map(_unfit, _texts(found))), ""):  # of JSON in a variable
            raise msgspec.ValidationError(why)
        return found, None
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        why = re.sub(r" - at `\$(.*?)`$", lambda m: f" at {m[1]}" if m[1] else "", str(error)).replace("`", "")
        if "matching regex" in why:
            why = f"expected {_described(info.type)}"
        shown = "***" if entry.path in SECRETS else shown_value(entry.value)
        return None, Refusal(entry.path, entry.origin, f"{shown}: {why[0].lower() + why[1:]}", _example(info))


def shown_value(value: Any) -> str:
    """Return a value as a message shows it: without passwords of URLs, and no more than fits."""
    text = hide_url_passwords(repr(value), thorough=True)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _described(kind: Any) -> str:
    """Return in words what a type with a pattern takes; of a list, what each item is."""
    kinds = (kind, *get_args(kind))
    return str(next(one.__metadata__[0].description for one in kinds if hasattr(one, "__metadata__")))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value of any kind."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from (text for part in pair for text in _texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _texts(part))


def _unfit(text: str) -> str:
    """Return why a text can be in no file, or given to no program; empty if it can."""
    if "\0" in text:
        return "it has a NUL character"
    return "" if _is_utf8(text) else "it is not valid UTF-8"


SWITCH = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off", ""), False),
}
"""Words for on and off, as other tools take them."""


def log_level(value: Any) -> Any:
    """Return the level that is meant by a name of :mod:`logging` or uvicorn, or by a number: the one that lets the same
    messages through. What means none is returned as it is."""
    name = value.strip().upper() if isinstance(value, str) else value
    if isinstance(name, str) and re.fullmatch(r"[+-]?[0-9]{1,9}", name):
        name = int(name)
    if type(name) is int:
        return next((level for level, number in LEVELS.items() if number >= name), "CRITICAL")
    return LEVEL_NAMES.get(name, name) if isinstance(name, str) else value


def _untext(text: str, kind: Any) -> Any:
    """Raw text as msgspec's lax mode wants it: booleans by name, lists and maps as JSON or comma-separated words."""
    outline = msgspec.inspect.type_info(kind)
    if isinstance(outline, msgspec.inspect.BoolType):
        word = text.strip().lower()
        return SWITCH.get(word, word)
    if isinstance(outline, msgspec.inspect.ListType):
        return _unlist(text, whole=getattr(outline.item_type, "extra", None) == WHOLE)
    if isinstance(outline, msgspec.inspect.DictType):
        return _json(text)
    if isinstance(outline, msgspec.inspect.LiteralType):
        folded = {str(value).lower(): value for value in outline.values}
        return folded.get(text.lower(), text)
    return text


def _json(text: str) -> Any:
    """:raises msgspec.DecodeError: it is not JSON, or nested too deeply."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise msgspec.DecodeError("JSON is nested too deeply") from None


def _unlist(text: str, *, whole: bool) -> Any:
    if text.lstrip().startswith("["):
        try:
            return _json(text)
        except msgspec.DecodeError:
            if not whole:  # a command may begin with a test: [ -e file ] && …
                raise
    if whole:
        return [text] if text.strip() else []
    return [word.strip() for word in text.split(",") if word.strip()]


def _nearest(name: str, known: Collection[str]) -> str:
    """The name that was probably meant. Of a path only the key is compared: its section is right."""
    section, _, key = name.rpartition(".")
    here = [n.removeprefix(f"{section}.") for n in known if n.rpartition(".")[0] == section]
    prefix = f"{section}." if section else ""
    if close := difflib.get_close_matches(key, here, n=1, cutoff=0.5):
        return f"did you mean {prefix}{close[0]}?"
    if elsewhere := [n for n in known if section and n.endswith(f".{key}")]:
        return f"did you mean {elsewhere[0]}?"
    return f"there are: {', '.join(prefix + n for n in here)}"


def _example(info: msgspec.structs.FieldInfo) -> str:
    default = info.default_factory() if info.default_factory is not msgspec.NODEFAULT else info.default
    return f"the default is {default!r}" if default not in (None, "", [], {}) else "leave it out for the default"


def _raise(refusals: list[Refusal]) -> None:
    if refusals:
        raise refused(refusals)


class WrongSettings(UsageError):
    """Settings that are refused. The evidence is in our own words, with values as Python writes them."""

    MARK = ""


def refused(refusals: list[Refusal]) -> UsageError:
    """Return the error that names all settings that are refused."""
    what = "a setting is wrong" if len(refusals) == 1 else f"{len(refusals)} settings are wrong"
    return WrongSettings(what, evidence=[line for refusal in refusals for line in refusal.lines()])


OWNED = {
    "db": {
        "port": "set db.port",
        "listen_addresses": "set db.bind",
        "max_connections": "set db.max_connections",
        **dict.fromkeys(
            (
                "unix_socket_directories",
                "unix_socket_permissions",
                "hba_file",
                "ident_file",
                "data_directory",
            ),
            "leave it out",
        ),
        **dict.fromkeys(("logging_collector", "log_destination"), "logs go to logs/, see inv db.logs"),
    },
    "pgb": {
        "listen_port": "set pgb.port",
        "listen_addr": "set pgb.bind",
        "pool_mode": "set pgb.pool_mode",
        "max_client_conn": "set pgb.max_client_conn",
        "default_pool_size": "set pgb.default_pool_size",
        **dict.fromkeys(
            ("auth_file", "auth_type", "admin_users", "unix_socket_dir", "pidfile", "logfile"), "leave it out"
        ),
    },
}
"""Parameters that can't be given freely, and what to do instead."""

RESERVED_DATABASES = {"postgres", "template0", "template1", "pgbouncer"}
RESERVED_USERS = {"postgres", "pgbouncer", "nv_admin", "nv_loader", "nv_reader", "public", "none"}


def contradictions(s: Settings) -> Iterator[Refusal]:
    """What each value alone does not show."""

    def refusal(path: str, why: str, fix: str) -> Refusal:
        return Refusal(path, s.origin(path), why, fix)

    ports = {"db.port": s.db.port, "pgb.port": s.pgb.port, "api.port": s.api.port}
    if s.api.debug_port:
        ports["api.debug_port"] = s.api.debug_port
    for (a, x), (b, y) in (((a, x), (b, y)) for a, x in ports.items() for b, y in ports.items() if a < b):
        if x == y:
            clash = refusal(a, f"{a} and {b} are both {x}", "give each service a port of its own")
            yield clash._replace(others=(b,))
    for path, name, reserved in (
        ("db.name", s.db.name, RESERVED_DATABASES),
        ("db.user", s.db.user, RESERVED_USERS),
    ):
        if name in reserved or (path == "db.user" and name.startswith("pg_")):
            yield refusal(path, f"{name!r} is reserved by PostgreSQL or PgBouncer", "choose another name, such as nina")
        if len(name.encode()) > 63:
            yield refusal(path, f"it has {len(name.encode())} bytes, PostgreSQL takes 63", "choose a shorter name")
        if _control(name) or any(0x80 <= ord(c) < 0xA0 for c in name):
            yield refusal(path, "it has a control character", "choose a name without")
    if "=" in s.db.name or "://" in s.db.name:
        # psql and pg_dump take such a name for a connection string
        yield refusal("db.name", f"{s.db.name!r} reads like a connection string", "choose a name without = and ://")
    for path, secret in (("db.password", s.db.password), ("api.jwt_secret", s.api.jwt_secret)):
        if secret is None:
            continue
        if not secret or _control(secret):
            yield refusal(path, "it is empty or has a control character", "leave it out to have one generated")
        for bind, address in s.open_binds.items():
            if not _is_address(address):
                continue  # it is refused by itself
            weak = "the example secret" if secret in PLACEHOLDERS else ""
            if not weak and len(secret) < SHORTEST_SECRET and (path == "api.jwt_secret") == (bind == "api.bind"):
                weak = f"a secret of less than {SHORTEST_SECRET} characters"
            if weak:
                instead = f"leave {path} out to have one generated, or {bind}: 127.0.0.1"
                yield refusal(path, f"{weak} can't be used while {bind} is {address}", instead)
                break
    for path, bind in (("db.bind", s.db.bind), ("pgb.bind", s.pgb.bind), ("api.bind", s.api.bind)):
        if not _is_address(bind):
            yield refusal(path, f"{bind!r} is not an IP address", "127.0.0.1 keeps it on this machine")
    for section, given in (("db", s.db.parameters), ("pgb", s.pgb.parameters)):
        for name, value in given.items():
            path = f"{section}.parameters"
            if not re.fullmatch(r"[A-Za-z_][\w.]*", name) or _control(str(value)):
                yield refusal(
                    path,
                    f"{name!r} is not a parameter's name, or its value has a control character",
                    "mend it",
                )
            if section == "pgb" and str(value) != str(value).strip(" "):
                yield refusal(
                    path, f"the value of {name!r} has spaces at an end, which PgBouncer takes out", "leave them out"
                )
            if remedy := OWNED[section].get(name.lower()):
                yield refusal(path, f"{name} is the stack's own", remedy)
    for path in PATHS:
        section, _, key = path.partition(".")
        value = getattr(getattr(s, section), key)
        if not _has_home(value):  # also ./~name, which pathlib takes for ~name
            yield refusal(path, f"{shown_value(value)}: there is no home directory of that name", "write it out")
    for name in s.api.env:
        if not VARIABLE_NAME.fullmatch(name):
            yield refusal("api.env", f"{name!r} is not a variable's name", "letters, digits and _ only")
    for name, value in s.api.env.items():
        try:
            string.Template(str(value)).substitute(dict.fromkeys(APPLICATION_VALUES, ""))
        except (KeyError, ValueError):  # what follows the dollar sign may be a part of a secret
            known = ", ".join(f"${name}" for name in APPLICATION_VALUES)
            why = f"the value of {name} has a $ before something else than a known name"
            yield refusal("api.env", why, f"write $$ for a dollar sign; the names are {known}")
    if s.api.reload and s.api.workers > 1:
        both = refusal("api.workers", "hot reload works with one worker", "set api.reload: false, or api.workers: 1")
        yield both._replace(others=("api.reload",))


def _has_home(path: str) -> bool:
    """Check whether what a path begins with, ``~`` or ``~name``, stands for a directory."""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return False
    return True


def _is_address(text: str) -> bool:
    """Whether a service can listen on it: a name could be another address tomorrow."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text == "localhost"
    scope = getattr(address, "scope_id", None)
    return scope is None or re.fullmatch(r"[A-Za-z0-9_.-]+", scope) is not None


def _is_utf8(text: str) -> bool:
    """Whether it can be written to a file; a variable's bytes that are not UTF-8 arrive as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _control(text: str) -> bool:
    return any(ord(c) < 32 or ord(c) == 127 for c in text)


def reachable_address(bind: str) -> str:
    """The address at which this machine reaches a service that listens on ``bind``. Never a name: ``localhost`` may
    lead to ``::1``, where somebody else can listen."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(bind, bind)


def with_port(host: str, port: int) -> str:
    """Host and port as in a URL: IPv6 addresses go into brackets."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def database_url(scheme: str, user: str, password: str, host: str, port: int, name: str) -> str:
    """A PostgreSQL URL, each part percent-encoded; ``***`` stays legible."""
    return (
        f"{scheme}://{quote(user, safe='')}:{quote(password, safe='*')}@{with_port(host, port)}/{quote(name, safe='')}"
    )


def from_invoke(config: Any, root: Path, environ: Mapping[str, str], given: Iterable[Entry] = ()) -> Settings:
    """Settings from an :class:`invoke.Config` and the environment; those ``given`` win over all others.

    Invoke merges its levels without keeping where a value came from, and casts variables by their default's
    type (``"false"`` becomes true). So the levels are read one by one, and the variables by us.
    """
    path = root / ".env"
    layers = layers_of(config, root, environ, checked(read_env_file(path, environ)), given)
    return layers.finish(load([*layers.shared, *layers.own], root, layers.dotenv))


class Layers(NamedTuple):
    """All values on their way in; later ones win."""

    shared: list[Entry]
    """Of all projects of the machine, and of the user."""
    own: list[Entry]
    """Of the project, ``.env``, the environment, ``-f FILE`` and flags."""
    dotenv: EnvFile
    secrets: list[tuple[str, str]]
    files: list[str]
    """The files that every environment reads."""

    def finish(self, settings: Settings) -> Settings:
        """Return settings with what is known of all layers."""
        return msgspec.structs.replace(settings, hidden=self.secrets, shared=self.files)


def layers_of(config: Any, root: Path, environ: Mapping[str, str], file: EnvFile, given: Iterable[Entry]) -> Layers:
    """Return all values, read one by one.

    :raises UsageError: there is no file that ``-f`` names.
    """
    runtime = object.__getattribute__(config, "_runtime_path")
    if runtime and not Path(runtime).is_file():  # Invoke would go on without a word
        raise UsageError(f"there is no file {runtime}", why="`inv -f` names it", fix="correct its name")
    all_of_it = file.values
    dotenv = without_answers(all_of_it)
    named = {entry.path: entry for entry in given}

    def unnamed(*groups: Iterable[Entry]) -> list[Entry]:
        return [entry for group in groups for entry in group if entry.path not in named]

    shared = unnamed(_level(config, "system"), _level(config, "user"))
    own = unnamed(
        _level(config, "project"),
        variable_entries(dotenv, f"{root / '.env'} ({{}})"),
        variable_entries(environ, "variable {}"),
        _level(config, "runtime"),
    )
    urls = [(URL_VARIABLE, variables[URL_VARIABLE]) for variables in (dotenv, environ) if variables.get(URL_VARIABLE)]
    files = [str(object.__getattribute__(config, f"_{level}_path")) for level in ("system", "user", "project")]
    left_out = frozenset(name for name in all_of_it if _is_ours(name) or name not in dotenv)
    return Layers(
        shared,
        [*own, *named.values()],
        msgspec.structs.replace(file, left_out=left_out),
        [*_secrets([*shared, *own]), *urls],
        [*files, str(root / ".env")],
    )


def _secrets(layers: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Name and value of all secret settings; of a map, of each of its values."""
    for entry in layers:
        if entry.path in SECRETS and entry.value is not None:
            value = entry.value
            if entry.text:
                with contextlib.suppress(msgspec.DecodeError):  # of one that is refused
                    value = _untext(str(value), FIELDS[entry.path].type)
            values = value if isinstance(value, Mapping) else {entry.path: value}
            yield from ((str(name), str(text)) for name, text in values.items())


def check_files(files: Iterable[Path]) -> UsageError | None:
    """What is wrong with the first configuration file that Invoke can't take; None if all look well."""
    from invoke.vendor.yaml import YAMLError

    for file in files:
        try:
            content = load_yaml(read_regular(file).decode("utf-8"), str(file))
        except FileNotFoundError:
            continue
        except YAMLError:
            raise  # its text names the place
        except (OSError, ValueError) as error:
            return UsageError(f"{file} can't be read", why=str(error), fix="correct the file, or move it away")
        if not isinstance(content, Mapping | None):
            why = f"expected sections with keys below them, got {content!r:.60}"
            return UsageError(f"{file} can't be used", why=why, fix="write section: {key: value}")
        for section, values in (content or {}).items():
            if not isinstance(section, str):
                why = f"expected a section's name, got {section!r}"
                return UsageError(f"{file} can't be used", why=why, fix=f"there are: {', '.join(SECTIONS)}")
            if section in INVOKES and not isinstance(values, Mapping):
                why = f"{section} is Invoke's own section; expected keys below it, got {values!r:.60}"
                return UsageError(f"{file} can't be used", why=why, fix=f"correct {section}, or leave it out")
    return None


def check_expansion(root: Path) -> None:
    """Check a project's files before Invoke loads them: it has no limits of its own. What else is wrong with them shows
    when they are loaded.

    :raises UsageError: one is too large, or its aliases stand for too many values.
    """
    from invoke.vendor.yaml import YAMLError

    for name in PROJECT_FILES:
        file = root / name
        with contextlib.suppress(OSError, YAMLError):
            content = read_regular(file)
            has_aliases = b"&" in content and b"*" in content
            if (has_aliases or len(content) > MAX_YAML_BYTES) and (problem := check_files([file])):
                raise problem


def _is_ours(variable: str) -> bool:
    return variable == URL_VARIABLE or variable in SPECIFIED or variable.startswith(("INVOKE_", "NV_"))


def entries_of_runtime_file(config: Any) -> list[Entry]:
    """Return the settings of the file that ``-f`` names."""
    return list(_level(config, "runtime"))


def _level(config: Any, name: str) -> Iterator[Entry]:
    """The settings of one level; Invoke keeps the levels and their files in attributes of its own."""
    values = object.__getattribute__(config, f"_{name}")
    path = object.__getattribute__(config, f"_{name}_path")
    if isinstance(values, Mapping):
        if name in ("system", "user"):  # shared by all projects of this machine: the others' sections are no mistakes
            values = {section: content for section, content in values.items() if section in SECTIONS}
        yield from yaml_entries(values, str(path))
