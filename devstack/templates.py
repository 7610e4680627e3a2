"""The files of templates/, filled in. A project's own ones win over those of the package, file by file."""

from __future__ import annotations

import string
from pathlib import Path

from devstack.errors import UsageError
from devstack.files import read_regular
from devstack.shell import typed

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
"""Of who works from one; where the package is installed, a folder of packages."""
PACKAGED = PACKAGE / "templates" if (PACKAGE / "templates").is_dir() else CHECKOUT / "templates"
"""In a wheel they are in the package, in a checkout beside it."""


class Templates:
    """The templates of one project, by name: ``templates / "pgbouncer.ini"``."""

    def __init__(self, own: Path) -> None:
        self.own = own

    def __truediv__(self, name: str) -> Path:
        own = self.own / name
        return own if own.is_file() else PACKAGED / name


def render(file: Path, **values: object) -> str:
    """Fill in a :class:`string.Template` file; ``$$`` is a dollar sign.

    :raises UsageError: it is not there, or names a value that there is not.
    """
    fix = f"mend {file}, or take the project's own again: git checkout {typed(Path(file.parent.name, file.name))}"
    try:
        return string.Template(read_regular(file).decode("utf-8")).substitute(values)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the template {file.name} can't be read", why=str(error), fix=fix) from None
    except KeyError as error:
        known = ", ".join(f"${name}" for name in values) or "none"
        why = f"there is no value ${error.args[0]} for it; there are: {known}"
        raise UsageError(f"the template {file.name} can't be filled in", why=why, fix=fix) from None
    except ValueError as error:
        why = f"{str(error).lower()}; a dollar sign itself is $$"
        raise UsageError(f"the template {file.name} can't be filled in", why=why, fix=fix) from None
