"""What each service is, in every runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from devstack.runtimes import ServiceSpec
from devstack.shell import Command


class NotReady(Exception):
    """A service does not answer; the text says what it answered instead.

    ``final`` is set where waiting will not help.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Service(Protocol):
    """A service that the stack can start and judge."""

    @property
    def label(self) -> str:
        """``db``, ``pgb`` or ``api``."""

    @property
    def name(self) -> str:
        """``nv-db``"""

    @property
    def port(self) -> int: ...

    @property
    def bind(self) -> str:
        """The address that it listens on, on the machine of the stack."""

    @property
    def address(self) -> str:
        """What a person opens or connects to."""

    @property
    def stop_signal(self) -> str:
        """What it is told to end by, without SIG."""

    def configuration(self) -> Mapping[str, str]:
        """Return all that a running service must be restarted for when it changes, by name."""

    def spec(self) -> ServiceSpec:
        """What to run."""

    def questions(self) -> Sequence[Command]:
        """What :meth:`prepare` will ask the engine, for who can ask it ahead."""

    def check(self, *, fresh: bool = False) -> None:
        """Check whether it could be started with the settings as they are, as far as that can be seen without a start.
        What runs is not touched.

        :param fresh: whether its data are to be made anew by then.
        :raises StackError: it could not.
        """

    def prepare(self) -> ServiceSpec:
        """Put in place whatever must be there before the start; what to run."""

    def accepts(self) -> None:
        """Ask whether it can be settled.

        :raises NotReady: not yet.
        """

    def answers(self) -> None:
        """Ask it something real.

        :raises NotReady: it did not answer as it should.
        """

    def settle(self) -> bool:
        """Bring it into the wanted state once it accepts that; whether it was seen to answer on the way."""

    def hint(self, evidence: list[str]) -> str:
        """What mends a start that failed with these last lines of the log."""


def wait_until_answers(probe: Callable[[], None], *, seconds: float, failed: Callable[[], str]) -> None:
    """Poll with a short, growing interval.

    ``failed`` gives a reason to stop waiting, or an empty text; it is asked about once a second: an engine may take a
    tenth of one to answer, which would be waited for although the service is ready.

    :raises NotReady: not within ``seconds``, or ``failed``; the text is the last answer or the reason.
    """
    began = time.monotonic()
    interval = 0.008
    asked = began
    while True:
        try:
            probe()
            return
        except NotReady as error:
            if error.final:
                raise
            last = str(error)
        now = time.monotonic()
        if now - asked > 0.9:
            asked = now
            if reason := failed():
                raise NotReady(reason)
        if now - began > seconds:
            raise NotReady(f"{last} (waited {seconds:.3g} s)")
        time.sleep(interval)
        interval = min(interval * 1.1, 0.012)
