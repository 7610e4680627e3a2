"""What CloudNativePG takes of the settings, and what it does not (https://cloudnative-pg.io/documentation/current/)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from devstack.errors import UsageError
from devstack.export.quoting import Value
from devstack.providers import STATEMENTS
from devstack.services.postgres import PRELOADED, identifier
from devstack.settings import Settings

if TYPE_CHECKING:
    from devstack.export.plan import Plan

PORT = 5432
"""Of its services, PgBouncer's too."""
MAJOR = re.compile(r"(?:^|.*-)pg-?(\d{2})(?!\d)|(\d{2})(?![\d])")
"""In a tag: ``pg17``, ``0.8.1-pg17``, ``17.5-bookworm``; not ``0.17``."""
DEFAULT_MAJOR = 17


def major_of(*images: str) -> int:
    """The major version of PostgreSQL that the first of the images says whose tag names one; else the usual."""
    for image in images:
        tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if found := MAJOR.match(tag):
            return int(found[1] or found[2])
    return DEFAULT_MAJOR


def image_of(major: int) -> str:
    """Its own image of a version, the flavour that has pgvector
    (https://github.com/cloudnative-pg/postgres-containers)."""
    return f"ghcr.io/cloudnative-pg/postgresql:{major}-standard-bookworm"


def check_taken(s: Settings, db_image: str) -> None:
    """With the image that was asked for; empty for CloudNativePG's own.

    :raises UsageError: a setting has no place in CloudNativePG.
    """
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
    if s.db.user in ROLES:
        raise UsageError(
            f"CloudNativePG has a role {s.db.user} of its own",
            why=f"db.user is {s.db.user}, from {s.origin('db.user')}",
            fix="export with another: INVOKE_DB_USER=nina inv dev.export …",
        )
    missing = [name for name in s.db.extensions if name not in EXTENSIONS]
    if missing and not db_image:
        raise UsageError(
            f"CloudNativePG's own image has no extension {', '.join(missing)}",
            why=f"db.extensions has {'it' if len(missing) == 1 else 'them'}, from {s.origin('db.extensions')}",
            fix="name an image for CloudNativePG that has every extension: --db-image registry/name:17"
            " (https://cloudnative-pg.io/documentation/current/container_images/)",
        )


ROLES = {"streaming_replica", "cnpg_pooler_pgbouncer"}
"""Beside postgres, which is no db.user anyway
(https://cloudnative-pg.io/documentation/current/security/#postgresql-roles)."""

EXTENSIONS = {
    *("amcheck", "autoinc", "bloom", "bool_plperl", "bool_plperlu", "btree_gin", "btree_gist", "citext", "cube"),
    *("dblink", "dict_int", "dict_xsyn", "earthdistance", "file_fdw", "fuzzystrmatch", "hstore", "insert_username"),
    *("intagg", "intarray", "isn", "lo", "ltree", "moddatetime", "pageinspect", "pg_buffercache", "pg_freespacemap"),
    *("pg_logicalinspect", "pg_prewarm", "pg_stat_statements", "pg_surgery", "pg_trgm", "pg_visibility"),
    *("pg_walinspect", "pgcrypto", "pgrowlocks", "pgstattuple", "plpgsql", "postgres_fdw", "refint", "seg", "sslinfo"),
    *("tablefunc", "tcn", "tsm_system_rows", "tsm_system_time", "unaccent", "uuid-ossp", "xml2"),
    *("pgaudit", "vector"),
}
"""What its standard images have: PostgreSQL's own (https://www.postgresql.org/docs/current/contrib.html), and
https://github.com/cloudnative-pg/postgres-containers#standard-images"""

RESERVED = {
    *("allow_alter_system", "allow_system_table_mods", "archive_cleanup_command", "archive_command", "archive_mode"),
    *("bonjour", "bonjour_name", "cluster_name", "config_file", "data_directory"),
    *("data_sync_retry", "event_source", "external_pid_file", "hba_file", "hot_standby"),
    *("ident_file", "jit_provider", "listen_addresses", "log_destination", "log_directory", "log_file_mode"),
    *("log_filename", "log_rotation_age", "log_rotation_size", "log_truncate_on_rotation", "logging_collector"),
    *("pg_failover_slots.primary_dsn", "pg_failover_slots.standby_slot_names"),
    *("port", "primary_conninfo", "primary_slot_name", "promote_trigger_file", "recovery_end_command"),
    *("recovery_min_apply_delay", "recovery_target", "recovery_target_action", "recovery_target_inclusive"),
    *("recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_timeline"),
    *("recovery_target_xid", "restart_after_crash", "restore_command", "ssl", "ssl_ca_file", "ssl_cert_file"),
    *("ssl_crl_file", "ssl_dh_params_file", "ssl_ecdh_curve", "ssl_key_file", "ssl_passphrase_command"),
    *("ssl_passphrase_command_supports_reload", "ssl_prefer_server_ciphers", "stats_temp_directory"),
    *("synchronized_standby_slots", "synchronous_standby_names", "syslog_facility", "syslog_ident"),
    *("syslog_sequence_numbers", "syslog_split_messages", "temp_tablespaces"),
    *("unix_socket_directories", "unix_socket_group", "unix_socket_permissions"),
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
    *("track_extra_parameters",),
}
"""https://cloudnative-pg.io/documentation/current/connection_pooling/#pgbouncer-configuration-options"""

LEFT_TO_IT = {"ignore_startup_parameters", "dns_max_ttl", "dns_nxdomain_ttl"}
"""What the stack's own template sets for itself, and CloudNativePG knows better for a cluster."""


def locale(major: int) -> dict[str, Value]:
    """The same order of texts as the stack's own clusters have (:meth:`Postgres.initdb_options`)."""
    if major >= 17:
        return {"locale": "C", "localeProvider": "builtin", "builtinLocale": "C.UTF-8"}
    return {"localeCollate": "C.UTF-8", "localeCType": "C.UTF-8"}


def sql(s: Settings) -> list[str]:
    extensions = [f"CREATE EXTENSION IF NOT EXISTS {identifier(name)}" for name in s.db.extensions]
    return [*extensions, f"GRANT pg_monitor TO {identifier(s.db.user)}"]


def parameters(s: Settings) -> dict[str, str]:
    """Those of pg_stat_statements have CloudNativePG load it and create its extension."""
    tracking = {f"{STATEMENTS}.track_utility": "off"} if s.db.track_statements else {}
    given = {name: _word(value) for name, value in s.db.parameters.items() if name.lower() != PRELOADED}
    return {"max_connections": str(s.db.max_connections), **tracking, **given}


def libraries(s: Settings) -> list[str]:
    given = [str(value) for name, value in s.db.parameters.items() if name.lower() == PRELOADED]
    names = [name.strip(' "') for text in given for name in text.split(",")]
    return [name for name in names if name and name != STATEMENTS]


def pooler_parameters(plan: Plan) -> dict[str, str]:
    s = plan.settings.pgb
    given = {name.lower(): _word(value) for name, value in s.parameters.items()}
    rendered = {k: v for k, v in plan.pgb.parameters().items() if k in ALLOWED and k not in LEFT_TO_IT | {"pool_mode"}}
    return {**rendered, **given}


def _word(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
