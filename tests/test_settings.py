"""Settings: what is taken, from where, and how what is wrong is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke.config import Config
from psycopg2.extensions import parse_dsn

from devstack.envfile import EnvFile, checked, read_env_file
from devstack.errors import USAGE, UsageError
from devstack.settings import (
    FIELDS,
    SECRETS,
    SECTIONS,
    SHORTEST_SECRET,
    SPECIFIED,
    URL_VARIABLE,
    Entry,
    Settings,
    database_url,
    from_invoke,
    is_loopback,
    load,
    reachable_address,
    variable_entries,
    variable_of,
    yaml_entries,
)

ROOT = Path(__file__).resolve().parent.parent
SECRET = "hunter2hunter2"


def read(
    folder: Path,
    *,
    yaml: str = "",
    dotenv: str = "",
    environ: Mapping[str, str] | None = None,
    file: str = "",
    user: str = "",
) -> Settings:
    """Settings as `inv` reads them, from real files in the folder."""
    for name, content in (("invoke.yaml", yaml), (".env", dotenv), ("file.yaml", file), ("user-invoke.yaml", user)):
        if content:
            (folder / name).write_text(content, encoding="utf-8")
    nowhere = str(folder / "nowhere") + "/"
    config = Config(
        system_prefix=nowhere,
        user_prefix=f"{folder}/user-",
        project_location=folder,
        runtime_path=folder / "file.yaml" if file else None,
    )
    config.load_project()
    config.load_runtime()
    return from_invoke(config, folder, environ or {})


def from_variables(**variables: str) -> Settings:
    return load(variable_entries(variables, "variable {}"), ROOT)


def from_yaml(**sections: Any) -> Settings:
    return load(yaml_entries(sections, "invoke.yaml"), ROOT)


def refusal(read: Any, *args: Any, **kwargs: Any) -> str:
    """The text of a refusal."""
    with pytest.raises(UsageError) as raised:
        read(*args, **kwargs)
    assert raised.value.code == USAGE == 2
    return str(raised.value.text())


@pytest.mark.parametrize("name", ["db.image", "pgb.image", "pgb.base_image", "api.image", "api.base_image"])
def test_an_image_may_be_named_by_its_digest(name: str) -> None:
    section, key = name.split(".")
    for image in ("pgvector/pgvector", "registry.example:5000/a/b:1.2"):
        named = f"{image}@sha256:{'0123456789abcdef' * 4}"
        found = from_variables(**{f"INVOKE_{section.upper()}_{key.upper()}": named})
        assert getattr(getattr(found, section), key) == named


# invoke.yaml is the documentation


def documented() -> dict[str, tuple[str, str]]:
    """Each key of the default invoke.yaml with its value's text and comment; `# key:` is an optional one."""
    found: dict[str, tuple[str, str]] = {}
    section = section_comment = ""
    for line in (ROOT / "invoke.yaml").read_text().splitlines():
        if match := re.match(r"(\w+):\s*(?:#\s*(.*))?$", line):
            section, section_comment = match[1], match[2] or ""
        elif match := re.match(r"  (?:# )?(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line):
            found[f"{section}.{match[1]}"] = match[2], match[3] or section_comment
    return found


def test_the_default_file_has_exactly_the_settings_that_there_are_in_their_order() -> None:
    assert list(documented()) == list(FIELDS)


def test_what_the_default_file_says_is_what_is_used_without_it(tmp_path: Path) -> None:
    with_file = read(tmp_path, yaml=(ROOT / "invoke.yaml").read_text())
    without = Settings(root=tmp_path)
    for section in SECTIONS:
        assert getattr(with_file, section) == getattr(without, section)
    # every key but the optional secrets was really in the file, none was left to its type
    assert set(FIELDS) - set(with_file.origins) == {"db.password", "api.jwt_secret"}


def test_an_optional_secret_is_a_commented_key_without_a_value() -> None:
    lines = (ROOT / "invoke.yaml").read_text().splitlines()
    optional = [line.split("#")[1].strip() for line in lines if re.match(r"  # \w+:", line)]
    assert optional == ["password:", "jwt_secret:"]


def test_no_key_of_the_default_file_is_without_a_comment() -> None:
    assert [path for path, (_, comment) in documented().items() if not comment] == []


def test_every_setting_has_a_default() -> None:
    import msgspec

    for path, info in FIELDS.items():
        assert not (info.default is msgspec.NODEFAULT and info.default_factory is msgspec.NODEFAULT), path


# precedence


LAYERS: dict[str, dict[str, Any]] = {
    "invoke.yaml": {"yaml": "db: {port: 1001}\n"},
    ".env (INVOKE_DB_PORT)": {"dotenv": "INVOKE_DB_PORT=1002\n"},
    "variable INVOKE_DB_PORT": {"environ": {"INVOKE_DB_PORT": "1003"}},
    "file.yaml": {"file": "db: {port: 1004}\n"},
}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_each_layer_wins_over_those_before_it_and_is_named_as_the_origin(tmp_path: Path, count: int) -> None:
    given_layers: dict[str, Any] = {}
    for layer in list(LAYERS.values())[:count]:
        given_layers |= layer
    settings = read(tmp_path, **given_layers)
    assert settings.db.port == 1000 + count
    assert settings.origin("db.port").endswith(list(LAYERS)[count - 1])


def test_layers_add_up_key_by_key(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        yaml="db: {port: 5001, name: one}\napi: {workers: 2}\n",
        dotenv="INVOKE_DB_USER=two\n",
        environ={"INVOKE_PGB_PORT": "5003"},
        file="api: {reload: false}\n",
    )
    assert (settings.db.port, settings.db.name, settings.db.user) == (5001, "one", "two")
    assert (settings.pgb.port, settings.api.workers, settings.api.reload) == (5003, 2, False)
    assert settings.origin("api.bind") == "the default"


def test_invoke_settings_of_its_own_are_left_alone(tmp_path: Path) -> None:
    settings = read(tmp_path, yaml="run: {echo: true}\ntasks: {dedupe: true}\n", environ={"INVOKE_RUN_ECHO": "1"})
    assert settings.origins == {}


def test_an_empty_section_keeps_its_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, yaml="db:\npgb: {}\n").db.port == 5433


