"""A plan as EXPLAIN's JSON has it: as text for people, and what in it asks for a change.

https://www.postgresql.org/docs/current/using-explain.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from devstack.files import MAX_JSON_DEPTH

Node = Mapping[str, Any]

DETAILS = (
    *("Index Cond", "Recheck Cond", "TID Cond", "Order By", "Hash Cond", "Merge Cond", "Join Filter"),
    *("Rows Removed by Join Filter", "One-Time Filter", "Filter", "Rows Removed by Filter"),
    *("Rows Removed by Index Recheck", "Heap Fetches", "Sort Key", "Presorted Key", "Group Key", "Cache Key"),
    *("Workers Planned", "Workers Launched"),
)
"""In this order; the rest of what EXPLAIN says is in JSON."""

MANY = 1000
"""Rows thrown away from which on it is worth a word."""
TIMES = 10
"""How many of them for each row that is kept."""
WRONG = 100
"""How many times more rows than planned."""


NUMBERS = (
    *("Startup Cost", "Total Cost", "Plan Rows", "Plan Width", "Actual Rows", "Actual Loops"),
    *("Actual Startup Time", "Actual Total Time", "Rows Removed by Filter", "Hash Batches"),
    *("Shared Hit Blocks", "Shared Read Blocks", "Sort Space Used"),
)
"""Fields that are compared, or printed as numbers."""
TEXTS = ("Node Type", "Filter", "Relation Name")
"""Fields whose text is changed for people."""
NEEDED = {
    "": ("Node Type", "Startup Cost", "Total Cost", "Plan Rows", "Plan Width"),
    "Actual Rows": ("Actual Loops",),
    "Actual Total Time": ("Actual Startup Time",),
    "Sort Method": ("Sort Space Type", "Sort Space Used"),
    "Sort Space Type": ("Sort Space Used",),
    "Shared Hit Blocks": ("Shared Read Blocks",),
    "Shared Read Blocks": ("Shared Hit Blocks",),
}
"""Fields that must be there if another one is; those of every node are the first."""
LARGEST = 1e18
"""Largest number that is taken for one; no count, cost or time comes near it."""


def checked(plan: Any) -> dict[str, Any]:
    """Return a plan that has the fields which are used here: somebody else may have written it.

    :raises ValueError: it is something else.
    """
    for node in _nodes(plan):
        if not isinstance(node, dict):
            raise ValueError("a node of the plan is no object")
        needed = [name for if_there, names in NEEDED.items() if not if_there or if_there in node for name in names]
        if node.get("Node Type") == "ModifyTable":
            needed.append("Operation")
        if lacking := [name for name in needed if name not in node]:
            raise ValueError(f"a node of the plan has no {lacking[0]!r}")
        for name in node.keys() & {*NUMBERS}:
            value = node[name]
            if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST:
                raise ValueError(f"{name!r} in the plan is no number")
        for name in node.keys() & {*TEXTS}:
            if not isinstance(node[name], str):
                raise ValueError(f"{name!r} in the plan is no text")
        if not isinstance(node.get("Plans", []), list):
            raise ValueError("'Plans' in the plan is no list")
    json.dumps(plan, ensure_ascii=False).encode()  # half a character can't be printed
    found: dict[str, Any] = plan
    return found


def _nodes(plan: Any) -> Iterator[Any]:
    """Yield a node and those below it, without recursion; each before it is asked for those below.

    :raises ValueError: they are nested too deeply for :func:`lines`, which is recursive.
    """
    level = [plan]
    for _ in range(MAX_JSON_DEPTH):
        yield from level
        level = [child for node in level for child in node.get("Plans", ())]
    if level:
        raise ValueError("the plan is nested too deeply")


def lines(node: Node, depth: int = 0) -> Iterator[str]:
    """The plan as EXPLAIN's text."""
    indent = "" if depth == 0 else "  " * (3 * depth - 2) + "->  "
    if name := node.get("Subplan Name"):
        yield f"{'  ' * (3 * depth - 2)}{name}"
    yield f"{indent}{_title(node)}  {_cost(node)}{_actual(node)}"
    below = "  " * (3 * depth + 1)
    for key in DETAILS:
        if key in node and not (key.startswith("Rows Removed") and not node[key]):
            value = node[key]
            text = ", ".join(map(str, value)) if isinstance(value, list) else _count(value)
            yield f"{below}{key}: {text}"
    if "Sort Method" in node:
        yield f"{below}Sort Method: {node['Sort Method']}  {node['Sort Space Type']}: {node['Sort Space Used']}kB"
    if node.get("Hash Batches", 1) > 1:
        yield f"{below}Batches: {node['Hash Batches']}"
    if node.get("Shared Hit Blocks") or node.get("Shared Read Blocks"):
        yield f"{below}Buffers: shared hit={node['Shared Hit Blocks']} read={node['Shared Read Blocks']}"
    for child in node.get("Plans", ()):
        yield from lines(child, depth + 1)


