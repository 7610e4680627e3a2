"""The stack as manifests for Kubernetes, with CloudNativePG for PostgreSQL and PgBouncer
(https://cloudnative-pg.io/documentation/current/)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devstack.builds import CONTAINERFILE
from devstack.errors import UsageError
from devstack.export.containers import build_command
from devstack.export.folder import File, signed
from devstack.export.plan import Peers, Plan
from devstack.export.quoting import Value, block, scalar
from devstack.providers import STATEMENTS
from devstack.services.postgres import PRELOADED, identifier
from devstack.settings import Settings
from devstack.shell import sh
from devstack.templates import render

if TYPE_CHECKING:
    from devstack.stack import Stack

PORT = 5432
"""Of the services of CloudNativePG, PgBouncer's too."""
MAJOR = re.compile(r":(?:pg)?(\d{2})(?![\d])")
DEFAULT_MAJOR = 17
QUANTITY = re.compile(r"[1-9]\d*(\.\d+)?([KMGTPE]i|[kMGTPE])?")
IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)


@dataclass(frozen=True)
class Cluster:
    """What the settings do not know of a cluster; empty is the default."""

    storage: str = ""
    instances: int = 0
    image: str = ""
    """Of the application, with its source."""
    db_image: str = ""

    def check_unused(self) -> None:
        """:raises UsageError: something was given that another format has no place for."""
        flags = {
            "--storage": self.storage,
            "--instances": self.instances,
            "--image": self.image,
            "--db-image": self.db_image,
        }
        if given := [flag for flag, value in flags.items() if value]:
            raise UsageError(f"{' and '.join(given)} go with --format kubernetes only", fix="leave them out")

    def check(self) -> None:
        """:raises UsageError: a value can't be taken."""
        if self.storage and not QUANTITY.fullmatch(self.storage):
            raise UsageError(f"--storage {self.storage!r} is no amount", fix="write it as 10Gi, or 500Mi")
        if not 0 <= self.instances <= 100:
            raise UsageError(f"--instances {self.instances} is out of range", fix="1 to 100; 3 are usual in production")
        for flag, image in (("--image", self.image), ("--db-image", self.db_image)):
            if image and not IMAGE.fullmatch(image):
                raise UsageError(f"{flag} {image!r} is no image's name", fix="write it as registry/name:tag")


