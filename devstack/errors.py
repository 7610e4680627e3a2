"""The one exception that reaches the user."""

from __future__ import annotations

import re
from collections.abc import Sequence

from invoke.exceptions import Exit

from devstack.escapes import one_line, safe
from devstack.wording import wording

FAILED = 1
"""Exit code: the thing asked for failed or is unhealthy."""
USAGE = 2
"""Exit code: the user's input or configuration is wrong."""

COMMAND = re.compile(
    r"(NV_ENV=\S+ (?:\w+=\S+ )*)?\binv (?!dev\.list)((?:dev|db|pgb|api|data)\.[a-z_]+|health|metrics)\b(?! -e )"
)


def addressed(text: str) -> str:
    """A text with commands in it, each for the environment that this command is for."""

    environment = wording().environment

    def add(match: re.Match[str]) -> str:
        return match[0] if match[1] else f"inv {match[2]} -e {environment}"

    return COMMAND.sub(add, text) if environment else text


def labelled(rows: Sequence[tuple[str, str]]) -> str:
    """Return a line for each row, with the labels in a column of their own."""
    return "\n".join(f"{label and f'{label}:':<7}{one_line(text)}".rstrip() for label, text in rows)


class StackError(Exit):
    """What failed, why, the evidence, and what mends it. Invoke prints :attr:`message` and exits with ``code``.

    ``what`` is one line without a full stop; ``evidence`` are lines of others (a log's last lines, what a program
    said), marked as such; ``fix`` is one action a line. Whatever is in one of them, it makes no other line.
    """

    MARK = "| "
    """Beginning of a line of the evidence."""

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        evidence: Sequence[str] = (),
        fix: str | Sequence[str] = (),
        code: int = FAILED,
    ) -> None:
        self.what = what
        self.why = why
        self.evidence = list(evidence)
        self.fix = ([fix] if fix else []) if isinstance(fix, str) else list(fix)
        super().__init__(message=self.text(), code=code)

    def adding(self, why: str) -> StackError:
        """Return the same error with more of a cause."""
        parts = [self.why, why if why not in self.why else ""]
        if self.why.endswith(":"):  # its evidence follows
            parts.reverse()
        joined = "; ".join(filter(None, parts))
        return StackError(self.what, why=joined, evidence=self.evidence, fix=self.fix, code=self.code)

    def text(self) -> str:
        """The message as plain text, labels in a column of their own."""
        rows = [("error", self.what)]
        if self.why:
            rows.append(("cause", self.why))
        rows += [("", self.MARK + one) for text in self.evidence for one in safe(text).split("\n")]
        rows += [("fix" if i == 0 else "", addressed(one)) for i, one in enumerate(self.fix)]
        return labelled(rows)


class UsageError(StackError):
    """The user's input or configuration is wrong: exit code 2."""

    def __init__(self, what: str, *, why: str = "", evidence: Sequence[str] = (), fix: str | Sequence[str] = ()):
        super().__init__(what, why=why, evidence=evidence, fix=fix, code=USAGE)


class ContentError(StackError):
    """A file's own content is why it can't be used."""


class CommandError(StackError):
    """A command that was run has failed. ``exited`` is its exit code, above 128 or negative where a signal ended it."""

    def __init__(self, what: str, exited: int, *, evidence: Sequence[str] = (), fix: str | Sequence[str] = ()):
        self.exited = exited
        super().__init__(what, why=f"the command ended with exit code {exited}", evidence=evidence, fix=fix)

    def plain(self) -> StackError:
        """Return the same error for callers that would take a failed command for a verdict on what it reads."""
        return StackError(self.what, why=self.why, evidence=self.evidence, fix=self.fix)
