"""`inv dev.bundle`: what is in it, that no secret is, and that it works when nothing else does."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devstack.bundle import NOT_REDACTED, parts
from devstack.bundle.parts import tail
from devstack.bundle.redact import Redactor, forms
from devstack.files import NotPlain
from tests.conftest import ROOT, Project, wait_for

NASTY = "p@ss wörd'\"/%25\\:#$x"
SECRETS = {
    "db_password": f"db-canary {NASTY}",
    "jwt": f"jwt-canary {NASTY}",
    "url_password": f"url-canary {NASTY}",
    "dotenv": f"dotenv-canary {NASTY}",
    "dotenv_plain": "dotenv-canary-plain",
    "dotenv_lines": "lines-canary-1\nlines-canary-2",
    "api_env": f"apienv-canary {NASTY}",
    "caller": "caller-canary-of-the-shell",
}
LEAKY = """
import base64, html, json, os, shlex, sys
from urllib.parse import quote, quote_plus
from fastapi import FastAPI

app = FastAPI()
for name in "DATABASE_URL NINAIVALAIGAL_JWT_SECRET SMTP_PASSWORD GREETING LINES TOKEN CALLER_SECRET".split():
    s = os.environ[name]
    print(s, quote(s), quote_plus(s), json.dumps({"x": s}), json.dumps(json.dumps(s)), repr(s), shlex.quote(s))
    print(html.escape(s), base64.b64encode(("u:" + s).encode()).decode(), s.encode().hex(), s.replace("'", "''"))
    print(f"{s[:30]}…")
sys.stdout.flush()