# refusals


def test_a_refusal_says_path_value_origin_and_what_to_write(tmp_path: Path) -> None:
    assert refusal(read, tmp_path, yaml="db: {prot: 5434}\n", environ={"INVOKE_PGB_PORT": "high"}) == "\n".join(
        [
            "error: 2 settings are wrong",
            "       db.prot: there is no such setting",
            f"         from {tmp_path}/invoke.yaml",
            "         did you mean db.port?",
            "       pgb.port: 'high': expected int, got str",
            "         from variable INVOKE_PGB_PORT",
            "         the default is 6432",
        ]
    )


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("db.port", "5433", "'5433': expected int, got str"),
        ("db.port", True, "True: expected int, got bool"),
        ("db.port", 5433.0, "5433.0: expected int, got float"),
        ("db.port", None, "None: expected int, got null"),
        ("db.port", 0, "0: expected int >= 1"),
        ("db.port", 65536, "65536: expected int <= 65535"),
        ("stack.start_timeout", float("nan"), "nan: expected float > 0.0"),
        ("stack.stop_timeout", float("inf"), "inf: expected float <= 86400.0"),
        ("stack.lock_timeout", 0, "0: expected float > 0.0"),
        ("stack.runtime", "docked", "'docked': invalid enum value 'docked'"),
        ("pgb.pool_mode", "sessions", "'sessions': invalid enum value 'sessions'"),
        ("db.name", "", "'': expected str of length >= 1"),
        ("db.extensions", "vector", "'vector': expected array, got str"),
        ("db.extensions", ["vector", 3], "['vector', 3]: expected str, got int at [1]"),
        ("db.parameters", {"work_mem": []}, "{'work_mem': []}: expected bool | int | float | str, got array at [...]"),
        ("api.workers", 65, "65: expected int <= 64"),
        ("data.retention_days", 0, "0: expected int >= 1"),
        ("hooks.pre_up", "make", "'make': expected array, got str"),
    ],
)
def test_a_wrong_type_or_a_value_out_of_range_is_refused(path: str, value: Any, why: str) -> None:
    section, _, key = path.partition(".")
    text = refusal(from_yaml, **{section: {key: value}})
    assert f"{path}: {why}\n" in text
    assert "from invoke.yaml\n" in text
    assert re.search(r"the default is .+|leave it out for the default", text)


@pytest.mark.parametrize("name", ["Review", "a_b", "-a", "a-", "a" * 25, "a/b", "", "review\n", "../x"])
def test_an_environment_name_that_could_not_be_a_folder_is_refused(name: str) -> None:
    assert "stack.env: " in refusal(from_yaml, stack={"env": name})


