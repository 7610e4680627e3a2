"""Which names the application answers to.

A page from elsewhere can have its own name lead to this machine ("DNS rebinding"); to the browser this application is
then a part of that page, which reads all that is in it. Such a request names the page's host in its ``Host`` header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = "localhost"
HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{0,5})?", re.ASCII)
"""A ``Host`` header as a whole, in small letters: https://www.rfc-editor.org/rfc/rfc9110#name-host-and-authority.
``urlsplit`` would overlook what is behind the bracket of an IPv6 address."""


class KnownHosts:
    """ASGI middleware that refuses a request for a host that is neither known nor an IP address, which no rebinding
    can lead elsewhere: probes of container engines and Kubernetes call by address.

    Not Starlette's TrustedHostMiddleware, which takes no addresses as such, and in older versions no IPv6 at all.

    :param names: further names, ``*.example.com`` for those below one, ``*`` for any.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {name.lower() for name in (LOCAL, *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._knows(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse("this application does not answer to that host: see api.hosts\n", status_code=400)
        await refusal(scope, receive, send)

    def _knows(self, header: str) -> bool:
        if "*" in self._names:
            return True
        match = HOST.fullmatch(header.lower())
        if match is None:
            return False
        if match["ipv6"]:
            return ":" in match["ipv6"] and _is_address(match["ipv6"])
        host = match["name"].removesuffix(".")
        below = any(name.startswith("*.") and host.endswith(name[1:]) for name in self._names)
        return host in self._names or below or _is_address(host)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
