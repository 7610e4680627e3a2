"""Take secrets out of a text, in whatever form they are in it."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

LEAST = 4
"""Characters of a secret that can be taken out of a text; a shorter one would be found in every other word."""

_ENCODERS: tuple[Callable[[str], str], ...] = (
    lambda s: s,
    lambda s: quote(s, safe=""),
    lambda s: quote(s),
    quote_plus,
    lambda s: re.sub("%..", lambda m: m[0].lower(), quote(s, safe="")),
    lambda s: json.dumps(s)[1:-1],
    lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    lambda s: repr(s)[1:-1],
    html.escape,
    lambda s: shlex.quote(s)[1:-1] if shlex.quote(s) != s else s,
    lambda s: s.replace("'", "'\\''"),
    lambda s: s.replace("'", "''"),
    lambda s: s.replace('"', '""'),
    lambda s: s.replace("%", "%%"),
    lambda s: s.replace("\\", "\\\\").replace("'", "\\'"),
    lambda s: s.replace("\\", "\\\\").replace(":", "\\:"),
    lambda s: s.encode().hex(),
    lambda s: s.encode().hex().upper(),
)
"""URLs, JSON, Python, HTML, shell, SQL, userlist.txt, Supervisor's files, connection strings, .pgpass, hex."""

_KEY = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|authorization)"
)
_VALUES = (r"\\\"(?:(?!\\\").)*\\\"", r"\"(?:[^\"\\]|\\.)*\"", r"'(?:[^'\\]|\\.)*'", r"[^\s\"',;&)}\]\\]+")
_ASSIGNED = re.compile(
    rf"({_KEY}(?:\\?[\"'])?\s*[:=]\s*)(?!\\?[\"']?\*\*\*)(?:(?:bearer|basic)\s+)?(?:{'|'.join(_VALUES)})", re.I
)
_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), "***"),
    (re.compile(r"(SCRAM-SHA-256\$)[^\s\"']+"), r"\1***"),
    (re.compile(r"\bmd5[0-9a-f]{32}\b"), "***"),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"), "***"),
    (re.compile(r"(\w[\w+.-]*://[^\s:/@\"']*:)[^\s\"'<>]*(?=@)"), r"\1***"),
    (re.compile(r"(\w[\w+.-]*://[^\s:/@\"']*:)[^\s@/\"']*…"), r"\1***…"),
    (_ASSIGNED, r'\1"***"'),
    (re.compile(r"(\bpassword\s+)E?'(?:[^']|'')*'", re.I), r"\1'***'"),
)
"""What is a secret by its looks, also one that nobody told us of."""


def forms(secret: str) -> Iterator[str]:
    """Every way in which a secret may be written."""
    once = {encode(secret) for encode in _ENCODERS}
    yield from once
    yield from (json.dumps(form)[1:-1] for form in once)
    yield from (quote(form, safe="") for form in once)


def _base64_cores(secret: str) -> Iterator[str]:
    """What base64 has of a secret wherever in the encoded text it begins."""
    for before in range(3):
        raw = bytes(before) + secret.encode()
        first, last = -(-before * 8 // 6), len(raw) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            if len(core := encode(raw).decode()[first:last]) >= LEAST:
                yield core


class Redactor:
    """Replaces secrets by ``***``."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {part for secret in secrets for part in (secret, *secret.splitlines()) if part.strip("* ")}
        self.too_short = any(len(secret) < LEAST for secret in known)
        """Whether there is one that can't be found surely: what may hold it is to be left out."""
        known = {secret for secret in known if len(secret) >= LEAST}
        # the longest first: one that begins with another would keep its end
        self._forms = sorted({form for secret in known for form in forms(secret)}, key=len, reverse=True)
        self._encoded = sorted({core for secret in known for core in _base64_cores(secret)}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without secrets."""
        # one search after the other: thousands of words in one pattern would take minutes
        for form in self._forms:
            text = text.replace(form, "***")
        for core in self._encoded:
            if core in text:
                text = re.sub(f"[A-Za-z0-9+/_-]*{re.escape(core)}[A-Za-z0-9+/_=-]*", "***", text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        *cut, rest = text.split("…")
        return "…".join([*map(self._without_start, cut), rest])

    def _without_start(self, piece: str) -> str:
        """A text that was cut off may end with the beginning of a secret."""
        for form in self._forms:
            at = piece.find(form[:LEAST], max(0, len(piece) - len(form)))
            while at >= 0:
                if form.startswith(piece[at:]):
                    return piece[:at] + "***"
                at = piece.find(form[:LEAST], at + 1)
        return piece

    def data(self, value: Any) -> Any:
        """The same for what is to become JSON, which stays valid."""
        if isinstance(value, dict):
            return {self.text(str(key)): self.data(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and self.finds(repr(value)):
            return "***"
        return value

    def finds(self, text: str) -> bool:
        """Whether a known secret is in the text."""
        return any(form in text for form in (*self._forms, *self._encoded))
