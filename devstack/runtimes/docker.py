"""Docker (https://docs.docker.com/reference/cli/docker/) and Podman, whose command line is nearly the same
(https://docs.podman.io/en/latest/Commands.html)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from devstack.runtimes import Crash, ServiceSpec, ServiceState, Step
from devstack.runtimes.containers import CAPABILITIES, NEVER_RAN, STATUS, Containers, loads, objects, seconds_of
from devstack.shell import Command, sh

# a container that ends ends its log: whether there is another is asked twice a second, as long as who asked lives
FOLLOW = """\
tail=$tail since=0s
while kill -0 $$PPID 2>/dev/null; do
    if $program inspect --type container $name >/dev/null 2>&1; then
        $program logs --follow --tail $$tail --since $$since $name 2>&1
        since=$$(date -u +%Y-%m-%dT%H:%M:%SZ) tail=all
    fi
    sleep 0.5
done"""


# A signal alone would count as a crash, and `--restart on-failure` would start the container again: so the stop comes
# first. The signal is repeated in case the engine took it before the stop.
HALT = """\
{ $stop & stop=$$!
while sleep 0.2; kill -0 $$stop 2>/dev/null; do $kill; done
wait $$stop; }"""


def with_registry(image: str) -> str:
    """An image's name with its registry, which is Docker Hub where it names none."""
    first, slash, _ = image.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


class Docker(Containers):
    """The dialect of docker."""

    name = "docker"
    program = "docker"
    named = True

    # the network, in which containers find each other by name

    def network_create(self) -> Command:
        return self.sh("network create --label $label $network", label=self.label, network=self.network)

    def engine_start(self) -> Sequence[Step]:
        # it is made unasked, since it is nearly always gone; a refusal is no failure where it is there
        there = self.sh("network inspect $network >/dev/null 2>&1", network=self.network)
        return [Command(f'said=$({self.network_create()} 2>&1) || {there} || {{ echo "$said" >&2; exit 1; }}')]

    def engine_stop(self) -> Sequence[Step]:
        there = self.sh("network inspect $network >/dev/null 2>&1", network=self.network)
        return [Command(f"! {there} || {self.sh('network rm $network >/dev/null', network=self.network)}")]

    # services

    def service_options(self, spec: ServiceSpec) -> list[str]:
        words = ["--restart", "on-failure", "--stop-signal", f"SIG{spec.stop_signal}"]
        return [*words, "--stop-timeout", str(spec.stop_seconds)]

    def options(self, spec: ServiceSpec) -> list[str]:
        assert spec.inside
        network = self.network if spec.inside.network else "none"
        words = [f"--label={self.label}", f"--network={network}", f"--memory={spec.inside.memory_mb}m"]
        kept = [f"--cap-add={name}" for name in CAPABILITIES] if spec.inside.root else []
        words += ["--cap-drop=ALL", *kept, "--security-opt=no-new-privileges"]
        if spec.inside.folders:
            # SELinux would keep a container out of the host's folders; giving them another label changes them
            words.append("--security-opt=label=disable")
        return [*words, *self.mounted(spec)]

    def halt(self, name: str, signal: str, instead: str, seconds: int) -> Command:
        """Stop it by its own signal, or by ``instead``, with the patience that it was made with."""
        stop = self.sh("stop $name >/dev/null", name=name)
        if not instead:
            return stop
        kill = self.sh("kill --signal $signal $name >/dev/null 2>&1", signal=f"SIG{instead}", name=name)
        return sh(HALT, stop=stop, kill=kill)

    def remove(self, name: str) -> Command:
        # -v: volumes without a name, which an image may declare; those with one stay
        return self.sh("rm --force --volumes $name >/dev/null", name=name)

    def resume(self, name: str) -> Command:
        return self.sh("unpause $name >/dev/null", name=name)

    def states(self, names: Sequence[str]) -> Command:
        return self._asked_twice(self.sh("ps --all --quiet --no-trunc $filters", filters=self._filters(names)))

    def _asked_twice(self, ids: Command) -> Command:
        """Describe containers; asked twice where one goes between the two questions."""
        ask = (
            f'ids=$({ids}) || exit; if [ -z "$ids" ]; then echo "[]";'
            f" else {self.program} inspect --type container $ids; fi"
        )
        return Command(f"ask() {{ {ask}; }}; ask 2>/dev/null || ask")

    def _filters(self, names: Sequence[str]) -> list[str]:
        if not names:
            return [f"--filter=label={self.label}"]
        return [f"--filter=name=^{name}$" for name in names]

    def state_of(self, found: dict[str, Any]) -> ServiceState:
        state, labels = found["State"], (found.get("Config") or {}).get("Labels")
        word = str(state.get("Status", "")).lower()
        code = int(state.get("ExitCode") or 0)
        # what a command of ours stops is removed: what is left has ended by itself
        status = STATUS.get(word, "failed" if code else "stopped")
        up = status == "running"
        settings = found.get("NetworkSettings") or {}
        networks = settings.get("Networks") or {}
        # one that does not run shows those that it is to have
        ports = (settings.get("Ports") or {}) if up or status == "stopping" else {}
        published = [binding for some in ports.values() for binding in some or ()]
        ended = "killed: it ran out of memory" if state.get("OOMKilled") else f"it ended with exit code {code}"
        if word in NEVER_RAN:
            ended = "it was made and never started"
        return ServiceState(
            name=found["Name"].removeprefix("/"),
            status=status,
            pid=int(state.get("Pid") or 0) if up else 0,
            started=seconds_of(state.get("StartedAt", "")) if up else 0.0,
            exit_code=None if up else code,
            detail="" if up else state.get("Error") or ended,
            paused=word == "paused",
            defined=True,
            foreign=self.whose(labels),
            address=(networks.get(self.network) or {}).get("IPAddress", ""),
            id=str(found.get("Id", "")),
            image=str(found.get("Image", "")).removeprefix("sha256:"),
            ports=tuple(int(binding["HostPort"]) for binding in published if binding.get("HostPort")),
        )

    def crashes(self, names: Sequence[str], since: float) -> Command:
        """https://docs.docker.com/reference/cli/docker/system/events/"""
        filters = [f"--filter=container={name}" for name in names]
        return sh(
            "$program events --since $since --until $until --filter event=die $filters --format '{{json .}}'",
            program=self.program,
            since=int(since),
            until=Command('"$(date +%s)"'),
            filters=filters,
        )

    def parse_crashes(self, answer: str) -> dict[str, list[Crash]]:
        found: dict[str, list[Crash]] = {}
        for event in objects(answer):
            attributes = (event.get("Actor") or {}).get("Attributes") or {}
            name, code = attributes.get("name", ""), attributes.get("exitCode", "0")
            if code != "0":
                when = float(event.get("timeNano", 0)) / 1e9 or float(event.get("time", 0))
                found.setdefault(name, []).append(Crash(when, f"exit code {code}"))
        return found

    # logs

    def log_command(self, name: str, tail: int) -> Command:
        return self.sh("logs --tail $tail $name", tail=tail, name=name)

    def follow_script(self, name: str, tail: int) -> str:
        return sh(FOLLOW, tail=tail, program=self.program, name=name)

    # images and volumes

    # the host's name servers and routes, a VPN's too, are those that packages come through
    build_options = ("--network", "host")

    def image_id(self, found: dict[str, Any]) -> str:
        return str(found.get("Id", ""))

    def volume_labels(self, answer: str) -> Mapping[str, str]:
        return (loads(answer) or [{}])[0].get("Labels") or {}

    def volume_users(self, name: str) -> Command:
        return self.sh("ps --all --filter=volume=$name --format '{{.Names}} {{.State}}'", name=name)

    def parse_users(self, answer: str, name: str) -> dict[str, bool]:
        found = (line.partition(" ") for line in answer.splitlines())
        return {container: STATUS.get(state.lower()) == "running" for container, _, state in found}

    def unstick(self) -> str:
        if sys.platform == "darwin":
            return "start Docker Desktop (or: colima start)"
        return "sudo systemctl restart docker"


