"""The native runtime: plain processes, supervised by Supervisor (http://supervisord.org).

One small daemon an environment. It is told what to do over its XML-RPC interface (http://supervisord.org/api.html) on
the daemon's unix socket: an answer in 1 ms where ``supervisorctl``, a Python program, takes 100.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from devstack.paths import Paths
from devstack.runtimes import Crash, EngineError, File, ServiceSpec, ServiceState, Status, Step, unprivileged
from devstack.runtimes.launcher import HEADER, launcher
from devstack.shell import Command, Request, argv, chain, post, sh
from devstack.templates import CHECKOUT, Templates, render

LOG_BYTES = 50_000
"""Of the end of Supervisor's log, where it says what ended and how."""
CRASH = re.compile(
    r"^(?P<when>[\d-]+ [\d:]+),\d+ (?:INFO|WARN) exited: (?P<name>\S+) \((?P<how>.*); not expected\)$", re.MULTILINE
)
"""https://github.com/Supervisor/supervisor, supervisor/process.py, finish(); the time is local."""

STATUS: dict[str, Status] = {
    "STOPPED": "stopped",
    "STARTING": "starting",
    "RUNNING": "running",
    "BACKOFF": "failed",
    "STOPPING": "stopping",
    "EXITED": "failed",
    "FATAL": "failed",
    "UNKNOWN": "failed",
}
"""http://supervisord.org/subprocess.html#process-states"""

URL = "http://supervisor/RPC2"
"""The host's name means nothing on a unix socket."""
ANSWER_SECONDS = 3
"""For a question that Supervisor answers in a millisecond: whoever asks for a state has little patience."""

BENIGN_FAULTS = {
    "reload": set[str](),
    "stop": {"BAD_NAME", "NOT_RUNNING"},
    "remove": {"BAD_NAME"},
    "add": {"ALREADY_ADDED"},
    "start": {"ALREADY_STARTED"},
}
"""Answers that mean: it already is as asked; in the order of the calls of supervisor-run.xml.
https://github.com/Supervisor/supervisor, supervisor/xmlrpc.py"""


