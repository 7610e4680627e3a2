"""The services of one environment, in order."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from devstack import console, engines, ports, providers, trust
from devstack.choices import Choices
from devstack.container import ContainerContext
from devstack.credentials import credentials_of
from devstack.errors import StackError, UsageError
from devstack.host import Host, PortHolder
from devstack.inherited import LIBPQ_VARIABLES
from devstack.lock import StackLock, removed
from devstack.paths import SETTINGS, Paths, paths_of, registry_of
from devstack.providers import Programs
from devstack.registry import Registry
from devstack.runtimes import Crash, ServiceSpec, ServiceState
from devstack.services import NotReady, Service, wait_until_answers
from devstack.services.api import Api
from devstack.services.configuration import Applied, sentence
from devstack.services.pgbouncer import PgBouncer
from devstack.services.postgres import Postgres
from devstack.settings import Entry, Refusal, Replaced, Settings, from_invoke, refused, variable_of
from devstack.shell import typed
from devstack.tolerance import Memory, Place, Tolerance, recorded, replaced, tolerant_settings, with_service
from devstack.tolerance import note as tolerance_note
from devstack.variables import AUTH_VARIABLE

if TYPE_CHECKING:
    from invoke import Context

    from devstack.services.images import Images


class Started(Struct, frozen=True):
    """What starting a service came to. Times are in seconds; ``offset`` counts from the command's start."""

    name: str
    label: str
    address: str
    did: Literal["started", "restarted", "running"]
    why: str
    offset: float
    seconds: float
    state: ServiceState | None = None


class ServiceStatus(Struct, frozen=True):
    """A service as it is now: what the engine says, and whether it really answers."""

    label: str
    address: str
    state: ServiceState
    answers: bool
    reason: str = ""

    @property
    def word(self) -> str:
        if self.answers:
            return "running"
        return "not answering" if self.state.status == "running" else self.state.status


