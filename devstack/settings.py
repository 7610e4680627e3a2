"""Typed, validated configuration.

Values come from Invoke's own hierarchy (``/etc/invoke.yaml``, ``~/.invoke.yaml``, the project's ``invoke.yaml``,
``INVOKE_*`` variables, ``-f FILE``), from a ``.env`` file and from the variables of the specification. Later layers
win, in this order: invoke.yaml, ``.env``, the environment, ``-f FILE``. Every value remembers where it came from, so
that a refusal can name it.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import msgspec
from msgspec import Meta, Struct, field

from devstack.errors import UsageError
from devstack.files import load_yaml, read_regular
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
    dotenv: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    hidden: list[tuple[str, str]] = field(default_factory=list)
    """Name and value of every secret of every layer, also of those that another one won over: not for a report."""
    shared: list[str] = field(default_factory=list)
    """The files that every environment reads, in the order in which later ones win."""

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

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What a shell takes for a variable's name."""

MAX_BLANKS = 1_000
"""Most blanks in a row in a ``.env`` file: dotenv's patterns take quadratic time."""

SECRETS = ("db.password", "api.jwt_secret", "api.env")
"""The settings whose values are not shown."""

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

SHORTEST_SECRET = 16
"""Characters of a secret that protects a service which others can reach."""

ALIAS, ALIASED = "stack.bind", "api.bind"
"""The setting that was the address of all services, and the one that it stands for: nothing but the application is
opened by it."""


class Entry(NamedTuple):
    """One value on its way in. ``text`` is set where it is raw text (a variable) rather than typed (YAML)."""

    path: str
    value: Any
    origin: str
    text: bool


class Refusal(NamedTuple):
    """Why a value is not taken, and what to write instead."""

    path: str
    origin: str
    why: str
    fix: str

    def lines(self) -> list[str]:
        return [f"{self.path}: {self.why}", f"  from {self.origin}", f"  {self.fix}"]


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
    """The parts of a PostgreSQL URL as settings (https://www.postgresql.org/docs/current/libpq-connect.html).

    :raises UsageError: not a PostgreSQL URL, or one of another machine.
    """

    def refuse(why: str) -> UsageError:
        return UsageError(
            f"{URL_VARIABLE} can't be used",
            why=f"{why} (from {origin})",
            fix=f'write it as {URL_VARIABLE}="postgresql://nina:PASSWORD@localhost:5433/nina"',
        )

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # its text may hold a part of the password: one with / or # ends up where the port is expected
        raise refuse("it is not a valid URL; in a password, / ? # @ and % are written %2F %3F %23 %40 %25") from None
    if not re.fullmatch(r"postgres(ql)?(\+\w+)?", parts.scheme):
        raise refuse(f"its scheme is {parts.scheme!r}, not postgresql")
    if parts.hostname and not is_loopback(parts.hostname):
        raise refuse(f"its host is {parts.hostname!r}, but this stack runs on this machine")
    for path, value in (
        ("db.user", parts.username),
        ("db.password", parts.password),
        ("db.name", parts.path[1:]),
    ):
        if value:
            yield Entry(path, unquote(value), origin, True)
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


def read_dotenv(path: Path) -> dict[str, str]:
    """The variables of a ``.env`` file; none if there is no such file.

    :raises UsageError: a line that is not ``NAME=value``, with its number.
    """
    try:
        content = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read", why=str(error), fix="correct the file, or move it away") from None
    return parse_dotenv(content, path)


def parse_dotenv(content: str, path: Path) -> dict[str, str]:
    """Return the variables in the text of a ``.env`` file.

    :raises UsageError: a line is not ``NAME=value``, with its number.
    """
    import io

    from dotenv.parser import parse_stream

    if any(len(blanks) > MAX_BLANKS for blanks in re.findall(r"[^\S\r\n]+", content)):
        raise UsageError(
            f"{path} can't be read", why=f"it has more than {MAX_BLANKS} blanks in a row", fix="take them out"
        )
    variables: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(content)):
        if binding.error or (binding.key is not None and binding.value is None):
            raise _malformed(path, binding.original, "it is not NAME=value")
        if binding.key is not None and binding.value is not None:
            if not VARIABLE_NAME.fullmatch(binding.key):
                # it becomes a word of the launcher's `export`
                raise _malformed(path, binding.original, "its name has more than letters, digits and _")
            variables[binding.key] = binding.value
    return variables