@pytest.mark.parametrize(
    ("path", "value"),
    [("api.health_path", "/health\n"), ("api.health_path", "health"), ("api.app", "main"), ("api.app", "a:b\n")],
)
def test_a_pattern_holds_to_the_last_character(path: str, value: str) -> None:
    assert f"{path}: " in refusal(load, [Entry(path, value, "x", False)], ROOT)


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("db.prot", "did you mean db.port?"),
        ("db.pasword", "did you mean db.password?"),
        ("api.health", "did you mean api.health_path?"),
        ("pgb.poolmode", "did you mean pgb.pool_mode?"),
        ("db.pool_mode", "did you mean pgb.pool_mode?"),
        ("data.zzzzzzzzzzzzzzzzzzzz", "there are: data.dir, data.retention_days"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(unknown: str, nearest: str) -> None:
    section, _, key = unknown.partition(".")
    for text in (refusal(from_yaml, **{section: {key: 1}}), refusal(from_variables, **{variable_of(unknown): "1"})):
        assert f"{unknown}: there is no such setting\n" in text
        assert nearest in text


def test_a_key_that_is_a_number_is_refused_not_a_crash() -> None:
    text = refusal(from_yaml, db={5: 3})
    assert "db.5: there is no such setting" in text
    assert "there are: db.bind, db.port, db.name, db.user" in text, "a section that both have makes no key alike"


@pytest.mark.parametrize("content", ["text", ["a"], 3, True])
def test_a_section_that_is_not_a_map_is_refused(content: object) -> None:
    text = refusal(from_yaml, db=content)
    assert f"db: expected keys below it, got {content!r}\n" in text
    assert "write db: {key: value}" in text


def test_an_unknown_section_of_the_project_s_file_is_refused(tmp_path: Path) -> None:
    assert "dbs" in refusal(read, tmp_path, yaml="dbs: {port: 5434}\n")


def test_a_section_of_another_project_in_the_user_s_own_file_is_left_alone(tmp_path: Path) -> None:
    assert read(tmp_path, user="blog: {theme: dark}\ndb: {port: 5434}\n").db.port == 5434


# variables


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, False) for text in ("false", "False", "FALSE", "0", "no", "No", "off", "OFF", " no ")],
        *[(text, True) for text in ("true", "TRUE", "True", "1", "yes", "YES", "on", " On ")],
    ],
)
def test_a_boolean_variable_means_what_it_says(text: str, value: bool) -> None:
    assert from_variables(INVOKE_API_RELOAD=text).api.reload is value
    assert from_variables(NINAIVALAIGAL_DEBUG=text).api.debug is value


@pytest.mark.parametrize("text", ["maybe", "2", "nein", "truee"])
def test_a_boolean_variable_that_is_neither_is_refused(text: str) -> None:
    assert f"api.reload: {text!r}: " in refusal(from_variables, RELOAD_ON_CHANGE=text)


def test_lists_and_maps_are_given_as_words_or_json() -> None:
    assert from_variables(INVOKE_DB_EXTENSIONS="vector, uuid-ossp ,pg_trgm").db.extensions == [
        "vector",
        "uuid-ossp",
        "pg_trgm",
    ]
    assert from_variables(INVOKE_DB_EXTENSIONS='["a,b"]').db.extensions == ["a,b"]
    assert from_variables(INVOKE_DB_EXTENSIONS="").db.extensions == []
    assert from_variables(INVOKE_DB_PARAMETERS='{"work_mem": "16MB"}').db.parameters == {"work_mem": "16MB"}


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("echo one, two", ["echo one, two"]),
        ("[ -e file ] && echo a,b", ["[ -e file ] && echo a,b"]),
        ('["echo one, two", "true"]', ["echo one, two", "true"]),
        ("", []),
        ("  ", []),
    ],
)
def test_a_command_in_a_variable_is_taken_whole_unless_it_is_json(text: str, commands: list[str]) -> None:
    assert from_variables(INVOKE_HOOKS_POST_UP=text).hooks.post_up == commands


@pytest.mark.parametrize("text", ["[1]", '[""]', '[["a"]]'])
def test_a_list_of_commands_that_are_none_is_refused(text: str) -> None:
    assert "hooks.post_up: " in refusal(from_variables, INVOKE_HOOKS_POST_UP=text)


