"""Logs: times as each service writes them, several services in one order, nothing that harms a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke import Context

from devstack.container import ContainerContext
from devstack.errors import UsageError
from devstack.host import Host
from devstack.logs import LONGEST, clean, follow, parse_since, recent, time_of
from devstack.paths import Paths
from devstack.runtimes.native import Native

UTC = timezone.utc
SECRET = "correct-horse-battery"


@pytest.fixture
def context(tmp_path: Path) -> ContainerContext:
    paths = Paths(root=tmp_path, state=tmp_path / "s", cache=tmp_path / "c", run=tmp_path / "r", log=tmp_path / "logs")
    paths.log.mkdir()
    made = ContainerContext(Context(), Native(paths, tmp_path, sys.executable, "", False), Host(), paths)
    made.hide(SECRET)
    return made


def write(context: ContainerContext, name: str, *lines: str) -> None:
    (context.paths.log / f"{name}.log").write_text("".join(line + "\n" for line in lines))


def shown(
    context: ContainerContext, names: list[str], *, tail: int = 100, since: datetime | None = None
) -> list[tuple[str, str]]:
    return [(line.service, line.text) for line in recent(context, names, tail=tail, since=since)]


# times


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-11-23 14:30:00.123 UTC [42] LOG:  ready", datetime(2026, 11, 23, 14, 30, 0, 123000, UTC)),
        ("2026-11-23 14:30:00.123 GMT [42] LOG:  ready", datetime(2026, 11, 23, 14, 30, 0, 123000, UTC)),
        ("2026-11-23 14:30:00.123 UTC [42] LOG process up", datetime(2026, 11, 23, 14, 30, 0, 123000, UTC)),
        (
            '{"time": "2026-11-23T14:30:00.123456+00:00", "level": "INFO"}',
            datetime(2026, 11, 23, 14, 30, 0, 123456, UTC),
        ),
        ('{"level":"INFO","ts":"2026-11-23T14:30:00Z"}', datetime(2026, 11, 23, 14, 30, tzinfo=UTC)),
        ("2026-11-23T16:30:00+02:00 x", datetime(2026, 11, 23, 14, 30, tzinfo=UTC)),
        ("2026-11-23T20:00:00.5+0530 x", datetime(2026, 11, 23, 14, 30, 0, 500000, UTC)),
        ("2026-11-23 11:30:00.000 -03 [42] LOG:  ready", datetime(2026, 11, 23, 14, 30, tzinfo=UTC)),
        ("2026-11-23T14:30:00.123456789Z", datetime(2026, 11, 23, 14, 30, 0, 123456, UTC)),
        ("2026-11-23 14:30:00,250 INFO supervisord started", datetime(2026, 11, 23, 14, 30, 0, 250000, UTC)),
        ("2026-11-23 14:30:00 without a zone", datetime(2026, 11, 23, 14, 30, tzinfo=UTC)),
        ("2026-02-30 14:30:00 no such day", None),
        ("2026-11-23 25:30:00 no such hour", None),
        ("Traceback (most recent call last):", None),
        ("", None),
        ("x" * 200 + " 2026-11-23 14:30:00 too far from the beginning", None),
    ],
)
def test_a_time_is_read_as_each_service_writes_it(text: str, when: datetime | None) -> None:
    assert time_of(text) == when


@given(
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2100, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_any_iso_time_is_read_as_python_reads_it(naive: datetime, minutes: int) -> None:
    when = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert time_of(f"{when.isoformat()} x") == when


# order


def test_lines_of_several_services_come_in_the_order_of_their_times(context: ContainerContext) -> None:
    write(context, "nv-db", "2026-11-23 10:00:00.100 UTC [1] db one", "2026-11-23 10:00:00.300 UTC [1] db two")
    write(context, "nv-pgbouncer", "2026-11-23 10:00:00.200 UTC [2] pgb one")
    write(context, "nv-api", '{"time": "2026-11-23T12:00:00.250+02:00", "message": "api one"}')
    assert [text.split()[-1] for _, text in shown(context, ["nv-api", "nv-db", "nv-pgbouncer"])] == [
        "one",
        "one",
        'one"}',
        "two",
    ]
    assert [name for name, _ in shown(context, ["nv-api", "nv-db", "nv-pgbouncer"])] == [
        "nv-db",
        "nv-pgbouncer",
        "nv-api",
        "nv-db",
    ]


def test_lines_without_a_time_stay_with_the_one_before(context: ContainerContext) -> None:
    write(
        context,
        "nv-api",
        "starting",
        "2026-11-23 10:00:00 ERROR",
        "Traceback (most recent call last):",
        "ValueError: x",
        "2026-11-23 10:00:02 fine",
    )
    write(context, "nv-db", "2026-11-23 10:00:01 UTC db")
    assert [text for _, text in shown(context, ["nv-db", "nv-api"])] == [
        "starting",
        "2026-11-23 10:00:00 ERROR",
        "Traceback (most recent call last):",
        "ValueError: x",
        "2026-11-23 10:00:01 UTC db",
        "2026-11-23 10:00:02 fine",
    ]


def test_since_leaves_out_what_is_older_with_the_lines_that_belong_to_it(context: ContainerContext) -> None:
    write(
        context,
        "nv-api",
        "2026-11-23 10:00:00 ERROR",
        "Traceback of the old one",
        "2026-11-23 10:00:02 ERROR",
        "Traceback of the new one",
    )
    since = datetime(2026, 11, 23, 10, 0, 2, tzinfo=UTC)
    assert [text for _, text in shown(context, ["nv-api"], since=since)] == [
        "2026-11-23 10:00:02 ERROR",
        "Traceback of the new one",
    ]


def test_the_last_lines_of_each_service_are_taken(context: ContainerContext) -> None:
    for name in ("nv-db", "nv-api"):
        write(context, name, *[f"2026-11-23 10:00:0{i} {name} {i}" for i in range(5)])
    last = shown(context, ["nv-db", "nv-api"], tail=1)
    assert last == [(name, f"2026-11-23 10:00:04 {name} 4") for name in ("nv-db", "nv-api")]
    assert shown(context, ["nv-db"], tail=0) == []


def test_a_log_s_last_line_without_an_end_is_shown(context: ContainerContext) -> None:
    (context.paths.log / "nv-db.log").write_bytes(b"one\ntwo")
    assert [text for _, text in shown(context, ["nv-db"])] == ["one", "two"]


def test_a_log_shows_no_secret(context: ContainerContext) -> None:
    write(context, "nv-api", f"login with {SECRET} at postgresql://nina:pw@localhost/nina")
    assert shown(context, ["nv-api"]) == [("nv-api", "login with *** at postgresql://nina:***@localhost/nina")]


# --since


NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("30s", NOW - timedelta(seconds=30)),
        ("10m", NOW - timedelta(minutes=10)),
        (" 2h ", NOW - timedelta(hours=2)),
        ("1d", NOW - timedelta(days=1)),
        ("0s", NOW),
        ("2026-11-23T14:30:00Z", datetime(2026, 11, 23, 14, 30, tzinfo=UTC)),
        ("2026-11-23 14:30+02:00", datetime(2026, 11, 23, 12, 30, tzinfo=UTC)),
        ("2026-11-23 14:30", datetime(2026, 11, 23, 14, 30).astimezone()),
        ("2026-11-23", datetime(2026, 11, 23).astimezone()),
        ("14:30", NOW.astimezone().replace(hour=14, minute=30, second=0, microsecond=0)),
        ("9:05:07", NOW.astimezone().replace(hour=9, minute=5, second=7, microsecond=0)),
    ],
)
def test_since_is_an_age_a_time_of_today_or_a_date(text: str, when: datetime) -> None:
    assert parse_since(text, NOW) == when


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "10", "10x", "-5m", "1.5h", "10 m", "m", "25:00", "14:61", "14:30:99", "14:30 yesterday"),
        *("2026-13-01", "2026-02-30 10:00", "9999999d", "999999999999999d", "0001-01-01"),
    ],
)
def test_what_is_no_time_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_since(text, NOW)
    assert raised.value.text() == (
        f"error: --since {text!r} is not a time\nfix:   write it as 30s, 10m, 2h, 1d, 14:30 or '2026-11-23 14:30'"
    )


# what reaches the terminal


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\r\n", "plain"),
        ("ü 日本 🏥 \N{COMBINING ACUTE ACCENT}\n".encode(), "ü 日本 🏥 \N{COMBINING ACUTE ACCENT}"),
        (b"\x1b[1;31mred\x1b[0m\n", "red"),
        (b"\x1b[2J\x1b[H\x1b[?25lcleared", "cleared"),
        (b"\x1bcreset", "reset"),
        (b"\x1b]0;title\x07text", "0;titletext"),
        (b"\x1b\x1b[31mx", "[31mx"),
        (b"a\x00b\x08c\x7fd\re", "abcde"),
        ("\u009b31mx\u0085y".encode(), "31mxy"),
        (b"tab\tstays", "tab\tstays"),
        (b"caf\xe9 \xff\n", "caf\ufffd \ufffd"),
        (b"\n", ""),
        (b"", ""),
    ],
)
def test_nothing_reaches_the_terminal_that_it_would_obey(raw: bytes, text: str) -> None:
    assert clean(raw) == text


@given(st.binary(max_size=300))
def test_whatever_a_service_writes_only_text_and_tabs_are_shown(raw: bytes) -> None:
    text = clean(raw.replace(b"\n", b""))
    assert not [c for c in text if (ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160]
    text.encode()


def test_a_long_line_is_cut_and_says_so() -> None:
    for text in (clean(b"x" * 10_000_000), clean("日".encode() * 1_000_000)):
        assert len(text) == LONGEST + len(" … (cut)")
        assert text.endswith(" … (cut)")
    assert clean(b"x" * LONGEST) == "x" * LONGEST


# follow


def test_following_shows_what_comes_and_leaves_no_process(context: ContainerContext) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    write(context, "nv-db", "old", "older")
    write(context, "nv-api", "api")
    lines: Iterator[object] = follow(context, ["nv-db", "nv-api"], tail=1)
    first = {(line.service, line.text) for line in (next(lines), next(lines))}  # type: ignore[attr-defined]
    assert first == {("nv-db", "older"), ("nv-api", "api")}
    with (context.paths.log / "nv-db.log").open("a") as log:
        log.write(f"new {SECRET}\n")
    assert next(lines).text == "new ***"  # type: ignore[attr-defined]
    lines.close()  # type: ignore[attr-defined]
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before
