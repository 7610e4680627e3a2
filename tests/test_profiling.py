"""`inv api.profile` and `inv db.profile` on the real thing: what runs is found, and nothing stays changed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from devstack.profiling import flamegraph, plans, serverlog
from tests.conftest import Project, wait_for

RESULT = {"Node Type": "Result", "Startup Cost": 0.0, "Total Cost": 0.01, "Plan Rows": 1, "Plan Width": 4}
SVG = "{http://www.w3.org/2000/svg}"


@contextlib.contextmanager
def busy(stack: Project) -> Iterator[None]:
    """Memories are created, one after the other."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                stack.http("/memories", {"content": "something to remember " * 50})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# inv api.profile


def test_a_flame_graph_has_the_functions_of_the_application_under_load(stack: Project) -> None:
    with busy(stack):
        done = json.loads(stack.inv("api.profile", "--seconds", "3", "--json").stdout)
    assert done["pid"] == stack.pids()["nv-api"]
    assert done["samples"] == done["waiting"] + sum(one["own"] for one in done["functions"])
    assert all(0 <= one["own_ratio"] <= one["total_ratio"] <= 1 for one in done["functions"])
    found = {one["name"].rpartition(".")[2]: one for one in done["functions"] if one["application"]}
    assert found["create"]["file"] == "api/memories.py"
    assert found["create"]["total_ratio"] > 0.01
    assert {one["file"].split("/")[0] for one in done["functions"] if not one["application"]} >= {"uvicorn", "asyncio"}

    path = Path(done["path"])
    assert path.parent == stack.root / "logs"
    assert path.stat().st_mode & 0o777 == 0o600
    graph = ElementTree.parse(path).getroot()
    titles = [element.text or "" for element in graph.iter(f"{SVG}title")]
    assert any(re.match(r"create \(api/memories.py:\d+\) \(\d+ samples", title) for title in titles)
    texts = {element.get("id"): element.text for element in graph.iter(f"{SVG}text") if element.get("id")}
    assert texts["title"] == "nv-api: where the application's time goes"
    assert (texts["subtitle"] or "").startswith(f"{done['samples']} samples in 3 s, 100 a second")
    assert list((stack.state / "profiling").glob("*")) == []


@pytest.mark.slow
def test_the_functions_are_shown_and_the_graph_goes_where_it_is_wanted(stack: Project, tmp_path: Path) -> None:
    with busy(stack):
        shown = stack.inv("api.profile", "--seconds", "1", "--output", str(tmp_path / "mine.svg"))
    assert "of your own source" in shown.stdout
    assert re.search(r"^ +\d+\.\d% +\d+\.\d%  create +api/memories.py:\d+$", shown.stdout, re.MULTILINE)
    assert f"flame graph, for a browser: {tmp_path / 'mine.svg'}" in shown.stdout
    assert (tmp_path / "mine.svg").exists()
    again = stack.inv("api.profile", "--output", str(tmp_path / "mine.svg"), expect=2)
    assert "it is there already" in again.stderr


@pytest.mark.slow
def test_an_idle_application_is_said_to_be_one(stack: Project, tmp_path: Path) -> None:
    said = stack.inv("api.profile", "--seconds", "1", "--rate", "10", "--output", str(tmp_path), expect=None).stderr
    assert "idle" in said
    assert "inv dev.load --only api --seconds" in said


@pytest.mark.slow
def test_ctrl_c_shows_what_there_is(stack: Project, tmp_path: Path) -> None:
    with busy(stack):
        process = stack.popen("api.profile", "--seconds", "600", "--json", "--output", str(tmp_path / "early.svg"))
        spies = wait_for(lambda: [p for p in psutil.Process(process.pid).children(True) if p.name() == "py-spy"])
        wait_for(lambda: spies[0].cpu_times().user > 0.1)
        process.send_signal(signal.SIGINT)
        done = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 0
    assert 0 < done["seconds"] < 60
    assert (tmp_path / "early.svg").exists()
    assert not spies[0].is_running()


@pytest.mark.faults
def test_nobody_goes_on_looking_when_the_command_is_killed(stack: Project) -> None:
    process = stack.popen("api.profile", "--seconds", "600")
    (spy,) = wait_for(lambda: [p for p in psutil.Process(process.pid).children(True) if p.name() == "py-spy"])
    process.kill()
    process.wait()
    psutil.wait_procs([spy], timeout=20)
    assert not spy.is_running()
    with busy(stack):
        stack.inv("api.profile", "--seconds", "1")
    assert not (stack.state / "profiling").exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give up a capability")
