"""The dialects of the container engines: exact command lines, and answers as the engines give them."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs
from msgspec.structs import replace

from devstack.paths import Paths
from devstack.runtimes import Crash, EngineError, File, Inside, ServiceSpec, ServiceState, Usage
from devstack.runtimes.apple import Apple
from devstack.runtimes.containers import END_MARKED, LABEL, Containers, seconds_of
from devstack.runtimes.docker import Docker, Podman
from devstack.services.images import Images
from devstack.settings import load, variable_entries

NASTY = "o'hara $(id)"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
STATE = f"/srv/{NASTY}/state"
QUOTED = "'/srv/o'\"'\"'hara $(id)/state"
"""The state folder in a shell, its closing quote left off."""
BOOT = '\'eval "$(printf %s "$NV_START" | base64 -d)"\''

DB = ServiceSpec(
    name="nv-db",
    argv=["postgres", "-c", "log_line_prefix=%m [%p] "],
    cwd=Path("/"),
    env={"PASSWORD": "s3cret $HOME 'x'"},
    unset=["PGHOST"],
    stop_signal="INT",
    stop_seconds=60,
    inside=Inside(
        image="pgvector/pgvector:pg17",
        ports={5432: 5433},
        volumes={"nv-db-data": "/var/lib/nv-db"},
        folders={Path("/home/me/my api"): "/srv/app/api"},
        files={"/tmp/nv/pg_hba.conf": "local all all peer\n"},
        memory_mb=1024,
        shm_mb=320,
        root=True,
    ),
)


def dialect(kind: type[Containers]) -> Any:
    folder = Path(f"/srv/{NASTY}")
    paths = Paths(
        root=folder, state=folder / "state", cache=folder / "cache", run=folder / "run", log=folder / "my logs"
    )
    return kind(paths, network="nv-net")


def script_of(steps: Any) -> str:
    """The script in the env file."""
    (file,) = (step for step in steps if isinstance(step, File))
    name, _, value = file.content.rstrip("\n").partition("=")
    assert (name, file.mode) == ("NV_START", 0o600)
    return base64.b64decode(value).decode()


def commands(steps: Any) -> list[str]:
    return [str(step) for step in steps if not isinstance(step, File)]


ALL = pytest.mark.parametrize("kind", [Docker, Podman, Apple])
RIGHTS = "--cap-drop=ALL --cap-add=CHOWN --cap-add=SETGID --cap-add=SETUID --security-opt=no-new-privileges"


# what runs


@pytest.mark.parametrize(
    ("kind", "image"), [(Docker, "pgvector/pgvector:pg17"), (Podman, "docker.io/pgvector/pgvector:pg17")]
)
def test_docker_and_podman_make_a_service(kind: type[Containers], image: str) -> None:
    steps = dialect(kind).run(DB)
    assert commands(steps) == [
        f"{kind.name} run --detach --name nv-db --restart on-failure --stop-signal SIGINT --stop-timeout 60"
        f" --shm-size=320M '--label={LABEL}=/srv/o'\"'\"'hara $(id)/state' --network=nv-net --memory=1024m"
        f" {RIGHTS} --security-opt=label=disable --volume=nv-db-data:/var/lib/nv-db"
        " '--volume=/home/me/my api:/srv/app/api:ro'"
        f" --env-file {QUOTED}/config/containers/nv-db.env' --publish=127.0.0.1:5433:5432"
        f" --entrypoint /bin/sh {image} -c {BOOT}"
    ]


@pytest.mark.parametrize("kind", [Docker, Podman])
def test_what_is_not_begun_as_root_has_no_right_of_root(kind: type[Containers]) -> None:
    """Podman would give it to the account that the image names."""
    assert DB.inside
    spec = structs.replace(DB, inside=structs.replace(DB.inside, root=False))
    (command,) = commands(dialect(kind).run(spec))
    assert " --cap-drop=ALL --security-opt=no-new-privileges " in command
    assert "--cap-add" not in command


def test_apple_makes_a_service_without_what_it_does_not_know() -> None:
    assert commands(dialect(Apple).run(DB)) == [
        f"container run --detach --name nv-db --shm-size=320M '--label={LABEL}=/srv/o'\"'\"'hara $(id)/state'"
        " --memory=1024M --volume=nv-db-data:/var/lib/nv-db '--volume=/home/me/my api:/srv/app/api:ro'"
        f" --env-file {QUOTED}/config/containers/nv-db.env' --publish=127.0.0.1:5433:5432"
        f" --entrypoint /bin/sh pgvector/pgvector:pg17 -c {BOOT}"
    ]


def test_apple_gives_a_machine_no_less_memory_than_it_takes() -> None:
    assert DB.inside
    small = replace(DB, inside=replace(DB.inside, memory_mb=64))
    assert "--memory=200M" in commands(dialect(Apple).run(small))[0]


@ALL
def test_an_old_container_of_the_name_goes_first(kind: type[Containers]) -> None:
    removed, _ = commands(dialect(kind).run(DB, defined=True))
    assert (
        removed
        == {
            "docker": "docker rm --force --volumes nv-db >/dev/null",
            "podman": "podman rm --force --volumes nv-db >/dev/null",
            "apple": "container delete --force nv-db >/dev/null",
        }[kind.name]
    )


@ALL
def test_no_secret_is_on_the_command_line_and_all_of_it_reaches_the_service(
    kind: type[Containers], tmp_path: Path
) -> None:
    assert DB.inside
    target = tmp_path / "in" / "a file"
    inside = replace(DB.inside, files={str(target): "it's\n100% $(id)\n"})
    words = ["sh", "-c", 'printf "%s|%s|%s" "$PASSWORD" "$PGHOST" "$NV_START"']
    spec = replace(DB, argv=words, cwd=tmp_path, inside=inside)
    steps = dialect(kind).run(spec)
    assert not any("s3cret" in command for command in commands(steps))
    script = script_of(steps)
    # what the container's shell is given, in a shell of this machine
    boot = 'eval "$(printf %s "$NV_START" | base64 -d)"'
    encoded = base64.b64encode(script.encode()).decode()
    done = subprocess.run(
        ["/bin/sh", "-c", boot],
        env={"NV_START": encoded, "PGHOST": "mine", "PATH": "/usr/bin:/bin"},
        capture_output=True,
    )
    assert done.stdout == b"s3cret $HOME 'x'||"
    assert target.read_text() == "it's\n100% $(id)\n"
    assert target.stat().st_mode & 0o777 == 0o600


@ALL
def test_the_account_writes_the_files_and_prepares(kind: type[Containers], tmp_path: Path) -> None:
    """With another HOME in place of another account, which root alone can become."""
    assert DB.inside
    target, account = tmp_path / "file", '[ "$HOME" = /its ] && as= || as="env HOME=/its"'
    inside = replace(DB.inside, account=account, files={str(target): "a"}, setup='echo "setup $HOME"')
    spec = replace(DB, argv=["sh", "-c", 'echo "$HOME $PASSWORD $NV_START"'], cwd=tmp_path, inside=inside)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("mkdir", "mv"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $HOME"\nexec /bin/{name} "$@"\n')
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", 'eval "$(printf %s "$NV_START" | base64 -d)"'],
        env={
            "NV_START": base64.b64encode(script_of(dialect(kind).run(spec)).encode()).decode(),
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": "/root",
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.splitlines() == ["mkdir /its", "mv /its", "setup /its", "/its s3cret $HOME 'x' "], done
    assert target.read_text() == "a"


@ALL
def test_a_service_that_crashes_leaves_no_memory_in_a_file(kind: type[Containers], tmp_path: Path) -> None:
    assert DB.inside
    words = ["sh", "-c", "ulimit -S -c; ulimit -H -c"]
    spec = replace(DB, argv=words, cwd=tmp_path, inside=replace(DB.inside, files={}))
    script = script_of(dialect(kind).run(spec))
    done = subprocess.run(["/bin/sh", "-c", f"ulimit -S -c unlimited 2>/dev/null\n{script}"], capture_output=True)
    assert done.stdout == b"0\n0\n"


@ALL
def test_a_file_that_a_reload_has_written_stays_when_the_engine_starts_it_again(
    kind: type[Containers], tmp_path: Path
) -> None:
    assert DB.inside
    target = tmp_path / "pgbouncer.ini"
    target.write_text("new")
    spec = replace(DB, argv=["true"], cwd=tmp_path, inside=replace(DB.inside, files={str(target): "old"}))
    subprocess.run(["/bin/sh", "-c", script_of(dialect(kind).run(spec))], check=True)
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("bind", "shown"),
    [("127.0.0.1", "127.0.0.1:5433:5432"), ("::1", "[::1]:5433:5432"), ("localhost", "127.0.0.1:5433:5432")],
)
@ALL
def test_a_port_is_published_on_an_address(kind: type[Containers], bind: str, shown: str) -> None:
    assert DB.inside
    spec = replace(DB, inside=replace(DB.inside, bind=bind))
    assert f"--publish={shown}" in commands(dialect(kind).run(spec))[0].replace("'", "")


@ALL
def test_a_command_in_a_container(kind: type[Containers]) -> None:
    line = dialect(kind).exec("nv-db", ["psql", "-c", "SELECT 'a'"], {"PGUSER": "o'hara"}, user="postgres")
    program = dialect(kind).program
    assert line == (
        f"{program} exec -i --user postgres '--env=PGUSER=o'\"'\"'hara' nv-db psql -c 'SELECT '\"'\"'a'\"'\"''"
    )


@ALL
def test_what_a_killed_command_runs_in_a_container_is_ended_by_its_mark(kind: type[Containers]) -> None:
    line = dialect(kind).end_marked("nv-db", "NV_COMMAND=0123", user="postgres")
    assert line.startswith(f"{dialect(kind).program} exec -i --user postgres nv-db sh -c ")
    assert line.endswith(" sh NV_COMMAND=0123")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="containers run Linux")
def test_of_what_runs_in_a_container_nothing_else_is_ended() -> None:
    mark = f"NV_COMMAND={secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    with (
        subprocess.Popen(["sleep", "300"], env={**os.environ, name: value}) as marked,
        subprocess.Popen(["sleep", "300"], env={**os.environ, name: "another"}) as other,
    ):
        try:
            subprocess.run(["sh", "-c", END_MARKED, "sh", mark], check=False)
            assert marked.wait(5) == -signal.SIGTERM
            assert other.poll() is None
        finally:
            marked.kill()
            other.kill()


@ALL
def test_a_person_at_a_terminal_gets_one_in_the_container(kind: type[Containers]) -> None:
    assert dialect(kind).exec("nv-db", ["psql"], {}, tty=True) == f"{dialect(kind).program} exec -i -t nv-db psql"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Docker, "docker image save --output /i.tar pgvector/pgvector:pg17 localhost/nv-api:1"),
        (
            Podman,
            "podman image save --multi-image-archive --output /i.tar docker.io/pgvector/pgvector:pg17"
            " localhost/nv-api:1",
        ),
        (Apple, "container image save --output /i.tar pgvector/pgvector:pg17 localhost/nv-api:1"),
    ],
)
def test_images_on_their_way_to_another_machine(kind: type[Containers], line: str) -> None:
    assert dialect(kind).save(["pgvector/pgvector:pg17", "localhost/nv-api:1"], Path("/i.tar")) == line
    assert dialect(kind).load(Path("/i.tar")) == f"{dialect(kind).program} image load --input /i.tar"


@pytest.mark.parametrize(
    ("kind", "line", "answer"),
    [
        (
            Docker,
            "docker ps --all --filter=volume=nv-db-data --format '{{.Names}} {{.State}}'",
            "a running\nb exited\n",
        ),
        (
            Podman,
            'ask() { ids=$(podman ps --all --quiet --no-trunc) || exit; if [ -z "$ids" ]; then echo "[]";'
            " else podman inspect --type container $ids; fi; }; ask 2>/dev/null || ask",
            json.dumps(
                [
                    {"Name": name, "State": {"Status": status}, "Mounts": [{"Name": volume}, {"Type": "bind"}]}
                    for name, volume, status in (
                        ("a", "nv-db-data", "running"),
                        ("b", "nv-db-data", "exited"),
                        ("c", "other", "running"),
                    )
                ]
            ),
        ),
        (
            Apple,
            "container list --all --format json",
            json.dumps(
                [
                    {
                        "id": name,
                        "configuration": {"mounts": [{"type": {"volume": {"name": volume}}}, {"type": {"tmpfs": {}}}]},
                        "status": {"state": state},
                    }
                    for name, volume, state in (
                        ("a", "nv-db-data", "running"),
                        ("b", "nv-db-data", "stopped"),
                        ("c", "other", "running"),
                    )
                ]
            ),
        ),
    ],
)
def test_who_has_a_volume(kind: type[Containers], line: str, answer: str) -> None:
    assert dialect(kind).volume_users("nv-db-data") == line
    assert dialect(kind).parse_users(answer, "nv-db-data") == {"a": True, "b": False}
    assert dialect(kind).parse_users("", "nv-db-data") == {}


@ALL
def test_a_service_is_told_to_stop_its_log_is_kept_and_it_goes(kind: type[Containers]) -> None:
    steps = commands(dialect(kind).stop("nv-db", signal="INT", seconds=60))
    program = dialect(kind).program
    log = "'/srv/o'\"'\"'hara $(id)/my logs/nv-db.log'"
    stop = {"apple": "container stop --signal SIGINT --time 60 nv-db"}.get(kind.name, f"{program} stop nv-db")
    rotate = f'[ ! -e {log} ] || [ "$(wc -c <{log})" -lt 5000000 ] || mv {log} {log}.1'
    assert steps[:3] == [f"{stop} >/dev/null", rotate, f"umask 077; {program} logs nv-db >>{log} 2>&1 || true"]
    assert len(steps) == 4


@pytest.mark.parametrize("kind", [Docker, Podman])
def test_another_signal_comes_after_the_stop_and_until_that_has_ended(kind: type[Containers]) -> None:
    halt, *_ = commands(dialect(kind).stop("nv-db", signal="INT", instead="QUIT", seconds=60))
    program = kind.program
    assert halt == (
        f"{{ {program} stop nv-db >/dev/null & stop=$!\n"
        "while sleep 0.2; kill -0 $stop 2>/dev/null;"
        f" do {program} kill --signal SIGQUIT nv-db >/dev/null 2>&1; done\n"
        "wait $stop; }"
    )


def test_apple_is_told_the_other_signal_at_the_stop() -> None:
    halt, *_ = commands(dialect(Apple).stop("nv-db", signal="INT", instead="QUIT", seconds=60))
    assert halt == "container stop --signal SIGQUIT --time 60 nv-db >/dev/null"


@pytest.mark.parametrize("code", [0, 3])
def test_a_stop_with_another_signal_ends_as_the_stop_does(tmp_path: Path, code: int) -> None:
    """By an engine whose stop waits for the signal, and then fails or not."""
    engine, said = tmp_path / "podman", tmp_path / "said"
    engine.write_text(
        "#!/bin/sh\n"
        f'echo "$1" >>"{said}"\n'
        f'case $1 in kill) touch "{said}.killed"; exit 1 ;; esac\n'  # refused once it has ended
        f'while [ ! -e "{said}.killed" ]; do sleep 0.05; done; exit {code}\n'
    )
    engine.chmod(0o755)
    halt, *_ = commands(dialect(Podman).stop("nv-db", signal="INT", instead="QUIT"))
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-c", halt], env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert said.read_text().split()[:2] == ["stop", "kill"]


@ALL
def test_logs_are_those_of_the_container_or_those_that_were_kept(kind: type[Containers]) -> None:
    line = dialect(kind).logs("nv-db", tail=20, follow=False)
    option = "-n 20" if kind is Apple else "--tail 20"
    assert line == (
        f"{{ {dialect(kind).program} logs {option} nv-db 2>&1"
        " || tail -n 20 '/srv/o'\"'\"'hara $(id)/my logs/nv-db.log' 2>/dev/null; }"
    )


@ALL
def test_logs_are_followed_by_one_script(kind: type[Containers], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / dialect(kind).program
    # an engine whose container says one line at a time, and was started once
    program.write_text(
        '#!/bin/sh\ncase $1 in inspect) echo "startedDate: 1" ;; logs) shift; echo "$*"; sleep 600 ;; esac\n'
    )
    program.chmod(0o755)
    line = dialect(kind).logs("nv-db", tail=3, follow=True)
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {line}"],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        said = process.stdout.readline().split()
        assert said[-1] == "nv-db"
        assert "3" in said
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_network_is_made_once_and_goes_with_the_last_service() -> None:
    (start,), (stop,) = dialect(Docker).engine_start(), dialect(Docker).engine_stop()
    there = "docker network inspect nv-net >/dev/null 2>&1"
    create = f"docker network create --label '{LABEL}=/srv/o'\"'\"'hara $(id)/state' nv-net"
    assert start == f'said=$({create} 2>&1) || {there} || {{ echo "$said" >&2; exit 1; }}'
    assert stop == f"! {there} || docker network rm nv-net >/dev/null"
    assert dialect(Apple).engine_start() == dialect(Apple).engine_stop() == []


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("debian", "docker.io/library/debian"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("pgvector/pgvector:pg17", "docker.io/pgvector/pgvector:pg17"),
        ("localhost/nv-api:1", "localhost/nv-api:1"),
        ("ghcr.io/me/db", "ghcr.io/me/db"),
        ("registry:5000/db", "registry:5000/db"),
    ],
)
def test_podman_is_told_which_registry_docker_would_ask(image: str, full: str) -> None:
    assert dialect(Podman).images([image]) == f"podman image inspect {full}"
    assert dialect(Docker).images([image]) == f"docker image inspect {image}"


@ALL
@pytest.mark.parametrize("image", [f"pgvector/pgvector@{DIGEST}", f"debian@{DIGEST}", f"registry:5000/db:1@{DIGEST}"])
def test_a_digest_reaches_the_engine_whole(kind: type[Containers], image: str) -> None:
    engine = dialect(kind)
    registry = {"p": "docker.io/", "d": "docker.io/library/"}.get(image[0], "") if kind is Podman else ""
    assert DB.inside
    spec = replace(DB, inside=replace(DB.inside, image=image))
    for line in (
        *commands(engine.run(spec)),
        engine.once(spec, Path("/env")),
        engine.images([image]),
        engine.pull(image),
        engine.save([image], Path("/i.tar")),
        engine.build("localhost/nv-api:1", Path("/c/Containerfile"), Path("/c"), {"BASE": image}).replace("BASE=", " "),
    ):
        assert f" {registry}{image} " in f"{line} ", line


def test_who_saves_images_by_digest_is_told_that_engines_forget_it(capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/moby/moby/issues/22011, https://github.com/containers/podman/issues/5234"""
    images = [f"pgvector/pgvector@{DIGEST}", "pgbouncer:1", f"registry:5000/api@{DIGEST}"]
    given = dict(zip(("INVOKE_DB_IMAGE", "INVOKE_PGB_IMAGE", "INVOKE_API_IMAGE"), images, strict=True))
    context: Any = SimpleNamespace(
        runtime=dialect(Docker),
        dry=True,
        read=lambda _: SimpleNamespace(ok=True, stdout=json.dumps([{"Id": "sha256:1"}] * 3)),
        run=lambda *_: None,
    )
    settings = load(variable_entries(given, "variable {}"), Path("/srv"))
    Images(context, settings, lambda: pytest.fail("not asked"), pytest.fail).save("/tmp/nv-images.tar")
    said = " ".join(capsys.readouterr().err.split())
    assert f"{images[0]} in db.image and {images[2]} in api.image are named by digest" in said
    assert "pgbouncer:1" not in said


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Docker, {"Id": "sha256:1"}),
        (Podman, {"Id": "sha256:1"}),
        (Apple, {"configuration": {"descriptor": {"digest": "sha256:1"}}}),
    ],
)
def test_images_are_asked_for_at_once_and_told_apart_by_their_order(
    kind: type[Containers], found: dict[str, object]
) -> None:
    engine = dialect(kind)
    assert engine.images(["localhost/a:1", "localhost/b:2"]).endswith(" image inspect localhost/a:1 localhost/b:2")
    assert engine.image_ids(json.dumps([found, {"Id": "sha256:2", "id": "sha256:2"}])) == ["sha256:1", "sha256:2"]


