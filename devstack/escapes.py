"""Show text that somebody else wrote without what a terminal would act on.

What is not shown as it is gets a replacement character (U+FFFD), and is never left out: a path would become another.
"""

from __future__ import annotations

import re

REPLACED = "\ufffd"
COLOUR = r"\x1b\[[0-9;]*m"
COMMANDS = r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b"
"""Escape sequence that a terminal acts on: a sequence with parameters as a whole, of any other the beginning."""
UNSAFE = re.compile(
    rf"({COLOUR})|{COMMANDS}|[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|(\r\n)|\r"
)
"""Colours, and all else that a terminal acts on, that ends a line or turns its direction, or that is no character."""


INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that nothing is shown for: a name with one looks like another name. Default_Ignorable_Code_Point in
https://www.unicode.org/Public/UCD/latest/ucd/DerivedCoreProperties.txt."""


def safe(text: str) -> str:
    """Return a text, of any number of lines, of which a terminal takes nothing but colours for a command.

    A log, a name in the database, or another host's answer may hold anything: sequences that write to the clipboard,
    or have the terminal type what it is told.
    """
    if text.isprintable():
        return text
    return UNSAFE.sub(lambda found: found[1] or ("\n" if found[2] else REPLACED), text)


def one_line(text: str, *, colours: bool = False) -> str:
    """Return a text as one line, with a space in place of each line's end: it can't show a line that looks like ours.

    :param colours: whether colours are kept. They could hide what follows, and are lost when a path is pasted.
    """
    if text.isprintable():
        return text
    shown = safe(text).replace("\n", " ")
    return shown if colours else re.sub(COLOUR, REPLACED, shown)


def is_shown(text: str) -> bool:
    """Check whether a text is shown, and pasted, as what it is."""
    return "\t" not in text and not INVISIBLE.search(text) and one_line(text) == text
