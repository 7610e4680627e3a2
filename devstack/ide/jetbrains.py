"""PyCharm and its siblings: run configurations in .run, a data source in .idea.

https://www.jetbrains.com/help/pycharm/run-debug-configuration.html#share-configurations
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from devstack.errors import UsageError
from devstack.ide.files import Entry, Plan, read
from devstack.ide.project import MARK, Command, Project
from devstack.settings import reachable_address, with_port
from devstack.shell import argv

OPEN = "$PROJECT_DIR$"
SOURCES = "DataSourceManagerImpl"


def plans(project: Project) -> list[Plan]:
    """:raises UsageError: a file that is there can't be understood."""
    shell = [_shell(project, command) for command in [*project.commands, project.make_room]]
    runs = [*shell, _application(project), _tests(project)]
    return [*(_run(project, *run) for run in runs), _data_source(project)]


def _run(project: Project, name: str, content: str) -> Plan:
    """A file of its own for each configuration. The IDE keeps the folder's name that we give it."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = project.folder / ".run" / f"{slug}.run.xml"
    before = read(path)
    if before == content:
        return Plan(path, before, content, [Entry(name, "unchanged")])
    if before is not None:
        _parse(path, before)
        if f'folderName="{MARK}"' not in before:
            return Plan(path, before, before, [Entry(name, "left alone", "it is not from this tool")])
    return Plan(path, before, content, [Entry(name, "added" if before is None else "replaced")])


def _configuration(name: str, kind: str, factory: str, inside: Sequence[str], before: Sequence[str] = ()) -> str:
    made_by = f" factoryName={quoteattr(factory)}" if factory else ""
    head = f'<configuration default="false" name={quoteattr(name)} type="{kind}"{made_by} folderName="{MARK}">'
    method = ['<method v="2">', *(f"  {line}" for line in before), "</method>"] if before else ['<method v="2" />']
    lines = [f"  {head}", *(f"    {line}" for line in [*inside, *method]), "  </configuration>"]
    return "\n".join(['<component name="ProjectRunConfigurationManager">', *lines, "</component>"]) + "\n"


def _option(name: str, value: str) -> str:
    return f"<option name={quoteattr(name)} value={quoteattr(value)} />"


def _envs(env: Mapping[str, str]) -> list[str]:
    if not env:
        return ["<envs />"]
    return ["<envs>", *(f"  <env name={quoteattr(k)} value={quoteattr(v)} />" for k, v in env.items()), "</envs>"]


def _shell(project: Project, command: Command) -> tuple[str, str]:
    # the IDE puts the project's folder in; the shell sees it as one word
    place, *first = project.program
    place = project.path(place, OPEN)
    program = f'"{place}"' if place.startswith(OPEN) else argv([place])
    options = {
        "SCRIPT_TEXT": f"{program} {argv([*first, *command.words])}",
        "INDEPENDENT_SCRIPT_PATH": "true",
        "SCRIPT_PATH": "",
        "SCRIPT_OPTIONS": "",
        "INDEPENDENT_SCRIPT_WORKING_DIRECTORY": "true",
        "SCRIPT_WORKING_DIRECTORY": project.path(project.root, OPEN),
        "INDEPENDENT_INTERPRETER_PATH": "true",
        "INTERPRETER_PATH": "/bin/sh",
        "INTERPRETER_OPTIONS": "",
        "EXECUTE_IN_TERMINAL": "true",
        "EXECUTE_SCRIPT_FILE": "false",
    }
    inside = [*(_option(name, value) for name, value in options.items()), *_envs(command.env)]
    return command.name, _configuration(command.name, "ShConfigurationType", "", inside)


def _python(project: Project, folder: Path, options: Mapping[str, str]) -> list[str]:
    return [
        '<module name="" />',
        _option("SDK_HOME", project.path(project.api.python, OPEN)),
        _option("WORKING_DIRECTORY", project.path(folder, OPEN)),
        _option("IS_MODULE_SDK", "false"),
        *(_option(name, value) for name, value in options.items()),
    ]


def _application(project: Project) -> tuple[str, str]:
    """To run, or to debug. The IDE reads the variables from the file at every start."""
    name = project.name("the application under the debugger")
    words = [project.path(word, OPEN) if word.startswith("/") else word for word in project.uvicorn]
    options = {
        "ENV_FILES": str(project.variables),
        "SCRIPT_NAME": "uvicorn",
        "MODULE_MODE": "true",
        "PARAMETERS": " ".join(f'"{word}"' if " " in word else word for word in words),
        "EMULATE_TERMINAL": "false",
    }
    room = project.make_room.name
    before = [
        '<option name="RunConfigurationTask" enabled="true"'
        f' run_configuration_name={quoteattr(room)} run_configuration_type="ShConfigurationType" />'
    ]
    inside = _python(project, project.api.folder, options)
    return name, _configuration(name, "PythonConfigurationType", "Python", inside, before)


def _tests(project: Project) -> tuple[str, str]:
    name = project.name("tests")
    options = {
        "_new_keywords": '""',
        "_new_parameters": '""',
        "_new_additionalArguments": '""',
        "_new_target": f'"{project.path(project.root, OPEN)}"',
        "_new_targetType": '"PATH"',
    }
    return name, _configuration(name, "tests", "py.test", _python(project, project.root, options))


# the data source


class _Place:
    """Where things are in dataSources.xml: offsets into its bytes."""

    def __init__(self, content: bytes, uid: str) -> None:
        self.content = content
        self.root: tuple[int, int] = (0, 0)
        """Of the project's closing tag."""
        self.component: tuple[int, int] | None = None
        self.ours: tuple[int, int] | None = None
        self.url = ""
        """Of ours, as it is."""
        self._uid = uid
        self._open: list[tuple[str, int, dict[str, str]]] = []
        self._text = ""
        parser = expat.ParserCreate()
        parser.StartElementHandler = lambda name, attributes: self._start(parser, name, attributes)
        parser.EndElementHandler = lambda name: self._end(parser, name)
        parser.CharacterDataHandler = self._characters
        parser.Parse(content, True)

    def _start(self, parser: Any, name: str, attributes: dict[str, str]) -> None:
        self._open.append((name, parser.CurrentByteIndex, attributes))
        self._text = ""

    def _characters(self, text: str) -> None:
        self._text += text

    def _end(self, parser: Any, name: str) -> None:
        _, start, attributes = self._open.pop()
        end = parser.CurrentByteIndex
        if name == "jdbc-url" and any(a.get("uuid") == self._uid for n, _, a in self._open if n == "data-source"):
            self.url = self._text
        if name == "data-source" and attributes.get("uuid") == self._uid:
            self.ours = (start, self.content.index(b">", end) + 1)
        if name == "component" and attributes.get("name") == SOURCES:
            self.component = (start, end)
        if not self._open:
            self.root = (start, end)


