"""Which names the application answers to.

A page from elsewhere can have its own name lead to this machine ("DNS rebinding"); to the browser this application is
then a part of that page, which reads all that is in it. Such a request names the page's host in its ``Host`` header.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = "localhost"


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
        try:
            host = (urlsplit(f"//{header}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        if "*" in self._names or host in self._names:
            return True
        below = any(name.startswith("*.") and host.endswith(name[1:]) for name in self._names)
        return below or _is_address(host)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
