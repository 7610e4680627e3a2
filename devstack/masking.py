"""Hide the passwords of URLs, in time proportional to the text."""

from __future__ import annotations

import re

_URL = re.compile(r"(?<=:)//[^\s\"'<>]+")
"""The rest of a URL after its scheme. Each character is read once: what precedes ``://`` is nobody's secret."""
_USER = re.compile(r"//[^:/@]*:")
_PORT = re.compile(r"[0-9]{1,5}(?:[/?#,]|\Z)")


def hide_url_passwords(text: str, *, thorough: bool = False) -> str:
    """Return the text with ``***`` for the passwords of its URLs, also for one that should have been encoded.

    :param thorough: take what looks like a port followed by a path with ``@`` in it for a password too, and what
        precedes a cut (``…``).
    """
    return _URL.sub(lambda found: _hide(found[0], thorough), text) if "://" in text else text


def _hide(url: str, thorough: bool) -> str:
    at = url.rfind("@")
    end = at if at >= 0 else url.rfind("…") if thorough else -1
    if end < 0:
        return url
    # a URL may be the parameter of another one: the first with a user and a password counts
    for user in _USER.finditer(url, 0, end):
        if thorough or not _PORT.match(url, user.end()):
            return f"{url[: user.end()]}***{url[end:]}"
    return url