class Stack:
    """PostgreSQL, PgBouncer and the application of one environment."""

    def __init__(
        self,
        context: ContainerContext,
        settings: Settings,
        environ: Mapping[str, str],
        registry: Registry,
        *,
        looking: bool = False,
        tolerance: Tolerance | None = None,
    ) -> None:
        """
        :param tolerance: for a command that goes on without settings that are wrong.
        """
        self.context = context
        self.settings = settings
        self.environ = environ
        self.registry = registry
        self.paths = context.paths
        self.lock = StackLock(self.paths.lock, settings.stack.lock_timeout)
        self.data_lock = StackLock(self.paths.data_lock, settings.stack.lock_timeout)
        """Of what reads or writes backups. Whoever needs both takes :attr:`lock` first."""
        self.began = time.monotonic()
        self.started: list[Started] = []
        self.quiet = False
        """Whether starts and stops are no part of the command's answer."""
        self._snapshot: dict[str, ServiceState] = {}
        self._ended: set[str] = set()
        """Names of the services that this command has stopped."""
        self._says_resumed = True
        """Whether to say what was frozen and is resumed."""
        self._checked: set[str] = set()
        """Names of the services that this command has found fit to be started."""
        self._new_choices: Choices | None = None
        """Choices of this command, recorded once nothing speaks against them."""
        self.looking = looking
        self.tolerance = tolerance
        self.images: Images | None = None
        """Where the services are containers."""
        self.renew()

    def renew(self) -> None:
        """Make the services, for an environment whose state may be as new as it is at the very first command."""
        context, settings, looking = self.context, self.settings, self.looking
        self._snapshot.clear()
        self._ended.clear()
        self._checked.clear()
        self._new_choices = None
        if not looking:
            self._prepare_state()
        credentials = credentials_of(context, settings, looking=looking)
        if context.runtime.contained:
            from devstack.services.contained import ContainedApi, ContainedPgBouncer, ContainedPostgres
            from devstack.services.images import Images

            self.images = images = Images(context, settings, lambda: self.chosen, self._choose)
            self.db: Postgres = ContainedPostgres(context, settings, credentials, images)
            self.pgb: PgBouncer = ContainedPgBouncer(context, settings, credentials, self.db, images)
            self.api: Api = ContainedApi(context, settings, credentials, self.pgb, images)
            return
        self.db = Postgres(context, settings, credentials, self._postgres)
        self.pgb = PgBouncer(context, settings, credentials, self.db, self._pgbouncer)
        self.api = Api(context, settings, credentials)

    @property
    def services(self) -> list[Service]:
        """In the order of start; they stop the other way round."""
        return [self.db, self.pgb, self.api]

    def service(self, label: str) -> Service:
        return next(service for service in self.services if service.label == label)

    @property
    def names(self) -> list[str]:
        return [service.name for service in self.services]

    # check

    def check(self, labels: Iterable[str], *, fresh: bool = False, ports: bool = True) -> None:
        """Check whether services could be started with the settings as they are, before anything is stopped for that.

        :param fresh: whether their data are to be made anew by then.
        :param ports: whether their ports have to be free, or theirs.
        :raises StackError: one could not; what runs was not touched.
        """
        if self.context.dry:
            return
        self._begin()
        with self._untouched():
            for service in map(self.service, labels):
                self._check(service, fresh=fresh, ports=ports)

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        """Have an error say that nothing was stopped."""
        running = any(self._state(service).running for service in self.services)
        try:
            yield
        except StackError as error:
            raise error.adding("what runs was not touched" if running else "") from None

    def check_start(self, label: str) -> None:
        """Check a service and those before it, if one of them is to be restarted for changed settings: a later one
        could be refused when the earlier one is stopped already.

        :raises StackError: one of those that are to be started could not be; what runs was not touched.
        """
        wanted = self.services[: self.services.index(self.service(label)) + 1]
        if self.context.dry or not any(map(self.ready_since, wanted)):
            return
        self._begin()
        running = [service for service in wanted if self._state(service).running]
        with self._untouched():
            changed = [service.label for service in running if self.outdated(service)]
        if changed:
            self.check([s.label for s in wanted if s.label in changed or s not in running])

    def check_restart(self, *, everything: bool = False) -> None:
        """Check the services that run, which are to be stopped and started again; nothing if none does.

        :param everything: whether those that do not run are to be started too.
        :raises StackError: one of them could not be started; what runs was not touched.
        """
        if self.context.dry:
            return
        self._begin()
        if running := [service for service in self.services if self._state(service).running]:
            self.check([service.label for service in (self.services if everything else running)])

    def check_ports(self) -> None:
        """:raises StackError: somebody else has a port that a service needs."""
        for service in self.services:
            self._check_port(service)

    def _check(self, service: Service, *, fresh: bool = False, ports: bool = True) -> None:
        if service.name in self._checked:
            return
        self._check_ours(self._state(service))
        if ports:
            self._check_port(service)
        self._check_logs(service)
        service.check(fresh=fresh)
        # templates of the runtime that can't be filled in are refused here
        self.context.runtime.engine_start()
        self.context.runtime.run(service.spec())
        self._checked.add(service.name)

    def _check_logs(self, service: Service) -> None:
        for name in () if self.context.dry else (service.name, "supervisord"):
            self.context.host.check_writable(self.paths.log / f"{name}.log")

    def assume(self, choices: Choices) -> None:
        """Take these choices for the recorded ones, until :meth:`renew`."""
        self._new_choices = choices

    # start

    def start(self, label: str) -> Started:
        """Have a service run as the settings say, ready for real; what already is so is left alone.

        :raises StackError: a setting is wrong, or it did not become ready; it is stopped again then.
        """
        self._refuse_wrong()
        self._begin()
        service = self.service(label)
        offset = time.monotonic() - self.began
        began = time.monotonic()
        if not self.ready_since(service):
            if service.name not in self._snapshot:
                self.context.ask_states_ahead(self.names)
            self._ask_ahead(service)
            if self.context.runtime.contained:
                self.context.begin_engine()
                if not self._snapshot:
                    _import_meanwhile(contained=True)  # the engine takes a while to answer
        try:
            state = self._state(service)
            self._check_ours(state)
        except BaseException:
            self._let_go()
            raise
        did: Literal["started", "restarted", "running"] = "started"
        why = ""
        if state.running:
            self.context.withdraw(engine=True)
            why = self._why_restart(service)
            if not why:
                self._record_choices()
                self._record_settings(service)
                done = Started(
                    service.name,
                    label,
                    service.address,
                    "running",
                    "",
                    offset,
                    time.monotonic() - began,
                    state,
                )
                self.started.append(done)
                return done
            did = "restarted"
        self._start(service, running=state.running)
        done = Started(service.name, label, service.address, did, why, offset, time.monotonic() - began)
        self.started.append(done)
        return done

    def restart(self, label: str) -> None:
        """Stop a service, whatever state it is in, and have it ready again.

        :raises StackError: a setting is wrong, or it did not become ready.
        """
        self._refuse_wrong()
        service = self.service(label)
        self._begin()
        self._start(service, running=self._state(service).running)

    def resume(self) -> None:
        """Have everything go on that is frozen: services, what runs for them, and what they run under."""
        self._says_resumed = False
        try:
            self._begin()
            self._state(self.db)  # which resumes what is frozen
        finally:
            self._says_resumed = True

    def why_frozen(self, state: ServiceState) -> str:
        """Return what is frozen of a service; empty if nothing is."""
        found = self.context.frozen([state])
        return _frozen(found[state.name]) if found else ""

    def check_goes_on(self, service: Service, state: ServiceState) -> None:
        """Refuse to wait for a service that does nothing.

        :raises StackError: some of its processes are frozen.
        """
        if why := self.why_frozen(state):
            raise StackError(f"{service.name} is frozen", why=why, fix="inv dev.heal, which resumes it")

    def check_all_go_on(self) -> None:
        """Do the same for all services.

        :raises StackError: some processes of one are frozen.
        """
        states = self.context.states(self.names)
        for service in self.services:
            self.check_goes_on(service, states[service.name])

    def settle_database(self) -> None:
        """Role, database and extensions as in the settings, on the running database."""
        self._begin()
        self.db.settle()

    def unpause_pooler(self) -> None:
        """Open PgBouncer's databases to clients again."""
        self._begin()
        if not self.context.dry:
            self.pgb.unpause()

    def forget(self) -> None:
        """Let other commands have their turn; what the engine said before is asked again."""
        self.lock.release()
        self._snapshot.clear()
        self._checked.clear()
        if self.images:
            self.images.forget()

    def outdated(self, service: Service) -> bool:
        """Whether a running service became ready with other settings than there are now, or never became ready."""
        return self.differences(service) != []

    def differences(self, service: Service) -> list[str] | None:
        """Return in what a running service differs from the settings as they are now; None if it never became ready."""
        return self._applied(service).differences(service.configuration())

    def ready_since(self, service: Service) -> float:
        """When a service was last made ready by a command, in seconds since the epoch; 0 if it never was."""
        try:
            return self._applied(service).path.stat().st_mtime
        except OSError:
            return 0.0

    def _check_ours(self, state: ServiceState) -> None:
        """:raises StackError: somebody else's container has the name."""
        if state.foreign:
            program = getattr(self.context.runtime, "program", "")
            raise StackError(
                f"the name {state.name} is taken",
                why=f"{state.detail}: it was not touched",
                fix=[
                    f"look at it: {program} inspect {state.name}; unneeded: {program} rm --force {state.name}",
                    "or give this stack other names: NV_ENV=mine inv dev.up",
                ],
            )

    def _why_restart(self, service: Service) -> str:
        """Why a running service can't stay as it is; empty when it can."""
        self._recover(service)
        if (differences := self.differences(service)) != []:
            return f"its configuration changed{sentence(differences)}"
        try:
            # it may be in the middle of a start of its own, after a crash
            wait_until_answers(service.answers, seconds=min(5.0, self.settings.stack.start_timeout), failed=lambda: "")
        except NotReady as error:
            with contextlib.suppress(NotReady, StackError):
                service.accepts()
                service.settle()
                service.answers()
                return ""
            if pids := self.context.traced(self._state(service)):
                raise StackError(
                    f"{service.name} does not answer",
                    why=f"a debugger holds it (pid {' '.join(map(str, pids))}): it was left alone",
                    fix="let it go on in the debugger, or detach that",
                ) from None
            return f"it did not answer ({str(error).splitlines()[0]})"
        return ""

    def _state(self, service: Service) -> ServiceState:
        """A service's state when this command began: the engine is asked once, and nobody else changes it meanwhile.
        What the command changes itself is asked again."""
        if service.name not in self._snapshot:
            states = self.context.states(self.names, ahead=True)
            for name, pids in self.context.resume(states.values()).items():
                states[name] = msgspec.structs.replace(states[name], paused=False)
                self._say_resumed(name, pids)
            self._snapshot = {**states, **self._snapshot}
        return self._snapshot[service.name]

    def _say_resumed(self, name: str, pids: Sequence[int]) -> None:
        if self._says_resumed and not self.context.dry:
            console.note(f"resumed {name}: {_frozen(pids)}")

    def _start(self, service: Service, *, running: bool) -> None:
        try:
            spec = self._prepare(service, running=running)
        except BaseException:
            self._let_go()
            raise
        # what it did not need would answer later questions of the same words as things were before the start
        self.context.withdraw()
        if running:  # until here, what is wrong with the new settings has left it as it was
            self._stop(service)
        applied = self._applied(service)
        if not self.context.dry:
            self.context.host.remove(applied.path)
        if not self.context.runtime.contained and not self.context.engine_runs():
            _import_meanwhile(contained=False)  # the engine takes a tenth of a second to start
        self.context.start_engine()
        logged = 0 if self.context.dry else self.context.log_size(service.name)
        was = self._snapshot.pop(service.name, None)
        try:
            self.context.start(spec, defined=was is not None and was.defined)
        except UsageError:  # a template that can't be filled in
            with contextlib.suppress(StackError):
                self._stop_engine_if_idle()
            raise
        except StackError as error:
            raise self._failure(service, error.why, logged, error.evidence) from None
        if self.context.dry:
            console.out(f"# wait until {service.name} answers (at most {self.settings.stack.start_timeout:g} s)")
            service.settle()
            return
        try:
            self._await(service, spec.grace)
        except NotReady as error:
            raise self._failure(service, str(error), logged) from None
        self.context.write_file(applied.path, applied.content(service.configuration()))
        self._record_settings(service)

    def _prepare(self, service: Service, *, running: bool) -> ServiceSpec:
        if running and not self.context.dry:
            self.check([service.label])
        elif not running:
            self.free_port(service)
            self._check_logs(service)
        self._ask_ahead(service)
        if not running and self.context.runtime.contained:
            self.context.begin_engine()
        spec = service.prepare()
        self._record_choices()
        return spec

    def _let_go(self) -> None:
        """Of what was begun for a start that is not to be."""
        if not self.context.dry:
            with contextlib.suppress(StackError):
                self._stop_engine_if_idle()
        self.context.withdraw(engine=True)

    def _ask_ahead(self, service: Service) -> None:
        with contextlib.suppress(StackError):  # which is said when it is its turn
            self.context.ask_ahead(service.questions())

    def _await(self, service: Service, grace: float) -> None:
        began = time.monotonic()

        def failed() -> str:
            state = self.context.states(self.names)[service.name]
            if state.running or time.monotonic() - began < grace:
                return ""
            return "it ended right after its start" if state.exit_code is None else f"it ended ({state.exit_code})"

        seconds = self.settings.stack.start_timeout
        wait_until_answers(service.accepts, seconds=seconds, failed=failed)
        self._recover(service)
        if not service.settle():
            wait_until_answers(service.answers, seconds=max(1.0, seconds - (time.monotonic() - began)), failed=failed)

    def _recover(self, service: Service) -> None:
        """A restore that was cut off may have left the database closed: it is put right before anything is asked. So
        is what a profile has left on."""
        if service is self.db and not self.context.dry and self.paths.window.exists():
            from devstack.profiling import explain

            explain.put_right(self)
        if service is not self.db or self.context.dry or not self.paths.journal.exists():
            return
        from devstack.data import recovery

        if recovery.is_cut_off(self):
            wait_until_answers(service.accepts, seconds=self.settings.stack.start_timeout, failed=lambda: "")
            recovery.begin(self, changes=True)

    def _failure(self, service: Service, reason: str, logged: int, refusal: Sequence[str] = ()) -> StackError:
        """What to say of a service that did not become ready; ``logged`` bytes of its log are older than the start.
        The engine's ``refusal`` to start it tells more than a log that others have written."""
        evidence = list(refusal) or self.context.log_tail(service.name, 15, skip=logged)
        with contextlib.suppress(StackError):
            self._stop(service)
        with contextlib.suppress(StackError):
            self._stop_engine_if_idle()
        lines = [line.rstrip()[:200] for line in evidence]
        return StackError(
            f"{service.name} did not become ready",
            why=self.context.mask(reason),
            evidence=lines if refusal else [*lines, f"(log: {self.paths.log / service.name}.log)"],
            fix=service.hint([*lines, reason]),
        )

    def free_port(self, service: Service) -> None:
        """Refuse to start beside somebody else; a process of this stack that outlived its supervisor is ended.

        :raises StackError: the port is taken; names the process.
        """
        holder = self.context.host.port_holder(service.bind, service.port)
        if holder is None:
            return
        if holder.stack == str(self.paths.state) and not self.context.dry:
            console.note(f"ending pid {holder.pid} on port {service.port}: left behind by an earlier run of this stack")
            self.context.host.end(holder.pid, service.spec().stop_signal, self.settings.stack.stop_timeout)
            holder = self.context.host.port_holder(service.bind, service.port)
            if holder is None:
                return
        raise self._port_taken(service, holder)

    def _check_port(self, service: Service) -> None:
        """Refuse to stop a service for a port that somebody else has, or an address of another machine: it would not
        come back. A port that a service of this stack has is free by then.

        :raises StackError: the port can't be had; names the process.
        """
        self.context.host.check_address(service.bind, setting=f"{service.label}.bind")
        if any(service.port in self._state(other).ports for other in self.services):
            return
        holder = self.context.host.port_holder(service.bind, service.port)
        if holder is None:
            return
        state = self._state(service)
        itself = state.running and holder.pid in (0, state.pid)  # 0: it may be the service itself
        if not itself and holder.stack != str(self.paths.state):
            raise self._port_taken(service, holder)

    def _port_taken(self, service: Service, holder: PortHolder) -> StackError:
        other = f"give {service.name} another port: {self._setting_of_port(service)}"
        fix = [f"end it, or {other}"]
        if holder.stack:
            fix = [
                f"it belongs to the stack in {holder.stack}: stop that one with `inv dev.down` in its folder",
                *fix,
            ]
        elif holder.pid:
            fix = [f"end it (kill {holder.pid}), or {other}"]
        else:
            fix.append(f"who it is: sudo ss -ltnp 'sport = :{service.port}'")
        if self.settings.origin(f"{service.label}.port") == str(self.paths.ports):
            fix.append(f"or have other ports chosen: rm {typed(self.paths.ports)}")
        return StackError(f"port {service.port} of {service.name} is taken", why=str(holder), fix=fix)

    def _setting_of_port(self, service: Service) -> str:
        path = f"{service.label}.port"
        if self.settings.stack.env == ports.MAIN:
            return f"{path} in invoke.yaml"
        return f"the variable {variable_of(path)}"

    # stop

    def stop(self, label: str) -> ServiceState:
        """Stop a service; the state that it was in. The engine goes with the last one."""
        self._begin()
        service = self.service(label)
        state = self._state(service)
        if state.status != "stopped" or self.context.dry or (state.defined and not state.foreign):
            self._stop(service)
        self._stop_engine_if_idle()
        return state

    def _stop(self, service: Service) -> None:
        self._snapshot.pop(service.name, None)
        self._ended.add(service.name)
        if not self.context.dry:
            self.context.host.remove(self._applied(service).path)  # first: who looks meanwhile sees it is on purpose
        # a native service learnt its signal at its start, and its program may be gone by now
        signal = service.stop_signal if self.context.runtime.contained else ""
        instead = "QUIT" if service is self.db and not self.context.dry and self.db.is_recovering() else ""
        patience = int(self.settings.stack.stop_timeout)
        self.context.stop(service.name, signal=signal, instead=instead, seconds=patience)
        if self.context.dry:
            return

        def stopped() -> None:
            self._snapshot = self.context.states(self.names)
            state = self._snapshot[service.name]
            # one that had failed for good keeps that state: it does not run, and is not tried again
            if state.status not in ("stopped", "failed"):
                raise NotReady(f"it is {state.status}")

        seconds = self.settings.stack.stop_timeout + 5  # the engine kills it after stop_timeout
        try:
            wait_until_answers(stopped, seconds=seconds, failed=lambda: "")
        except NotReady as error:
            raise StackError(
                f"{service.name} did not stop",
                why=str(error),
                fix=f"look at its log: inv {service.label}.logs",
            ) from None

    def _stop_engine_if_idle(self) -> None:
        if self.context.dry:
            self.context.stop_engine()
        elif self.context.runtime.contained or self.context.engine_begins or self.context.engine_runs():
            # what this command has started itself is not in the snapshot
            known = self.context.runtime.contained and self._snapshot.keys() >= set(self.names)
            states = self._snapshot if known else self.context.states(self.names)
            if states and all(
                s.status == "stopped" or (s.status == "failed" and s.name in self._ended) for s in states.values()
            ):
                self.context.stop_engine()

    # look

    def crashes(self) -> dict[str, list[Crash]]:
        """How services ended that were not told to, by name, at least since they were made ready."""
        ready = (self.ready_since(service) for service in self.services)
        return self.context.crashes(self.names, min((when for when in ready if when), default=time.time()))

    def status(self) -> list[ServiceStatus]:
        """Every service as it is now."""
        states = self.context.states(self.names)
        return [self._status(service, states[service.name]) for service in self.services]

    def _status(self, service: Service, state: ServiceState) -> ServiceStatus:
        reason = state.detail
        answers = False
        if state.running:
            try:
                service.answers()
                answers = True
            except NotReady as error:
                reason = self.context.mask(str(error))
                if why := self.why_frozen(state):
                    reason = f"{why}; inv dev.heal resumes it"
        return ServiceStatus(service.label, service.address, state, answers, reason)

    def as_set(self, service: Service) -> bool | None:
        """Whether a service became ready with the configuration that the settings give now; None if it never did."""
        differences = self.differences(service)
        return None if differences is None else not differences

    def reload_pooler(self) -> list[str]:
        """Render PgBouncer's configuration again and have it read; the parameters that kept their old value."""
        self._begin()
        kept = self.pgb.reload()
        if not kept and not self.context.dry:
            applied = self._applied(self.pgb)
            self.context.write_file(applied.path, applied.content(self.pgb.configuration()))
            self._record_settings(self.pgb)
        return kept

    def hook(self, point: str) -> None:
        """Run the user's commands for a point, such as ``pre_up``.

        :raises StackError: one failed; the rest is not run.
        """
        for line in getattr(self.settings.hooks, point):
            url = self.api.urls()["database_url"]
            own = self.api.environment_here()
            required = {AUTH_VARIABLE: own[AUTH_VARIABLE]} if AUTH_VARIABLE in own else {}
            kept = {name: value for name, value in self.environ.items() if name not in LIBPQ_VARIABLES}
            env = {**kept, "DATABASE_URL": url, "NINAIVALAIGAL_DATABASE_URL": url, **required}
            result = self.context.hook(line, env)
            if result is not None and result.exited != 0:
                lines = (result.stdout + result.stderr).strip().splitlines()[-10:]
                raise StackError(
                    f"the hook {point} failed: {line}",
                    why=f"it ended with exit code {result.exited}",
                    evidence=[self.context.mask(text) for text in lines],
                    fix=f"correct hooks.{point} in {self.settings.origin(f'hooks.{point}')}",
                )

    # what the rest stands on

    def _refuse_wrong(self) -> None:
        """:raises UsageError: settings are wrong, which only commands that start nothing go on without."""
        if self.settings.wrong:
            raise refused([wrong.refusal for wrong in self.settings.wrong])

    def _begin(self) -> None:
        """Before the first change: nobody else is at it."""
        if self.context.dry:
            return
        self.lock.acquire()
        if not self.paths.config.is_dir():
            self.lock.discard()
            raise removed()
        if pid := self.context.resume_engine():
            self._say_resumed("supervisord", [pid])
        with contextlib.suppress(OSError):  # a list that can't be written keeps nobody from working
            self.registry.put(ports.entry_of(self.settings, self.paths))
        if self.paths.aside.exists():
            from devstack import reset

            reset.recover(self)
        held = self.data_lock.held
        if self.paths.swap.exists() and self.data_lock.try_acquire():
            from devstack.data import cluster

            cluster.put_right(self)  # what it had stopped is started by whoever is asked to
            if not held:
                self.data_lock.release()

    def _prepare_state(self) -> None:
        """Make the environment's own directories; nothing in a dry run."""
        context, paths = self.context, self.paths
        if context.dry:
            return
        context.host.check_reachable(paths.state)
        if self.tolerance and paths.config.is_dir() and paths.applied.is_dir():
            return  # a command that starts nothing needs no logs in the place that the settings name now
        context.host.make_dir(paths.log, 0o755, keep_mode=True)
        for folder in (paths.state, paths.config, paths.applied):
            context.host.make_dir(folder, 0o711 if context.host.is_root else 0o700)
        context.host.link(paths.logs, paths.log)

    def _applied(self, service: Service) -> Applied:
        api = self.settings.api.env
        own = [*api, *(name for name, _ in self.settings.dotenv.lines)]
        return Applied(self.paths.applied / service.name, self.context.mask, {f"env {name}" for name in own})

    @property
    def chosen(self) -> Choices:
        """Choices of this command, or those recorded for this environment; empty before its first start, or when
        the record is damaged."""
        if self._new_choices:
            return self._new_choices
        # whoever looks goes on with what there is
        with contextlib.suppress(msgspec.MsgspecError, *([OSError] if self.looking else [])):
            return msgspec.json.decode(self.context.host.read_file(self.paths.choices) or b"{}", type=Choices)
        return Choices()

    def _postgres(self) -> Programs:
        choices = self.chosen
        recorded = Path(choices.postgres_bin) if choices.postgres_bin else None
        try:
            return self._wanted_postgres(choices, recorded)
        except StackError as error:
            if not (self.tolerance and recorded and os.access(recorded / "postgres", os.X_OK)):
                raise
            self._go_on(error, f"the PostgreSQL in {recorded}, as at the last start")
            tracks = choices.tracks_statements
            return providers.programs_at(recorded, choices.postgres_version, bool(tracks))

    def _wanted_postgres(self, choices: Choices, recorded: Path | None) -> Programs:
        fits = recorded and set(self.settings.db.extensions) <= set(choices.extensions)
        if recorded and fits and not self.settings.db.bin_dir and os.access(recorded / "postgres", os.X_OK):
            tracks = choices.tracks_statements
            if tracks is None:
                tracks = providers.tracks_statements(self.context, recorded)
                self._choose(tracks_statements=tracks)
            return providers.programs_at(recorded, choices.postgres_version, tracks)
        found = providers.find_postgres(self.context, self.settings, unpack=not self.looking)
        self._choose(
            extensions=self.settings.db.extensions,
            postgres_bin=str(found.bin),
            postgres_version=found.version,
            tracks_statements=found.tracks_statements,
        )
        return found

    def _pgbouncer(self) -> Programs:
        choices = self.chosen
        try:
            binary = providers.pgbouncer_binary(self.settings)
        except StackError as error:
            recorded = Path(choices.pgbouncer.rpartition(" ")[0])
            if not (self.tolerance and choices.pgbouncer and os.access(recorded, os.X_OK)):
                raise
            self._go_on(error, f"{recorded}, as at the last start")
            return Programs(recorded.parent, choices.pgbouncer_version)
        stamp = f"{binary} {binary.stat().st_mtime_ns}"
        if choices.pgbouncer == stamp:
            return Programs(binary.parent, choices.pgbouncer_version)
        version = providers.pgbouncer_version(self.context, binary)
        self._choose(pgbouncer=stamp, pgbouncer_version=version)
        return Programs(binary.parent, version)

    def _go_on(self, error: StackError, instead: str) -> None:
        """Say, once, what a command that tolerates wrong settings goes on without, and refuse to start anything."""
        wrong = Replaced(Refusal(error.what, "", error.why, "; ".join(error.fix)), instead)
        if wrong not in self.settings.wrong:
            self.settings.wrong.append(wrong)
            console.notes(tolerance_note([wrong]))

    def _choose(self, **chosen: str | bool | list[str]) -> None:
        if not self.context.dry and not self.looking:
            self._new_choices = msgspec.structs.replace(self.chosen, runtime=self.context.runtime.name, **chosen)

    def _record_settings(self, service: Service) -> None:
        """Record the settings that a service runs with."""
        if not self.context.dry:
            path = self.paths.settings
            self.context.write_file(path, with_service(path, self.settings, service.label))

    def _record_choices(self) -> None:
        """Record what was chosen: after the checks, so that a setting that is refused leaves nothing behind."""
        if self._new_choices:
            self.context.write_file(self.paths.choices, msgspec.json.encode(self._new_choices).decode() + "\n")
            self._new_choices = None