def test_who_may_not_look_into_a_process_is_told_so(stack: Project) -> None:
    command = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all", *stack.command("api.profile")]
    done = subprocess.run(command, cwd=stack.root, env=stack.env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "py-spy may not look into nv-api" in done.stderr
    assert "SYS_PTRACE" in done.stderr
    assert list((stack.root / "logs").glob("*profile*partial*")) == []


@pytest.mark.variations
@pytest.mark.parametrize("task", ["api.profile", "db.profile", "dev.load"])
def test_a_stack_that_does_not_run_is_no_riddle(project: Project, task: str) -> None:
    said = project.inv(task, expect=1).stderr
    assert said.startswith("error: ")
    assert f"fix:   inv {'db.start' if task == 'db.profile' else 'dev.up'}" in said


@pytest.mark.variations
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("api.profile", "--seconds", "0"), "--seconds 0 is not possible"),
        (("api.profile", "--seconds", "4000"), "from 1 to 3600"),
        (("api.profile", "--rate", "5000"), "from 1 to 1000 samples a second"),
        (("api.profile", "--output", "/nowhere/x.svg"), "there is no folder /nowhere"),
        (("db.profile", "--seconds", "0"), "--seconds 0 is not possible"),
        (("db.profile", "--top", "101"), "from 0 to 100 statements"),
        (("db.profile", "--slower-than", "-5"), "--slower-than -5 is not possible"),
    ],
)
def test_bad_input_is_refused(stack: Project, args: tuple[str, ...], words: str) -> None:
    assert words in stack.inv(*args, expect=2).stderr


def frame(name: str, y: int, x: int, w: int) -> str:
    rect = f'<rect x="0%" y="{y}" width="1%" height="15" fill="rgb(1,2,3)" fg:x="{x}" fg:w="{w}"/>'
    return f"<g><title>{name} ({w} samples, 1%)</title>{rect}</g>"


def test_a_function_that_calls_itself_counts_once() -> None:
    places = [
        ("all", 0, 0, 10),
        ("f (a.py:1)", 16, 0, 10),
        ("f (a.py:1)", 32, 0, 6),
        ("g &lt;l&gt; (b.py:2)", 32, 6, 3),
    ]
    svg = "".join(frame(*place) for place in places)
    graph = flamegraph.read(svg, lambda file: file == "b.py")
    assert (graph.samples, graph.waiting) == (10, 0)
    found = [(one.name, one.own, one.total, one.application) for one in graph.functions]
    assert found == [("f", 7, 10, False), ("g <l>", 3, 3, True)]


def test_who_waits_is_in_no_function_s_time() -> None:
    places = [
        *(("all", 0, 0, 10), ("run (a.py:1)", 16, 0, 10), ("step (a.py:9)", 32, 0, 7), ("run (a.py:1)", 48, 0, 5)),
        *(("Condition.wait (threading.py:295)", 64, 0, 4), ("lock (x.py:1)", 80, 1, 2)),
    ]
    graph = flamegraph.read("".join(frame(*place) for place in places), lambda file: False)
    assert (graph.samples, graph.waiting) == (10, 4)
    assert {one.name: (one.own, one.total) for one in graph.functions} == {"run": (4, 6), "step": (2, 3)}


# inv db.profile

PLANTED = "SELECT count(*) FROM planted WHERE name = 'nobody'"


@pytest.fixture(scope="module")
def planted(stack: Project) -> Project:
    stack.inv(
        "db.shell",
        "--command",
        "CREATE TABLE planted AS SELECT g AS id, md5(g::text) AS name, g % 7 AS kind FROM generate_series(1, 100000) g;"
        "CREATE INDEX ON planted (id); ANALYZE planted",
    )
    return stack


def settings(stack: Project) -> tuple[str, str]:
    """What is written by ALTER SYSTEM, and what a new session has."""
    shown = stack.inv("db.shell", "--admin", "--command", "TABLE public.settings_of_plans")
    return (stack.data / "postgresql.auto.conf").read_text(), shown.stdout


@pytest.fixture(scope="module")
def view(planted: Project) -> Project:
    planted.inv(
        "db.shell",
        "--admin",
        "--command",
        "CREATE VIEW public.settings_of_plans AS"
        " SELECT name, setting FROM pg_settings WHERE name LIKE 'auto_explain.%'",
    )
    return planted