@pytest.mark.parametrize("text", ["{", "work_mem=16MB", "[]", ""])
def test_a_map_that_is_not_json_is_refused(text: str) -> None:
    assert "db.parameters: " in refusal(from_variables, INVOKE_DB_PARAMETERS=text)


def test_the_specification_s_variables_are_taken() -> None:
    settings = from_variables(
        NINAIVALAIGAL_DATABASE_URL="postgresql://nina:change_me_securely@localhost:5433/nina",
        NINAIVALAIGAL_JWT_SECRET="development-jwt-secret-key",
        MEMORY_PROVIDER="native",
        NINAIVALAIGAL_DEBUG="1",
        LOG_LEVEL="DEBUG",
        RELOAD_ON_CHANGE="true",
        NV_ENV="review",
    )
    assert (settings.db.user, settings.db.password, settings.db.port, settings.db.name) == (
        "nina",
        "change_me_securely",
        5433,
        "nina",
    )
    assert settings.api.jwt_secret == "development-jwt-secret-key"
    assert (settings.api.debug, settings.api.log_level, settings.api.reload) == (True, "DEBUG", True)
    assert settings.service_name("db") == "nv-review-db"
    assert settings.origin("db.password") == f"variable {URL_VARIABLE}"


def test_names_are_the_specification_s_in_the_default_environment() -> None:
    assert [Settings(root=ROOT).service_name(s) for s in ("db", "pgbouncer", "api")] == [
        "nv-db",
        "nv-pgbouncer",
        "nv-api",
    ]


@pytest.mark.parametrize("name", [*SPECIFIED, URL_VARIABLE])
def test_an_empty_variable_of_the_specification_is_as_if_it_were_not_there(name: str) -> None:
    assert from_variables(**{name: ""}) == from_variables()


def test_a_level_may_be_written_in_small_letters() -> None:
    assert from_variables(LOG_LEVEL="debug").api.log_level == "DEBUG"


@pytest.mark.parametrize(
    ("given", "level"),
    [
        *[("warn", "WARNING"), ("Fatal", "CRITICAL"), ("NOTSET", "DEBUG"), ("TRACE", "DEBUG"), (" info ", "INFO")],
        *[("20", "INFO"), ("0", "DEBUG"), ("5", "DEBUG"), ("10", "DEBUG"), ("11", "INFO"), ("25", "WARNING")],
        *[("40", "ERROR"), ("+50", "CRITICAL"), ("51", "CRITICAL"), ("-1", "DEBUG"), ("critical", "CRITICAL")],
    ],
)
def test_a_level_of_python_s_or_uvicorn_s_is_the_nearest_one(given: str, level: str) -> None:
    assert from_variables(LOG_LEVEL=given).api.log_level == level
    assert from_yaml(api={"log_level": given}).api.log_level == level
    if given.strip("+-").isdigit():
        assert from_yaml(api={"log_level": int(given)}).api.log_level == level


def test_every_level_that_logging_and_uvicorn_know_is_taken() -> None:
    from uvicorn.config import LOG_LEVELS

    pythons = ("CRITICAL", "FATAL", "ERROR", "WARNING", "WARN", "INFO", "DEBUG", "NOTSET")
    for name in (*pythons, *LOG_LEVELS):
        from_variables(LOG_LEVEL=name)


@pytest.mark.parametrize("level", ["loud", "1.5", "", "1" * 40, "20 20"])
def test_what_is_no_level_is_refused(level: str) -> None:
    assert "api.log_level" in refusal(from_yaml, api={"log_level": level})


@pytest.mark.parametrize(("word", "value"), [("y", True), ("T", True), ("N", False), ("f", False), ("ON", True)])
def test_words_for_on_and_off(word: str, value: bool) -> None:
    assert from_variables(NINAIVALAIGAL_DEBUG=word).api.debug is value


@pytest.mark.parametrize("name", ["INVOKE_DB_NAME", "INVOKE_DB_PASSWORD", "INVOKE_API_ENV", "INVOKE_DB_EXTENSIONS"])
def test_a_variable_that_is_not_utf8_is_refused_not_a_crash(name: str) -> None:
    text = refusal(from_variables, **{name: os.fsdecode(b'["\xff"]')})
    assert "it is not valid UTF-8" in text
    text.encode()


# the database's URL


