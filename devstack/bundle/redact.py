"""Take secrets out of a text, in whatever form they are in it.

Every search reads the text a fixed number of times: no pattern begins with a repetition that could begin anywhere, and
none can match the same text in two ways. A log's author must not be able to make a bundle take hours.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any
from urllib.parse import quote, quote_plus

from devstack.masking import hide_url_passwords

LEAST = 4
"""Characters of a secret that can be taken out of a text; a shorter one would be found in every other word."""
LEAST_SPLIT = 8
"""Characters of a secret that is also searched for where escapes, quotes or line ends are between its characters."""

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
)
"""URLs, JSON, Python, HTML, shell, SQL, userlist.txt, Supervisor's files, connection strings, .pgpass."""
_CHARSETS = ("utf-8", "utf-16-le", "utf-16-be")
"""In which a secret may have become bytes, before these were written as base64, base32 or hex."""

_KEY = r"(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|authorization)"
_SECRET_KEY = re.compile(_KEY + r"\Z|cookie\Z", re.I)
# of a quote that is never closed, the rest of the line
_VALUES = (r"\\\"(?:(?!\\\").)*\\\"", r"\"(?:[^\"\\]|\\.)*\"", r"'(?:[^'\\]|\\.)*'", r"[^\s\"',;&)}\]\\]+", r"[\"'].*")
_TO_THE_END = r"(?:\"[^\"\n]*(?:\"|$)|'[^'\n]*(?:'|$)|[^\s\"'](?:[^\n\"'\\]|\\[^\n])*(?:\"[^\"\n]*\"[^\n\"'\\]*)*)"
_PATTERNS = (
    (
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.S),
        "***",
    ),
    (re.compile(r"(SCRAM-SHA-256\$)[^\s\"']+"), r"\1***"),
    (re.compile(r"\bmd5[0-9a-f]{32}\b"), "***"),
    (re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"), "***"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "***"),
    (
        re.compile(
            r"(?<![\w-])(?:gh[a-z]_|github_pat_|glpat-|npm_|pypi-|xox[a-z]-|xapp-|sk-|[rs]k_(?:live|test)_)[\w-]{10,}"
        ),
        "***",
    ),
    (re.compile(r"(?<![\w-])AIza[\w-]{35}"), "***"),
    (
        re.compile(
            rf"((?:authorization|cookie)\\?[\"']?[ \t]*[:=][ \t]*)(?!\\?[\"']?\*\*\*){_TO_THE_END}", re.I | re.M
        ),
        r'\1"***"',
    ),
    (re.compile(rf"({_KEY}(?:\\?[\"'])?\s*[:=]\s*)(?!\\?[\"']?\*\*\*)(?:{'|'.join(_VALUES)})", re.I), r'\1"***"'),
    (re.compile(r"(\bpassword\s+)E?'(?:[^']|'')*'", re.I), r"\1'***'"),
    (re.compile(r"((?<=\s)--[\w-]{0,40}(?:password|passwd|secret|token)[ \t]+)[^\s-]\S*", re.I), r"\1***"),
    # curl's, not docker's --user 1000:1000
    (
        re.compile(r"((?<=\s)(?:-u|--(?:proxy-)?user)[ \t=]*[\"']?(?![0-9]+:[0-9]+\b)[^\s:\"']{1,128}:)[^\s\"']+"),
        r"\1***",
    ),
)
"""What is a secret by its looks, also one that nobody told us of."""

_ESCAPE = re.compile(
    r"(?:\\u\{?|\\U000)(?P<u>[0-9a-fA-F]{4,5})\}?|(?:\\x|%)(?P<x>[0-9a-fA-F]{2})|=(?P<q>[0-9A-F]{2})"
    r"|&\#(?P<d>[0-9]{1,7});|&\#x(?P<h>[0-9a-fA-F]{1,6});|\\(?P<o>[0-3][0-7]{2})|\\[nrt]"
)
"""One character, written in another way: JSON, Python, JavaScript, URLs, quoted-printable, HTML, shells, C."""
_BASES = {"u": 16, "x": 16, "q": 16, "d": 10, "h": 16, "o": 8}
_BETWEEN = re.compile(r"[\s\x00\"'`\\\u200b-\u200d\ufeff\ufffd]+")
"""Characters that may stand between those of a secret: line ends, quotes, and the zero bytes of UTF-16."""
_ENCODED_WORD = re.compile(r"[A-Za-z0-9+/_=-]{4,}")


def forms(secret: str) -> Iterator[str]:
    """Every way in which a secret may be written."""
    once = {encode(secret) for encode in _ENCODERS}
    yield from once
    yield from (json.dumps(form)[1:-1] for form in once)
    yield from (quote(form, safe="") for form in once)