def test_podman_says_all_that_a_start_wants_to_know_in_one_answer() -> None:
    engine = dialect(Podman)
    assert engine.start_states(["nv-db"]) == engine.volume_users("nv-db-data")
    assert dialect(Docker).start_states(["nv-db"]) == dialect(Docker).states(["nv-db"])


def test_a_build_is_on_the_hosts_network() -> None:
    line = dialect(Podman).build(
        "localhost/nv-api:1", Path("/b/Containerfile"), Path("/b"), {"BASE": "python:3.12-slim"}
    )
    assert line == (
        "podman build --network host --tag localhost/nv-api:1 --label nv-devstack.image=1"
        " --build-arg=BASE=docker.io/library/python:3.12-slim --file /b/Containerfile /b"
    )


# what the engines answer


def docker_container(**state: Any) -> dict[str, Any]:
    """As `docker inspect` shows one; Podman's has the same keys."""
    return {
        "Id": "0c5ffee",
        "Name": "/nv-db",
        "State": {
            "Status": "running",
            "Pid": 123,
            "ExitCode": 0,
            "OOMKilled": False,
            "Error": "",
            "StartedAt": "2026-11-24T12:00:00.123456789Z",
            **state,
        },
        "Config": {"Labels": {LABEL: STATE}},
        "NetworkSettings": {
            "Networks": {"nv-net": {"IPAddress": "10.89.0.2"}},
            "Ports": {"5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": "5433"}], "80/tcp": None},
        },
    }


