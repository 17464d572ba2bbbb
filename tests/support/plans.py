"""What is sent to the database, and how it would be carried out."""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa


@contextmanager
def listening(target: Any, name: str, listener: Callable[..., None]) -> Iterator[None]:
    """Let a listener hear what SQLAlchemy does with an engine, or with all engines."""
    had_listeners = target._has_events
    sa.event.listen(target, name, listener)
    try:
        yield
    finally:
        sa.event.remove(target, name, listener)
        # SQLAlchemy leaves it set. On sa.Engine it would be there for every later test of the process.
        target._has_events = had_listeners


@contextmanager
def statements(engine: sa.Engine) -> Iterator[list[tuple[str, Any]]]:
    """Collect what is sent to the database, with its parameters."""
    sent: list[tuple[str, Any]] = []

    def listen(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    with listening(engine, "before_cursor_execute", listen):
        yield sent


@contextmanager
def round_trips(driver: Any) -> Iterator[list[int]]:
    """Count how often the server became ready for the next message."""
    with tempfile.TemporaryFile("w+") as lines:
        found: list[int] = []
        driver.pgconn.trace(lines.fileno())
        try:
            yield found
        finally:
            driver.pgconn.untrace()
        os.lseek(lines.fileno(), 0, os.SEEK_SET)
        found.append(lines.read().count("ReadyForQuery"))


def driver_of(conn: sa.Connection) -> Any:
    """Return the driver's connection."""
    return conn.connection.driver_connection


def plan_of(conn: sa.Connection, read: Callable[[], object], mode: str) -> Any:
    """Return the plan of the one statement that a call sends, as force_custom_plan or force_generic_plan."""
    with statements(conn.engine) as sent:
        read()
    ((statement, parameters),) = sent
    prepared, values = _prepared(statement, parameters)
    conn.exec_driver_sql(f"SET LOCAL plan_cache_mode = {mode}")
    conn.exec_driver_sql(f"PREPARE read AS {prepared}")
    explained = conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) EXECUTE read ({values})").scalar_one()
    conn.exec_driver_sql("DEALLOCATE read")
    return explained[0]["Plan"]


def index_names(plan: Any) -> set[str]:
    """Name the indexes of a plan; a sequential scan is named too, after its table."""
    found = {plan["Index Name"]} if "Index Name" in plan else set()
    if plan["Node Type"] == "Seq Scan":
        found.add(f"Seq Scan on {plan['Relation Name']}")
    return found.union(*(index_names(child) for child in plan.get("Plans", [])))


def index_conditions(plan: Any) -> str:
    """Return by what the indexes of a plan are searched."""
    below = [index_conditions(child) for child in plan.get("Plans", [])]
    return " ".join([plan.get("Index Cond", ""), *below])


def buffers(conn: psycopg.Connection[Any], statement: str, parameters: Sequence[object] = ()) -> int:
    """Run a statement and return how many pages it reads, those that its functions read included."""
    row = conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode(), parameters).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


_SCANS = sa.text("""
  SELECT oid::regclass::text AS name, pg_stat_get_xact_numscans(oid) AS scans
  FROM pg_class WHERE relkind IN ('r', 'i')
    AND relnamespace IN ('os_core'::regnamespace, 'conversation'::regnamespace)
""")


@contextmanager
def scans(conn: sa.Connection) -> Iterator[Counter[str]]:
    """Count how often the server scans what while the block runs: indexes, and tables from end to end.

    The block and the counting are one transaction's: a session may not have told yet what it did before, for
    whoever had it, and a pooler may give it to somebody else after.
    """

    def counted() -> Counter[str]:
        return Counter({row.name: row.scans for row in conn.execute(_SCANS)})

    before, during = counted(), Counter[str]()
    yield during
    during.update(counted() - before)


def plans_kept(conn: sa.Connection, read: Callable[[], object]) -> int:
    """Return how many of ten executions took the kept plan; the first five never do."""
    with statements(conn.engine) as sent:
        read()
    ((statement, parameters),) = sent
    prepared, values = _prepared(statement, parameters)
    conn.exec_driver_sql(f"PREPARE read AS {prepared}")
    for _ in range(10):
        conn.exec_driver_sql(f"EXECUTE read ({values})").all()
    kept = "SELECT generic_plans FROM pg_prepared_statements WHERE name = 'read'"
    found: int = conn.exec_driver_sql(kept).scalar_one()
    conn.exec_driver_sql("DEALLOCATE read")
    return found


def _prepared(statement: str, parameters: Any) -> tuple[str, str]:
    """Return a statement with numbered parameters, and their values as EXECUTE takes them."""
    values: list[str] = []

    def number(match: re.Match[str]) -> str:
        value = parameters[match[1]]
        values.append(f"'{{{','.join(value)}}}'" if isinstance(value, list) else f"'{value}'")
        return f"${len(values)}"

    return re.sub(r"%\((\w+)\)s", number, statement), ", ".join(values)
