"""Apple's ``container`` (https://github.com/apple/container, docs/command-reference.md): each container is a small
virtual machine with an address of its own.

Not docker's command line: no restart policy, no events, no names between containers, options only as words of their own
or joined by ``=``. Read from its release 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from devstack.runtimes import Crash, ServiceSpec, ServiceState, Status, Usage
from devstack.runtimes.containers import Containers, loads, seconds_of
from devstack.shell import Command, sh

LEAST_MB = 200
"""A virtual machine has no less memory."""

STATUS: dict[str, Status] = {"running": "running", "stopping": "stopping", "stopped": "stopped", "unknown": "failed"}

# its log begins anew with each start: whether there was one is asked twice a second, as long as who asked lives
FOLLOW = """\
tail=$tail last=
while kill -0 $$PPID 2>/dev/null; do
    now=$$($program inspect $name 2>/dev/null | grep startedDate)
    if [ -n "$$now" ] && [ "$$now" != "$$last" ]; then
        last=$$now
        $program logs -f -n $$tail $name 2>&1
        tail=100000
    fi
    sleep 0.5
done"""


class Apple(Containers):
    """The dialect of Apple's container."""

    name = "apple"
    program = "container"
    named = False

    def unstick(self) -> str:
        return "container system start"

    # services

    def service_options(self, spec: ServiceSpec) -> list[str]:
        """None: it starts nothing again, and is told how to stop when it stops."""
        return []

    def options(self, spec: ServiceSpec) -> list[str]:
        assert spec.inside
        memory = max(LEAST_MB, spec.inside.memory_mb)
        return [f"--label={self.label}", f"--memory={memory}M", *self.mounted(spec)]

    def halt(self, name: str, signal: str, instead: str, seconds: int) -> Command:
        return self.sh(
            "stop --signal $signal --time $seconds $name >/dev/null",
            signal=f"SIG{instead or signal}",
            seconds=seconds,
            name=name,
        )

    def remove(self, name: str) -> Command:
        return self.sh("delete --force $name >/dev/null", name=name)

    def resume(self, name: str) -> Command | None:
        return None

    def states(self, names: Sequence[str]) -> Command:
        return self.sh("list --all --format json")

    def state_of(self, found: dict[str, Any]) -> ServiceState:
        state, configuration = found.get("status") or {}, found.get("configuration") or {}
        status = STATUS.get(state.get("state", ""), "failed")
        networks = state.get("networks") or [{}]
        published = (configuration.get("publishedPorts") or ()) if status in ("running", "stopping") else ()
        image = (configuration.get("image") or {}).get("descriptor") or {}
        return ServiceState(
            name=str(found.get("id") or configuration.get("id", "")),
            status=status,
            started=seconds_of(str(state.get("startedDate", ""))) if status == "running" else 0.0,
            # what a command of ours stops is removed, and the engine knows no exit code
            detail="" if status in ("running", "stopping") else "it ended",
            defined=True,
            foreign=self.whose(configuration.get("labels")),
            ports=tuple(int(port["hostPort"]) for port in published),
            address=str(networks[0].get("ipv4Address", "")).partition("/")[0],
            image=str(image.get("digest", "")).removeprefix("sha256:"),
        )

    def crashes(self, names: Sequence[str], since: float) -> Command:
        """Nothing to ask: it starts nothing again by itself."""
        return sh("true")

    def parse_crashes(self, answer: str) -> dict[str, list[Crash]]:
        return {}

    def usage(self, name: str) -> Command:
        return self.sh("stats --no-stream --format json $name", name=name)

    def parse_usage(self, answer: str) -> Usage | None:
        for found in loads(answer or "[]"):
            memory, cpu = int(found.get("memoryUsageBytes") or 0), int(found.get("cpuUsageUsec") or 0)
            return Usage(memory, cpu / 1e6, int(found.get("numProcesses") or 0))
        return None

    # logs

    def log_command(self, name: str, tail: int) -> Command:
        return self.sh("logs -n $tail $name", tail=tail, name=name)

    def follow_script(self, name: str, tail: int) -> str:
        return sh(FOLLOW, tail=tail, program=self.program, name=name)

    # images and volumes

    build_options = ("--progress", "plain")

    def image_id(self, found: dict[str, Any]) -> str:
        configuration = found.get("configuration") or {}
        return str((configuration.get("descriptor") or {}).get("digest", "") or found.get("id", ""))

    def volume_users(self, name: str) -> Command:
        return self.sh("list --all --format json")

    def parse_users(self, answer: str, name: str) -> dict[str, bool]:
        users: dict[str, bool] = {}
        for found in loads(answer or "[]"):
            mounts = (found.get("configuration") or {}).get("mounts") or ()
            if name in [((mount.get("type") or {}).get("volume") or {}).get("name") for mount in mounts]:
                users[str(found.get("id", ""))] = (found.get("status") or {}).get("state") == "running"
        return users

    def volume_labels(self, answer: str) -> Mapping[str, str]:
        (found, *_) = loads(answer) or [{}]
        return (found.get("configuration") or {}).get("labels") or {}