class Podman(Docker):
    """The dialect of podman."""

    name = "podman"
    program = "podman"
    save_options = ("--multi-image-archive",)

    def full(self, image: str) -> str:
        """Names without a registry are Docker Hub's, as for docker: Podman has no default of its own for them."""
        return with_registry(image)

    def crashes(self, names: Sequence[str], since: float) -> Command:
        """https://docs.podman.io/en/latest/markdown/podman-events.1.html"""
        return sh(
            "$program events --stream=false --since $since --filter event=died $filters --format json",
            program=self.program,
            since=int(since),
            filters=[f"--filter=container={name}" for name in names],
        )

    def parse_crashes(self, answer: str) -> dict[str, list[Crash]]:
        found: dict[str, list[Crash]] = {}
        for event in objects(answer):
            code = int(event.get("ContainerExitCode") or 0)
            if code:
                when = seconds_of(str(event.get("Time", ""))) or float(event.get("timeNano", 0)) / 1e9
                found.setdefault(str(event.get("Name", "")), []).append(Crash(when, f"exit code {code}"))
        return found

    def unstick(self) -> str:
        return "podman machine start" if sys.platform == "darwin" else "see `podman info`"

    def start_states(self, names: Sequence[str]) -> Command:
        return self._all()

    def volume_users(self, name: str) -> Command:
        """Its filter for volumes knows no names (4.3): all containers are asked."""
        return self._all()

    def _all(self) -> Command:
        return self._asked_twice(self.sh("ps --all --quiet --no-trunc"))

    def parse_users(self, answer: str, name: str) -> dict[str, bool]:
        return {
            str(found.get("Name", "")): (found.get("State") or {}).get("Status") == "running"
            for found in loads(answer or "[]")
            if name in [mount.get("Name") for mount in found.get("Mounts") or ()]
        }