def _frozen(pids: Sequence[int]) -> str:
    """Say what is frozen of a service."""
    if not pids:
        return "its engine has paused it"
    return f"pid {' '.join(map(str, pids))} {'was' if len(pids) == 1 else 'were'} stopped (SIGSTOP)"


def _import_meanwhile(*, contained: bool) -> None:
    """Import what the services are started and asked with at first, while others work."""

    def clients() -> None:
        import tempfile  # noqa: F401

        import psycopg2  # noqa: F401

        if not contained:
            import xmlrpc.client  # noqa: F401

    threading.Thread(target=clients, daemon=True).start()


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise UsageError(
            "you have no home folder", why="HOME is not set", fix="export HOME=/path/to/your/home"
        ) from None


def _check_links(settings: Settings, paths: Paths) -> None:
    """Check that logs and backups are written where the settings say.

    :raises UsageError: a link leads out of the project.
    """
    backups = settings.root / Path(settings.data.dir).expanduser()
    if settings.stack.env != "dev":
        backups /= settings.stack.env
    trust.check_links(paths.log, "logs", setting="stack.log_dir", root=settings.root)
    trust.check_links(backups, "backups", setting="data.dir", root=settings.root, files=False)


def open_stack(
    c: Context,
    root: Path,
    environ: Mapping[str, str],
    *,
    looking: bool = False,
    begins: bool = True,
    runtime: str = "",
    given: Iterable[Entry] = (),
    tolerance: Tolerance | None = None,
) -> Stack:
    """Open the stack of this checkout and environment, on another ``runtime`` than its own if one is given. One that is
    only looked at makes no directory, file or secret; without ``begins`` so does one that no command has begun yet.

    :param given: settings that win over all others.
    :param tolerance: go on without settings that are wrong, for a command that starts and changes nothing.
    :raises UsageError: a setting is wrong.
    """
    home = _home()
    xdg = {name: value for name, value in environ.items() if name.startswith("XDG_")}
    uid = os.getuid()
    friends = {*trust.uids(environ), root.stat().st_uid}  # the project is trusted by now
    registry = Registry(registry_of(home, xdg, uid), Host(friends=friends))
    registry.check_closed(root)
    if tolerance:
        memory = _memory(root, home, xdg, registry, Host(friends=friends))
        settings = tolerant_settings(c.config, root, environ, given, tolerance, memory)
    else:
        settings = from_invoke(c.config, root, environ, given)
    host = Host(settings.stack.account, friends)
    paths = paths_of(settings, home=home, xdg=xdg, uid=uid)
    host.check_places(paths)
    if tolerance:
        settings = _usable(settings, paths, host)
        host = Host(settings.stack.account, friends)
        paths = paths_of(settings, home=home, xdg=xdg, uid=uid)
        host.check_places(paths)
    _check_links(settings, paths)
    host.check_closed(paths.log, "logs", setting="stack.log_dir", root=root)  # also what only reads there
    host.keep_account(paths.volumes / f"{settings.service_name('db')}-data")
    looking = looking or not (begins or paths.secrets.exists())
    dialect = engines.make(runtime or engines.choose(settings, paths, environ), settings, paths, host)
    try:
        keep = not (looking or c.config.run.dry or settings.wrong)
        settings = ports.settle(settings, paths, host, registry, keep=keep)
    except UsageError as error:
        if not tolerance:
            raise
        settings = ports.as_recorded(settings, paths, error)
    return Stack(
        ContainerContext(c, dialect, host, paths), settings, environ, registry, looking=looking, tolerance=tolerance
    )