def test_parts_of_the_url_are_percent_decoded() -> None:
    db = from_variables(**{URL_VARIABLE: "postgres://n%C3%BCna:p%40ss%2Fw%3A%25@127.0.0.1:6000/my%20db"}).db
    assert (db.user, db.password, db.port, db.name) == ("nüna", "p@ss/w:%", 6000, "my db")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://localhost",
        "postgresql:///nina",
        "postgresql+asyncpg://nina@localhost/nina",
        "postgresql://nina@[::1]:5433/nina",
        "postgresql://nina@127.0.0.2/nina?sslmode=disable",
    ],
)
def test_urls_of_this_machine_are_taken_and_what_they_leave_out_keeps_its_default(url: str) -> None:
    db = from_variables(**{URL_VARIABLE: url}).db
    assert (db.user, db.port, db.name, db.password) == ("nina", 5433, "nina", None)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"postgresql://nina:{SECRET}@db.example.com:5433/nina", "its host is 'db.example.com'"),
        (f"postgresql://nina:{SECRET}@10.0.0.5/nina", "its host is '10.0.0.5'"),
        (f"mysql://nina:{SECRET}@localhost/nina", "its scheme is 'mysql', not postgresql"),
        (f"nina:{SECRET}@localhost/nina", "not postgresql"),
        (f"postgresql://nina:{SECRET}@localhost:99999/nina", "it is not a valid URL"),
        (f"postgresql://nina:{SECRET}@localhost:port/nina", "it is not a valid URL"),
        (f"postgresql://nina:{SECRET}@[::1/nina", "it is not a valid URL"),
        # characters that end the authority: a part of the password stands where the port is expected
        (f"postgresql://nina:{SECRET}/x@localhost/nina", "in a password, / ? # @ and % are written"),
        (f"postgresql://nina:{SECRET}#x@localhost/nina", "in a password, / ? # @ and % are written"),
        (f"postgresql://nina:{SECRET}?x@localhost/nina", "in a password, / ? # @ and % are written"),
        # urllib's own message has the whole authority
        (f"postgresql://nina:{SECRET}℀@localhost/nina", "it is not a valid URL"),
    ],
)
def test_a_url_that_can_t_be_used_is_refused_and_its_password_is_not_shown(url: str, why: str) -> None:
    text = refusal(from_variables, **{URL_VARIABLE: url})
    assert text.startswith(f"error: a setting is wrong\n       {URL_VARIABLE}: ")
    assert why in text
    assert f"from variable {URL_VARIABLE}" in text
    assert f'write it as {URL_VARIABLE}="postgresql://nina:PASSWORD@localhost:5433/nina"' in text
    assert SECRET not in text


PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(user=PLAIN, password=PLAIN, name=PLAIN, port=st.integers(1, 65535), host=st.sampled_from(["127.0.0.1", "::1"]))
def test_a_url_gives_libpq_and_us_exactly_the_parts_that_it_was_made_of(
    user: str, password: str, name: str, port: int, host: str
) -> None:
    url = database_url("postgresql", user, password, host, port, name)
    assert parse_dsn(url) == {"user": user, "password": password, "host": host, "port": str(port), "dbname": name}
    entries = {e.path: e.value for e in variable_entries({URL_VARIABLE: url}, "{}")}
    assert entries == {"db.user": user, "db.password": password, "db.name": name, "db.port": port}


# .env


def read_checked(path: Path) -> EnvFile:
    return checked(read_env_file(path, {}))


def test_a_dotenv_file_gives_settings_and_the_application_s_own_variables(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        dotenv="# ours\nINVOKE_PGB_PORT=7000\nLOG_LEVEL=debug\nNV_ENV=review\n\n"
        "export SENTRY_DSN='https://x@y/1'\nGREETING=\"two\\nlines # kept\"\nEMPTY=\nINTERPOLATED=${HOME}$x\n",
        environ={"HOME": "/home/me"},
    )
    assert (settings.pgb.port, settings.api.log_level, settings.stack.env) == (7000, "DEBUG", "review")
    assert settings.dotenv.values == {
        "SENTRY_DSN": "https://x@y/1",
        "GREETING": "two\nlines # kept",
        "EMPTY": "",
        "INTERPOLATED": "/home/me$x",
    }
    assert settings.origin("pgb.port") == f"{tmp_path}/.env (INVOKE_PGB_PORT)"


def test_a_wrong_value_in_a_dotenv_file_is_refused_with_the_file_s_name(tmp_path: Path) -> None:
    assert f"from {tmp_path}/.env (LOG_LEVEL)" in refusal(read, tmp_path, dotenv="LOG_LEVEL=loud\n")