def _title(node: Node) -> str:
    kind = str(node["Node Type"])
    if kind == "ModifyTable":
        kind = str(node["Operation"])
    elif kind == "Aggregate":
        kind = {"Hashed": "HashAggregate", "Sorted": "GroupAggregate", "Mixed": "MixedAggregate"}.get(
            str(node.get("Strategy")), "Aggregate"
        )
    elif (join := node.get("Join Type", "Inner")) != "Inner":
        kind = f"{kind.removesuffix(' Join')} {join} Join" if kind != "Nested Loop" else f"Nested Loop {join} Join"
    if node.get("Parallel Aware"):
        kind = f"Parallel {kind}"
    if index := node.get("Index Name"):
        kind += f" {'on' if kind.startswith('Bitmap') else 'using'} {index}"
    if place := node.get("Relation Name") or node.get("Function Name") or node.get("CTE Name"):
        alias = node.get("Alias")
        kind += f" on {place}" + (f" {alias}" if alias and alias != place else "")
    return kind


def _cost(node: Node) -> str:
    cost = f"{node['Startup Cost']:.2f}..{node['Total Cost']:.2f}"
    return f"(cost={cost} rows={node['Plan Rows']} width={node['Plan Width']})"


def _actual(node: Node) -> str:
    if "Actual Rows" not in node:
        return ""
    if not node["Actual Loops"]:
        return " (never executed)"
    time = (
        f"time={node['Actual Startup Time']:.3f}..{node['Actual Total Time']:.3f} ms "
        if "Actual Total Time" in node
        else ""
    )
    return f" (actual {time}rows={_count(node['Actual Rows'])} loops={_count(node['Actual Loops'])})"


def _count(value: Any) -> str:
    """A number of rows, which from PostgreSQL 18 on is a mean with a fraction."""
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)


def hints(node: Node) -> list[str]:
    """What is plain to see, each as a sentence; the most telling first."""
    return list(dict.fromkeys(hint for one in _all(node) for hint in _of(one)))


def _all(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _all(child)


def _of(node: Node) -> Iterator[str]:
    loops = node.get("Actual Loops", 1)
    kept, planned = node.get("Actual Rows"), node["Plan Rows"]
    table = node.get("Relation Name", "")
    condition = node.get("Filter", "")
    if node["Node Type"] == "Seq Scan" and condition:
        removed = node.get("Rows Removed by Filter", 0)
        if removed >= MANY and removed >= TIMES * (kept or 0):
            times = f", {_count(loops)} times over" if loops > 1 else ""
            yield (
                f"{table} is read to its end{times}: {removed:,.0f} rows are thrown away for {_count(kept)} kept;"
                f" an index for {condition.removeprefix('(').removesuffix(')')} may help"
            )
    if node.get("Sort Space Type") == "Disk":
        kilobytes = node["Sort Space Used"]
        yield f"a sort goes to the disk, {kilobytes:,} kB: a larger work_mem, or an index in its order, helps"
    if node.get("Hash Batches", 1) > 1:
        yield f"a hash table does not fit into work_mem: it is done in {node['Hash Batches']} batches"
    # fewer than planned may be a LIMIT's doing; more never is
    if table and kept is not None and kept >= MANY and kept >= WRONG * planned:
        yield f"{planned:,} rows of {table} were planned for, there were {_count(kept)}: ANALYZE {table}"
