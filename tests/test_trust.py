"""Whose project files are obeyed: ours and root's, nobody else's until the user says so."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from invoke import Config, Context

from devstack import trust
from devstack.adoption import writing
from devstack.adoption.findings import Findings
from devstack.adoption.survey import Survey
from devstack.errors import UsageError
from tasks import adoption
from tasks.runstate import RunState, StackConfig
from tests.conftest import ROOT, Project

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as two users")
NV = "from tasks.program import main; main()"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project that is ours, in a directory that every user may enter."""
    root = tmp_path / "project"
    (root / "templates/sub").mkdir(parents=True)
    for name in ("invoke.yaml", ".env", "templates/pg_hba.conf", "templates/sub/db.sh"):
        (root / name).write_text("")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def objection(root: Path, **environ: str) -> str:
    """Return why a project is refused; empty if it is obeyed."""
    try:
        trust.check(root, {"HOME": "/nonexistent", **environ})
    except UsageError as error:
        return error.text()
    return ""


def allow(home: Path, root: Path) -> Path:
    path = home / ".config" / trust.ALLOWED
    path.parent.mkdir(parents=True)
    path.write_text(f"/somewhere/else\n{root}\n")
    path.chmod(0o644)
    return path


PARTS = [".", "invoke.yaml", ".env", "templates", "templates/pg_hba.conf", "templates/sub", "templates/sub/db.sh"]


def test_our_own_project_is_obeyed(place: Path) -> None:
    assert objection(place) == ""


@pytest.mark.parametrize("part", PARTS)
def test_what_everybody_may_write_is_refused(place: Path, part: str) -> None:
    (place / part).chmod(0o777)
    assert f"{place / part} is writable by everybody" in objection(place)
    (place / part).chmod(0o1777)  # sticky, as /tmp: whoever is first makes the file
    assert "is writable by everybody" in objection(place)


@as_root
@pytest.mark.parametrize("part", PARTS)
def test_what_belongs_to_another_user_is_refused(place: Path, part: str) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(place / part, nobody, -1)
    text = objection(place)
    assert f"the project in {place} is not trusted" in text
    assert f"{place / part} belongs to nobody" in text
    assert f"printf '%s\\n' {place} >>/nonexistent/.config/nv-devstack/trusted" in text
    assert objection(place, SUDO_UID=str(nobody)) == "", "who called sudo is obeyed"
    assert objection(place, SUDO_UID="1") != ""


@as_root
@pytest.mark.parametrize("hidden", ["\x1b[J", "\x1b[0m", "\x1b", "\r", "\t", "\n", "\x07", "\x9b", "\u202e", "\u2028"])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_no_command_to_paste_acts_on_another_path(tmp_path: Path, hidden: str, shell: str) -> None:
    """Without what a terminal does not show, the way to the project would lead to somewhere else."""
    victim = tmp_path / "etc"
    victim.mkdir()
    victim.chmod(0o777)
    place = tmp_path / f"h/.{hidden}./.{hidden}./etc"
    place.mkdir(parents=True)
    os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
    text = objection(place, HOME=str(tmp_path))
    assert re.fullmatch(r"error: the project in .*\ncause: .*\nfix:   if .*\n {7}or take it over: .*", text)
    before = sorted(tmp_path.rglob("*"))
    for begin in ("mkdir -p", "chown -R"):
        # as it is pasted: with, and without, what stands for the characters that are not shown
        for shown in (text, re.sub("[\ufffd\t]", "", text)):
            command = shown[shown.index(begin) :].split("\n")[0]
            done = subprocess.run([shell, "-c", command], cwd=tmp_path, capture_output=True, check=False)
            assert done.returncode, command
    assert victim.stat().st_mode & 0o777 == 0o777
    assert sorted(tmp_path.rglob("*")) == before