def test_no_dotenv_file_is_no_variables(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / ".env", {}) == EnvFile()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"A=1\nexport JWT {SECRET}\n", 2),
        (f"A=1\n\n# comment\n\n\n{SECRET} x\n", 6),
        (f"\n\nJWT: {SECRET}=\n", 3),
        (f'JWT="{SECRET}\nB=1\n', 1),
        (f"A=1\nJWT='one' {SECRET}\n", 2),
        (f"postgresql://nina:{SECRET}@localhost/nina?a=b\n", 1),
        (f"A=1\r\n\r\nJWT {SECRET}\r\n", 3),
        (f"={SECRET}\n", 1),
    ],
)
def test_a_malformed_line_is_refused_by_its_number_and_nothing_of_it_is_shown(
    tmp_path: Path, content: str, line: int
) -> None:
    path = tmp_path / ".env"
    path.write_bytes(content.encode())
    text = refusal(read_checked, path)
    assert text.startswith(f"error: {path}:{line} is malformed\n")
    assert SECRET not in text
    assert "write one NAME=value a line" in text


@pytest.mark.parametrize("name", ["my-key", "a.b", "1A", "A;touch${IFS}pwned;B", "$(id)", "é", "A`id`"])
def test_a_name_that_a_shell_would_not_take_for_one_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / ".env"
    path.write_text(f"A=1\n{name}={SECRET}\n")
    text = refusal(read_checked, path)
    assert f"{path}:2 is malformed" in text
    assert "more than letters, digits and _" in text
    assert SECRET not in text
    assert "api.env: " in refusal(from_yaml, api={"env": {name: "x"}})


def test_a_dotenv_file_that_can_t_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"A=\xff" + SECRET.encode())
    text = refusal(read_checked, path)
    assert f"{path}:1 is malformed" in text
    assert "it is not valid UTF-8" in text
    assert SECRET not in text


# contradictions


@pytest.mark.parametrize(
    ("sections", "path", "why"),
    [
        ({"db": {"port": 6432}}, "db.port", "db.port and pgb.port are both 6432"),
        ({"api": {"port": 5433}}, "api.port", "api.port and db.port are both 5433"),
        ({"api": {"port": 6432}}, "api.port", "api.port and pgb.port are both 6432"),
        *[
            ({"db": {"name": name}}, "db.name", f"{name!r} is reserved by PostgreSQL or PgBouncer")
            for name in ("postgres", "template0", "template1", "pgbouncer")
        ],
        *[
            ({"db": {"user": name}}, "db.user", f"{name!r} is reserved by PostgreSQL or PgBouncer")
            for name in ("postgres", "pgbouncer", "nv_admin", "public", "none", "pg_monitor")
        ],
        ({"db": {"name": "ü" * 32}}, "db.name", "it has 64 bytes, PostgreSQL takes 63"),
        ({"db": {"user": "u" * 64}}, "db.user", "it has 64 bytes, PostgreSQL takes 63"),
        ({"db": {"name": "a\tb"}}, "db.name", "it has a control character"),
        ({"db": {"user": "a\x7f"}}, "db.user", "it has a control character"),
        ({"db": {"name": "host=elsewhere"}}, "db.name", "'host=elsewhere' reads like a connection string"),
        ({"db": {"name": "postgresql://x"}}, "db.name", "'postgresql://x' reads like a connection string"),
        ({"db": {"password": ""}}, "db.password", "it is empty or has a control character"),
        ({"api": {"jwt_secret": "a\nb"}}, "api.jwt_secret", "it is empty or has a control character"),
        *[
            ({section: {"bind": "x.org"}}, f"{section}.bind", "'x.org' is not an IP")
            for section in ("db", "pgb", "api")
        ],
        ({"stack": {"bind": "x.org"}}, "api.bind", "'x.org' is not an IP address"),
        (
            {"stack": {"bind": "::1"}, "api": {"bind": "0.0.0.0"}},
            "stack.bind",
            "stack.bind is '::1' and api.bind is '0.0.0.0': stack.bind means api.bind",
        ),
        ({"db": {"parameters": {"port": 1}}}, "db.parameters", "port is the stack's own"),
        ({"db": {"parameters": {"Listen_Addresses": "*"}}}, "db.parameters", "Listen_Addresses is the stack's own"),
        ({"pgb": {"parameters": {"auth_file": "x"}}}, "pgb.parameters", "auth_file is the stack's own"),
        ({"db": {"parameters": {"a b": "x"}}}, "db.parameters", "'a b' is not a parameter's name"),
        ({"pgb": {"parameters": {"x": "1\nadmin_users = nina"}}}, "pgb.parameters", "'x' is not a parameter's name"),
        ({"api": {"workers": 2}}, "api.workers", "hot reload works with one worker"),
    ],
)
def test_settings_that_contradict_are_refused(sections: dict[str, Any], path: str, why: str) -> None:
    text = refusal(from_yaml, **sections)
    lines = [line.strip() for line in text.splitlines()]
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{path}: {why}"))
    assert lines[at + 1].startswith("from ")
    assert len(lines[at + 2]) > 5  # what to write instead


