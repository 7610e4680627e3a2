"""A host that is not what it should be: what it sends can be anything, of any size, without an end."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import pwd
import re
import struct
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devstack.data.manifest import Manifest, encode, load, path_of
from devstack.data.streams import directory_hash
from devstack.errors import StackError
from devstack.remote.backups import Exchange
from devstack.remote.check import Survey, _machine
from devstack.remote.project import Prepared, Synced
from devstack.remote.talk import Talk
from devstack.remote.terminal import Harmless, WithoutStrings
from tests.data.manifests import made_up

MADE = made_up(
    file="backup-1.dir",
    layout="directory",
    created="2026-11-29T12:00:00.000+00:00",
    bytes=100,
)


class Hostile(Talk):
    """A conversation in which the host sends whatever it wants."""

    def __init__(self, sent: Iterable[bytes]) -> None:
        self.link: Any = SimpleNamespace(host="evil", gone=lambda: False)
        self.sent = iter(sent)
        self.taken = 0
        self._rest = b""

    def receive(self, count: int, deadline: float = 0) -> bytes:
        if not self._rest:
            self._rest = next(self.sent, b"")
            self.taken += len(self._rest)
        part, self._rest = self._rest[:count], self._rest[count:]
        return part

    def complaints(self) -> list[str]:
        return []

    def send_bytes(self, content: bytes) -> None:
        pass


def framed(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


def answers(value: Any) -> bytes:
    return framed(json.dumps(value).encode())


def exchange(folder: Path) -> Exchange:
    (folder / "backups").mkdir(exist_ok=True)
    settings: Any = SimpleNamespace(
        root=folder,
        data=SimpleNamespace(dir=Path("backups")),
        stack=SimpleNamespace(env="dev", host="evil"),
        origin=lambda _: "",
    )
    remote: Any = SimpleNamespace(
        settings=settings, environ={}, folder="there", link=SimpleNamespace(host="evil", gone=lambda: False)
    )
    return Exchange(remote)


def tree(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b"x" if kind == tarfile.REGTYPE else b""


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("!I", 0xFFFFFFFF),
        framed(b"[" * 100_000),
        framed(b"[1, 2]"),
        framed(b"\xff"),
        framed(b'{"error": {"a": 1}, "fix": 3}'),
    ],
    ids=["long", "deep", "list", "bytes", "error"],
)
def test_an_answer_that_is_none_is_an_error_and_not_a_crash(sent: bytes) -> None:
    with pytest.raises(StackError):
        Hostile([sent]).answer()


SURVEY = {
    "system": "Debian",
    "machine": "x86_64",
    "python": ["3.12.1", "/usr/bin/python3"],
    "base": "/there",
    "home": "/home",
    "free": 1 << 40,
    "writable": True,
    "programs": {},
    "taken": [],
    "sent": "",
}
SYNCED = {"need": [], "removed": [], "base": "/there", "home": "/home"}


@pytest.mark.parametrize(
    ("kind", "answer", "changes"),
    [
        *((Synced, SYNCED, {name: value}) for name in SYNCED for value in (None, 1, {"a": 1}, [["a"]])),
        *((Survey, SURVEY, {name: value}) for name in SURVEY for value in (None, [1, [2]], {"a": 1})),
        (Survey, SURVEY, {"free": 10**400}),
        (Survey, SURVEY, {"free": float("inf")}),
        (Prepared, {"command": "/x"}, {"command": ["/x"]}),
        (Prepared, {}, {}),
        (Survey, {}, {}),
        (Synced, {}, {}),
    ],
)
def test_an_answer_of_another_kind_is_refused(kind: type[Any], answer: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(StackError, match="does not answer as expected"):
        Hostile([answers({**answer, **changes})]).answer_as(kind)


@pytest.mark.parametrize("version", ["", "3", "x.y", "3.x", "9" * 5000, "٣.١٢", "3.9.1", "2.7"])
def test_no_version_that_a_host_gives_ends_the_survey(version: str) -> None:
    found = Hostile([answers({**SURVEY, "python": [version, "/x"]})]).answer_as(Survey)
    assert [fact.ok for fact in _machine(found) if fact.name == "Python"] == [False]


def test_a_frame_is_not_read_into_memory_whatever_it_announces() -> None:
    talk = Hostile(itertools.chain([struct.pack("!I", 1 << 31)], itertools.repeat(bytes(1 << 16))))
    with pytest.raises(StackError) as raised:
        next(talk.stream())
    assert "announced 2147483648 bytes" in raised.value.why
    assert talk.taken < 1 << 20


def test_what_a_host_calls_an_error_is_shown_without_what_a_terminal_acts_on() -> None:
    talk = Hostile(
        [answers({"error": "\x1b]52;c;ZXZpbA==\x07no \x1b[31mroom\x1b[0m\x9b2J", "why": "\x1b[6n", "fix": ["\x1bc"]})]
    )
    with pytest.raises(StackError) as raised:
        talk.answer()
    assert raised.value.text().replace("\x1b[31m", "").replace("\x1b[0m", "").replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside")],
        [member("/tmp/nv-outside")],
        [member("a/../../outside")],
        [member("link", tarfile.SYMTYPE, "/etc"), member("link/passwd")],
        [member("link", tarfile.LNKTYPE, "../outside"), member("link")],
        [member("null", tarfile.CHRTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("twice"), member("twice")],
        [member("file"), member("file/below")],
        [member("x" * 300)],
    ],
    ids=lambda members: members[0][0].name[:20],
)
def test_a_folder_from_a_host_writes_nothing_outside_of_its_own(tmp_path: Path, members: list[Any]) -> None:
    (tmp_path / "outside").write_text("mine")
    sent = tree(*members)
    with pytest.raises(StackError, match="did not arrive whole"):
        exchange(tmp_path)._fetch(Hostile([answers({"here": True}), framed(sent), framed(b"")]), MADE)
    assert (tmp_path / "outside").read_text() == "mine"
    assert not Path("/tmp/nv-outside").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["backups", "outside"]


@pytest.mark.parametrize(
    "sent", [b"garbage" * 1000, b"", bytes(10_000), tree(member("a"))[:700]], ids=["text", "nothing", "zeros", "cut"]
)
def test_a_folder_that_is_no_archive_is_damage_and_not_a_crash(tmp_path: Path, sent: bytes) -> None:
    parts = [framed(sent)] if sent else []
    made = Manifest(**{**{f: getattr(MADE, f) for f in MADE.__struct_fields__}, "files": {"a": "0" * 64}})
    with pytest.raises(StackError, match="did not arrive whole"):
        exchange(tmp_path)._fetch(Hostile([answers({"here": True}), *parts, framed(b"")]), made)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_folder_as_it_should_be_arrives_with_long_names_and_times(tmp_path: Path) -> None:
    there = tmp_path / "there"
    name = "x" * 120
    (there / "below").mkdir(parents=True)
    (there / "below" / name).write_bytes(b"content" * 500_000)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(there, ".")
    digest = hashlib.sha256(b"content" * 500_000).hexdigest()
    listed = {f"below/{name}": digest}
    values = {**{f: getattr(MADE, f) for f in MADE.__struct_fields__}, "files": listed, "bytes": 3_500_000}
    made = Manifest(**{**values, "sha256": directory_hash(listed)})
    sent = out.getvalue()
    frames = [framed(sent[at : at + 10_240]) for at in range(0, len(sent), 10_240)]
    path = exchange(tmp_path)._fetch(Hostile([answers({"here": True}), *frames, framed(b"")]), made)
    assert (path / "below" / name).read_bytes() == b"content" * 500_000


def endless(first: bytes) -> Iterator[bytes]:
    return itertools.chain([answers({"here": True}), framed(first)], itertools.repeat(framed(bytes(1 << 18))))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"?"])
def test_a_header_without_an_end_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, 1 << 40
    talk = Hostile(endless(info.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(StackError, match="did not arrive whole"):
        exchange(tmp_path)._fetch(talk, MADE)
    assert talk.taken < 1 << 21


def test_files_without_an_end_are_not_written(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.size = 1 << 40
    with pytest.raises(StackError, match="more than it announced"):
        exchange(tmp_path)._fetch(Hostile(endless(info.tobuf(tarfile.GNU_FORMAT))), MADE)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_dump_without_an_end_is_not_written(tmp_path: Path) -> None:
    made = Manifest(**{**{f: getattr(MADE, f) for f in MADE.__struct_fields__}, "layout": "sql"})
    talk = Hostile(endless(b"x" * 101))
    with pytest.raises(StackError) as raised:
        exchange(tmp_path)._fetch(talk, made)
    assert raised.value.why.startswith("the host sends more than the ")
    assert talk.taken < 1 << 20


def test_a_backup_that_does_not_fit_is_not_fetched(tmp_path: Path) -> None:
    made = Manifest(**{**{f: getattr(MADE, f) for f in MADE.__struct_fields__}, "bytes": 1 << 60})
    with pytest.raises(StackError, match="does not fit"):
        exchange(tmp_path)._fetch(Hostile([]), made)


def test_a_manifest_without_an_end_is_not_read(tmp_path: Path) -> None:
    talk = Hostile(endless(b"{"))
    with pytest.raises(StackError, match="is too long"):
        exchange(tmp_path)._manifest(talk, "backup-1.sql.gz")
    assert talk.taken < 1 << 27


@pytest.mark.parametrize("name", ["..", ".", "", ".hidden", "-rf", "a\nb", "a\x1b[2Jb", "a\0b"])
def test_a_name_of_a_backup_is_a_plain_one(tmp_path: Path, name: str) -> None:
    listed = {f"backups/{one}": [1, 1] for one in (name, f"{name}.json", "good", "good.json")}
    assert exchange(tmp_path)._names(Hostile([answers({"files": listed})])) == {"good"}


# what is printed on a terminal


def shown(*parts: bytes) -> bytes:
    harmless = Harmless()
    return b"".join(map(harmless, parts))


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        (b"\x1b[1;32mgood\x1b[0m\r\n", b"\x1b[1;32mgood\x1b[0m\r\n"),
        (b"\x1b[?1049h\x1b[H\x1b[Kx\x1b[J\x1b[2A", b"\x1b[?1049h\x1b[H\x1b[Kx\x1b[J\x1b[2A"),
        (b"\x1b]0;title\x07x", b"]0;titlex"),
        (b"\x1b]52;c;ZXZpbA==\x1b\\x", b"]52;c;ZXZpbA==\\x"),
        (b"\x1b[6n\x1b[c\x1b[21t\x1b[?2004hx", b"x"),
        (b"\x1bP$q\x1b\\\x1bcx", b"P$q\\cx"),
        (b"\xc2\x9b6n\xc2\x9d0;t\x07\x9bx", "6n0;t\ufffdx".encode()),
        ("ü✅".encode(), "ü✅".encode()),
    ],
)
def test_of_what_a_host_prints_a_terminal_acts_on_colours_and_displays_alone(sent: bytes, left: bytes) -> None:
    assert shown(sent) == left
    assert shown(*(bytes([byte]) for byte in sent)) == left, "in pieces"


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\x1b", b"[", b"]", b"6", b"n", b"\x1b[", b"\xc2", b"\x9b"])))
def test_no_way_to_cut_it_lets_anything_else_through(parts: list[bytes]) -> None:
    left = Harmless.KEPT.sub("", shown(*parts).decode())
    assert not [c for c in left if c < " " or "\x7f" <= c < "\xa0"]


PAGER = b"\x1b[?1049h\x1b[?1h\x1b=\x1b[3;5H\x1b[7mx\x1b[27m\x1b7\x1b8"
STRINGS = [
    (PAGER, PAGER),
    (b"\x1b]52;c;ZXZpbA==\x07x", b"52;c;ZXZpbA==\x07x"),
    (b"\x1bP$q\x1b\\x", b"$q\x1b\\x"),
    (b"\x1b\x1b]\x1b]0;t", b"0;t"),
    (b"\x1b\xc2\x9d]0;t", b"0;t"),
    (b"\xc2\x9d52;c;x", b"52;c;x"),
    (b"\x1bktitle\x1b\\", b"title\x1b\\"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "left"), STRINGS)
def test_a_program_with_the_whole_terminal_has_no_text_for_the_terminal_itself(sent: bytes, left: bytes) -> None:
    assert WithoutStrings()(sent) == left
    harmless = WithoutStrings()
    assert b"".join(harmless(bytes([byte])) for byte in sent) == left, "in pieces"


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\x1b", b"]", b"P", b"\x1b]", b"\xc2", b"\x9d"])))
def test_no_way_to_cut_it_lets_a_text_for_the_terminal_through(parts: list[bytes]) -> None:
    harmless = WithoutStrings()
    left = b"".join(map(harmless, parts)).decode()
    assert not re.search("\x1b[\\]P_^Xk]|[\x90\x98\x9d-\x9f]", left)


def test_a_few_bytes_do_not_become_gigabytes(tmp_path: Path) -> None:
    out = io.BytesIO()
    info = tarfile.TarInfo("toc.dat")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "toc.dat",
        "GNU.sparse.realsize": str(2 << 30),
    }
    info.size = 512
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"0\n".ljust(512, b"\0")))
    sent = [answers({"here": True}), framed(out.getvalue()), framed(b"")]
    made = msgspec.structs.replace(MADE, files={"toc.dat": "0" * 64})
    with pytest.raises(StackError) as caught:
        exchange(tmp_path)._fetch(Hostile(sent), made)
    assert "can't be part of a backup" in caught.value.text()
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_host_changes_no_signature_but_of_what_was_brought_from_it(tmp_path: Path) -> None:
    one = exchange(tmp_path)
    forged = msgspec.structs.replace(MADE, signature="0" * 64)
    for origin, changed in (("", False), ("other", False), ("evil", True)):
        mine = made_up(file="backup-1.sql.gz", signature="1" * 64, fetched_from=origin)
        path = one.folder / mine.file
        path.touch()
        path_of(path).write_bytes(encode(mine))
        one._note_proof(mine.file, forged)
        assert load(path_of(path)).signature == ("0" if changed else "1") * 64


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as two users")
def test_a_backup_is_not_brought_into_a_folder_of_somebody_else(tmp_path: Path) -> None:
    one = exchange(tmp_path)
    os.chown(one.folder, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(StackError, match="backups can't be kept in"):
        one._fetch(Hostile([]), MADE)
    assert list(one.folder.iterdir()) == []


def test_a_link_in_the_place_of_a_note_is_not_followed(tmp_path: Path) -> None:
    one = exchange(tmp_path)
    backup = one.folder / MADE.file
    backup.mkdir()
    path_of(backup).write_bytes(encode(msgspec.structs.replace(MADE, fetched_from="evil")))
    (tmp_path / "victim").write_text("as it was")
    (one.folder / f".{MADE.file}.json.new").symlink_to(tmp_path / "victim")
    one._note_proof(MADE.file, msgspec.structs.replace(MADE, signature="anew"))
    assert (tmp_path / "victim").read_text() == "as it was"
    assert load(path_of(backup)).signature == "anew"
    assert not path_of(backup).is_symlink()
