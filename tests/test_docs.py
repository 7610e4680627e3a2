"""The documentation: pages made from the source are as the source is, and commands that it names exist."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import messages, troubleshooting
from tests.conftest import Project

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/troubleshooting.md"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = sorted((ROOT / "docs/tasks").glob("*.md"))
RENEW = "make docs (or: .venv/bin/python -m docs)"


def python(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_pages_are_as_the_source_is() -> None:
    done = python("-m", "docs", "--check")
    assert done.returncode == 0, f"{done.stderr}renew them: {RENEW}"


@pytest.mark.slow
def test_a_page_that_is_not_is_named_with_the_command_that_renews_it(tmp_path: Path, cache: Path) -> None:
    project = Project(tmp_path, cache, also=("docs", "scripts", "Makefile"))
    folder = project.root / "docs"
    text = (folder / "tasks/db.md").read_text()
    (folder / "tasks/db.md").write_text(text + "more\n")
    (folder / "tasks/gone.md").write_text("a namespace that there was\n")
    (folder / "troubleshooting.md").unlink()
    (project.root / "tasks/pgb.py").write_text(
        (project.root / "tasks/pgb.py").read_text().replace('"""Show pools, waiting', '"""Show the pools, waiting')
    )
    names = ["tasks/README.md", "tasks/db.md", "tasks/gone.md", "tasks/pgb.md", "troubleshooting.md"]
    check = python("-m", "docs", "--check", cwd=project.root)
    assert check.returncode == 1
    assert sorted(check.stderr.splitlines()) == [f"docs/{name} is out of date: {RENEW}" for name in names]
    renewed = python("-m", "docs", cwd=project.root)
    assert (renewed.returncode, sorted(renewed.stdout.splitlines())) == (0, [f"docs/{name}" for name in names])
    assert python("-m", "docs", "--check", cwd=project.root).returncode == 0
    assert (folder / "tasks/db.md").read_text() == text
    assert not (folder / "tasks/gone.md").exists()
    assert "Show the pools, waiting" in (folder / "tasks/pgb.md").read_text()


# tasks


def collection() -> dict[str, list[str]]:
    """Every task with its flags; under the empty name those that all have."""
    script = """