def test_names_at_the_limit_and_of_any_script_are_taken() -> None:
    db = from_yaml(db={"name": "ü" * 31 + "x", "user": 'O\'Hara "x" 100%'}).db
    assert len(db.name.encode()) == 63
    assert db.user == 'O\'Hara "x" 100%'


def test_an_example_secret_is_fine_on_loopback_and_refused_as_soon_as_others_can_reach_a_service() -> None:
    secrets: dict[str, Any] = {"db.password": "change_me_securely", "api.jwt_secret": "development-jwt-secret-key"}
    for bind in ("127.0.0.1", "::1", "localhost"):
        from_paths({**secrets, "db.bind": bind, "pgb.bind": bind, "api.bind": bind})
    for opened in ("db.bind", "pgb.bind", "api.bind", "stack.bind"):
        named = "api.bind" if opened == "stack.bind" else opened
        for bind in ("0.0.0.0", "::", "192.168.1.5"):
            text = refusal(from_paths, {**secrets, opened: bind})
            for path in secrets:
                assert f"{path}: the example secret can't be used while {named} is {bind}" in text
                assert f"leave {path} out to have one generated, or {named}: 127.0.0.1" in text
            from_paths({opened: bind, "db.password": SECRET * 2, "api.jwt_secret": SECRET * 2})
            from_paths({opened: bind})  # generated ones


def test_a_short_secret_is_refused_where_it_protects_what_others_can_reach() -> None:
    short = "x" * (SHORTEST_SECRET - 1)
    for opened, path, other in (
        ("db.bind", "db.password", "api.jwt_secret"),
        ("pgb.bind", "db.password", "api.jwt_secret"),
        ("api.bind", "api.jwt_secret", "db.password"),
    ):
        text = refusal(from_paths, {opened: "0.0.0.0", path: short})
        assert f"{path}: a secret of less than {SHORTEST_SECRET} characters can't be used while {opened} is" in text
        assert short not in text
        from_paths({opened: "0.0.0.0", path: short + "x"})
        from_paths({opened: "0.0.0.0", other: short})
        from_paths({path: short})


def from_paths(values: dict[str, Any]) -> Settings:
    return load([Entry(path, value, "invoke.yaml", False) for path, value in values.items()], ROOT)


def test_the_former_address_of_all_services_is_the_applications_alone(tmp_path: Path) -> None:
    settings = read(tmp_path, yaml="stack: {bind: 0.0.0.0}\n")
    assert (settings.db.bind, settings.pgb.bind, settings.api.bind) == ("127.0.0.1", "127.0.0.1", "0.0.0.0")
    assert settings.origin("api.bind").endswith("invoke.yaml (stack.bind)")
    assert settings.open_binds == {"api.bind": "0.0.0.0"}
    assert [label for label in ("db", "pgb", "api") if settings.exposure(label)] == ["api"]
    assert "the default application has no login" in settings.exposure("api")
    theirs = read(tmp_path, yaml="stack: {bind: 0.0.0.0}\napi: {app: main:app}\n")
    assert "login" not in theirs.exposure("api")


def test_a_later_layer_decides_between_an_alias_and_its_setting(tmp_path: Path) -> None:
    yaml = "stack: {bind: 0.0.0.0}\n"
    assert read(tmp_path, yaml=yaml, environ={"INVOKE_API_BIND": "::1"}).api.bind == "::1"
    yaml = 'api: {bind: "::1"}\n'
    assert read(tmp_path, yaml=yaml, environ={"INVOKE_STACK_BIND": "127.0.0.2"}).api.bind == "127.0.0.2"
    assert read(tmp_path, yaml='stack: {bind: ""}\napi: {bind: "::1"}\n').api.bind == "::1"  # as invoke.yaml has it
    text = refusal(read, tmp_path, environ={"INVOKE_STACK_BIND": "0.0.0.0", "INVOKE_API_BIND": "127.0.0.1"})
    assert "stack.bind means api.bind" in text
    assert "leave stack.bind out" in text


