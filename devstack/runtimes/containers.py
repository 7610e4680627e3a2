"""What the container engines have in common: each service is a container, made anew at each start.

The engine is told nothing secret on a command line: the script that becomes the service, with its variables and files,
travels in one variable of an env file that only its owner can read.
"""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from devstack.files import load_json
from devstack.paths import Paths
from devstack.runtimes import Crash, EngineError, File, ServiceSpec, ServiceState, Status, Step, Usage
from devstack.runtimes.launcher import BOOT, launcher
from devstack.shell import Command, sh

LABEL = "nv-devstack.stack"
"""On all that is ours: the state folder of the stack that it belongs to."""

LOG_BYTES = 5_000_000
"""Of a kept log before it is put aside for the next."""

CAPABILITIES = ("CHOWN", "SETGID", "SETUID")
"""All that root keeps in a container that is begun as root: the database's volume is given to PostgreSQL's account,
then root is given up. Others have none: Podman would hand them down to the account that an image names, too."""

NOBODY = "65534:65534"
"""The account of a command in a container that needs none of its rights."""

BASE = "BASE"
"""The build argument that names an image."""

IMAGE_LABEL = "nv-devstack.image=1"
"""On every image that is built here."""


class Containers(ABC):
    """A dialect of docker's command line; what the engines do not share is left to them."""

    name: str
    contained = True
    program: str
    """The engine's command."""
    named: bool
    """Whether containers find each other by name."""

    def __init__(self, paths: Paths, *, network: str) -> None:
        self.paths = paths
        self.network = network

    @property
    def label(self) -> str:
        return f"{LABEL}={self.paths.state}"

    def sh(self, template: str, /, **values: Any) -> Command:
        """A command of the engine, whose name the template leaves out."""
        return sh(f"{self.program} {template}", **values)

    # the engine: it runs, or the user starts it

    def engine_start(self) -> Sequence[Step]:
        return []

    def engine_stop(self) -> Sequence[Step]:
        return []

    def engine_pid(self) -> Path | None:
        return None

    @abstractmethod
    def unstick(self) -> str: ...

    # services

    def env_file(self, name: str) -> Path:
        return self.paths.config / "containers" / f"{name}.env"

    def env_lines(self, spec: ServiceSpec) -> str:
        """https://docs.docker.com/reference/cli/docker/container/run/#env: a value is the rest of its line, as it is.
        So nothing but letters and digits is given that way."""
        script = launcher(spec, {"NV_STACK": str(self.paths.state), "NV_SERVICE": spec.name})
        encoded = base64.b64encode(script.encode()).decode()
        return f"NV_START={encoded}\n"

    def run(self, spec: ServiceSpec, *, defined: bool = False) -> Sequence[Step]:
        env = File(self.env_file(spec.name), self.env_lines(spec))
        removed = [self.remove(spec.name)] if defined else []
        return [env, *removed, self.create(spec, env.path)]

    def create(self, spec: ServiceSpec, env: Path) -> Command:
        """Make a service's container and start it."""
        assert spec.inside
        return self.sh(
            "run --detach --name $name $options --env-file $env $published --entrypoint /bin/sh $image -c $boot",
            name=spec.name,
            options=[*self.service_options(spec), f"--shm-size={spec.inside.shm_mb}M", *self.options(spec)],
            env=env,
            published=self.published(spec),
            image=self.full(spec.inside.image),
            boot=BOOT,
        )

    def once(self, spec: ServiceSpec, env: Path) -> Command:
        """A container for one command, which reads our input, and goes with its end."""
        assert spec.inside
        return self.sh(
            "run --rm --interactive --name $name $options --env-file $env --entrypoint /bin/sh $image -c $boot",
            name=spec.name,
            options=self.options(spec),
            env=env,
            image=self.full(spec.inside.image),
            boot=BOOT,
        )

    @abstractmethod
    def service_options(self, spec: ServiceSpec) -> list[str]:
        """How the engine looks after a service: what it does at its end, and how it stops it."""

    @abstractmethod
    def options(self, spec: ServiceSpec) -> list[str]:
        """What every container of ours is given."""

    def published(self, spec: ServiceSpec) -> list[str]:
        """Ports on the host's side, always with an address: without one they would be open to the network."""
        assert spec.inside
        bind = "127.0.0.1" if spec.inside.bind == "localhost" else spec.inside.bind
        host = f"[{bind}]" if ":" in bind else bind
        return [f"--publish={host}:{port}:{inside}" for inside, port in spec.inside.ports.items()]

    def mounted(self, spec: ServiceSpec) -> list[str]:
        assert spec.inside
        volumes = [f"--volume={name}:{path}" for name, path in spec.inside.volumes.items()]
        folders = [f"--volume={folder}:{path}:ro" for folder, path in spec.inside.folders.items()]
        return [*volumes, *folders]

    def stop(self, name: str, *, signal: str = "", instead: str = "", seconds: int = 10) -> Sequence[Step]:
        """Stop a container and keep its log: with the container, the engine would throw it away."""
        keep = Command(f"umask 077; {self.sh('logs $name >>$log 2>&1 || true', name=name, log=self.log_kept(name))}")
        return [self.halt(name, signal or "TERM", instead, seconds), self._rotate(name), keep, self.remove(name)]

    def _rotate(self, name: str) -> Command:
        log = self.log_kept(name)
        return sh('[ ! -e $log ] || [ "$$(wc -c <$log)" -lt $limit ] || mv $log $log.1', log=log, limit=LOG_BYTES)

    @abstractmethod
    def halt(self, name: str, signal: str, instead: str, seconds: int) -> Command:
        """End a container, running or not; it stays. See :meth:`stop` for the two signals."""

    @abstractmethod
    def remove(self, name: str) -> Command:
        """Remove a container, running or not, with what the image made for it alone."""

    @abstractmethod
    def resume(self, name: str) -> Command | None:
        """Let a container go on that the engine has frozen."""

    def check_run(self, answer: str) -> None:
        """Nothing: the exit code has said it."""
        return

    def check_stop(self, answer: str) -> None:
        """Nothing: the exit code has said it."""
        return

    @abstractmethod
    def states(self, names: Sequence[str]) -> Command: ...

    def start_states(self, names: Sequence[str]) -> Command:
        """The same for who is to ask :meth:`volume_users` too, and may have both in one answer."""
        return self.states(names)

    def parse_states(self, answer: str, names: Sequence[str]) -> dict[str, ServiceState]:
        known = {state.name: state for state in map(self.state_of, loads(answer or "[]"))}
        return {name: known.get(name, ServiceState(name)) for name in names}

    @abstractmethod
    def state_of(self, found: dict[str, Any]) -> ServiceState:
        """Read one entry of the answer to :meth:`states`."""

    def whose(self, labels: Mapping[str, str] | None) -> str:
        """Whose something with these labels is; empty if it is ours."""
        owner = (labels or {}).get(LABEL, "")
        if owner == str(self.paths.state):
            return ""
        return f"the stack in {owner}" if owner else "somebody else"

    @abstractmethod
    def crashes(self, names: Sequence[str], since: float) -> Command: ...

    @abstractmethod
    def parse_crashes(self, answer: str) -> dict[str, list[Crash]]: ...

    def exec(
        self, name: str, argv_: Sequence[str], env: Mapping[str, str], *, user: str = "", tty: bool = False
    ) -> Command:
        words = [*(["--user", user] if user else []), *(f"--env={key}={value}" for key, value in env.items())]
        return self.sh("exec $flags $words", flags=["-i", *(["-t"] if tty else [])], words=[*words, name, *argv_])

    def end_marked(self, name: str, mark: str, *, user: str = "") -> Command:
        """End what runs in a container with a variable in its environment: ``NAME=VALUE``. An engine lets it go on when
        the one that has asked for it is gone."""
        return self.exec(name, ["sh", "-c", END_MARKED, "sh", mark], {}, user=user)

    def as_account(self, command: Command, folder: Path | None = None) -> Command:
        return command

    def usage(self, name: str) -> Command:
        """What a container uses, from its own control group (https://docs.kernel.org/admin-guide/cgroup-v2.html)."""
        return self.exec(name, ["sh", "-c", USAGE], {}, user=NOBODY)

    def parse_usage(self, answer: str) -> Usage | None:
        """Read what :meth:`usage` printed: bytes without the cache that the kernel can drop, as docker counts them."""
        lines = answer.splitlines()
        if not lines or not lines[0].isdigit():
            return None
        values = dict(pair for pair in (line.split(" ", 1) for line in lines[1:]) if len(pair) == 2)
        try:
            memory = int(lines[0]) - int(values.get("inactive_file", 0))
            return Usage(memory, int(values["usage_usec"]) / 1e6, max(1, int(values.get("pids", 1)) - 2))
        except (KeyError, ValueError):
            return None

    # logs

    def log_kept(self, name: str) -> Path:
        return self.paths.log / f"{name}.log"

    def log_file(self, name: str) -> Path | None:
        return None

    def logs(self, name: str, *, tail: int, follow: bool, skip: int = 0) -> Command:
        """Those of the container; without one, those of the last."""
        kept = sh("tail -n $tail $log 2>/dev/null", tail=tail, log=self.log_kept(name))
        if not follow:
            return Command(f"{{ {self.log_command(name, tail)} 2>&1 || {kept}; }}")
        return sh("sh -c $script", script=str(self.follow_script(name, tail)))  # one word, not more of the command

    @abstractmethod
    def log_command(self, name: str, tail: int) -> Command: ...

    @abstractmethod
    def follow_script(self, name: str, tail: int) -> str:
        """Lines of sh(1) that end with the process that started them: a container that ends ends its log too, and the
        next one of this name is waited for."""

    # images and volumes

    build_options: Sequence[str] = ()
    save_options: Sequence[str] = ()

    def full(self, image: str) -> str:
        """An image's name as this engine takes it."""
        return image

    def images(self, names: Sequence[str]) -> Command:
        """Ask for images: their descriptions as JSON, or failure if one is not there."""
        return self.sh("image inspect $images", images=[self.full(name) for name in names])

    def image_ids(self, answer: str) -> list[str]:
        """The engine's own names for the images' content, in the answer to :meth:`images`."""
        return [self.image_id(found) for found in loads(answer)]

    @abstractmethod
    def image_id(self, found: dict[str, Any]) -> str:
        """Read one entry of the answer to :meth:`images`."""

    def pull(self, image: str) -> Command:
        return self.sh("image pull $image", image=self.full(image))

    def build(self, tag: str, file: Path, context: Path, arguments: Mapping[str, str]) -> Command:
        return self.sh(
            "build $own --tag $tag --label $label $arguments --file $file $context",
            own=self.build_options,
            tag=tag,
            label=IMAGE_LABEL,
            arguments=[f"--build-arg={k}={self.full(v) if k == BASE else v}" for k, v in arguments.items()],
            file=file,
            context=context,
        )

    def save(self, images: Sequence[str], file: Path) -> Command:
        options = [*self.save_options, "--output", str(file)]
        return self.sh("image save $words", words=[*options, *map(self.full, images)])

    def load(self, file: Path) -> Command:
        return self.sh("image load --input $file", file=file)

    def volume(self, name: str) -> Command:
        """Ask for a volume: its description as JSON, or failure."""
        return self.sh("volume inspect $name", name=name)

    @abstractmethod
    def volume_labels(self, answer: str) -> Mapping[str, str]:
        """The labels of a volume, in the answer to :meth:`volume`."""

    def volume_create(self, name: str) -> Command:
        return self.sh("volume create --label $label $name", label=self.label, name=name)

    @abstractmethod
    def volume_users(self, name: str) -> Command:
        """Ask which containers have a volume, running or not."""

    @abstractmethod
    def parse_users(self, answer: str, name: str) -> dict[str, bool]:
        """Read the answer to :meth:`volume_users`: their names, and whether they run."""

    def volume_remove(self, name: str) -> Command:
        return self.sh("volume rm $name >/dev/null", name=name)