@as_root
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_command_that_allows_a_project_allows_no_other(tmp_path: Path, shell: str) -> None:
    place = tmp_path / "it's \\n\\0057srv $(id) `id` %s"
    place.mkdir()
    os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
    text = objection(place, HOME=str(tmp_path))
    command = text[text.index("mkdir -p") :].split("\n")[0]
    subprocess.run([shell, "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / ".config/nv-devstack/trusted").read_text() == f"{place}\n"
    assert objection(place, HOME=str(tmp_path)) == ""


@as_root
def test_a_file_that_a_group_of_others_may_write_is_refused_and_one_of_the_owner_s_own_group_is_not(
    place: Path,
) -> None:
    file = place / "invoke.yaml"
    file.chmod(0o664)
    private, shared = grp.getgrgid(0), next(g for g in grp.getgrall() if g.gr_name not in ("root", "nogroup"))
    os.chown(file, 0, shared.gr_gid)
    assert f"is writable by the group {shared.gr_name}" in objection(place)
    others = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == 0} | set(private.gr_mem)
    os.chown(file, 0, 0)
    assert (objection(place) == "") == (others <= {"root"})


@as_root
def test_a_link_is_judged_with_what_it_leads_to(place: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "invoke.yaml").write_text("")
    (place / "invoke.yaml").unlink()
    (place / "invoke.yaml").symlink_to(theirs / "invoke.yaml")
    assert objection(place) == ""
    theirs.chmod(0o777)
    assert "writable by everybody" in objection(place), "it could be exchanged"
    theirs.chmod(0o755)
    os.chown(theirs / "invoke.yaml", pwd.getpwnam("nobody").pw_uid, -1)
    assert "belongs to nobody" in objection(place)
    (theirs / "invoke.yaml").unlink()
    (theirs / "invoke.yaml").write_text("")
    os.chown(place / "invoke.yaml", pwd.getpwnam("nobody").pw_uid, -1, follow_symlinks=False)
    assert "belongs to nobody" in objection(place)


def chain(first: Path, folder: Path, target: Path) -> Path:
    """Have a link of ours lead to one of nobody, in a directory of nobody, which leads to a file of ours."""
    nobody = pwd.getpwnam("nobody").pw_uid
    folder.mkdir()
    (folder / "link").symlink_to(target)
    os.chown(folder / "link", nobody, -1, follow_symlinks=False)
    os.chown(folder, nobody, -1)
    first.unlink(missing_ok=True)
    first.symlink_to(folder / "link")
    return folder / "link"


@as_root
@pytest.mark.parametrize("part", ["invoke.yaml", ".env", "templates/pg_hba.conf", "templates/sub/db.sh"])
def test_each_link_of_a_chain_is_judged(place: Path, tmp_path: Path, part: str) -> None:
    (tmp_path / "target").write_text("")
    link = chain(place / part, tmp_path / "nobody", tmp_path / "target")
    assert f"{link} is a link that belongs to nobody" in objection(place)
    os.chown(link, 0, -1, follow_symlinks=False)
    assert f"{link} is a link, and {link.parent} belongs to nobody" in objection(place)
    link.parent.chmod(0o1777)
    assert "belongs to nobody" in objection(place), "the owner of a sticky directory may replace what is in it"
    os.chown(link.parent, 0, -1)
    assert objection(place) == ""
    link.parent.chmod(0o777)
    assert "is writable by everybody" in objection(place)


@as_root
def test_a_directory_that_a_link_in_the_templates_leads_to_is_judged_with_all_in_it(
    place: Path, tmp_path: Path
) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    shared = tmp_path / "shared"
    (shared / "deeper").mkdir(parents=True)
    (shared / "deeper/db.sh").write_text("")
    (place / "templates/containers").symlink_to(shared)
    assert objection(place) == ""
    for path in (shared / "deeper/db.sh", shared / "deeper", shared):
        os.chown(path, nobody, -1)
        assert f"containers{str(path).removeprefix(str(shared))} belongs to nobody" in objection(place)
        os.chown(path, 0, -1)
    shared.chmod(0o777)
    assert "is writable by everybody" in objection(place)
    shared.chmod(0o755)
    (shared / "deeper/more").symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    assert objection(place) == ""
    os.chown(tmp_path / "theirs", nobody, -1)
    assert "more belongs to nobody" in objection(place)


@pytest.mark.usefixtures("alarm")
def test_links_that_lead_back_keep_nobody_busy(place: Path) -> None:
    templates = place / "templates"
    (templates / "itself").symlink_to("itself")
    (templates / "one").symlink_to("two")
    (templates / "two").symlink_to("one")
    assert "there are more than 40 links on the way to it" in objection(place)
    for name in ("itself", "one", "two"):
        (templates / name).unlink()
    for number in range(12):  # each directory would be in all the others
        (templates / f"back{number}").symlink_to(("..", ".", "sub")[number % 3])
        (templates / f"sub/back{number}").symlink_to("..")
    assert objection(place) == ""
    (templates / "sub/db.sh").chmod(0o777)
    assert "db.sh is writable by everybody" in objection(place)


@pytest.mark.usefixtures("alarm")
def test_templates_that_are_too_deep_or_too_many_are_refused(place: Path, tmp_path: Path) -> None:
    templates = place / "templates"
    deep = templates.joinpath("sub", *"x" * (trust.MAX_LEVELS - 1))
    deep.mkdir(parents=True)
    assert objection(place) == ""
    (deep / "x").mkdir()
    assert f"{deep / 'x'} is more than {trust.MAX_LEVELS} directories deep" in objection(place)
    shutil.rmtree(templates / "sub/x")
    many = tmp_path / "many"
    many.mkdir()
    (templates / "many").symlink_to(many)
    assert objection(place) == ""
    for number in range(trust.MAX_DIRECTORIES):
        (many / str(number)).mkdir()
    assert f"{templates} has more than {trust.MAX_DIRECTORIES} directories in it" in objection(place)
    home = tmp_path / "home"
    allow(home, place)
    assert objection(place, HOME=str(home)) == ""


@as_root
def test_a_project_that_a_link_of_another_account_leads_to_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(place)
    assert objection(tmp_path / "way") == ""
    os.chown(tmp_path / "way", pwd.getpwnam("nobody").pw_uid, -1, follow_symlinks=False)
    assert f"{tmp_path / 'way'} belongs to nobody" in objection(tmp_path / "way")


@as_root
def test_where_a_link_leads_is_judged_up_to_the_top(place: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs/ours").mkdir(parents=True)
    (tmp_path / "theirs/ours/invoke.yaml").write_text("")
    (place / "invoke.yaml").unlink()
    (place / "invoke.yaml").symlink_to(tmp_path / "theirs/ours/invoke.yaml")
    assert objection(place) == ""
    os.chown(tmp_path / "theirs", pwd.getpwnam("nobody").pw_uid, -1)
    assert f"{tmp_path / 'theirs'} belongs to nobody" in objection(place), "who could rename what is in it"


def test_a_link_within_the_project_is_followed(place: Path, tmp_path: Path) -> None:
    (place / "invoke.yaml").rename(place / "dev.yaml")
    (place / "invoke.yaml").symlink_to("dev.yaml")
    (tmp_path / "way").symlink_to(place)
    assert objection(place) == objection(tmp_path / "way") == ""
    (place / "invoke.yaml").unlink()
    (place / "invoke.yaml").symlink_to("invoke.yaml")
    assert "there are more than 40 links" in objection(place)


@as_root
def test_settings_that_are_exchanged_after_they_were_judged_were_never_loaded(place: Path, tmp_path: Path) -> None:
    state = RunState({}, place)
    (tmp_path / "target").write_text("")
    link = chain(place / "invoke.yaml", tmp_path / "nobody", tmp_path / "target")
    loaded: list[bool] = []
    state.load_project(Config(), lambda: loaded.append(True))
    (place / "invoke.yaml").unlink()
    (place / "invoke.yaml").write_text("")
    assert state.distrust() is None
    problem = state.untrusted
    assert problem is not None
    assert f"{link} is a link that belongs to nobody" in problem.why
    assert loaded == []
    state.load_project(Config(), lambda: loaded.append(True))
    assert loaded == [True]
    assert state.untrusted is None


@as_root
def test_no_hook_is_run_that_a_link_of_another_account_led_to(project: Project, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"hooks: {{pre_up: ['touch {canary}']}}\n")
    link = chain(project.root / "invoke.yaml", tmp_path / "nobody", evil)
    said = project.process("dev.up", expect=2).stderr
    assert f"{link} is a link that belongs to nobody" in said
    assert not canary.exists()
    assert project.inv("--list").returncode == 0


def test_a_project_on_the_user_s_own_list_is_obeyed(place: Path, tmp_path: Path) -> None:
    place.chmod(0o777)
    home = tmp_path / "home"
    listed = allow(home, place)
    assert objection(place, HOME=str(home)) == ""
    assert objection(place, HOME=str(home), XDG_CONFIG_HOME=str(tmp_path / "other")) != ""
    listed.chmod(0o666)
    assert "is writable by everybody" in objection(place, HOME=str(home)), "a list that others may write is none"
    listed.chmod(0o644)
    listed.write_text(f"{place.parent}\n")
    assert objection(place, HOME=str(home)) != "", "what is below a listed directory is not listed"


@pytest.fixture
def planted(workspace: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A directory of everybody's, where another user has put a project that runs commands of his; and the canary."""
    if os.getuid() != 0:
        pytest.skip("needs root, to act as two users")
    root, canary = workspace / f"planted-{tmp_path.name}", tmp_path / "canary"
    (root / "deep/down").mkdir(parents=True)
    evil = root / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {canary}\n")
    evil.chmod(0o755)
    (root / "invoke.yaml").write_text(
        f"run: {{shell: {evil}}}\ndb: {{bin_dir: {root}}}\npgb: {{binary: {evil}}}\n"
        f"stack: {{runtime: native, state_dir: {root}/state}}\nhooks: {{pre_up: ['touch {canary}']}}\n"
    )
    for name in ("postgres", "initdb", "psql", "pg_dump", "pg_restore"):
        (root / name).symlink_to(evil)
    nobody = pwd.getpwnam("nobody")
    for path in (root, *root.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    yield root, canary
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.mark.parametrize(
    "words", [["dev.up"], ["dev.status"], ["system-info"], ["dev.env"], ["--dry", "dev.up"], ["dev.init"]]
)
def test_nv_obeys_no_project_of_another_user_in_a_directory_above(planted: tuple[Path, Path], words: list[str]) -> None:
    root, canary = planted
    done = subprocess.run(
        [sys.executable, "-c", NV, *words],
        cwd=root / "deep/down",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"the project in {root} is not trusted" in done.stderr
    assert f"{root} belongs to nobody" in done.stderr
    assert not canary.exists()
    assert not (root / "state").exists()


# dev.init, which writes into a project


Init = Callable[..., str]


@pytest.fixture
def init(capsys: pytest.CaptureFixture[str]) -> Init:
    """Run dev.init in this process, so that a test can do what another user does meanwhile."""

    def run(folder: Path, *, force: bool = False, dry: bool = False) -> str:
        config = StackConfig(overrides={"run": {"dry": dry}})
        adoption.init(Context(config), str(folder), app="", force=force, as_json=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory of ours that another user would like to have changed, as /etc."""
    path = tmp_path / "elsewhere"
    path.mkdir(mode=0o755)
    (path / "invoke.yaml").write_text("ours")
    return path


@pytest.fixture
def adopted(tmp_path: Path) -> Path:
    """A project of ours without settings, in a directory where another user can rename it."""
    root = tmp_path / "others/project"
    root.mkdir(parents=True, mode=0o755)
    (root / "main.py").write_text("from fastapi import FastAPI\napp = FastAPI()\n")
    return root


def exchange(root: Path, elsewhere: Path) -> Path:
    """Do what the owner of the directory above can do; return where the project is then."""
    moved = root.with_name("moved")
    root.rename(moved)
    root.symlink_to(elsewhere)
    return moved


def test_settings_are_written_once_and_anew_if_so_wished(adopted: Path, init: Init) -> None:
    assert "app: main:app" in init(adopted, dry=True)
    assert not (adopted / "invoke.yaml").exists()
    init(adopted)
    (adopted / "invoke.yaml").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        init(adopted)
    assert (adopted / "invoke.yaml").read_text() == "mine"
    init(adopted, force=True)
    assert "app: main:app" in (adopted / "invoke.yaml").read_text()
    assert stat.S_IMODE((adopted / "invoke.yaml").stat().st_mode) == 0o644


@pytest.mark.parametrize("force", [False, True])
def test_a_project_that_is_exchanged_while_it_is_read_is_not_written(
    adopted: Path, elsewhere: Path, init: Init, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    read = Survey.findings

    def findings(survey: Survey) -> Findings:
        found = read(survey)
        exchange(adopted, elsewhere)
        return found

    monkeypatch.setattr(Survey, "findings", findings)
    with pytest.raises(UsageError, match="is another directory than at first"):
        init(adopted, force=force)
    assert (elsewhere / "invoke.yaml").read_text() == "ours"
    assert not (adopted.with_name("moved") / "invoke.yaml").exists()


@pytest.mark.parametrize("force", [False, True])
def test_settings_are_written_into_the_directory_that_was_judged(
    adopted: Path, elsewhere: Path, init: Init, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    check = writing.Project.check_same

    def check_same(project: writing.Project) -> None:
        check(project)
        exchange(adopted, elsewhere)

    monkeypatch.setattr(writing.Project, "check_same", check_same)
    init(adopted, force=force)
    assert (elsewhere / "invoke.yaml").read_text() == "ours"
    assert (adopted.with_name("moved") / "invoke.yaml").exists()


@pytest.mark.parametrize("name", ["project", "others"])
def test_a_link_that_is_put_on_the_way_before_the_project_is_opened_is_not_followed(
    adopted: Path, elsewhere: Path, init: Init, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    way = trust.check_way
    (elsewhere / "project").mkdir()

    def check_way(*given: Any) -> None:
        way(*given)
        exchange(adopted if name == "project" else adopted.parent, elsewhere)

    monkeypatch.setattr(trust, "check_way", check_way)
    with pytest.raises(UsageError, match="is another directory than at first"):
        init(adopted, force=True)
    assert (elsewhere / "invoke.yaml").read_text() == "ours"
    assert list((elsewhere / "project").iterdir()) == []


def test_a_file_that_appears_while_the_project_is_read_is_not_replaced(
    adopted: Path, init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.Project, "check_same", lambda project: project.file.write_text("theirs"))
    with pytest.raises(UsageError, match="is there already"):
        init(adopted)
    assert [path.name for path in adopted.iterdir()] == ["main.py", "invoke.yaml"]
    assert (adopted / "invoke.yaml").read_text() == "theirs"


def test_a_file_system_without_hard_links_replaces_nothing_either(
    adopted: Path, init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    init(adopted)
    written = (adopted / "invoke.yaml").read_text()
    assert "app: main:app" in written
    monkeypatch.setattr(writing.Project, "check_free", lambda project, *, force: None)
    with pytest.raises(UsageError, match="is there already"):
        init(adopted)
    assert (adopted / "invoke.yaml").read_text() == written
    assert sorted(path.name for path in adopted.iterdir()) == ["invoke.yaml", "main.py"]


def test_a_link_in_the_place_of_the_settings_is_replaced_itself(adopted: Path, elsewhere: Path, init: Init) -> None:
    (adopted / "invoke.yaml").symlink_to(elsewhere / "other.yaml")
    with pytest.raises(UsageError, match="is there already"):
        init(adopted)
    init(adopted, force=True)
    assert not (elsewhere / "other.yaml").exists()
    assert not (adopted / "invoke.yaml").is_symlink()


@as_root
@pytest.mark.parametrize("dry", [False, True])
def test_a_project_of_another_user_without_settings_is_refused_until_it_is_allowed(
    adopted: Path, init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    os.chown(adopted, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(UsageError, match="is not trusted") as caught:
        init(adopted, dry=dry)
    assert f"{adopted} belongs to nobody" in caught.value.text()
    assert not (adopted / "invoke.yaml").exists()
    allow(tmp_path / "home", adopted)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    init(adopted, dry=dry)
    assert (adopted / "invoke.yaml").exists() != dry


@as_root
def test_a_project_is_judged_by_the_directory_that_is_open(
    adopted: Path, elsewhere: Path, init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(adopted, pwd.getpwnam("nobody").pw_uid, -1)
    check = trust.check

    def exchanged(*given: Any, **flags: Any) -> None:
        exchange(adopted, elsewhere)
        check(*given, **flags)

    monkeypatch.setattr(trust, "check", exchanged)
    with pytest.raises(UsageError, match="is not trusted"):
        init(adopted)


@as_root
@pytest.mark.parametrize("target", ["elsewhere", "../elsewhere", "second"])
def test_a_link_of_another_user_leads_to_no_project(tmp_path: Path, elsewhere: Path, init: Init, target: str) -> None:
    others = tmp_path / "others"
    others.mkdir()
    link = others / "link"
    link.symlink_to({"elsewhere": elsewhere, "second": others / "second"}.get(target, Path(target)))
    (others / "second").symlink_to(elsewhere)
    theirs = others / "second" if target == "second" else link
    os.chown(theirs, pwd.getpwnam("nobody").pw_uid, -1, follow_symlinks=False)
    with pytest.raises(UsageError, match="is not trusted") as caught:
        init(link, force=True)
    assert "is a link that belongs to nobody" in caught.value.why
    assert (elsewhere / "invoke.yaml").read_text() == "ours"


def test_our_own_link_leads_to_a_project(adopted: Path, init: Init, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(adopted.parent)
    init(tmp_path / "link/../others/project")
    assert (adopted / "invoke.yaml").exists()


def test_a_link_that_is_replaced_by_a_directory_leads_to_no_project(adopted: Path, elsewhere: Path) -> None:
    with pytest.raises(UsageError, match="is not trusted") as caught:
        trust.check_way(adopted, elsewhere, {})
    assert caught.value.why == f"{adopted} led there, and leads to {adopted} by now"


def test_the_help_of_nv_is_there_beside_a_project_that_is_not_trusted(planted: tuple[Path, Path]) -> None:
    root, canary = planted
    for words in (["--list"], ["--help", "dev.up"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", NV, *words],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert not canary.exists()


@as_root
def test_inv_refuses_settings_that_others_may_write_and_goes_on_once_they_are_allowed(
    project: Project, tmp_path: Path
) -> None:
    (project.root / "invoke.yaml").chmod(0o666)
    refused = project.process("dev.status", expect=2, HOME=str(tmp_path))
    assert f"{project.root / 'invoke.yaml'} is writable by everybody" in refused.stderr
    assert project.inv("--list").returncode == 0
    fix = next(line for line in refused.stderr.splitlines() if "mkdir -p" in line).partition("run: ")[2]
    subprocess.run(["sh", "-c", fix], check=True)
    assert project.process("dev.status", expect=1, HOME=str(tmp_path)).stderr == ""


@pytest.mark.slow
def test_nothing_is_imported_from_the_caller_s_directory(stack: Project, tmp_path: Path) -> None:
    """A module of that name in a repository, or of another account in a directory below the project."""
    stack.have_program()
    there = stack.root / "sub"
    there.mkdir()
    for name in ("supervisor", "devstack", "psutil"):
        (there / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'w')\n")
    stack.inv("dev.down")
    done = subprocess.run(
        [Path(sys.executable).with_name("inv"), "dev.up"], cwd=there, env=stack.env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(there)


@pytest.fixture
def strange(workspace: Path) -> Iterator[Path]:
    """A project of root's in which directories belong to somebody else."""
    place = Path(tempfile.mkdtemp(dir=workspace))
    place.chmod(0o755)
    root = place / "project"
    root.mkdir()
    shutil.copy(ROOT / "invoke.yaml", root)
    yield root
    shutil.rmtree(place)


def nv(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a project, with a state of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "INVOKE_STACK_STATE_DIR": str(root.parent / "state")}
    return subprocess.run(
        [sys.executable, "-c", NV, *words],
        cwd=root,
        env={**env, "INVOKE_STACK_RUNTIME": "native", "HOME": str(root.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def theirs(path: Path) -> Path:
    path.mkdir(parents=True)
    os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    return path


@as_root
def test_no_script_of_the_project_is_run_to_name_a_package(strange: Path) -> None:
    canary = strange.parent / "canary"
    script = theirs(strange / "scripts") / "bootstrap.sh"
    script.write_text(f"#!/bin/sh\nid >{canary}\n")
    script.chmod(0o755)
    for task in ("system-info", "dev.bundle"):
        nv(strange, task)
        assert not canary.exists(), task


@as_root
@pytest.mark.parametrize("words", ["db.logs", "dev.logs", "dev.status", "dev.bundle", "health", "db.stop", "dev.list"])
def test_no_command_reads_or_writes_logs_where_somebody_else_has_a_say(strange: Path, words: str) -> None:
    secret = strange.parent / "secret"
    secret.write_text("of root alone")
    logs = theirs(strange / "logs")
    for name in ("nv-db.log", "supervisord.log"):
        (logs / name).symlink_to(secret)
    (logs / "devstack.log").touch()
    done = nv(strange, words)
    assert "of root alone" not in done.stdout + done.stderr
    assert (logs / "devstack.log").read_text() == ""
    assert not list(strange.glob("*.zip"))


@as_root
def test_an_editors_files_are_not_written_where_somebody_else_could_exchange_them(strange: Path) -> None:
    (strange / "other.json").write_text("{}")
    (theirs(strange / ".vscode") / "tasks.json").symlink_to("../other.json")
    done = nv(strange, "dev.ide", "--vscode")
    assert "an editor's files can't be kept in" in done.stderr
    assert (strange / "other.json").read_text() == "{}"