def watching(stack: Project, *args: str) -> subprocess.Popen[str]:
    """A window that is open: everything is switched on, and what comes counts."""
    process = stack.popen("db.profile", "--seconds", "600", *args)

    def on() -> bool:
        assert process.poll() is None, process.communicate()
        return stack.query("SHOW auto_explain.log_analyze", dbname="postgres") == [("on",)]

    wait_for(on)
    wait_for(lambda: "begins" in stack.log("nv-db").rsplit("SIGHUP", 1)[-1])
    return process


def closed(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a window shows that Ctrl-C has ended."""
    process.send_signal(signal.SIGINT)
    answer = process.communicate(timeout=60)
    assert process.returncode == 0, answer
    return answer


def statement(done: dict[str, Any], words: str) -> dict[str, Any]:
    (found,) = [one for one in done["statements"] if words in one["statement"]]
    return dict(found)


def counted(stack: Project, words: str) -> int:
    sql = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE %s"
    connection = stack.connect(dbname="postgres")
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql, (f"%{words}%",))
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def test_a_planted_slow_statement_is_named_with_its_plan_and_nothing_stays_changed(view: Project) -> None:
    stack = view
    before = settings(stack)
    earlier = stack.connect(stack.pgb_port)  # as an application's pool: its server connection is there already
    with contextlib.closing(earlier), earlier.cursor() as cursor:
        cursor.execute(PLANTED)
        process = watching(stack, "--slower-than", "0", "--json")
        for _ in range(3):
            cursor.execute(PLANTED)
        done = json.loads(closed(process)[0])
    found = statement(done, "FROM planted WHERE name")
    assert (found["calls"], found["rows"], found["user"]) == (3, 3, "nina")
    assert found["max_ms"] >= found["mean_ms"] > 0
    assert found["total_ms"] == pytest.approx(found["mean_ms"] * 3, rel=0.01)
    assert 0 < found["share_ratio"] <= 1
    assert sum(one["share_ratio"] for one in done["statements"]) == pytest.approx(1, abs=0.01)
    assert found["plan"]["source"] == "auto_explain"
    text = "\n".join(found["plan"]["text"])
    assert "Seq Scan on planted" in text
    assert "Rows Removed by Filter: 100000" in text
    assert found["plan"]["hints"][0].startswith("planted is read to its end")
    assert "name = 'nobody'" in found["plan"]["hints"][0]
    assert [one for one in done["statements"] if "pg_stat" in one["statement"]] == []
    assert settings(stack) == before
    assert not (stack.state / "window.json").exists()


def test_the_report_is_for_people(view: Project, tmp_path: Path) -> None:
    process = watching(view, "--slower-than", "1000", "--output", str(tmp_path / "report.txt"))
    view.query(PLANTED)
    shown, said = closed(process)
    assert said == ""
    assert re.search(r"^1 +\d+ .* SELECT count\(\*\) FROM planted", shown, re.MULTILINE)
    assert "Plans may hold values of the data" in shown
    if view.connect().server_version >= 160000:
        assert "planned afterwards, without its values" in shown
        assert "Seq Scan on planted" in shown or "Parallel Seq Scan on planted" in shown
    report = tmp_path / "report.txt"
    assert f"full report: {report}" in shown
    assert report.stat().st_mode & 0o777 == 0o600
    assert "FROM planted WHERE name = $1" in report.read_text()


@pytest.mark.slow
def test_ctrl_c_ends_the_window_early_and_puts_everything_back(view: Project) -> None:
    before = settings(view)
    process = watching(view, "--json")
    calls = counted(view, "FROM planted WHERE name")
    view.query(PLANTED)
    wait_for(lambda: counted(view, "FROM planted WHERE name") == calls + 1)
    done = json.loads(closed(process)[0])
    assert statement(done, "FROM planted WHERE name")["calls"] == 1
    assert "stopped before the time was over" in done["notes"]
    assert settings(view) == before


@pytest.mark.faults
def test_what_a_killed_window_leaves_is_put_right_by_the_next_command(view: Project) -> None:
    view.inv("db.shell", "--admin", "--command", "ALTER SYSTEM SET auto_explain.log_min_duration = 54321")
    view.inv("db.shell", "--admin", "--command", "SELECT pg_reload_conf()")
    wait_for(lambda: view.query("SHOW auto_explain.log_min_duration") == [("54321ms",)])
    before = settings(view)
    process = watching(view)
    assert view.inv("dev.status").stderr == ""  # a window that is open is left alone
    assert settings(view) != before
    process.kill()
    process.wait()
    assert "log_analyze" in (view.data / "postgresql.auto.conf").read_text()
    said = view.inv("dev.status").stderr
    assert said == "a db.profile was cut off: auto_explain of nv-db is as it was before\n"
    wait_for(lambda: settings(view) == before)
    assert not (view.state / "window.json").exists()
    view.inv("db.shell", "--admin", "--command", "ALTER SYSTEM RESET auto_explain.log_min_duration")


@pytest.mark.faults
def test_what_a_window_leaves_on_a_database_that_died_with_it_is_put_right_at_its_start(view: Project) -> None:
    process = watching(view)
    process.kill()
    process.wait()
    killed = view.processes()
    for one in killed:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(killed, timeout=10)
    assert view.inv("dev.status", expect=1).stderr == ""
    said = view.inv("dev.up").stderr
    assert "a db.profile was cut off: auto_explain of nv-db is as it was before" in said
    assert "auto_explain" not in (view.data / "postgresql.auto.conf").read_text()
    wait_for(lambda: view.query("SHOW auto_explain.log_analyze") == [("off",)])


@pytest.mark.slow
def test_a_setting_of_the_user_that_wins_is_named(view: Project) -> None:
    parameters: dict[str, Any] = {"INVOKE_DB_PARAMETERS": json.dumps({"auto_explain.log_format": "text"})}
    view.inv("dev.up", **parameters)
    try:
        done = json.loads(view.inv("db.profile", "--seconds", "1", "--json", **parameters).stdout)
    finally:
        view.inv("dev.up")
    assert "no plan was logged: auto_explain.log_format stays text: take it out of db.parameters" in done["notes"]
    assert not (view.state / "window.json").exists()


@pytest.mark.variations
@pytest.mark.parametrize(
    "sql",
    [
        PLANTED,
        "SELECT * FROM planted WHERE id = 5",
        "SELECT kind, count(*) FROM planted GROUP BY kind ORDER BY 2 DESC LIMIT 3",
        "SELECT * FROM planted a JOIN planted b USING (id) WHERE a.kind = 3 ORDER BY a.name",
        "SELECT * FROM planted a LEFT JOIN planted b ON b.id = a.kind WHERE a.name > 'x'",
        "SELECT * FROM planted WHERE NOT EXISTS (SELECT FROM planted b WHERE b.id = planted.kind)",
        "SELECT * FROM generate_series(1, 10) g WHERE g > 5",
        "INSERT INTO planted SELECT g, 'x', 1 FROM generate_series(1, 3) g",
        "DELETE FROM planted WHERE id < 10",
    ],
)
def test_a_plan_reads_as_the_server_s_own(planted: Project, sql: str) -> None:
    ((answer,),) = planted.query(f"EXPLAIN (FORMAT JSON) {sql}")
    own = [line for (line,) in planted.query(f"EXPLAIN {sql}")]
    assert [line.rstrip() for line in plans.lines(answer[0]["Plan"])] == own


def test_plans_are_read_between_the_marks_alone_and_a_garbled_one_is_counted() -> None:
    def plan(text: str) -> list[str]:
        entry = json.dumps({"Query Text": text, "Query Identifier": -5, "Plan": RESULT}, indent=2)
        return ["2026-11-26 UTC [1] LOG:  duration: 12.500 ms  plan:", *(f"\t{line}" for line in entry.splitlines())]

    garbled = plan("SELECT 2")
    garbled[3:3] = ["2026-11-26 UTC [2] LOG:  something else"]
    lines = [
        *plan("SELECT 0"),
        *("LOG:  one begins", *plan("SELECT 1"), *garbled, *plan("SELECT 3"), "LOG:  one ends"),
        *plan("SELECT 4"),
    ]
    found = list(serverlog.entries(lines, "one begins", "one ends"))
    assert [one and (one.statement, one.ms, one.id) for one in found] == [
        ("SELECT 1", 12.5, "-5"),
        None,
        ("SELECT 3", 12.5, "-5"),
    ]


def nested(depth: int) -> str:
    """Return a plan of nodes within each other."""
    node = json.dumps(RESULT).removesuffix("}")
    return f'{node}, "Plans": [' * depth + json.dumps(RESULT) + "]}" * depth


HUGE = "9" * 400
FORGED = {
    "no object": "5",
    "no entry": None,
    "no list of nodes": json.dumps({**RESULT, "Plans": 5}),
    "a node that is no object": json.dumps({**RESULT, "Plans": [None]}),
    "a cost that is a text": json.dumps({**RESULT, "Total Cost": "x"}),
    "a cost that is true": json.dumps({**RESULT, "Total Cost": True}),
    "a cost that no float can hold": json.dumps({**RESULT, "Total Cost": int(HUGE)}),
    "a cost that is no number": json.dumps({**RESULT, "Total Cost": float("nan")}),
    "a filter that is a list": json.dumps({**RESULT, "Node Type": "Seq Scan", "Filter": []}),
    "rows without loops": json.dumps({**RESULT, "Actual Rows": 1}),
    "times without a start": json.dumps({**RESULT, "Actual Rows": 1, "Actual Loops": 1, "Actual Total Time": 1}),
    "a sort without space": json.dumps({**RESULT, "Sort Method": "x"}),
    "space without a size": json.dumps({**RESULT, "Sort Space Type": "Disk"}),
    "half the buffers": json.dumps({**RESULT, "Shared Hit Blocks": 1}),
    "a change without its kind": json.dumps({**RESULT, "Node Type": "ModifyTable"}),
    "half a character": json.dumps({**RESULT, "Filter": "\ud800"}),
    "nothing of a node": "{}",
    "nodes within each other": nested(300),
    "more of them": nested(5000),
    "lists within each other": "[" * 20_000,
    "closed lists within each other": "[" * 800 + "]" * 800,
    "lists in a field that nobody reads": json.dumps(RESULT)[:-1] + ', "x": ' + "[" * 800 + "]" * 800 + "}",
}


def logged(plan: str | None) -> list[Any]:
    """Return what is read of a line that the application's role has put into the log, with ``RAISE LOG``."""
    text = "[]" if plan is None else f'{{"Query Text": "SELECT 1", "Plan": {plan}}}'
    lines = ["LOG:  begins", "LOG:  duration: 9.5 ms  plan:", f"\t{text}", "LOG:  ends"]
    return list(serverlog.entries(lines, "begins", "ends"))


@pytest.mark.parametrize("plan", FORGED.values(), ids=FORGED.keys())
def test_a_plan_that_the_server_has_not_written_is_one_that_can_t_be_read(plan: str | None) -> None:
    assert logged(plan) == [None]


@pytest.mark.parametrize("plan", [json.dumps(RESULT), nested(50)])
def test_a_plan_that_is_read_can_be_shown(plan: str) -> None:
    (found,) = logged(plan)
    assert next(plans.lines(found.plan)) == "Result  (cost=0.00..0.01 rows=1 width=4)"
    assert plans.hints(found.plan) == []


@pytest.mark.slow
def test_forged_plans_in_the_log_do_not_end_a_profile(stack: Project) -> None:
    forged = [f'{{"Query Text": "SELECT 1", "Plan": {plan}}}' for plan in ("5", "[" * 20_000)]
    over = threading.Event()

    def forge() -> None:
        while not over.wait(0.1):
            for text in forged:
                stack.query(f"DO $$BEGIN RAISE LOG E'duration: 9.5 ms  plan:\n%', $x${text}$x$; END$$; SELECT 1")

    thread = threading.Thread(target=forge)
    thread.start()
    try:
        done = json.loads(stack.inv("db.profile", "--seconds", "1", "--json").stdout)
    finally:
        over.set()
        thread.join()
    assert any("plans in the log can't be read" in note for note in done["notes"])


def test_a_statement_is_known_by_its_shape_where_it_has_no_identifier() -> None:
    logged = "SELECT *\n  FROM t WHERE a = 'it''s' AND b > 12.5 LIMIT 3;"
    assert serverlog.shape(logged) == serverlog.shape("SELECT * FROM t WHERE a = $1 AND b > $2 LIMIT $3")
    assert serverlog.shape(logged) != serverlog.shape("SELECT * FROM t2 WHERE a = $1 AND b > $2 LIMIT $3")


@pytest.mark.slow
def test_a_statement_whose_planning_never_ends_ends_no_profile(planted: Project) -> None:
    """Planning calls immutable functions, which can catch what statement_timeout raises."""
    planted.query("""
        CREATE FUNCTION spin() RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN
            WHILE current_query() LIKE 'EXPLAIN%' LOOP
                BEGIN PERFORM pg_sleep(1); EXCEPTION WHEN query_canceled THEN NULL; END;
            END LOOP;
            RETURN 1;
        END $$;
        SELECT 1
    """)
    process = watching(planted, "--json")
    planted.query("SELECT spin(), 'spins'")
    stdout, _ = closed(process)
    assert "its planning took more than 5 s" in stdout
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'EXPLAIN%'"
    wait_for(lambda: planted.query(active) == [(0,)])
    planted.query("DROP FUNCTION spin(); SELECT 1")