END_MARKED = """\
for file in /proc/[0-9]*/environ; do
    ! grep -q "$1" "$file" 2>/dev/null || { pid=${file#/proc/}; kill "${pid%/environ}"; }
done"""

USAGE = """\
if [ -e /sys/fs/cgroup/memory.current ]; then cd /sys/fs/cgroup; cat memory.current; cat memory.stat cpu.stat; \
echo pids $(cat pids.current); fi"""


def loads(answer: str) -> Any:
    """:raises EngineError: it is not JSON."""
    try:
        return load_json(answer)
    except ValueError:
        raise EngineError(f"it answered {answer[:200]!r}") from None


def objects(answer: str) -> Iterator[dict[str, Any]]:
    """JSON values, one a line; what is none is left out."""
    for line in answer.splitlines():
        try:
            found = load_json(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def seconds_of(text: str) -> float:
    """Seconds since the epoch of a time as Go writes it (RFC 3339, nanoseconds); 0 for none, or for Go's zero time."""
    match = re.fullmatch(r"(.*T[\d:]+)(?:\.(\d+))?(.*)", text.replace("Z", "+00:00"))
    if not match:
        return 0.0
    fraction = (match[2] or "")[:6].ljust(6, "0")
    try:
        return max(0.0, datetime.fromisoformat(f"{match[1]}.{fraction}{match[3]}").timestamp())
    except (ValueError, OverflowError):
        return 0.0


STATUS: dict[str, Status] = {
    "running": "running",
    "paused": "running",
    "restarting": "failed",
    "stopping": "stopping",
    "removing": "stopping",
}
"""https://docs.docker.com/reference/api/engine/, ContainerState; Podman has stopping too. In any other state a
container has ended, or was made and never started, as where its port was taken."""

NEVER_RAN = ("created", "configured", "initialized")
"""States of a container that was made and not started; the last two are Podman's."""