def _malformed(path: Path, original: Any, why: str) -> UsageError:
    """The refusal of a line, by its number alone: nobody knows which part of such a line is the secret."""
    text = original.string
    line = original.line + text[: len(text) - len(text.lstrip())].count("\n")
    return UsageError(
        f"{path}:{line} is malformed",
        why=why,
        fix="write one NAME=value a line; quote a value that has spaces, quotes or a #",
    )


def load(layers: Iterable[Entry], root: Path, dotenv: Mapping[str, str] | None = None) -> Settings:
    """Merge entries (later ones win) into typed settings.

    :raises UsageError: all values that can't be taken, each with its path, origin and fix.
    """
    refusals: list[Refusal] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers = list(layers)
    refusals += _ambiguous_alias(layers)
    for entry in _with_alias(layers):
        value, refusal = _convert(entry)
        if refusal:
            refusals.append(refusal)
            continue
        values[entry.path], origins[entry.path] = value, entry.origin
    _raise(refusals)
    sections = {
        section: cls(**{path.partition(".")[2]: v for path, v in values.items() if path.startswith(section + ".")})
        for section, cls in SECTIONS.items()
    }
    settings = Settings(root=root, dotenv=dict(dotenv or {}), origins=origins, **sections)  # type: ignore[arg-type]
    _raise(list(_contradictions(settings)))
    return settings


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
            yield Refusal(ALIAS, entry.origin, why, f"leave {ALIAS} out")


def with_ports(settings: Settings, ports: Mapping[str, int], origin: str) -> Settings:
    """The settings with other ports, by service (``db``, ``pgb``, ``api``).

    :raises UsageError: two services would have the same.
    """
    sections = {label: msgspec.structs.replace(getattr(settings, label), port=port) for label, port in ports.items()}
    origins = {**settings.origins, **{f"{label}.port": origin for label in ports}}
    changed = msgspec.structs.replace(settings, origins=origins, **sections)
    _raise(list(_contradictions(changed)))
    return changed


def _convert(entry: Entry) -> tuple[Any, Refusal | None]:
    info = FIELDS.get(entry.path)
    if info is None:
        section, _, key = entry.path.partition(".")
        if section not in SECTIONS:
            return None, Refusal(entry.path, entry.origin, "there is no such section", _nearest(section, SECTIONS))
        if not key:
            return None, Refusal(
                entry.path,
                entry.origin,
                f"expected keys below it, got {entry.value!r}",
                f"write {section}: {{key: value}}",
            )
        return None, Refusal(entry.path, entry.origin, "there is no such setting", _nearest(entry.path, FIELDS))
    value = entry.value
    if entry.text and isinstance(value, str) and not _is_utf8(value):
        return None, Refusal(entry.path, entry.origin, "it is not valid UTF-8", _example(info))
    try:
        if entry.text:
            value = _untext(value, info.type)
        return msgspec.convert(value, info.type, strict=not entry.text), None
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        why = re.sub(r" - at `\$(.*?)`$", lambda m: f" at {m[1]}" if m[1] else "", str(error)).replace("`", "")
        if "matching regex" in why:
            why = f"expected {info.type.__metadata__[0].description}"
        shown = "***" if entry.path in SECRETS else repr(entry.value)
        return None, Refusal(entry.path, entry.origin, f"{shown}: {why[0].lower() + why[1:]}", _example(info))


def _untext(text: str, kind: Any) -> Any:
    """Raw text as msgspec's lax mode wants it: booleans by name, lists and maps as JSON or comma-separated words."""
    outline = msgspec.inspect.type_info(kind)
    if isinstance(outline, msgspec.inspect.BoolType):
        word = text.strip().lower()
        return {"yes": True, "on": True, "no": False, "off": False, "": False}.get(word, word)
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
    if not refusals:
        return
    what = "a setting is wrong" if len(refusals) == 1 else f"{len(refusals)} settings are wrong"
    raise UsageError(what, evidence=[line for refusal in refusals for line in refusal.lines()])


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
RESERVED_USERS = {"postgres", "pgbouncer", "nv_admin", "nv_reader", "public", "none"}