import json, os, invoke.main
from tasks import ns
flags = {str(context.name): list(context.flag_names()) for context in ns.to_contexts()}
print(json.dumps({**flags, "": list(invoke.main.program.initial_context.flag_names())}))
"""
    found: dict[str, list[str]] = json.loads(python("-c", script).stdout)
    return found


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[str]]:
    return collection()


def test_each_task_has_its_part_with_each_flag_target_and_script(tasks: dict[str, list[str]]) -> None:
    parts = {}
    for page in MADE:
        for part in page.read_text().split("\n## ")[1:]:
            parts[part.partition("\n")[0]] = part
    for name, flags in tasks.items():
        for flag in flags if name else ():
            assert f"`{flag}" in parts[name] or f"`{flag.removeprefix('--').upper()}`" in parts[name], (name, flag)
    assert "`make backup`, `scripts/backup-database.sh`" in parts["data.backup"]
    assert "| `--format TEXT` | `sql` | sql (compressed by gzip), custom or directory |" in parts["data.backup"]
    assert (
        "hook `pre_up` → check all settings → `db.start` → `pgb.start` → `api.start` → `dev.up` → hook `post_up`"
        in parts["dev.up"]
    )
    assert "    inv data.pin NAME [flags]\n" in parts["data.pin"]


# what it names


def commands(text: str) -> Iterator[str]:
    """What stands in code: between backticks, and in blocks."""
    for part in re.findall(r"^```.*?^```|`[^`\n]+`|^    [^\n]+$", text, re.MULTILINE | re.DOTALL):
        yield from part.strip("`").splitlines()


def unknown(line: str, tasks: dict[str, list[str]]) -> list[str]:
    """The tasks and flags of a command line that there are not."""
    wrong = []
    for called in re.split(r"(?<![\w./-])inv ", line)[1:]:
        now = ""
        for word in re.split(r"[|;&#()<>…`]| -- ", called)[0].translate(str.maketrans("[],", "   ")).split():
            word = word.strip(".:'\"").partition("=")[0]
            if re.fullmatch(r"-[a-z]|--.+", word):
                if word not in [*tasks[now], *tasks[""]]:
                    wrong.append(f"{now} {word}")
                if word in ("-f", "--print-completion-script"):
                    break  # a value follows
            elif word in tasks:
                now = word
            elif re.fullmatch(r"(dev|db|pgb|api|data)\.[a-z]+", word) or (not now and re.fullmatch(r"[a-z-]+", word)):
                wrong.append(word)
            if not now and not word.startswith("-"):
                break
    return wrong


@pytest.mark.parametrize("page", [*WRITTEN, *MADE], ids=lambda page: page.name)
def test_each_task_and_flag_that_is_named_exists(page: Path, tasks: dict[str, list[str]]) -> None:
    text = page.read_text()
    lines = text.splitlines() if page == PAGE else list(commands(text))
    wrong = {line: bad for line in lines if (bad := unknown(line, tasks))}
    assert wrong == {}


@pytest.mark.parametrize("page", [*WRITTEN, *MADE], ids=lambda page: page.name)
def test_each_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+): *##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert "dev-up" in targets
    called = {
        target for line in commands(page.read_text()) for target in re.findall(r"(?:^|[\s;&])make ([a-z][a-z-]*)", line)
    }
    assert called - targets == set()


@pytest.mark.parametrize("page", [*WRITTEN, *MADE], ids=lambda page: page.name)
def test_each_link_to_a_file_leads_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


# troubleshooting


def test_each_area_is_linked_and_no_message_is_there_twice_in_one() -> None:
    text = PAGE.read_text()
    areas = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert re.findall(r"^- \[.*\]\(#(.*)\)$", text, re.MULTILINE) == list(map(troubleshooting.slug, areas))
    for part in text.split("\n## ")[1:]:
        headings = re.findall(r"^### (.*)$", part, re.MULTILINE)
        assert headings
        assert len(headings) == len(set(headings))
        words = [re.findall("[a-z]+", heading) for heading in headings]
        assert words == sorted(words)


def test_nothing_of_this_machine_is_on_the_page_nor_is_the_source() -> None:
    text = PAGE.read_text()
    assert str(ROOT) not in text
    for mark in ("self.", "{str(", ".join(", "None"):
        assert mark not in text.replace("itself.", "")


def constructed() -> Iterator[tuple[str, str, str]]:
    """Each error of the source with a text and a fix that are written there: the longest piece of each."""
    for path in sorted([*(ROOT / "devstack").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and name in ("StackError", "UsageError") and node.args:
                fix = next((k.value for k in node.keywords if k.arg == "fix"), None)
                if isinstance(fix, ast.Constant | ast.JoinedStr) and re.search("[a-z]{2}", longest(node.args[0])):
                    yield path.name, longest(node.args[0]), longest(fix)


def longest(node: ast.expr) -> str:
    texts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return max(texts, key=len, default="")


def test_each_error_with_a_fix_of_its_own_is_on_the_page() -> None:
    text = re.sub(r"\\(?=[<$*])", "", PAGE.read_text())
    found = list(constructed())
    assert len(found) > 80
    missing = [(file, what) for file, what, fix in found if what.strip() not in text or fix.strip() not in text]
    assert missing == []


@pytest.mark.parametrize(
    ("heading", "below"),
    [
        ("`this stack is in use`", "- Fix: wait for it, or end it; stack.lock_timeout sets how long to wait"),
        ("`port PORT of SERVICE is taken`", "SERVICE.port in invoke.yaml"),
        ("`nv-api did not become ready`", "- Cause: its log says “No module named uvicorn”\n  - Fix: install uvicorn"),
        ("`PATH can't be used`", "- Cause: the disk is full\n  - Fix: free some space"),
        ("`it refuses USER: the role has another password than the settings`", "“password authentication failed”"),
        ("`extension NAME is missing in database DATABASE`", "- Fix: inv dev.heal creates it"),
        ("`SETTING: it has N bytes, PostgreSQL takes 63`", "- Fix: choose a shorter name"),
        ("`--rows 'ROWS' is not a number`", "- Fix: write digits only"),
        ("`BACKUP is damaged`", "- Cause: its SHA-256 is not the one in its manifest"),
        ("`no PostgreSQL with EXTENSIONS was found`", "  - or name a folder with PostgreSQL's programs in db.bin_dir"),
    ],
)
def test_a_message_is_found_with_its_cause_and_fix(heading: str, below: str) -> None:
    part = PAGE.read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    assert below in part


SOURCE = """
HELP = ["do this", "or that"]

def refused(error):
    def check(cause, fix):
        return Check(name="login", cause=cause, fix=fix)
    if "too many" in error:
        return check(f"all {error.count} are taken", "end some")
    return check("it is closed", "open it")

def wrong(kind, name):
    raise UsageError(f"{name!r} is not a {kind}", fix=HELP)

def use(value, old):
    if value:
        wrong("day", value)
    wrong("month", value)
    raise StackError("it is old" if old else "it is new", why="so" if old else "", fix="renew it" if old else "wait")
"""


def test_texts_are_followed_to_where_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "health.py"
    file.write_text(SOURCE)
    found = [(message.what, message.why, message.fix) for message in messages.of_file(file, "health.py")]
    assert sorted(found) == [
        ("'VALUE' is not a day", "", ("do this", "or that")),
        ("'VALUE' is not a month", "", ("do this", "or that")),
        ("all COUNT are taken", "its own words are “too many”", ("end some",)),
        ("it is closed", "", ("open it",)),
        ("it is new", "", ("wait",)),
        ("it is old", "so", ("renew it",)),
    ]


def test_a_cause_is_above_its_fix_unless_one_is_for_all() -> None:
    def shown(*ways: tuple[str, tuple[str, ...]]) -> list[str]:
        return list(troubleshooting.bullets(troubleshooting.Entry("it failed", list(ways))))

    assert shown(("a", ("x",)), ("b", ("x",))) == ["- Cause: a", "- Cause: b", "- Fix: x"]
    assert shown(("a", ("x",)), ("b", ("y",))) == list(
        itertools.chain(["- Cause: a", "  - Fix: x"], ["- Cause: b", "  - Fix: y"])
    )
    assert shown(("a", ("x", "or y"))) == ["- Cause: a", "- Fix:", "  - x", "  - or y"]
    assert shown(("", ("mv $a <b>",))) == ["- Fix: mv \\$a \\<b>"]