def _parse(path: Path, text: str, uid: str = "") -> _Place:
    """:raises UsageError: it is not XML."""
    try:
        return _Place(text.encode(), uid)
    except expat.ExpatError as error:
        raise UsageError(
            f"{path}:{error.lineno}:{error.offset + 1} can't be understood",
            why=f"{expat.errors.messages.get(error.code, str(error))}; no file was changed",
            fix="correct the file, or move it away",
        ) from None


def _data_source(project: Project) -> Plan:
    """The IDE asks for the password at the first connection."""
    name = project.name("database")
    path = project.folder / ".idea" / "dataSources.xml"
    s = project.stack.settings
    place = with_port(reachable_address(s.db.bind), s.db.port)
    url = f"jdbc:postgresql://{place}/{quote(s.db.name, safe='')}?user={quote(s.db.user, safe='')}"
    uid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{MARK}/{name}"))
    element = "\n".join(
        [
            f'<data-source source="LOCAL" name={quoteattr(name)} uuid="{uid}">',
            "      <driver-ref>postgresql</driver-ref>",
            "      <synchronize>true</synchronize>",
            "      <jdbc-driver>org.postgresql.Driver</jdbc-driver>",
            f"      <jdbc-url>{escape(url)}</jdbc-url>",
            "      <working-dir>$ProjectFileDir$</working-dir>",
            "    </data-source>",
        ]
    )
    component = f'<component name="{SOURCES}" format="xml" multifile-model="true">\n    {element}\n  </component>'
    before = read(path)
    if before is None:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<project version="4">\n  {component}\n</project>\n'
        return Plan(path, None, text, [Entry(name, "added")])
    newline = "\r\n" if "\r\n" in before else "\n"
    there = _parse(path, before, uid)
    if there.ours and there.url == url:
        return Plan(path, before, before, [Entry(name, "unchanged")])
    if there.ours:
        start, end, new = *there.ours, element
    elif there.component:
        start, end, new = _before_end(there.content, there.component, f"    {element}", "component", "  ")
    else:
        start, end, new = _before_end(there.content, there.root, f"  {component}", "project", "")
    new = new.replace("\n", newline)
    after = (there.content[:start] + new.encode() + there.content[end:]).decode()
    _parse(path, after)
    return Plan(path, before, after, [Entry(name, "replaced" if there.ours else "added")])


def _before_end(content: bytes, span: tuple[int, int], new: str, tag: str, indent: str) -> tuple[int, int, str]:
    """Which bytes give way to what, so that ``new`` is the last thing in an element."""
    start, end = span
    if content[end : end + 2] == b"</":
        line = content.rfind(b"\n", 0, end) + 1
        if content[line:end].strip():  # the tag is not at the beginning of its line
            return end, end, f"\n{new}\n{indent}"
        return line, line, f"{new}\n"
    # <component … />: it gets an end of its own
    close = content.index(b"/>", start)
    return close, close + 2, f">\n{new}\n{indent}</{tag}>"
