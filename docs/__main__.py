"""Write the pages that are made from the source; with ``--check`` only say which ones are not as they would be."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
RENEW = "make docs (or: .venv/bin/python -m docs)"


@functools.cache
def wanted() -> dict[Path, str]:
    """What each page is to be. Once: Invoke takes the help of the flags out of the tasks as it is asked for."""
    from docs import reference, troubleshooting
    from tasks import ns

    pages = {DOCS / "tasks" / name: text for name, text in reference.pages(ns).items()}
    return {**pages, DOCS / "troubleshooting.md": troubleshooting.page()}


def outdated() -> list[Path]:
    """The pages that differ, are missing, or belong to a namespace that is gone."""
    pages = wanted()
    gone = [path for path in sorted((DOCS / "tasks").glob("*.md")) if path not in pages]
    return [path for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text] + gone


def main(arguments: list[str]) -> int:
    """Do it; the exit code."""
    changed = outdated()
    names = [str(path.relative_to(DOCS.parent)) for path in changed]
    if arguments == ["--check"]:
        for name in names:
            print(f"{name} is out of date: {RENEW}", file=sys.stderr)
        return 1 if names else 0
    if arguments:
        print("python -m docs takes nothing, or --check", file=sys.stderr)
        return 2
    pages = wanted()
    for path, name in zip(changed, names, strict=True):
        if path in pages:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages[path], "utf-8")
        else:
            path.unlink()
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
