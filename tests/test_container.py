"""ContainerContext: streams with bounded memory, whole files, no secret anywhere, a dry run that touches nothing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from invoke import Context
from invoke.config import Config

from devstack import children as ended
from devstack.container import ContainerContext, _Local
from devstack.errors import StackError
from devstack.host import Host
from devstack.paths import Paths
from devstack.runtimes.native import Native
from devstack.shell import Command, argv, sh
from tests.conftest import wait_for

ROOT = Path(__file__).resolve().parent.parent
SECRET = "correct-horse-battery"


def context_in(folder: Path, *, dry: bool = False, echo: bool = False) -> ContainerContext:
    paths = Paths(root=folder, state=folder / "state", cache=folder / "cache", run=folder / "run", log=folder / "logs")
    runtime = Native(paths, ROOT / "templates", sys.executable, "nobody", False)
    c = Context(Config(overrides={"run": {"dry": dry, "echo": echo}}))
    return ContainerContext(c, runtime, Host(), paths)


@pytest.fixture
def context(tmp_path: Path) -> ContainerContext:
    (tmp_path / "logs").mkdir()
    return context_in(tmp_path)


def log_of(context: ContainerContext) -> str:
    return (context.paths.log / "devstack.log").read_text()


def works(process: psutil.Process) -> bool:
    """Whether it is more than an entry that its parent has yet to take away."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def children() -> set[int]:
    """Processes below this one, without the guard that ends them with it."""
    alive = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            guard = any("devstack.children" in word for word in process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not guard:
                alive.add(process.pid)
    return alive


@contextlib.contextmanager
def interrupted_once(sign: Path) -> Iterator[None]:
    """Have the tests' process get Ctrl-C once a file is there."""

    def interrupt() -> None:
        wait_for(sign.exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# commands


def test_a_command_that_fails_says_what_for_its_exit_code_and_its_last_words(context: ContainerContext) -> None:
    command = sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $$i >&2; done; exit 7")
    with pytest.raises(StackError) as raised:
        context.run(command, "make the thing")
    error = raised.value
    assert (error.what, error.why) == ("could not make the thing", "the command ended with exit code 7")
    assert error.evidence == [f"line {i}" for i in range(3, 13)]
    assert error.fix == [f"the command is in {context.paths.log}/devstack.log"]


def test_a_command_that_only_reads_is_never_an_error(context: ContainerContext) -> None:
    result = context.read(sh("echo out; echo err >&2; exit 3"))
    assert (result.exited, result.stdout, result.stderr) == (3, "out\n", "err\n")


def test_what_is_asked_ahead_is_asked_once_for_as_many_reads_as_were_announced(
    context: ContainerContext, tmp_path: Path
) -> None:
    command = sh("echo asked >>$file; wc -l <$file", file=tmp_path / "asked")
    context.ask_ahead([command])
    context.ask_ahead([command])
    assert [context.read(command).stdout.strip() for _ in range(3)] == ["1", "1", "2"]
    context.ask_ahead([command, command])
    assert context.read(command).stdout.strip() == "3"
    context.withdraw()
    assert context.read(command).stdout.strip() == "4"


def test_a_command_never_reads_what_the_user_types(context: ContainerContext) -> None:
    # the end of the input is 1, having waited for some is more than 128
    assert context.read(sh("read -r -t 5 line; echo $$?")).stdout == "1\n"


# streams


@pytest.mark.parametrize("method", ["read", "run", "hook"])
def test_ctrl_c_ends_the_command_and_the_task(
    context: ContainerContext, tmp_path: Path, method: str, alarm: None
) -> None:
    """Only this process gets the signal, as from kill(1); a terminal sends it to the command too."""
    command = sh("touch $begun; sleep 300; true", begun=tmp_path / "begun")
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: context.read(command),
        "run": lambda: context.run(command, "make the thing"),
        "hook": lambda: context.hook(command, {}),
    }
    before = children()
    with interrupted_once(tmp_path / "begun"), pytest.raises(KeyboardInterrupt):
        calls[method]()
    wait_for(lambda: children() == before)
    assert "exit -1 " in log_of(context)


def test_ctrl_c_just_after_a_command_has_started_ends_it_too(
    context: ContainerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = _Local.start

    def interrupted(runner: _Local, *args: Any) -> None:
        start(runner, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(_Local, "start", interrupted)
    before = children()
    with pytest.raises(KeyboardInterrupt):
        context.read(sh("sleep 300; true"))
    assert children() == before


def test_ctrl_c_lets_a_command_put_things_right(context: ContainerContext, tmp_path: Path, alarm: None) -> None:
    tidy = "trap 'rm $begun; exit 0' INT; touch $begun; while :; do sleep 0.01; done"
    with interrupted_once(tmp_path / "begun"), pytest.raises(KeyboardInterrupt):
        context.read(sh(tidy, begun=tmp_path / "begun"))
    assert not (tmp_path / "begun").exists()


def test_the_second_ctrl_c_kills_a_command_that_ignores_the_first(
    context: ContainerContext, tmp_path: Path, alarm: None
) -> None:
    before = children()
    stubborn = "trap 'touch $heard' INT; touch $begun; while :; do sleep 0.01; done"
    command = sh(stubborn, begun=tmp_path / "begun", heard=tmp_path / "heard")
    with (
        interrupted_once(tmp_path / "begun"),
        interrupted_once(tmp_path / "heard"),
        pytest.raises(KeyboardInterrupt),
    ):
        context.read(command)
    wait_for(lambda: children() == before)


KILLED = """
import contextlib, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from tests.test_container import context_in, sh
context = context_in(Path({folder!r}))
command = sh("echo $$$$ >$new; mv $new $sign; sh -c 'sleep 300; :'; :", new="{folder}/new", sign="{folder}/sign")
def stream():
    with context.stream_out(command, "read"):
        sys.stdin.read()
{call}
"""
WAYS = {
    "read": "context.read(command)",
    "ask ahead": "context.ask_ahead([command]); sys.stdin.read()",
    "hook": "context.hook(command, {})",
    "probe": "context.probe(command, 300)",
    "watch": "context.watch(command, folder=Path('/'), env={'PATH': '/usr/bin:/bin'})",
    "interact": "context.interact(command)",
    "stream": "stream()",
}


def begun(folder: Path, call: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """Start a process that has called something; the shell that it has started by that."""
    script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder), call=call)
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    return process, psutil.Process(int(wait_for((folder / "sign").read_text)))


@pytest.mark.faults
@pytest.mark.parametrize("way", WAYS)
def test_a_command_ends_with_the_process_that_was_killed(tmp_path: Path, way: str) -> None:
    process, shell = begun(tmp_path, WAYS[way])
    found = wait_for(lambda: [shell, *shell.children(recursive=True)])
    process.kill()
    process.communicate()
    try:
        wait_for(lambda: not any(map(works, found)))
    finally:
        for one in filter(works, found):
            one.kill()


@pytest.mark.faults
def test_a_stopped_command_ends_too_and_one_that_detached_itself_lives_on(tmp_path: Path) -> None:
    process, shell = begun(
        tmp_path, f"context.read(sh('sleep 300 >/dev/null 2>&1 & echo $$! >{tmp_path}/other')); {WAYS['read']}"
    )
    other = psutil.Process(int((tmp_path / "other").read_text()))
    try:
        shell.suspend()
        process.kill()
        process.communicate()
        wait_for(lambda: not works(shell))
        assert works(other)
    finally:
        other.kill()


@pytest.mark.faults
def test_what_a_thread_has_started_ends_with_the_process_that_ends_without_it(tmp_path: Path) -> None:
    call = "import threading; threading.Thread(target=context.probe, args=(command, 300), daemon=True).start()"
    process, shell = begun(tmp_path, f"{call}; sys.stdin.read()")
    found = wait_for(lambda: [shell, *shell.children(recursive=True)])
    process.communicate()
    assert process.returncode == 0
    try:
        wait_for(lambda: not any(map(works, found)))
    finally:
        for one in filter(works, found):
            one.kill()


class Closing:
    """A guard at whose end a thread goes on: its command ends just then."""

    def __init__(self) -> None:
        self.closed = False
        self.raised: list[BaseException] = []
        self.thread = threading.Thread(target=self._remove)

    def tell(self, *words: str) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def leave(self) -> None:
        self.closed = True
        self.thread.start()
        self.thread.join(0.2)

    close = leave

    def _remove(self) -> None:
        try:
            ended.remove(1)
        except BaseException as error:
            self.raised.append(error)


def test_a_thread_that_goes_on_at_the_end_of_the_process_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Closing()
    monkeypatch.setattr(ended, "_guard", guard)
    monkeypatch.setattr(ended, "_running", {1: ["pid:1:0"]})
    ended.stop()
    guard.thread.join()
    assert guard.raised == []


def test_a_process_that_has_got_the_id_of_a_command_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            created = psutil.Process(process.pid).create_time()
            ended.end([(process.pid, created - 60)])
            assert process.poll() is None
            ended.end([(process.pid, created)])
            process.wait(5)  # psutil has waited for it, and knows how it ended
        finally:
            process.kill()


def test_output_is_streamed_as_the_bytes_that_it_is(context: ContainerContext) -> None:
    with context.stream_out(sh(r"printf '\000\377\r\n\200x'"), "read") as stream:
        assert stream.read() == b"\x00\xff\r\n\x80x"


def test_a_stream_in_reaches_the_command_as_the_bytes_that_it_is(context: ContainerContext, tmp_path: Path) -> None:
    chunks = [bytes(range(256)), b"", b"\r\n\x00", b"x" * 1_000_000]
    context.stream_in(sh("cat > $file", file=tmp_path / "got"), iter(chunks), "write")
    assert (tmp_path / "got").read_bytes() == b"".join(chunks)


STREAM = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from tests.test_container import context_in
from devstack.shell import sh
context = context_in(Path({folder!r}))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform != "darwin" else 1024)
before = peak()
count = 0
with context.stream_out(sh("head -c 300000000 /dev/zero"), "read") as stream:
    while chunk := stream.read(1 << 18):
        count += len(chunk)
context.stream_in(sh("cat"), (bytes(1 << 18) for _ in range(1145)), "write")
print(count, peak() - before)
"""


def test_hundreds_of_megabytes_pass_through_a_few_of_memory(tmp_path: Path) -> None:
    script = STREAM.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 300_000_000
    assert kilobytes < 16_000


def test_output_of_a_command_that_fails_at_the_end_is_not_taken_for_whole(context: ContainerContext) -> None:
    command = sh("echo some; echo 'disk is broken' >&2; exit 4")
    with pytest.raises(StackError) as raised, context.stream_out(command, "dump the database") as stream:
        assert stream.read() == b"some\n"
    assert raised.value.what == "could not dump the database"
    assert raised.value.why == "the command ended with exit code 4"
    assert raised.value.evidence == ["disk is broken"]


def test_of_a_flood_of_complaints_the_last_ones_are_shown(context: ContainerContext) -> None:
    command = sh("seq 1 200000 >&2; exit 1")
    with pytest.raises(StackError) as raised, context.stream_out(command, "dump") as stream:
        stream.read()
    assert raised.value.evidence == [str(i) for i in range(199991, 200001)]


def test_a_reader_that_fails_early_explains_itself(context: ContainerContext) -> None:
    command = argv(["sh", "-c", "head -c 10 >/dev/null; echo 'no room left' >&2; exit 5"])
    with pytest.raises(StackError) as raised:
        context.stream_in(command, (bytes(100_000) for _ in range(100)), "load the dump")
    assert raised.value.what == "could not load the dump"
    assert raised.value.why == "the command ended with exit code 5"
    assert raised.value.evidence == ["no room left"]


def test_a_reader_that_ends_early_and_content_is_still_an_error(context: ContainerContext) -> None:
    with pytest.raises(StackError) as raised:
        context.stream_in(sh("head -c 10"), (bytes(100_000) for _ in range(100)), "load the dump")
    assert raised.value.what == "could not load the dump"
    assert raised.value.why == "the command ended before it had read everything"


class Stopped(Exception):
    pass


def test_a_consumer_that_breaks_off_leaves_no_process_and_keeps_its_own_reason(context: ContainerContext) -> None:
    before = children()
    with pytest.raises(Stopped), context.stream_out(sh("exec sleep 1000"), "read"):
        assert len(children() - before) == 1
        raise Stopped
    assert children() == before


def test_a_source_that_breaks_off_leaves_no_process_and_keeps_its_own_reason(context: ContainerContext) -> None:
    def source() -> Iterator[bytes]:
        yield b"x"
        raise Stopped

    before = children()
    with pytest.raises(Stopped):
        context.stream_in(sh("cat"), source(), "write")
    assert children() == before


def test_a_consumer_that_breaks_off_leaves_nothing_of_a_composed_command(context: ContainerContext) -> None:
    reading = sh("sleep 1000 && echo $a", a="x")
    started: list[psutil.Process] = []
    try:
        with pytest.raises(Stopped), context.stream_out(reading, "read"):
            (shell,) = [child for child in psutil.Process().children() if child.pid in children()]
            while not (started := shell.children()):
                pass
            raise Stopped
        # killed; where the first process of a container does not reap orphans, zombies stay
        wait_for(lambda: not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 5)
    finally:
        for process in started:
            if process.is_running():
                process.kill()


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs commands under another account")
def test_a_consumer_that_breaks_off_leaves_nothing_under_the_services_account() -> None:
    folder = Path(tempfile.mkdtemp(prefix="nv-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "state").mkdir()
    context = context_in(folder)
    runtime = Native(context.paths, ROOT / "templates", sys.executable, context.host.account, True)
    started: list[psutil.Process] = []
    try:
        with pytest.raises(Stopped), context.stream_out(runtime.as_account(sh("exec sleep 1000")), "read"):
            while not started:
                started = [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"]
            raise Stopped
        wait_for(lambda: not any(map(works, started)))
    finally:
        for process in started:
            if process.is_running():
                process.kill()
        shutil.rmtree(folder)


def test_a_consumer_that_has_read_enough_is_told_that_it_was_not_all(context: ContainerContext) -> None:
    before = children()
    with pytest.raises(StackError, match="could not read"), context.stream_out(sh("yes"), "read") as stream:
        stream.read(10)
    assert children() == before


# files


def test_a_file_is_private_whatever_the_umask(context: ContainerContext, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        context.write_file(tmp_path / "made" / "secret", SECRET)
        context.write_file(tmp_path / "made" / "script", "x", 0o755)
    finally:
        os.umask(old)
    assert (tmp_path / "made" / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "made" / "script").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "made").stat().st_mode & 0o777 in (0o700, 0o711)
    assert (tmp_path / "made" / "secret").read_text() == SECRET


def test_a_file_that_was_open_to_others_is_private_afterwards(context: ContainerContext, tmp_path: Path) -> None:
    file = tmp_path / "made" / "f"
    for content in ("old", SECRET):
        context.write_file(file, content, 0o644)
        context.write_file(file, SECRET)
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text() == SECRET


def test_a_file_that_is_as_it_should_be_is_left_alone(context: ContainerContext, tmp_path: Path) -> None:
    file = tmp_path / "made" / "f"
    context.write_file(file, "same")
    before = file.stat()
    context.write_file(file, "same")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_any_text_is_written_as_it_is(context: ContainerContext, tmp_path: Path) -> None:
    content = "ü 日本\r\n\x00'\"$x\n no end"
    context.write_file(tmp_path / "d" / "f", content)
    assert (tmp_path / "d" / "f").read_bytes() == content.encode()


@pytest.mark.parametrize("broken", ["replace", "fsync", "fchmod"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(
    context: ContainerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    file = tmp_path / "d" / "f"
    context.write_file(file, "old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="No space left"):
            context.host.write_file(file, b"new", 0o600)
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["f"]


def test_a_folder_in_the_file_s_place_is_an_error_and_stays(context: ContainerContext, tmp_path: Path) -> None:
    (tmp_path / "d" / "f" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        context.write_file(tmp_path / "d" / "f", "x")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["f"]


def test_a_reader_at_the_same_time_never_sees_half_a_file(context: ContainerContext, tmp_path: Path) -> None:
    file = tmp_path / "d" / "f"
    contents = ["a" * 300_000, "b" * 500_000]
    context.write_file(file, contents[0])
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for i in range(60):
            context.write_file(file, contents[i % 2])
    finally:
        done.set()
        reader.join()
    assert seen <= set(contents)
    assert seen


def test_writing_a_file_leaves_the_mode_of_a_folder_that_was_there(context: ContainerContext, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    folder.chmod(0o755)
    context.write_file(folder / "f", "x")
    assert folder.stat().st_mode & 0o777 == 0o755


# secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"the password is {SECRET}, {SECRET}!", "the password is ***, ***!"),
        ("postgresql://nina:pw@localhost:5433/nina", "postgresql://nina:***@localhost:5433/nina"),
        ("postgresql+asyncpg://nina:p%40w@[::1]/nina", "postgresql+asyncpg://nina:***@[::1]/nina"),
        ("redis://:pw@localhost", "redis://:***@localhost"),
        ("postgresql://nina:p@ss@localhost/nina", "postgresql://nina:***@localhost/nina"),
        ("a=http://u:p@h b=http://v:q@i", "a=http://u:***@h b=http://v:***@i"),
        ("http://localhost:13370/users/a@b.c", "http://localhost:13370/users/a@b.c"),
        ("nina@localhost:5433", "nina@localhost:5433"),
    ],
)
def test_secrets_and_passwords_in_urls_are_masked_and_nothing_else(
    context: ContainerContext, text: str, shown: str
) -> None:
    context.hide(SECRET)
    assert context.mask(text) == shown


def test_of_two_secrets_that_begin_alike_neither_end_is_shown(context: ContainerContext) -> None:
    context.hide("abcdefgh", "abcdefghij", "abcdefghijkl")
    assert context.mask("abcdefghijkl abcdefghij abcdefgh") == "*** *** ***"


def test_a_word_too_short_to_be_a_secret_does_not_garble_everything(context: ContainerContext) -> None:
    context.hide("nina", "")
    assert context.mask("role nina of nv-db") == "role nina of nv-db"


def test_the_echo_goes_beside_the_answer_without_secrets(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = context_in(tmp_path, echo=True)
    context.hide(SECRET)
    context.run(sh("echo $a postgresql://u:pw@h", a=SECRET), "x")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "echo *** postgresql://u:***@h\n"


def test_a_failure_s_evidence_has_no_secret(context: ContainerContext) -> None:
    context.hide(SECRET)
    failing = sh("echo $a >&2; exit 1", a=f"bad password {SECRET} in postgresql://u:pw@h")
    for text in (_failure(context, failing, stream=False), _failure(context, failing, stream=True)):
        assert "bad password *** in postgresql://u:***@h" in text
        assert SECRET not in text


def _failure(context: ContainerContext, command: Command, *, stream: bool) -> str:
    with pytest.raises(StackError) as raised:
        if stream:
            with context.stream_out(command, "x") as out:
                out.read()
        else:
            context.run(command, "x")
    return raised.value.text()


def test_the_log_has_each_command_with_its_duration_and_exit_code_and_no_secret(context: ContainerContext) -> None:
    context.hide(SECRET)
    context.run(sh("true $a", a=SECRET), "x")
    context.read(sh("exit 3"))
    with context.stream_out(sh("echo postgresql://u:pw@h"), "x") as stream:
        stream.read()
    context.stream_in(sh("cat"), [b"x"], "x")
    context.interact(sh("exit 4"))
    context.hook("exit 5", {})
    lines = log_of(context).splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}  \[\d+\]  +\d+\.\d{3} s  exit "
    wanted = [
        "0    true ***",
        "3    exit 3",
        "0    echo postgresql://u:***@h",
        "0    cat",
        "4    exit 4",
        "5    exit 5",
    ]
    for line, end in zip(lines, wanted, strict=True):
        assert re.fullmatch(stamp + re.escape(end), line), line
    assert SECRET not in log_of(context)


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_the_log_is_private_whatever_the_umask_and_so_is_the_one_before(tmp_path: Path, umask: int) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    old = logs / "devstack.log"
    old.write_text("of an earlier version\n")
    old.chmod(0o666)
    before = os.umask(umask)
    try:
        context = context_in(tmp_path)
        context.read(sh("true"))
        assert context._log is not None
        context._log.handlers[0].doRollover()  # type: ignore[attr-defined]
        context.read(sh("true"))
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in logs.iterdir()} == {
        "devstack.log": 0o600,
        "devstack.log.1": 0o600,
    }


def test_a_planted_link_in_the_log_s_place_is_not_followed(context: ContainerContext, tmp_path: Path) -> None:
    (tmp_path / "logs" / "devstack.log").symlink_to(tmp_path / "elsewhere")
    context.read(sh("true"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_stream_that_was_broken_off_is_in_the_log_too(context: ContainerContext) -> None:
    with pytest.raises(Stopped), context.stream_out(sh("exec sleep 1000"), "read"):
        raise Stopped
    assert re.search(r"exit -\d+ +exec sleep 1000$", log_of(context).strip())


def test_without_a_log_folder_nothing_is_made_for_the_log(tmp_path: Path) -> None:
    context_in(tmp_path).read(sh("true"))
    assert list(tmp_path.iterdir()) == []


# a dry run


def listing(folder: Path) -> list[tuple[str, int, int, int]]:
    """Every path with mode, size and time of change."""
    found = []
    for path in sorted([folder, *folder.rglob("*")]):
        info = path.lstat()
        found.append((str(path), info.st_mode, info.st_size, info.st_mtime_ns))
    return found


def test_a_dry_run_prints_what_it_would_do_and_touches_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    before = listing(tmp_path)
    context = context_in(tmp_path, dry=True)
    context.hide(SECRET)
    assert context.run(sh("touch $file; echo $a", file=tmp_path / "new", a=SECRET), "x") is None
    context.write_file(tmp_path / "there" / "file", "nüw")
    context.write_file(tmp_path / "not there" / "file", "x", 0o755)
    context.make_dir(tmp_path / "folder", 0o700)
    context.make_dir(tmp_path / "there", 0o700)
    assert context.hook("touch new", {}) is None
    assert listing(tmp_path) == before
    assert capfd.readouterr().out.splitlines() == [
        f"touch {tmp_path}/new; echo ***",
        f"# write {tmp_path}/there/file (0600, 4 bytes)",
        f"# write {tmp_path}/not there/file (0755, 1 bytes)",
        f"# make folder {tmp_path}/folder (0700)",
        "touch new",
    ]


def test_a_dry_run_still_really_reads(tmp_path: Path) -> None:
    """Invoke's own dry run answers every question with success and an empty text."""
    result = context_in(tmp_path, dry=True).read(sh("echo really; exit 3"))
    assert (result.exited, result.stdout) == (3, "really\n")


# hooks


def test_a_hook_runs_in_the_project_s_folder_with_its_variables_and_its_output_on_the_screen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    context = context_in(folder)
    result = context.hook('pwd; echo "$GREETING"; false || exit 6', {**os.environ, "GREETING": "hello you"})
    assert result is not None
    assert result.exited == 6
    assert capfd.readouterr().out == f"{folder}\nhello you\n"


def test_interact_gives_back_the_exit_code(context: ContainerContext) -> None:
    assert context.interact(argv(["sh", "-c", "exit 9"])) == 9


def test_a_program_that_hangs_is_given_up_and_killed_with_what_it_started(context: ContainerContext) -> None:
    before = children()
    answer = context.probe(sh("echo begun; sleep 987 & sleep 987"), 0.2)
    assert (answer.exited, answer.ok, answer.version()) == (None, False, "")
    assert children() == before
    assert "exit -1 " in log_of(context)


@pytest.mark.parametrize(
    ("command", "exited", "version"),
    [
        ("echo 'jq-1.6'", 0, "1.6"),
        ("echo 'curl 7.88.1 (x86_64) libcurl/7.88.1' >&2", 0, "7.88.1"),
        ("echo 1.2; exit 3", 3, ""),
        ("echo no number", 0, ""),
        ('read line; echo "${line:-nobody} 1.0"', 0, "1.0"),
        ("nonesuch-program", 127, ""),
    ],
)
def test_a_program_is_asked_for_its_version(context: ContainerContext, command: str, exited: int, version: str) -> None:
    answer = context.probe(Command(command), 10)
    assert (answer.exited, answer.version()) == (exited, version)
