"""Vectors for generated texts: the application itself makes them, of the parts that the texts are put together from.

Asking it for each text would take a millisecond a row. So it is asked once for some hundred parts of sentences, in a
process of its own interpreter, and PostgreSQL adds them up for each row: close to the text's own vector, both for
hashed words and for a model's meaning, so that the application's search finds the rows.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import msgspec

from devstack import console
from devstack.errors import StackError
from devstack.files import load_json
from devstack.shell import sh

if TYPE_CHECKING:
    from devstack.stack import Stack

PROGRAM = """
import importlib, json, sys
module, _, name = sys.argv[1].partition(":")
embed = getattr(importlib.import_module(module), name)
json.dump([[float(x) for x in embed(text)] for text in json.load(sys.stdin)], sys.stdout)
"""


def embed(stack: Stack, texts: list[str], dimensions: int) -> list[list[float]]:
    """A vector for each text; random ones, said out loud, where the application can't make them."""
    named = stack.settings.data.embed
    if named:
        try:
            made = _ask(stack, named, texts)
            if {len(vector) for vector in made} == {dimensions}:
                return made
            problem = f"it makes vectors of {len(made[0])} numbers, the column has {dimensions}"
        except StackError as error:
            problem = error.evidence[-1] if error.evidence else error.why
        except ValueError:
            problem = "it printed something else than its vectors"
        console.note(f"data.embed ({named}) can't be used: {problem}; the vectors are random, no search finds them")
    return noise(len(texts), dimensions)


def _ask(stack: Stack, named: str, texts: list[str]) -> list[list[float]]:
    command = sh("exec $python -c $program $named", python=stack.api.python, program=PROGRAM, named=named)
    with (
        stack.api.beside(command, stack.environ, {}) as beside,
        stack.context.talk(beside.command, "embed the texts", env=beside.env, cwd=beside.folder) as talk,
    ):
        try:
            talk.stdin.write(json.dumps(texts).encode())
            talk.stdin.close()
        except BrokenPipeError:
            pass  # explained by its exit code
        answer = talk.stdout.read()
    return msgspec.convert(load_json(answer), list[list[float]])


def noise(count: int, dimensions: int) -> list[list[float]]:
    """Vectors that point anywhere, the same at every call."""
    source = random.Random(f"vectors {dimensions}")
    return [[source.gauss(0, 1) for _ in range(dimensions)] for _ in range(count)]
