"""What of ours stands under another name or in another schema: its data is there, so it is put back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from selene_core.schema.drift import golden
from selene_core.schema.remedies import COLUMN, VERSION_TABLE, Fault, column_statement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from selene_core.schema.catalogue import Facts

_ELSEWHERE: Final = """
    SELECT pg_catalog.quote_ident(c.relname), pg_catalog.quote_ident(n.nspname), (
        SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      )
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('os_core', 'conversation', 'pg_catalog', 'information_schema')
      AND NOT pg_catalog.starts_with(n.nspname, 'pg_temp_')
    ORDER BY 1, 2
"""


def find_displaced(conn: Connection, found: Facts, version: int) -> tuple[Facts, list[Fault]]:
    """Return the facts as they are once everything is back in its place, and what puts it there."""
    wanted = golden().facts
    facts = {thing: {**aspects} for thing, aspects in found.items()}
    lost = [thing for thing in wanted if thing.startswith("relation ") and thing not in facts]
    faults: list[Fault] = []
    if found and lost:
        elsewhere = [
            (f"{schema}.{name}", columns) for name, schema, columns in conn.exec_driver_sql(_ELSEWHERE)
        ]
        faults += _schemas(facts, lost, elsewhere)
        faults += _tables(facts, [thing for thing in lost if thing not in facts], elsewhere)
    for thing in wanted:
        if thing.startswith("relation ") and thing in facts:
            faults += _columns(facts, thing, version)
    return dict(sorted(facts.items())), faults


def _schemas(facts: Facts, lost: list[str], elsewhere: list[tuple[str, str]]) -> Iterator[Fault]:
    """Find a schema of ours that was renamed, with all that is in it."""
    wanted = golden().facts
    for schema in ("os_core", "conversation"):
        tables = [thing for thing in lost if thing.startswith(f"relation {schema}.")]
        if f"schema {schema}" in facts or not tables:
            continue
        holders = [
            {place.rpartition(".")[0] for place, columns in elsewhere if _is_there(thing, place, columns)}
            for thing in tables
        ]
        candidates = set.intersection(*holders)
        if len(candidates) != 1:
            continue
        (named,) = candidates
        for thing, aspects in wanted.items():
            if thing == f"schema {schema}" or thing.partition(" ")[2].startswith(f"{schema}."):
                facts[thing] = {**aspects}
        for thing in [*facts]:
            _rename_within(facts, thing, named, schema)
        yield Fault(
            f"schema {schema} is called {named}: what is in it was not compared",
            sql=f"ALTER SCHEMA {named} RENAME TO {schema};",
        )


def _is_there(thing: str, place: str, columns: str) -> bool:
    name = thing.rpartition(".")[2]
    return place.rpartition(".")[2] == name and columns == golden().facts[thing]["columns"]


def _tables(facts: Facts, lost: list[str], elsewhere: list[tuple[str, str]]) -> Iterator[Fault]:
    """Find tables of ours that were moved or renamed: by their columns, and where it can be only one."""
    wanted = golden().facts
    for thing in lost:
        if thing == VERSION_TABLE:
            continue  # made anew, it has all that it needs
        schema, _, name = thing.removeprefix("relation ").rpartition(".")
        moved = [place for place, columns in elsewhere if _is_there(thing, place, columns)]
        strange = [
            other.removeprefix("relation ")
            for other, aspects in facts.items()
            if other.startswith("relation ")
            and other not in wanted
            and aspects.get("kind") == "TABLE"
            and aspects.get("columns") == wanted[thing]["columns"]
            and (other.endswith(f".{name}") or other.startswith(f"relation {schema}."))
        ]
        if len(moved) + len(strange) != 1:
            continue
        (place,) = (*moved, *strange)
        if moved:
            facts[thing] = {**wanted[thing]}
            for other, aspects in wanted.items():
                if aspects.get("owned by", "").startswith(f"{schema}.{name}."):
                    facts.setdefault(other, {**aspects})  # it goes where its table goes
        else:
            facts[thing] = facts.pop(f"relation {place}")
        for other in [*facts]:
            _rename_within(facts, other, place, f"{schema}.{name}")
        if place.endswith(f".{name}"):
            uncompared = ": it was not compared" if moved else ""
            yield Fault(
                f"{thing} is missing, and stands in schema {place.rpartition('.')[0]}{uncompared}",
                sql=f"ALTER TABLE {place} SET SCHEMA {schema};",
            )
        else:
            yield Fault(
                f"{thing} is missing, and relation {place} has its columns",
                sql=f"ALTER TABLE {place} RENAME TO {name};",
            )


def _columns(facts: Facts, thing: str, version: int) -> Iterator[Fault]:
    """Find a column that was renamed: the only one that is missing, and one of its type in its stead."""
    wanted, there = golden().facts[thing], facts[thing]
    missing = [aspect for aspect in wanted if aspect.startswith("column ") and aspect not in there]
    if len(missing) != 1:
        return
    (aspect,) = missing
    kind = _kind(wanted[aspect])
    strange = [
        other
        for other, value in there.items()
        if other.startswith("column ") and other not in wanted and _kind(value) == kind
    ]
    if len(strange) != 1:
        return
    (other,) = strange
    name, called = aspect.removeprefix("column "), other.removeprefix("column ")
    table = thing.removeprefix("relation ")
    statements = [f"ALTER TABLE {table} RENAME COLUMN {called} TO {name};"]
    if there[other] != wanted[aspect]:
        statements.append(column_statement(table, name, wanted[aspect], there[other], version) or "")
    there[aspect] = wanted[aspect]
    del there[other]
    for each in [*facts]:
        if each == thing or each.startswith(("relation ", "sequence ")):
            _rename_within(facts, each, called, name)
    yield Fault(
        f"{aspect} of {thing} is missing, and column {called}, of its type, is not ours: it was renamed",
        sql="\n".join(filter(None, statements)),
    )


def _kind(column: str) -> tuple[str, str | None] | None:
    match = COLUMN.fullmatch(column)
    return match and (match["type"], match["generated"])


def _rename_within(facts: Facts, thing: str, old: str, new: str) -> None:
    """Take for good what differs from the golden facts in this name only."""
    wanted = golden().facts
    name = re.compile(rf'(?<![\w".]){re.escape(old)}(?![\w"])' if "." in old else _word(old))

    def renamed(text: str) -> str:
        return name.sub(lambda _: new, text)

    place = renamed(thing)
    if place != thing and thing not in wanted and place in wanted:
        facts.setdefault(place, facts.pop(thing))
        thing = place
    expected, aspects = wanted.get(thing, {}), facts.get(thing, {})
    for aspect, value in [*aspects.items()]:
        called = renamed(aspect) if aspect not in expected and renamed(aspect) in expected else aspect
        if called != aspect:
            del aspects[aspect]
        same = called in expected and value != expected[called] and renamed(value) == expected[called]
        aspects[called] = expected[called] if same else value


def _word(name: str) -> str:
    return rf'(?<![\w"]){re.escape(name)}(?![\w"])'