@app.get("/health")
def health(): return {}
"""


def unzipped(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        folder = path.stem
        assert all(info.filename.startswith(f"{folder}/") for info in archive.infolist())
        assert {info.external_attr >> 16 & 0o777 for info in archive.infolist()} == {0o600}
        return {info.filename.removeprefix(f"{folder}/"): archive.read(info).decode() for info in archive.infolist()}


def bundle(project: Project, *args: str, **env: Any) -> tuple[dict[str, str], dict[str, Any]]:
    # the program is the project's own copy, of which the log of its set-up is a part
    listing = json.loads(project.process("dev.bundle", "--json", *args, **env).stdout)
    return unzipped(Path(listing["path"])), listing


def dotenv_quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@pytest.mark.slow
def test_no_secret_is_in_it_in_any_form(project: Project) -> None:
    (project.root / "api" / "leaky.py").write_text(LEAKY)
    url = f"postgresql://nina:{quote(SECRETS['url_password'], safe='')}@localhost:{project.db_port}/nina"
    lines = {
        "NINAIVALAIGAL_DATABASE_URL": url,
        "SMTP_PASSWORD": SECRETS["dotenv"],
        "GREETING": SECRETS["dotenv_plain"],
        "LINES": SECRETS["dotenv_lines"],
        "DEBUG_LEVEL": "true",
    }
    (project.root / ".env").write_text("".join(f"{k}={dotenv_quote(v)}\n" for k, v in lines.items()))
    env = {
        "INVOKE_API_APP": "leaky:app",
        "INVOKE_API_ENV": json.dumps({"TOKEN": SECRETS["api_env"].replace("$", "$$"), "DB": "$direct_url"}),
        "INVOKE_DB_PASSWORD": SECRETS["db_password"],
        "NINAIVALAIGAL_JWT_SECRET": SECRETS["jwt"],
        "CALLER_SECRET": SECRETS["caller"],
    }
    project.inv("dev.up", **env)  # type: ignore[arg-type]
    # so that the last lines are finished ones
    wait_for(lambda: "Uvicorn running" in project.log("nv-api") or "/health" in project.log("nv-api"))
    assert "db-canary" in project.log("nv-api"), "the application has leaked nothing, so this shows nothing"
    files, _ = bundle(project, **env)
    generated = project.secrets()
    verifier = (project.state / "config/userlist.txt").read_text().split('"')[3]
    secrets = [*SECRETS.values(), *generated.values(), verifier, *verifier.split("$")[2].split(":")]
    everything = "\n".join(files.values())
    for secret in secrets:
        for part in (secret, *secret.splitlines()):
            for form in {
                part,
                quote(part),
                quote(part, safe=""),
                quote_plus(part),
                json.dumps(part)[1:-1],
                shlex.quote(part),
                repr(part)[1:-1],
                part.encode().hex(),
                *forms(part),
            }:
                assert form not in everything, [name for name, text in files.items() if form in text]
            for before in range(3):
                core = base64.b64encode(b"x" * before + part.encode()).decode()[4:-4]
                assert core not in everything
    for word in ("canary", "p@ss", "p%40ss", "w\\u00f6rd", "wörd", "w%C3%B6rd"):
        assert word not in everything
    assert "secrets.json" not in files
    # and it still says something
    log = files["logs/nv-api.log"]
    assert log.count("***") > 30
    assert "Uvicorn running on http://127.0.0.1" in log
    launcher = files["config/nv-api.sh"].splitlines()
    assert "export SMTP_PASSWORD=***" in launcher
    assert not [line for line in launcher if line.startswith("export ") and not line.endswith("=***")]
    assert files["config/userlist.txt"] == '"nina" "***"\n"nv_admin" "***"\n'
    assert f"listen_port = {project.pgb_port}" in files["config/pgbouncer.ini"]
    settings = {entry["setting"]: entry for entry in json.loads(files["settings.json"])}
    assert settings["db.password"] == {
        "setting": "db.password",
        "value": "***",
        "origin": "variable INVOKE_DB_PASSWORD",
    }
    assert settings["db.name"]["value"] == "'nina'"


def test_what_the_package_managers_said_has_no_secret(stack: Project) -> None:
    """pip names its index with the login in it, and may be given any variable."""
    password = stack.secrets()["db_password"]
    verifier = (stack.state / "config/userlist.txt").read_text().split('"')[3]
    log = stack.root / "logs/bootstrap.log"
    log.write_text(
        "Looking in indexes: https://me:canary-of-pip@pypi.example/simple\n"
        f"export PGPASSWORD={password} {quote(password, safe='')} {base64.b64encode(password.encode()).decode()}\n"
        f"{verifier}\nSuccessfully installed invoke-2.2.0\nhalf a line of {password[:10]}"
    )
    try:
        files, listing = bundle(stack)
    finally:
        log.unlink()
    said = files["logs/bootstrap.log"]
    assert not [entry["problem"] for entry in listing["entries"] if entry["problem"]]
    assert [word for word in ("canary-of-pip", password, verifier, *forms(password)) if word in said] == []
    assert said.startswith("Looking in indexes: https://me:***@pypi.example/simple\nexport PGPASSWORD=*** *** ***\n")
    assert said.endswith("\nSuccessfully installed invoke-2.2.0\n")


def test_what_is_in_it_and_its_listing(stack: Project) -> None:
    files, listing = bundle(stack)
    path = Path(listing["path"])
    assert path.parent == stack.root / "logs"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert listing["size"] == path.stat().st_size
    assert [entry["name"] for entry in listing["entries"]] == list(files)
    assert {entry["name"]: entry["size"] for entry in listing["entries"]} == {
        name: len(text.encode()) for name, text in files.items()
    }
    assert list(files) == [
        *("versions.json", "system.json", "settings.json", "health.json", "services.json"),
        *("logs/nv-db.log", "logs/nv-pgbouncer.log", "logs/nv-api.log"),
        *("logs/devstack.log", "logs/supervisord.log", "logs/bootstrap.log"),
        *("config/pgbouncer.ini", "config/userlist.txt", "config/pg_hba.conf", "config/pg_ident.conf"),
        *("config/supervisord.conf", "config/services/nv-api.conf", "config/services/nv-db.conf"),
        *("config/services/nv-pgbouncer.conf", "config/nv-api-reload.sh", "config/nv-api.sh"),
        *(["config/nv-db-account.sh"] if os.getuid() == 0 else []),
        "config/nv-db.sh",
        *(["config/nv-pgbouncer-account.sh"] if os.getuid() == 0 else []),
        *("config/nv-pgbouncer.sh", "contents.json"),
    ]
    versions = json.loads(files["versions.json"])
    assert versions["postgresql"].startswith("18.")
    assert versions["packages"]["invoke"]
    assert json.loads(files["health.json"])["verdict"] == "healthy"
    assert [s["as_the_settings_say"] for s in json.loads(files["services.json"])] == [True, True, True]
    assert "ready to accept connections" in files["logs/nv-db.log"]
    assert "exit 0" in files["logs/devstack.log"]
    contents = json.loads(files["contents.json"])
    assert len(contents["collected"]) == len(files) - 1
    assert contents["not_redacted"] == NOT_REDACTED, "the reader is told what may still be in it"
    problems = {entry["name"]: entry["problem"] for entry in listing["entries"] if entry["problem"]}
    assert problems == {"logs/bootstrap.log": "there is none"}


def test_a_variable_that_the_application_does_not_get_is_in_nobodys_way(stack: Project, tmp_path: Path) -> None:
    env = {"INVOKE_API_ENV": '{"PGREQUIREAUTH": "", "OF_MINE": "canary-of-mine"}'}
    stack.inv("dev.bundle", "--output", str(tmp_path / "b.zip"), **env)  # type: ignore[arg-type]
    assert "canary-of-mine" not in "".join(unzipped(tmp_path / "b.zip").values())


def test_the_listing_for_people(stack: Project) -> None:
    printed = stack.inv("dev.bundle").stdout
    lines = printed.splitlines()
    assert lines[0].startswith(str(stack.root / "logs" / "nv-bundle-"))
    assert lines[2].split() == ["file", "size", "what", "it", "is"]
    assert "Look through it before you send it" in printed
    assert "\x1b" not in printed


@pytest.mark.slow
def test_it_goes_where_it_is_told_and_replaces_nothing(stack: Project, tmp_path: Path) -> None:
    _, listing = bundle(stack, "--output", str(tmp_path))
    assert Path(listing["path"]).parent == tmp_path
    target = tmp_path / "my report.zip"
    stack.inv("dev.bundle", "--output", str(target))
    content = target.read_bytes()
    refused = stack.inv("dev.bundle", "--output", str(target), expect=2)
    assert refused.stderr.startswith(f"error: {target} is there already\n")
    assert target.read_bytes() == content
    refused = stack.inv("dev.bundle", "--output", str(tmp_path / "none" / "x.zip"), expect=2)
    assert refused.stderr.startswith(f"error: there is no folder {tmp_path / 'none'}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([Path(listing["path"]).name, target.name])


def test_a_dry_run_writes_nothing(stack: Project, tmp_path: Path) -> None:
    printed = stack.inv("--dry", "dev.bundle", "--output", str(tmp_path / "x.zip")).stdout
    assert f"# write {tmp_path / 'x.zip'} (0600, " in printed
    assert list(tmp_path.iterdir()) == []


def test_it_works_without_any_state(project: Project) -> None:
    files, _ = bundle(project)
    assert not project.state_base.exists()
    assert {json.loads(files["health.json"])["verdict"]} <= {"stopped", "unhealthy"}
    assert files["logs/nv-db.log"] == "there is none\n"
    assert json.loads(files["versions.json"])["postgresql"] is None


@pytest.mark.faults
@pytest.mark.parametrize("name", ["nv-db", "nv-pgbouncer", "nv-api", "supervisord"])
def test_it_works_with_one_frozen(project: Project, name: str) -> None:
    project.inv("dev.up")
    pids = {**project.pids(), "supervisord": int((project.state / "run/supervisord.pid").read_text())}
    frozen = psutil.Process(pids[name])
    frozen.suspend()
    try:
        files, listing = bundle(project)
    finally:
        frozen.resume()
    assert "ready to accept connections" in files["logs/nv-db.log"]
    assert json.loads(files["settings.json"])
    assert f"listen_port = {project.pgb_port}" in files["config/pgbouncer.ini"]
    if name == "supervisord":
        problems = {entry["name"]: entry["problem"] for entry in listing["entries"]}
        assert problems["services.json"].startswith("left out: ")
    else:
        assert json.loads(files["health.json"])["verdict"] == "unhealthy"


def test_a_secret_too_short_to_be_found_leaves_out_what_might_hold_it(project: Project) -> None:
    files, _ = bundle(project, INVOKE_DB_PASSWORD="q7")
    left_out = "left out: a secret of fewer than 4 characters can't be found surely\n"
    assert files["logs/devstack.log"] == files["health.json"] == left_out
    assert json.loads(files["settings.json"])


@pytest.mark.slow
def test_a_launcher_or_userlist_that_somebody_edited_shows_nothing_of_it(project: Project) -> None:
    project.inv("db.start")
    config = project.state / "config"
    (config / "nv-db.sh").write_text("export A='b'\nPASSWORD_OF_MINE=canary-of-mine sh\n")
    (config / "userlist.txt").write_text('"x" "canary-one"\nother canary-two\n')
    files, _ = bundle(project)
    assert "canary" not in "".join(files.values())
    assert files["config/nv-db.sh"].startswith("left out: ")
    assert files["config/userlist.txt"] == '"x" "***"\n# a line that is not as rendered\n'


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_to_is_an_error_with_a_way_out(project: Project) -> None:
    (project.root / "logs").mkdir()
    (project.root / "logs").chmod(0o500)
    refused = project.inv("dev.bundle", expect=1)
    assert "fix:   name a file elsewhere: inv dev.bundle --output FILE" in refused.stderr


@pytest.mark.slow
def test_two_at_once_make_two(stack: Project, tmp_path: Path) -> None:
    both = [stack.popen("dev.bundle", "--json", "--output", str(tmp_path)) for _ in range(2)]
    paths = {json.loads(process.communicate(timeout=60)[0])["path"] for process in both}
    assert {str(path) for path in tmp_path.iterdir()} == paths
    assert len(paths) == 2


def test_the_folder_of_logs_is_made_where_there_is_none(project: Project) -> None:
    assert not (project.root / "logs").exists()
    _, listing = bundle(project)
    assert Path(listing["path"]).parent == project.root / "logs"


def test_half_a_line_is_left_out_since_it_may_hold_half_a_secret(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"end of a line\nwhole \x1b[31mline\x1b[0m \xff\nbeginning of")
    assert tail(log) == "end of a line\nwhole line \ufffd\n"
    (tmp_path / "x.log.1").write_text("a line's begin")
    assert tail(log) == "whole line \ufffd\n"
    log.write_text("".join(f"{n}\n" for n in range(5000)))
    assert tail(log).split() == [str(n) for n in range(3000, 5000)]


# the redactor itself


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://nina:hunter2@h/db", "postgresql://nina:***@h/db"),
        ("postgresql+asyncpg://nina:a/b?c@h", "postgresql+asyncpg://nina:***@h"),
        ("held by psql postgresql://nina:hun…", "held by psql postgresql://nina:***…"),
        ('{"api_key": "a b\\"c", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("SMTP_PASSWORD=hunter2 next", 'SMTP_PASSWORD="***" next'),
        ("Authorization: Bearer abc.def", 'Authorization: "***"'),
        ("ALTER ROLE nina PASSWORD 'it''s'", "ALTER ROLE nina PASSWORD '***'"),
        ("SCRAM-SHA-256$4096:c2FsdA==$a+b=:c/d=", "SCRAM-SHA-256$***"),
        ("md5" + "0af3" * 8, "***"),
        ("got eyJhbGciOiJI.eyJzdWIiOiIx.sig_-x", "got ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nnext", "***\nnext"),
        ("AWS AKIAIOSFODNN7EXAMPLE.", "AWS ***."),
        ("git clone with ghp_0123456789abcdefghijABCDEFGHIJ012345", "git clone with ***"),
        ("github_pat_11ABCDEFG0_abcdefghijklmnop", "***"),
        ("xoxb-123456789012-abcdefGHIJKL, xapp-1-A0-1-f00", "***, ***"),
        ("key sk-proj-abcdefghijklmnopqrstuvwx", "key ***"),
        ("Cookie: session=abc; theme=dark\nnext", 'Cookie: "***"\nnext'),
        ("set-cookie: sid=abc; Path=/; HttpOnly", 'set-cookie: "***"'),
        ('{"Cookie": "a=b; c=d", "n": 1}', '{"Cookie": "***", "n": 1}'),
        ('Authorization: Digest username="x", response="0af3"', 'Authorization: "***"'),
        ("curl -H 'Authorization: Token abc def' http://h/", "curl -H 'Authorization: \"***\"' http://h/"),
        ("curl -u nina:hunter2 http://h/", "curl -u nina:*** http://h/"),
        ("curl --user 'nina:hun ter' http://h/", "curl --user 'nina:*** ter' http://h/"),
        ("docker run --user 1000:1000 x", "docker run --user 1000:1000 x"),
        ("wget --password hunter2 --password-file /x", "wget --password *** --password-file /x"),
        ("a=http://u:p/q?r#s%t@h/x", "a=http://u:***@h/x"),
        ("password authentication failed for user", "password authentication failed for user"),
        ("tokens: 5, cookies: 3, task-force-of-many-people", "tokens: 5, cookies: 3, task-force-of-many-people"),
        ("http://127.0.0.1:13370/health @ noon", "http://127.0.0.1:13370/health @ noon"),
        ("password_encryption = scram-sha-256", "password_encryption = scram-sha-256"),
    ],
)
def test_what_looks_like_a_secret_is_taken_for_one(text: str, redacted: str) -> None:
    assert Redactor([]).text(text) == redacted


def test_of_two_secrets_that_begin_alike_neither_end_is_left() -> None:
    assert Redactor(["swordfish", "swordfish23"]).text("swordfish23 swordfish") == "*** ***"


def test_the_beginning_of_a_secret_before_a_cut_goes_too() -> None:
    assert Redactor(["swordfish23"]).text("it is swordf… and goes on") == "it is ***… and goes on"


def test_data_stay_valid_json() -> None:
    data = {"swordfish": [1, True, None, 12345678, "a swordfish"], "n": 2.5}
    assert Redactor(["swordfish", "12345678"]).data(data) == {"***": [1, True, None, "***", "a ***"], "n": 2.5}


def test_a_secret_of_stars_ends() -> None:
    assert Redactor(["****"]).text("****") == "****"


def test_a_value_is_a_secret_by_its_key() -> None:
    data = {"smtp_password": "x1", "Cookie": "a=b", "password": None, "token_count": "5", "api-key": ""}
    assert Redactor([]).data(data) == {**data, "smtp_password": "***", "Cookie": "***"}


RANDOM = "Zt4hK9_mQ2vXcR8-wLpN"
AWKWARD = "Kq3-wörd'x\\y%41z_9\"Ab&c"
WRITTEN: dict[str, Callable[[str], str]] = {
    "JSON": lambda s: "".join(f"\\u{ord(c):04x}" for c in s),
    "JavaScript": lambda s: "".join(f"\\u{{{ord(c):04x}}}" for c in s),
    "URL": lambda s: "".join(f"%{byte:02X}" for byte in s.encode()),
    "URL, twice": lambda s: "".join(f"%25{byte:02x}" for byte in s.encode()),
    "Python": lambda s: "".join(f"\\x{byte:02x}" for byte in s.encode()),
    "C": lambda s: "".join(f"\\{byte:03o}" for byte in s.encode()),
    "HTML": lambda s: "".join(f"&#{ord(c)};" for c in s),
    "HTML, hex": lambda s: "".join(f"&#x{ord(c):x};" for c in s),
    "quoted-printable": lambda s: "".join(f"={byte:02X}" for byte in s.encode()),
    "partly escaped": lambda s: f"{s[:5]}\\u{ord(s[5]):04x}%{ord(s[6]):02x}{s[7:]}",
    "wrapped": lambda s: f"{s[:7]}\n    {s[7:]}",
    "continued": lambda s: f"{s[:7]}\\\n{s[7:]}",
    "wrapped in JSON": lambda s: json.dumps(f"{s[:7]}\n{s[7:]}"),
    "concatenated": lambda s: f"{s[:7]}' '{s[7:]}",
    "JSON, three times": lambda s: json.dumps(json.dumps(json.dumps(s))),
    "JSON in a URL": lambda s: quote(json.dumps({"a": s})),
    "shell": lambda s: "'" + s.replace("'", "'\\''") + "'",
    "base64": lambda s: base64.b64encode(f"user:{s} and more".encode()).decode(),
    "base64, wrapped": lambda s: "\n".join(textwrap.wrap(base64.b64encode(f"abcd{s}".encode()).decode(), 9)),
    "base64 of UTF-16": lambda s: base64.b64encode(s.encode("utf-16-le")).decode(),
    "base32": lambda s: base64.b32encode(f"ab{s}".encode()).decode(),
    "hex": lambda s: s.encode().hex(),
    "hex in groups": lambda s: s.encode().hex(" ", 2),
}


@pytest.mark.parametrize("secret", [RANDOM, AWKWARD])
@pytest.mark.parametrize("way", WRITTEN)
def test_a_known_secret_is_found_however_it_is_written(way: str, secret: str) -> None:
    written = WRITTEN[way](secret)
    redactor = Redactor([secret])
    redacted = redactor.text(f"before {written} after")
    assert redacted.startswith("before ")
    assert redacted.endswith(" after"), "more than the secret is gone"
    assert "***" in redacted
    left = redacted.removeprefix("before ").removesuffix(" after")
    pieces = {written[at : at + 12] for at in range(len(written) - 11)}
    if way not in ("JSON in a URL", "base64, wrapped"):  # these have more in them than the secret
        assert not [piece for piece in pieces if piece in left]
    assert not redactor.finds(redacted)


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be"])
def test_a_known_secret_is_found_in_utf_16_that_was_read_as_utf_8(charset: str) -> None:
    text = f"before {RANDOM} after".encode(charset).decode(errors="replace")
    assert Redactor([RANDOM]).text(text).replace("\0", "") == "before *** after"


SECRETS_OF_OURS = st.text("abcdefghijkmnopqrstuvwxyzABCXYZ0123456789-_", min_size=12, max_size=40)


@pytest.mark.slow
@given(
    SECRETS_OF_OURS, st.text(max_size=50), st.text(max_size=50), st.integers(1, 11), st.sampled_from(["", "\n", "'\n'"])
)
@settings(deadline=None)
def test_no_surroundings_hide_a_secret(secret: str, before: str, after: str, at: int, between: str) -> None:
    redacted = Redactor([secret]).text(f"{before} {secret[:at]}{between}{secret[at:]} {after}")
    assert secret not in re.sub("[\\s\"']", "", redacted)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_without_secrets_a_text_of_a_log_stays_readable(text: str) -> None:
    plain = re.sub(r"[^\w ]", "", text)
    assert Redactor([RANDOM]).text(plain) == plain


ADVERSARY = """
import random, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
from devstack.bundle.redact import Redactor
from devstack.masking import hide_url_passwords
units = [
    "a", "a.", "-", "eyJ", "eyJaaaaa-", "password", "password=", 'password="', "password='",
    'password=\\\\"', "password \\t",
    "://", "://a:", "//a:", "x://a:b@", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----END A", "SCRAM-SHA-256$",
    "sk-", "xoxb-", "cookie:", 'cookie: "', "authorization: '", 'authorization: a"', "password '", "password ''",
    " --token ", " --a", " -u ", " -u a:", "\\\\", "\\\\u0041", "%41", "%2541", "&#65;", "&#", "=41",
    '"', "'", "…", "a…", "AKIA", " ", "\\n", "\\0", "é", "AAAA", "A1+/", "password = \\n", "md5", "***",
]
redactor = Redactor(["Zt4hK9_mQ2vXcR8-wLpN", "canary-4711 pass'word%41"])
chance = random.Random(4711)
mixed = ["".join(chance.choices(units, k=chance.randint(2, 4))) for _ in range(150)]
for size, some in ((8_000, units + mixed), (80_000, units), (800_000, units[::12])):
    for unit in some:
        text = unit * (size // len(unit))
        redactor.text(text)
        hide_url_passwords(text)
print("done")
"""


@pytest.mark.slow
def test_no_text_makes_the_redactor_work_for_hours() -> None:
    """It takes 12 s of processor; where one pattern takes quadratic time, hours: the limit decides nothing else."""
    done = subprocess.run([sys.executable, "-c", ADVERSARY], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_rendered_file_that_somebody_made_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "pgbouncer.ini"
    file.touch()
    os.truncate(file, 10**12)  # sparse
    with pytest.raises(NotPlain, match="at most 1000000 are read"):
        parts._config(file)