def state_of(kind: type[Containers], found: dict[str, Any]) -> ServiceState:
    states: dict[str, ServiceState] = dialect(kind).parse_states(json.dumps([found]), ["nv-db", "nv-api"])
    assert states["nv-api"] == ServiceState("nv-api")
    return states["nv-db"]


def test_a_running_container() -> None:
    state = state_of(Docker, docker_container())
    assert (state.status, state.pid, state.address, state.ports, state.id) == (
        "running",
        123,
        "10.89.0.2",
        (5433,),
        "0c5ffee",
    )
    assert state.started == pytest.approx(1795521600.123456)
    assert (state.defined, state.foreign, state.detail) == (True, "", "")


@pytest.mark.parametrize(
    ("given", "status", "detail"),
    [
        ({"Status": "exited", "ExitCode": 1}, "failed", "it ended with exit code 1"),
        ({"Status": "exited", "ExitCode": 0}, "stopped", "it ended with exit code 0"),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, "failed", "killed: it ran out of memory"),
        ({"Status": "restarting", "ExitCode": 3}, "failed", "it ended with exit code 3"),
        ({"Status": "created"}, "stopped", "it was made and never started"),
        ({"Status": "created", "ExitCode": 128, "Error": "address already in use"}, "failed", "address already in use"),
        ({"Status": "configured"}, "stopped", "it was made and never started"),
        ({"Status": "initialized"}, "stopped", "it was made and never started"),
        ({"Status": "removing", "ExitCode": 0}, "stopping", "it ended with exit code 0"),
    ],
)
def test_a_container_that_does_not_run(given: dict[str, Any], status: str, detail: str) -> None:
    state = state_of(Podman, docker_container(**given))
    assert (state.status, state.detail, state.running) == (status, detail, False)
    assert state.ports == ((5433,) if status == "stopping" else ()), "an engine shows those that it is to have"