def _encoded_cores(secret: str) -> Iterator[str]:
    """Yield the part of a secret that hex, base32 and base64 have, wherever in the encoded text it begins."""
    for charset in _CHARSETS:
        raw = secret.encode(charset, "surrogatepass")
        yield from (raw.hex(), raw.hex().upper())
        for group, bits, encode in (
            (3, 6, base64.b64encode),
            (3, 6, base64.urlsafe_b64encode),
            (5, 5, base64.b32encode),
            (5, 5, lambda b: base64.b32encode(b).lower()),
        ):
            for before in range(group):
                padded = bytes(before) + raw
                first, last = -(-before * 8 // bits), len(padded) * 8 // bits
                if len(core := encode(padded).decode()[first:last]) >= LEAST:
                    yield core


def _resolve(escape: re.Match[str]) -> str:
    if not (kind := escape.lastgroup):
        return ""  # a line end
    code = int(escape[kind], _BASES[kind])
    return chr(code) if code < 0x110000 else ""


def _as_latin1(secret: str) -> str:
    return secret.encode("utf-8", "surrogatepass").decode("latin-1")


def _nothing(_: re.Match[str]) -> str:
    return ""


class _View:
    """A text with replacements, of which one can tell where in the original each part was."""

    def __init__(
        self, text: str, pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], base: _View | None
    ) -> None:
        kept: list[str] = []
        self._base = base
        self._offsets: list[int] = []
        """Start of each piece in this text."""
        self._pieces: list[tuple[int, int, bool]] = []
        """Start and end of each piece in the text before, and whether it was replaced."""
        length = at = 0
        for found in [*pattern.finditer(text), None]:
            start, end = found.span() if found else (len(text), len(text))
            replaced = replacement(found) if found else ""
            for piece, place in ((text[at:start], (at, start, False)), (replaced, (start, end, True))):
                if piece:
                    kept.append(piece)
                    self._offsets.append(length)
                    self._pieces.append(place)
                    length += len(piece)
            at = end
        self.text = "".join(kept)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return where in the original what begins and ends here is."""
        before, after = self._before(start)[0], self._before(end - 1)[1]
        return self._base.span(before, after) if self._base else (before, after)

    def _before(self, at: int) -> tuple[int, int]:
        """Return where the character here begins and ends in the text before."""
        number = bisect_right(self._offsets, at) - 1
        start, end, replaced = self._pieces[number]
        if replaced:
            return start, end
        return start + at - self._offsets[number], start + at - self._offsets[number] + 1


class Redactor:
    """Replaces secrets by ``***``."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {part for secret in secrets for part in (secret, *secret.splitlines()) if part.strip("* ")}
        self.too_short = any(len(secret) < LEAST for secret in known)
        """Whether there is one that can't be found surely: what may hold it is to be left out."""
        known = {secret for secret in known if len(secret) >= LEAST}
        # the longest first: one that begins with another would keep its end
        self._forms = _longest_first(form for secret in known for form in forms(secret))
        self._encoded = _longest_first(core for secret in known for core in _encoded_cores(secret))
        bare = {secret for secret in known if len(_BETWEEN.sub("", secret)) >= LEAST_SPLIT}
        self._bare = _longest_first(
            form
            for secret in bare
            # bytes of UTF-8 are resolved as Latin-1, and what looks like an escape in a secret is resolved too
            for written in (secret, _as_latin1(secret), _ESCAPE.sub(_resolve, secret))
            if len(form := _BETWEEN.sub("", written)) >= LEAST_SPLIT
        )
        self._wrapped = _longest_first(core for secret in bare for core in _encoded_cores(secret))

    def text(self, text: str) -> str:
        """The text without secrets."""
        # one search after the other: thousands of words in one pattern would take minutes
        for form in self._forms:
            text = text.replace(form, "***")
        if any(core in text for core in self._encoded):
            text = _ENCODED_WORD.sub(self._without_encoded, text)
        text = self._without_split(text)
        text = hide_url_passwords(text, thorough=True)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        if "…" not in text:
            return text
        *cut, rest = text.split("…")
        return "…".join([*map(self._without_start, cut), rest])

    def _without_encoded(self, word: re.Match[str]) -> str:
        return "***" if any(core in word[0] for core in self._encoded) else word[0]

    def _split(self, text: str) -> list[tuple[int, int]]:
        """Return where secrets are whose characters stand apart, or are escaped, once or twice."""
        found: list[tuple[int, int]] = []
        layers = [text]
        for needles in ([*self._bare, *self._wrapped], self._bare, self._bare):
            bare = _BETWEEN.sub("", layers[-1])
            if needles := [needle for needle in needles if needle in bare]:
                found += _spans(layers, needles)
            layers.append(_ESCAPE.sub(_resolve, layers[-1]))
            if layers[-1] == layers[-2]:
                break
        return sorted(found)

    def _without_split(self, text: str) -> str:
        kept, at = [], 0
        for start, end in self._split(text) if self._bare else ():
            if start >= at:
                kept += [text[at:start], "***"]
            at = max(at, end)
        return "".join([*kept, text[at:]])

    @cached_property
    def _starts(self) -> set[str]:
        """Beginnings of secrets."""
        return {form[:length] for form in self._forms for length in range(LEAST, len(form))}

    def _without_start(self, piece: str) -> str:
        """A text that was cut off may end with the beginning of a secret."""
        longest = len(self._forms[0]) if self._forms else 0
        for length in range(min(longest, len(piece)), LEAST - 1, -1):
            if piece[-length:] in self._starts:
                return piece[:-length] + "***"
        return piece

    def data(self, value: Any) -> Any:
        """The same for what is to become JSON, which stays valid."""
        if isinstance(value, dict):
            return {
                self.text(str(key)): "***"
                if isinstance(item, str) and item and _SECRET_KEY.search(str(key))
                else self.data(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and self.finds(repr(value)):
            return "***"
        return value

    def finds(self, text: str) -> bool:
        """Whether a known secret is in the text."""
        return any(form in text for form in (*self._forms, *self._encoded)) or bool(self._bare and self._split(text))


def _spans(layers: list[str], needles: list[str]) -> Iterator[tuple[int, int]]:
    """Return where in the first layer the needles are that are in the last one, without what stands between."""
    view = None
    for layer in layers[:-1]:
        view = _View(layer, _ESCAPE, _resolve, view)
    view = _View(layers[-1], _BETWEEN, _nothing, view)
    for needle in needles:
        at = view.text.find(needle)
        while at >= 0:
            yield view.span(at, at + len(needle))
            at = view.text.find(needle, at + len(needle))


def _longest_first(texts: Iterable[str]) -> list[str]:
    return sorted(set(texts), key=lambda text: (-len(text), text))
