"""Show text that somebody else wrote without what a terminal would act on."""

from __future__ import annotations

import re

COLOUR = r"\x1b\[[0-9;]*m"
COMMANDS = r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b"
"""Escape sequence that a terminal acts on: a sequence with parameters as a whole, of any other the beginning."""
UNSAFE = re.compile(rf"({COLOUR})|{COMMANDS}|\r(?=\n)|([\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069])")
"""Colours and, to be taken out of a text, all else that a terminal acts on, or that turns a line's direction."""


def safe(text: str) -> str:
    """Return a text of which a terminal takes nothing but colours for a command.

    A log, a name in the database, or another host's answer may hold anything: sequences that write to the clipboard,
    or have the terminal type what it is told.
    """
    if text.isprintable():
        return text
    return UNSAFE.sub(lambda found: found[1] or ("\ufffd" if found[2] else ""), text)
