"""What goes wrong in ways that somebody outside can mend."""

from __future__ import annotations


class StartupError(Exception):
    """Why the application can't start: one line, without secrets."""


class DatabaseUnavailableError(Exception):
    """The database can't serve this request now; the same request may succeed later.

    ``str(error)`` may be shown to a client; :attr:`cause` (the driver's words: hosts, users, paths) belongs in
    the log only.
    """

    def __init__(self, message: str, *, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause
