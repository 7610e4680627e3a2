"""Which texts are secrets: the stack's own, those of the settings, and those of the variables around it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from devstack.bundle.redact import LEAST
from devstack.errors import StackError
from devstack.settings import SECRETS
from devstack.system.settings import in_force

if TYPE_CHECKING:
    from devstack.stack import Stack

SECRET_NAME = re.compile(r"pass|secret|token|key|credential|auth|dsn|\burl\b|_url$|salt|pin$|cookie|session", re.I)
"""Variables whose value is a secret by their name."""
ORDINARY = re.compile(r"|true|false|yes|no|on|off|none|null|debug|info|warning|error|critical", re.I)
"""Values of variables that are no secrets, whatever the variable is called."""
STRICT_NAME = re.compile(r"pass|secret|token|key|credential", re.I)
"""Variables of the caller's own environment that look like secrets; the application inherits them."""


def secrets_of(stack: Stack) -> Iterator[str]:
    """Everything that must not be in a bundle."""
    settings, credentials = stack.settings, stack.api.credentials
    yield from (credentials.db_password, credentials.pgbouncer_password, credentials.jwt_secret)
    # those that settings override, or what is left of a damaged file
    with contextlib.suppress(OSError):
        yield from re.findall(r'"([^"]{12,})"', stack.paths.secrets.read_text(errors="replace"))
    public = {fact.value.strip("'") for fact in in_force(stack)}
    named = [*settings.hidden, *settings.dotenv.values.items()]
    with contextlib.suppress(StackError):
        environment = stack.api.environment()
        names = environment.keys() & {*settings.api.env, *settings.dotenv.values}
        named += [(name, environment[name]) for name in names]
    yield from (value for name, value in named if _is_secret(name, value, public))
    for _, url in named:
        with contextlib.suppress(ValueError):
            if password := urlsplit(url).password:
                yield from (password, unquote(password))
    for name, value in stack.environ.items():
        if STRICT_NAME.search(name) and len(value) >= 8 and not os.path.exists(value):
            yield value


def _is_secret(name: str, value: str, public: set[str]) -> bool:
    """Whether a variable's value must be hidden. What it is called decides where the value alone does not."""
    if name in SECRETS:
        return True
    number = value.isdigit()
    if ORDINARY.fullmatch(value) or (number and len(value) < LEAST):
        return False
    return bool(SECRET_NAME.search(name)) or (len(value) >= (6 if number else LEAST) and value not in public)