class Native:
    """The dialect of Supervisor."""

    name = "native"
    contained = False

    def __init__(
        self,
        paths: Paths,
        templates: Templates | Path,
        python: str,
        account: str,
        is_root: bool,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """
        :param account: the services' account, if this is root.
        :param environ: the environment of the commands; the services' account gets a part of it.
        """
        self.paths = paths
        self.templates = templates
        self.python = python
        self.account = account
        self.is_root = is_root
        self._kept = [f"{name}={value}" for name, value in unprivileged.kept(environ).items()]

    @property
    def socket(self) -> Path:
        return self.paths.run / "supervisor.sock"

    @property
    def conf(self) -> Path:
        return self.paths.config / "supervisord.conf"

    def launcher(self, name: str) -> Path:
        return self.paths.config / f"{name}.sh"

    def render(self, template: str, **values: str) -> str:
        return render(self.templates / template, **values)

    # the engine

    def engine_start(self) -> Sequence[Step]:
        conf = self.render(
            "supervisord.conf",
            logs=_ini(self.paths.logs),
            run=_ini(self.paths.run),
            state=_ini(self.paths.state),
            user="user = root\n" if self.is_root else "",
        )
        return [
            File(self.conf, conf),
            # supervisord opens its own log before it obeys the umask of its file; one that is open to others is closed.
            # Python would import from the caller's directory first
            sh(
                "umask 077; { [ ! -e $log ] || chmod 600 $log; }"
                " && cd / && exec $python -m supervisor.supervisord -c $conf",
                log=self.paths.logs / "supervisord.log",
                python=self.python,
                conf=self.conf,
            ),
        ]

    def engine_stop(self) -> Sequence[Step]:
        return [post(self.socket, URL, _request("supervisor.shutdown"))]

    def engine_pid(self) -> Path | None:
        return self.paths.run / "supervisord.pid"

    # services

    def run(self, spec: ServiceSpec, *, defined: bool = False) -> Sequence[Step]:
        programs = [spec, self._reloader(spec)] if spec.watch else [spec]
        conf = "\n".join(self._program(program) for program in programs)
        if spec.watch:
            conf += f"\n[group:{spec.name}]\nprograms = {','.join(program.name for program in programs)}\n"
        # the definition is read, what was there before under this name goes, and it starts: in one request
        request = File(
            self.paths.config / "services" / f"{spec.name}.xml", self.render("supervisor-run.xml", name=spec.name)
        )
        return [
            *(file for program in programs for file in self._launchers(program)),
            File(self.paths.config / "services" / f"{spec.name}.conf", conf),
            request,
            post(self.socket, URL, request.content, file=request.path),
        ]

    def _launchers(self, spec: ServiceSpec) -> Sequence[File]:
        """The scripts of a service. Supervisor would change the account and keep the environment, which the account
        could read in /proc/PID/environ. So it starts a script of root's, which drops the environment, and only then
        changes the account and goes on in a script of the account's."""
        if not (spec.own_account and self.is_root):
            return [File(self.launcher(spec.name), self.launch_script(spec), account=spec.own_account)]
        own = self.paths.config / f"{spec.name}-account.sh"
        change = sh(
            "exec env -i $kept $python -I -S $script $account /bin/sh $own",
            kept=self._kept,
            python=self.python,
            script=unprivileged.__file__,
            account=self.account,
            own=own,
        )
        return [
            File(own, self.launch_script(spec), account=True),
            File(self.launcher(spec.name), f"{HEADER}\n{change}\n"),
        ]

    def _program(self, spec: ServiceSpec) -> str:
        return self.render(
            "supervisor-service.conf",
            name=spec.name,
            launcher=_ini(str(self.launcher(spec.name)).replace("\\", r"\\")),  # a word in double quotes
            stop_signal=spec.stop_signal,
            stop_seconds=str(spec.stop_seconds),
            # Supervisor expands a log's name twice: supervisor/options.py, processes_from_section
            logs=_ini(_ini(self.paths.logs)),
        )

    def _reloader(self, spec: ServiceSpec) -> ServiceSpec:
        """A second program in the service's group, which restarts the first when its source changes.

        uvicorn's own reloader would stand between the supervisor and the server: killed, it leaves a server
        behind that holds the port, and it does not notice when the server is killed.
        """
        words = [self.python, "-m", "devstack.reload", str(self.socket), f"{spec.name}:{spec.name}"]
        env = {"PYTHONPATH": str(CHECKOUT)}
        name = f"{spec.name}-reload"
        return ServiceSpec(name=name, argv=[*words, *map(str, spec.watch)], cwd=self.paths.state, env=env)

    def launch_script(self, spec: ServiceSpec) -> str:
        return launcher(spec, {"NV_STACK": str(self.paths.state), "NV_SERVICE": spec.name})

    def stop(self, name: str, *, signal: str = "", instead: str = "", seconds: int = 10) -> Sequence[Step]:
        stop = post(self.socket, URL, _request("supervisor.stopProcessGroup", name, wait=False))
        # it learnt its own signal at its start; another one comes second, lest Supervisor take its end for a crash
        other = [post(self.socket, URL, _request("supervisor.signalProcessGroup", name, instead))] if instead else []
        return [stop, *other]

    def check_run(self, answer: str) -> None:
        results = _loads(answer)
        if not isinstance(results, list) or len(results) != len(BENIGN_FAULTS):
            raise EngineError(f"supervisord answered {answer[:200]!r}")
        for result, benign in zip(results, BENIGN_FAULTS.values(), strict=True):
            _refuse(result, benign)

    def check_stop(self, answer: str) -> None:
        try:
            _refuse(_loads(answer), BENIGN_FAULTS["stop"])
        except EngineError as error:
            if _fault(str(error)) not in BENIGN_FAULTS["stop"]:
                raise

    def states(self, names: Sequence[str]) -> Request:
        return post(self.socket, URL, _request("supervisor.getAllProcessInfo"), timeout=ANSWER_SECONDS)

    def parse_states(self, answer: str, names: Sequence[str]) -> dict[str, ServiceState]:
        infos: list[dict[str, Any]] = _loads(answer) if answer.strip() else []
        known = {info["name"]: info for info in infos}
        return {
            name: _state(name, known.get(name), [i["pid"] for i in infos if i.get("group") == name != i["name"]])
            for name in names
        }

    def crashes(self, names: Sequence[str], since: float) -> Request:
        return post(self.socket, URL, _request("supervisor.readLog", -LOG_BYTES, 0), timeout=ANSWER_SECONDS)

    def parse_crashes(self, answer: str) -> dict[str, list[Crash]]:
        found: dict[str, list[Crash]] = {}
        for match in CRASH.finditer(_loads(answer)):
            when = datetime.fromisoformat(match["when"]).timestamp()
            found.setdefault(match["name"], []).append(Crash(when, match["how"]))
        return found

    def unstick(self) -> str:
        return f'resume it, should it be frozen: kill -CONT "$(cat {argv([self.paths.run / "supervisord.pid"])})"'

    def exec(
        self, name: str, argv_: Sequence[str], env: Mapping[str, str], *, user: str = "", tty: bool = False
    ) -> Command:
        # not through env(1), which takes a program's path with = in it for another variable
        return Command(" ".join([*(f"{key}={argv([value])}" for key, value in env.items()), argv(argv_)]))

    def logs(self, name: str, *, tail: int, follow: bool, skip: int = 0) -> Command:
        log = self.log_file(name)
        if follow:
            return sh("tail -n $tail -F $log", tail=tail, log=log)
        if skip:
            return sh("tail -c +$first $log | tail -n $tail", first=skip + 1, log=log, tail=tail)
        return sh("tail -n $tail $log", tail=tail, log=log)

    def log_file(self, name: str) -> Path:
        return self.paths.log / f"{name}.log"

    def as_account(self, command: Command, folder: Path | None = None) -> Command:
        """Return the command under the services' account, in a directory that it may enter, or one that is its own
        below others that it may not. Of our environment it gets what a service gets."""
        if not self.is_root:
            return command
        return chain(
            sh("cd $folder", folder=folder or self.paths.state),
            sh(
                "env -i $kept su -s /bin/sh $account -c $command",
                kept=self._kept,
                account=self.account,
                command=str(command),
            ),
        )


def _ini(path: Path | str) -> str:
    """A path as a value in Supervisor's files, where % begins an expansion."""
    return str(path).replace("%", "%%")


def _request(method: str, *values: str | int, wait: bool = True) -> str:
    """A request on one line. Without ``wait`` it is answered at once: Supervisor looks after a waiting caller once a
    second only, which is long when a service stops in 20 ms."""
    texts = [f"<int>{value}</int>" if isinstance(value, int) else value for value in values]
    params = "".join(f"<param><value>{text}</value></param>" for text in texts)
    if not wait:
        params += "<param><value><boolean>0</boolean></value></param>"
    return f"<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"


def _fault(text: str) -> str:
    """The name at the beginning of an answer: ``NOT_RUNNING: nv-db``."""
    return text.split(":")[0]


def _refuse(result: Any, benign: set[str]) -> None:
    """Look at one call's answer: a value, a fault, or the status of each process in a group.

    :raises EngineError: one is a refusal.
    """
    for status in result if isinstance(result, list) else [result]:
        if isinstance(status, dict):
            text = status.get("faultString") or status.get("description") or ""
            if _fault(text) not in {*benign, "OK", "SUCCESS"}:
                raise EngineError(text)


def _loads(answer: str) -> Any:
    import xmlrpc.client

    try:
        (value,), _ = xmlrpc.client.loads(answer)
    except xmlrpc.client.Fault as fault:
        raise EngineError(fault.faultString) from None
    except Exception as error:
        raise EngineError(f"supervisord answered {answer[:200]!r} ({error})") from None
    return value


def _state(name: str, info: dict[str, Any] | None, helpers: Sequence[int]) -> ServiceState:
    if info is None:
        return ServiceState(name)
    status = STATUS.get(info["statename"], "failed")
    up = status in ("running", "starting")
    return ServiceState(
        name=name,
        status=status,
        pid=info["pid"],
        started=float(info["start"]) if up else 0.0,
        # Supervisor has an exit status for EXITED only
        exit_code=info["exitstatus"] if info["statename"] == "EXITED" else None,
        # of one that was stopped it has the time
        detail=info["spawnerr"] or (info["description"] if status == "failed" else ""),
        helpers=tuple(filter(None, helpers)),
    )