def test_a_paused_container_is_frozen() -> None:
    state = state_of(Docker, docker_container(Status="paused"))
    assert (state.status, state.paused) == ("running", True)
    assert dialect(Docker).resume("nv-db") == "docker unpause nv-db >/dev/null"
    assert dialect(Apple).resume("nv-db") is None


@pytest.mark.parametrize(
    ("labels", "whose"),
    [(None, "somebody else"), ({}, "somebody else"), ({LABEL: "/other"}, "the stack in /other"), ({LABEL: STATE}, "")],
)
def test_whose_a_container_is(labels: dict[str, str] | None, whose: str) -> None:
    found = docker_container()
    found["Config"]["Labels"] = labels
    assert state_of(Docker, found).foreign == whose


def apple_container(state: str) -> dict[str, Any]:
    """As `container list --format json` shows one (ContainerResource, release 1.2)."""
    networks = [{"network": "default", "hostname": "nv-db", "ipv4Address": "192.168.64.3/24"}]
    return {
        "id": "nv-db",
        "configuration": {
            "id": "nv-db",
            "labels": {LABEL: STATE},
            "publishedPorts": [{"hostPort": 5433}],
            "image": {"reference": "docker.io/pgvector/pgvector:pg17", "descriptor": {"digest": "sha256:5af1"}},
        },
        "status": {
            "state": state,
            "networks": networks if state == "running" else [],
            **({"startedDate": "2026-11-24T12:00:00Z"} if state == "running" else {}),
        },
    }