def render_kubernetes(stack: Stack, cluster: Cluster) -> list[File]:
    """The manifests, the secrets apart from the rest, and what the application's image is built from.

    :raises UsageError: a setting has no place in CloudNativePG.
    """
    cluster.check()
    s = stack.settings
    names = {name: s.service_name(name) for name in ("db", "pgbouncer", "api")}
    plan = Plan(stack, Peers((f"{names['db']}-rw", PORT), (names["pgbouncer"], PORT)), reload=False)
    check_portable(s)
    public, secret = plan.variables()
    api, folder = plan.api.spec(), str(plan.api.inside)
    image = cluster.image or f"{names['api']}:{s.stack.env}"
    major = int(found[1]) if (found := MAJOR.search(cluster.db_image or s.db.image)) else DEFAULT_MAJOR
    base = plan.images.of_api(plan.api.folder)
    values: dict[str, object] = {
        **{name.replace("pgbouncer", "pgb"): value for name, value in names.items()},
        "db_secret": f"{names['db']}-owner",
        "stack": scalar(s.service_name("stack")),
        "db_image": scalar(cluster.db_image or f"ghcr.io/cloudnative-pg/postgresql:{major}-standard-bookworm"),
        "instances": cluster.instances or 1,
        "storage": scalar(cluster.storage or "1Gi"),
        "db_name": scalar(s.db.name),
        "db_user": scalar(s.db.user),
        "locale": block(_locale(major), 6),
        "sql": block(_sql(s), 8),
        "parameters": block(_parameters(s), 6),
        "libraries": block({"shared_preload_libraries": _libraries(s)}, 4),
        "db_memory": f"{s.db.memory_mb}Mi",
        "pool_mode": s.pgb.pool_mode,
        "pgb_parameters": block(_pooler(plan), 6),
        "pgb_memory": f"{s.pgb.memory_mb}Mi",
        "image": scalar(image),
        "command": block([_plain(word) for word in api.argv], 12),
        "env": block([{"name": name, "value": _plain(value)} for name, value in public.items()], 12),
        "cwd": scalar(folder),
        "port": s.api.port,
        "health": scalar(s.api.health_path),
        "failures": max(3, -(-int(s.stack.start_timeout) // 2)),
        "api_memory": f"{s.api.memory_mb}Mi",
        "grace": api.stop_seconds + 5,
        "build": "\n".join(f"#     {line}" for line in _builds(plan, image)),
    }
    hidden = {
        "stack": values["stack"],
        "db_secret": values["db_secret"],
        "api": names["api"],
        "user": values["db_user"],
        "password": scalar(plan.db.credentials.db_password),
        "variables": block(dict(secret), 2),
    }
    templates = s.templates / "export"
    made = [
        File("stack.yaml", signed(render(templates / "kubernetes.yaml", **values))),
        File("secrets.yaml", signed(render(templates / "kubernetes-secrets.yaml", **hidden)), secret=True),
        File(f"build/app.{CONTAINERFILE}", signed(_app(plan, base.name))),
        File(f"build/app.{CONTAINERFILE}.dockerignore", signed(LEFT_OUT)),
    ]
    if base.build:
        made += [File(f"build/packages/{name}", signed(content)) for name, content in base.build.files.items()]
    return made


# what CloudNativePG takes and what not


def check_portable(s: Settings) -> None:
    """:raises UsageError: a setting has no place in CloudNativePG."""
    refused = [f"db.parameters.{name}" for name in s.db.parameters if name.lower() in RESERVED]
    refused += [f"pgb.parameters.{name}" for name in s.pgb.parameters if name.lower() not in ALLOWED]
    if refused:
        section = refused[0].split(".")[0]
        raise UsageError(
            f"CloudNativePG does not take {', '.join(refused)}",
            why=f"it sets them itself, or has no place for them; from {s.origin(f'{section}.parameters')}",
            fix="leave them out for the export",
        )
    if s.pgb.pool_mode == "statement":
        raise UsageError(
            "CloudNativePG's PgBouncer has no pool mode statement",
            why=f"pgb.pool_mode is statement, from {s.origin('pgb.pool_mode')}",
            fix="export with another: INVOKE_PGB_POOL_MODE=transaction inv dev.export …",
        )


RESERVED = {
    *("allow_alter_system", "allow_system_table_mods", "archive_cleanup_command", "archive_command", "archive_mode"),
    *("archive_timeout", "bonjour", "bonjour_name", "cluster_name", "config_file", "data_directory"),
    *("data_sync_retry", "event_source", "external_pid_file", "full_page_writes", "hba_file", "hot_standby"),
    *("ident_file", "jit_provider", "listen_addresses", "log_destination", "log_directory", "log_file_mode"),
    *("log_filename", "log_rotation_age", "log_rotation_size", "log_truncate_on_rotation", "logging_collector"),
    *("port", "primary_conninfo", "primary_slot_name", "promote_trigger_file", "recovery_end_command"),
    *("recovery_min_apply_delay", "recovery_target", "recovery_target_action", "recovery_target_inclusive"),
    *("recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_timeline"),
    *("recovery_target_xid", "restart_after_crash", "restore_command", "ssl", "ssl_ca_file", "ssl_cert_file"),
    *("ssl_crl_file", "ssl_dh_params_file", "ssl_ecdh_curve", "ssl_key_file", "ssl_passphrase_command"),
    *("ssl_passphrase_command_supports_reload", "ssl_prefer_server_ciphers", "stats_temp_directory"),
    *("synchronous_standby_names", "syslog_facility", "syslog_ident", "syslog_sequence_numbers"),
    *("syslog_split_messages", "unix_socket_directories", "unix_socket_group", "unix_socket_permissions"),
}
"""https://cloudnative-pg.io/documentation/current/postgresql_conf/#fixed-parameters"""

ALLOWED = {
    *("application_name_add_host", "autodb_idle_timeout", "cancel_wait_timeout", "client_idle_timeout"),
    *("client_login_timeout", "client_tls_sslmode", "default_pool_size", "disable_pqexec", "dns_max_ttl"),
    *("dns_nxdomain_ttl", "idle_transaction_timeout", "ignore_startup_parameters", "listen_backlog"),
    *("log_connections", "log_disconnections", "log_pooler_errors", "log_stats", "max_client_conn"),
    *("max_db_connections", "max_packet_size", "max_prepared_statements", "max_user_connections", "min_pool_size"),
    *("pkt_buf", "query_timeout", "query_wait_timeout", "reserve_pool_size", "reserve_pool_timeout"),
    *("sbuf_loopcnt", "server_check_delay", "server_check_query", "server_connect_timeout", "server_fast_close"),
    *("server_idle_timeout", "server_lifetime", "server_login_retry", "server_reset_query"),
    *("server_reset_query_always", "server_round_robin", "server_tls_ciphers", "server_tls_protocols"),
    *("server_tls_sslmode", "stats_period", "suspend_timeout", "tcp_defer_accept", "tcp_keepalive", "tcp_keepcnt"),
    *("tcp_keepidle", "tcp_keepintvl", "tcp_socket_buffer", "tcp_user_timeout", "verbose"),
}
"""https://cloudnative-pg.io/documentation/current/connection_pooling/#pgbouncer-configuration-options"""

LEFT_TO_IT = {"ignore_startup_parameters", "dns_max_ttl", "dns_nxdomain_ttl"}
"""What the stack's own template sets for itself, and CloudNativePG knows better for a cluster."""


def _locale(major: int) -> dict[str, Value]:
    """The same order of texts as the stack's own clusters have (:meth:`Postgres.initdb_options`)."""
    if major >= 17:
        return {"locale": "C", "localeProvider": "builtin", "builtinLocale": "C.UTF-8"}
    return {"localeCollate": "C.UTF-8", "localeCType": "C.UTF-8"}


def _sql(s: Settings) -> list[str]:
    extensions = [f"CREATE EXTENSION IF NOT EXISTS {identifier(name)}" for name in s.db.extensions]
    return [*extensions, f"GRANT pg_monitor TO {identifier(s.db.user)}"]


def _parameters(s: Settings) -> dict[str, str]:
    """Those of pg_stat_statements have CloudNativePG load it and create its extension."""
    tracking = {f"{STATEMENTS}.track_utility": "off"} if s.db.track_statements else {}
    given = {name: _word(value) for name, value in s.db.parameters.items() if name.lower() != PRELOADED}
    return {"max_connections": str(s.db.max_connections), **tracking, **given}


def _libraries(s: Settings) -> list[str]:
    given = [str(value) for name, value in s.db.parameters.items() if name.lower() == PRELOADED]
    names = [name.strip(' "') for text in given for name in text.split(",")]
    return [name for name in names if name and name != STATEMENTS]


def _pooler(plan: Plan) -> dict[str, str]:
    s = plan.settings.pgb
    given = {name.lower(): _word(value) for name, value in s.parameters.items()}
    rendered = {k: v for k, v in plan.pgb.parameters().items() if k in ALLOWED and k not in LEFT_TO_IT | {"pool_mode"}}
    return {**rendered, **given}


def _plain(text: str) -> str:
    """What the cluster would fill in, it leaves alone
    (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/)."""
    return text.replace("$(", "$$(")


def _word(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# the application's image

LEFT_OUT = """\
.env*
.git
**/.venv
**/__pycache__
"""
"""What does not go into it: secrets before all (https://docs.docker.com/build/concepts/context/#dockerignore-files)."""


def _app(plan: Plan, packages: str) -> str:
    folder = str(plan.api.inside)
    return (
        "# The application: its source on top of the image with its packages.\n"
        f"ARG PACKAGES={packages}\n"
        "FROM ${PACKAGES}\n"
        f'COPY [".", "{folder}"]\n'
        f'WORKDIR "{folder}"\n'
    )


def _builds(plan: Plan, image: str) -> list[str]:
    base, folder = plan.images.of_api(plan.api.folder), plan.api.folder
    first = [build_command("docker", base.name, base.build, "build/packages")] if base.build else []
    last = sh(
        "docker build --tag $tag --file $file $folder",
        tag=image,
        file=f"build/app.{CONTAINERFILE}",
        folder=folder,
    )
    return [*first, last]