def _contradictions(s: Settings) -> Iterator[Refusal]:
    """What each value alone does not show."""

    def refusal(path: str, why: str, fix: str) -> Refusal:
        return Refusal(path, s.origin(path), why, fix)

    ports = {"db.port": s.db.port, "pgb.port": s.pgb.port, "api.port": s.api.port}
    if s.api.debug_port:
        ports["api.debug_port"] = s.api.debug_port
    for (a, x), (b, y) in (((a, x), (b, y)) for a, x in ports.items() for b, y in ports.items() if a < b):
        if x == y:
            yield refusal(a, f"{a} and {b} are both {x}", "give each service a port of its own")
    for path, name, reserved in (
        ("db.name", s.db.name, RESERVED_DATABASES),
        ("db.user", s.db.user, RESERVED_USERS),
    ):
        if name in reserved or (path == "db.user" and name.startswith("pg_")):
            yield refusal(path, f"{name!r} is reserved by PostgreSQL or PgBouncer", "choose another name, such as nina")
        if len(name.encode()) > 63:
            yield refusal(path, f"it has {len(name.encode())} bytes, PostgreSQL takes 63", "choose a shorter name")
        if _control(name):
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
            if fix := OWNED[section].get(name.lower()):
                yield refusal(path, f"{name} is the stack's own", fix)
    for name in s.api.env:
        if not VARIABLE_NAME.fullmatch(name):
            yield refusal("api.env", f"{name!r} is not a variable's name", "letters, digits and _ only")
    if s.api.reload and s.api.workers > 1:
        yield refusal("api.workers", "hot reload works with one worker", "set api.reload: false, or api.workers: 1")


def _is_address(text: str) -> bool:
    """Whether a service can listen on it: a name could be another address tomorrow."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


def _is_utf8(text: str) -> bool:
    """Whether it can be written to a file; a variable's bytes that are not UTF-8 arrive as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _control(text: str) -> bool:
    return any(ord(c) < 32 or ord(c) == 127 for c in text)


def reachable_address(bind: str) -> str:
    """The address at which this machine reaches a service that listens on ``bind``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(bind, bind)


def shown_host(bind: str) -> str:
    """The name for people of the machine that a service listens on as ``bind``."""
    return "localhost" if bind in ("127.0.0.1", "0.0.0.0", "localhost") else bind


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
    runtime = object.__getattribute__(config, "_runtime_path")
    if runtime and not Path(runtime).is_file():  # Invoke would go on without a word
        raise UsageError(f"there is no file {runtime}", why="`inv -f` names it", fix="correct its name")
    dotenv_path = root / ".env"
    dotenv = without_answers(read_dotenv(dotenv_path))
    layers: list[Entry] = []
    for level in ("system", "user", "project"):
        layers += _level(config, level)
    layers += variable_entries(dotenv, f"{dotenv_path} ({{}})")
    layers += variable_entries(environ, "variable {}")
    layers += _level(config, "runtime")
    named = {entry.path: entry for entry in given}
    layers = [*(entry for entry in layers if entry.path not in named), *named.values()]
    settings = load(layers, root, {k: v for k, v in dotenv.items() if not _is_ours(k)})
    urls = [(URL_VARIABLE, variables[URL_VARIABLE]) for variables in (dotenv, environ) if variables.get(URL_VARIABLE)]
    files = [str(object.__getattribute__(config, f"_{level}_path")) for level in ("system", "user", "project")]
    return msgspec.structs.replace(settings, hidden=[*_secrets(layers), *urls], shared=[*files, str(dotenv_path)])


def _secrets(layers: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Name and value of all secret settings; of a map, of each of its values."""
    for entry in layers:
        if entry.path in SECRETS and entry.value is not None:
            value = _untext(str(entry.value), FIELDS[entry.path].type) if entry.text else entry.value
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


def _is_ours(variable: str) -> bool:
    return variable == URL_VARIABLE or variable in SPECIFIED or variable.startswith(("INVOKE_", "NV_"))


def _level(config: Any, name: str) -> Iterator[Entry]:
    """The settings of one level; Invoke keeps the levels and their files in attributes of its own."""
    values = object.__getattribute__(config, f"_{name}")
    path = object.__getattribute__(config, f"_{name}_path")
    if isinstance(values, Mapping):
        if name in ("system", "user"):  # shared by all projects of this machine: the others' sections are no mistakes
            values = {section: content for section, content in values.items() if section in SECTIONS}
        yield from yaml_entries(values, str(path))
