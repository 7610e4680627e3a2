"""What a container sends: nothing but files and folders, and those below the folder that they are for."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from devstack.errors import StackError
from devstack.services.passage import LONGEST_HEADER, _receive


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return io.BytesIO(out.getvalue())


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_files_and_folders_arrive_readable_by_their_owner_alone(tmp_path: Path) -> None:
    folder = member("./base", type=tarfile.DIRTYPE, mode=0o777)
    _receive(
        archive((folder, b""), (member("./base/1", mode=0o666), b"rows"), (member("./deep/er", mode=0), b"")), tmp_path
    )
    assert {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")} == {
        "base": 0o700,
        "base/1": 0o600,
        "deep": 0o700,
        "deep/er": 0o600,
    }
    assert (tmp_path / "base/1").read_bytes() == b"rows"


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "GNU.sparse.realsize": str(2 << 30)}


@pytest.mark.parametrize(
    "info",
    [
        member("OUTSIDE/x"),
        member("../x"),
        member("base/../../x"),
        member("x", type=tarfile.SYMTYPE, linkname="OUTSIDE"),
        member("x", type=tarfile.LNKTYPE, linkname="OUTSIDE/there"),
        member("x", type=tarfile.FIFOTYPE),
        member("x", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("x", pax_headers=SPARSE),
        member("x", pax_headers={"comment": "x" * (LONGEST_HEADER + 1)}),
    ],
)
def test_what_the_account_inside_could_send_lands_nowhere_else(tmp_path: Path, info: tarfile.TarInfo) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "there").write_text("as it was")
    info.name, info.linkname = (text.replace("OUTSIDE", str(outside)) for text in (info.name, info.linkname))
    content = b"0\n".ljust(512, b"\0") if info.isreg() else b""
    with pytest.raises(StackError, match="the container sent"):
        _receive(archive((info, content)), inside)
    assert [p.name for p in outside.iterdir()] == ["there"]
    assert (outside / "there").read_text() == "as it was"
    assert not (tmp_path / "x").exists()
    assert list(inside.iterdir()) == []


def test_a_name_that_came_before_is_not_written_to_again(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        _receive(archive((member("x"), b"one"), (member("x"), b"two")), tmp_path)
    assert (tmp_path / "x").read_bytes() == b"one"