def test_workers_without_reload_are_taken() -> None:
    assert from_yaml(api={"workers": 4, "reload": False}).api.workers == 4


@pytest.mark.parametrize("path", SECRETS)
def test_a_secret_never_appears_in_a_refusal(path: str) -> None:
    section, _, key = path.partition(".")
    values = [[SECRET], {"A": [SECRET]}, {5: SECRET}, f"{SECRET}\n", 3.5]
    for value in values:
        text = refusal(from_yaml, **{section: {key: value}})
        assert SECRET not in text
        assert "3.5" not in text
        assert f"{path}: " in text
    for raw in ('{"A": ["' + SECRET + '"]}', '{"A": "' + SECRET + "\n"):
        with_variable = variable_entries({variable_of("api.env"): raw}, "variable {}")
        assert SECRET not in refusal(load, with_variable, ROOT)


DEEP = "[" * 5_000


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"api": {"hosts": ["*x"]}}, "api.hosts: ['*x']: expected a host's name, *.example.com, or * for any"),
        ({"db": {"name": "a\ud800"}}, "db.name: it is not valid UTF-8"),
        ({"hooks": {"pre_up": ["a\0b"]}}, "hooks.pre_up: it has a NUL character"),
        ({"api": {"env": {"A": "a\0b"}}}, "api.env: it has a NUL character"),
        ({"stack": {"start_timeout": float("nan")}}, "stack.start_timeout: nan: expected float > 0.0"),
        ({"api": {"bind": "::1%x\nadmin_users = nina"}}, "is not an IP address"),
        ({"data": {"dir": "~nobody-of-that-name/x"}}, "there is no home directory of that name"),
        ({"data": {"dir": "./~nobody-of-that-name/x"}}, "there is no home directory of that name"),
        ({"pgb": {"parameters": {"server_reset_query": " x"}}}, "has spaces at an end"),
        ({"db": f"postgresql://nina:{SECRET}@localhost/nina"}, "expected keys below it, got 'postgresql://nina:***@"),
        ({"api": {"port": "x" * 10_000}}, "xxx…: expected int"),
    ],
)
def test_a_value_that_no_file_or_program_can_have_is_refused(sections: dict[str, Any], why: str) -> None:
    text = refusal(from_yaml, **sections)
    assert why in text
    assert SECRET not in text
    assert len(text) < 600


@pytest.mark.parametrize("name", ["INVOKE_API_ENV", "INVOKE_API_HOSTS", "INVOKE_DB_PARAMETERS"])
def test_json_that_is_nested_too_deeply_is_refused(name: str) -> None:
    assert "from variable " + name in refusal(from_variables, **{name: DEEP})
    assert "from variable " + name in refusal(from_variables, **{name: '{"a":' * 5_000})
    assert "NUL" in refusal(from_variables, INVOKE_DB_EXTENSIONS='["\\u0000"]')


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://nina:123/{SECRET}@localhost/nina",  # its port would be 123
        f"postgresql://nina:123#{SECRET}@localhost/nina",
        f"postgresql://nina:{SECRET}%ff@localhost/nina",
        f"postgresql://nina:{SECRET}%zz@localhost/nina",
        f"postgresql://nina:{SECRET}\n@localhost/nina",
        f" postgresql://nina:{SECRET}@localhost/nina",
        f"postgresql:////=x:{SECRET}@localhost/nina",
    ],
)
def test_a_url_that_would_mean_something_else_is_refused(url: str) -> None:
    text = refusal(from_variables, **{URL_VARIABLE: url})
    assert text.startswith(f"error: a setting is wrong\n       {URL_VARIABLE}: ")
    assert SECRET not in text


# addresses


def test_loopback_is_told_from_what_others_can_reach() -> None:
    assert [host for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "", "x") if is_loopback(host)] == []


def test_a_service_on_every_address_is_reached_by_loopback() -> None:
    reached = [reachable_address(bind) for bind in ("0.0.0.0", "::", "localhost", "192.168.1.5")]
    assert reached == ["127.0.0.1", "::1", "127.0.0.1", "192.168.1.5"]