def _memory(root: Path, home: Path, xdg: dict[str, str], registry: Registry, host: Host) -> Memory:
    """Return what is known of the project's environments, as far as nobody else can have written it."""

    def record(settings: Settings) -> Path:
        paths = paths_of(settings, home=home, xdg=xdg, uid=host.uid)
        host.check_places(paths)
        return paths.settings

    def places() -> list[Place]:
        states = [Path(entry.state) for entry in registry.entries() if entry.root == str(root)]
        return [
            Place(state.name, state.parent.parent, state / SETTINGS)
            for state in states
            if not trust.intruders(state, host.friends, root=root, sticky=False)
        ]

    return Memory(record, places)


def _usable(settings: Settings, paths: Paths, host: Host) -> Settings:
    """Return settings without those that this machine refuses."""
    known = recorded(paths.settings)
    try:
        _ = host.account
    except UsageError as error:
        account = known.get("stack.account", "")
        if account != settings.stack.account:
            refusal = Refusal("stack.account", settings.origin("stack.account"), error.what, error.fix[0])
            settings = replaced(settings, "stack.account", account, refusal, f"{account!r}, as at the last start")
    runtime, wanted = engines.recorded(paths), settings.stack.runtime
    if runtime and wanted not in ("auto", runtime):
        why = f"{wanted!r}, but this environment runs on {runtime}"
        fix = f"inv dev.move --to {wanted}, or stack.runtime: auto"
        refusal = Refusal("stack.runtime", settings.origin("stack.runtime"), why, fix)
        settings = replaced(settings, "stack.runtime", runtime, refusal, f"{runtime!r}, where its data are")
    if not paths.log.is_dir() and (log_dir := known.get("stack.log_dir")):  # what runs writes there, until a restart
        settings = msgspec.structs.replace(settings, stack=msgspec.structs.replace(settings.stack, log_dir=log_dir))
    return settings