def test_an_apple_container() -> None:
    state = state_of(Apple, apple_container("running"))
    assert (state.status, state.address, state.ports, state.started) == ("running", "192.168.64.3", (5433,), 1795521600)
    assert state.image == "5af1"
    assert state_of(Apple, apple_container("stopped")).status == "stopped"
    assert state_of(Apple, apple_container("stopped")).ports == ()
    assert state_of(Apple, apple_container("stopped")).address == ""
    assert state_of(Apple, apple_container("unknown")).status == "failed"


@ALL
def test_an_answer_that_is_none(kind: type[Containers]) -> None:
    assert dialect(kind).parse_states("", ["nv-db"]) == {"nv-db": ServiceState("nv-db")}
    with pytest.raises(EngineError, match="it answered 'Segmentation"):
        dialect(kind).parse_states("Segmentation fault", ["nv-db"])


def test_crashes_are_deaths_that_nobody_asked_for() -> None:
    docker = "\n".join(
        json.dumps(
            {"time": 10, "timeNano": 10_500_000_000, "Actor": {"Attributes": {"name": "nv-db", "exitCode": code}}}
        )
        for code in ("137", "0")
    )
    assert dialect(Docker).parse_crashes(docker) == {"nv-db": [Crash(10.5, "exit code 137")]}
    podman = json.dumps({"Name": "nv-db", "Status": "died", "Time": "1970-01-01T00:00:10Z", "ContainerExitCode": 137})
    assert dialect(Podman).parse_crashes(podman + "\nnot json\n") == {"nv-db": [Crash(10.0, "exit code 137")]}
    assert dialect(Apple).parse_crashes("") == {}


def test_usage() -> None:
    answer = "31457280\nanon 1\ninactive_file 10485760\nusage_usec 2500000\nuser_usec 1\npids 9"
    assert dialect(Docker).parse_usage(answer) == Usage(20971520, 2.5, 7)
    assert dialect(Docker).parse_usage("") is None  # control groups of the first version
    apple = json.dumps([{"id": "nv-db", "memoryUsageBytes": 5, "cpuUsageUsec": 1500000, "numProcesses": 2}])
    assert dialect(Apple).parse_usage(apple) == Usage(5, 1.5, 2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T00:00:10.5Z", 10.5),
        ("1970-01-01T00:00:10.123456789Z", 10.123456),
        ("1970-01-01T02:00:10.5+02:00", 10.5),
        ("0001-01-01T00:00:00Z", 0.0),
        ("", 0.0),
    ],
)
def test_times_as_go_writes_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)
