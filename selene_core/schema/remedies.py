"""Print the SQL that fixes a difference from the expected schema, if a statement is safe.

The statements are built from facts: a new table or function needs no code here, only its facts in
catalogue.txt and its file in alembic/sql. A superuser runs them. None of them removes data: for tables,
columns and things added to our schemas there is a sentence only, and the operator decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from functools import cache
from typing import TYPE_CHECKING, Final

from selene_core.schema.drift import VERSION_TABLE, Difference, Grant, describe, expected_schema, privileges
from selene_core.sql_files import script_directory

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Fault:
    """A problem in one sentence, and its remedy: SQL, or a command or advice for the operator."""

    what: str
    sql: str | None = None
    command: str | None = None


class Step(IntEnum):
    """The order in which the statements can be run: what others need comes first."""

    ROLES = auto()
    FUNCTIONS = auto()
    AGGREGATES = auto()
    KEYS = auto()
    CONSTRAINTS = auto()  # foreign keys need the keys, CHECKs the functions; with them the indexes
    POLICIES = auto()
    TRIGGERS = auto()
    PROPERTIES = auto()
    OWNERS = auto()
    GRANTS = auto()
    ADVICE = auto()


_COMPARE: Final = "compare with selene-core sql"
_TABLES_FIRST: Final = "put the tables and columns in order first, then ask doctor again"
_CALLED: Final = {"relation": "TABLE", "function": "ROUTINE"}  # in ALTER and GRANT; the others as here


def faults(found: Iterable[Difference]) -> list[Fault]:
    """Return the faults, in an order in which their statements can be run."""
    differences = {(each.thing, each.aspect): each for each in found}
    is_settled = not any(_unsettles(each) for each in differences.values())
    steps: list[tuple[Step, str, str, Fault]] = []
    for (thing, aspect), difference in differences.items():
        if _follows(difference, differences):
            continue
        step, sql = _statement(difference)
        advice = None if sql else _advice(difference)
        if sql and not is_settled and (Step.FUNCTIONS <= step <= Step.TRIGGERS or not difference.found):
            sql, advice = None, _TABLES_FIRST
        steps.append((step, thing, aspect, Fault(describe(difference), sql, advice)))
    merged: dict[str, Fault] = {}
    for _, _, _, fault in sorted(steps, key=lambda entry: entry[:3]):
        key = fault.sql or fault.what
        merged[key] = replace(fault, what=f"{merged[key].what}; {fault.what}") if key in merged else fault
    return [*merged.values()]


def _unsettles(difference: Difference) -> bool:
    """Tell whether a table or column that a definition may need is not as expected."""
    if difference.thing == VERSION_TABLE:
        return False
    match difference.aspect.partition(" ")[0]:
        case "":
            return difference.found is None and difference.kind in {"schema", "relation", "sequence"}
        case "column" | "kind":
            return difference.expected is not None
        case keyword:
            return keyword in {"parent", "child"}


def _follows(difference: Difference, others: dict[tuple[str, str], Difference]) -> bool:
    """Tell whether a difference only comes with another one."""
    thing, keyword = difference.thing, difference.aspect.partition(" ")[0]
    constraint = others.get((thing, difference.aspect.replace("index ", "constraint ", 1)))
    match keyword:
        case "attributes" | "body" | "settings":
            return (thing, "signature") in others
        case "columns":
            return any(other == thing and aspect.startswith("column ") for other, aspect in others)
        case "index" if constraint:
            same = bool(difference.found) == bool(constraint.found)
            return same and bool(difference.expected) == bool(constraint.expected)
    return False


def _advice(difference: Difference) -> str:
    """Say what to do if no statement is safe."""
    thing, aspect = difference.thing, difference.aspect
    if difference.kind == "outside":
        return "see what a host may add, in docs/howto/extensions.md"
    if thing == "role selene_owner" and difference.found == "LOGIN":
        return "GRANT selene_owner TO a login, and migrate as that one; then ALTER ROLE selene_owner NOLOGIN"
    is_column = aspect.startswith("column ") and " GENERATED ALWAYS AS (" not in str(difference.expected)
    is_data = difference.kind == "relation" and thing != VERSION_TABLE and (is_column or not aspect)
    if is_data and difference.found is None:
        more = ""
        if thing == "relation os_core.work_orders_current":
            more = " (or make it as selene-core sql has it, then run selene-core rebuild for every tenant)"
        return (
            f"rename or move it back, or restore it with its data from a backup{more}; then ask doctor again"
        )
    return _COMPARE


def _statement(difference: Difference) -> tuple[Step, str | None]:
    """Return the step and the statement; None if no statement is safe."""
    kind, name, expected, found = difference.kind, difference.name, difference.expected, difference.found
    keyword, _, part = difference.aspect.partition(" ")
    table = f"ALTER TABLE {name}"
    match kind, keyword:
        case "role", _:
            return Step.ROLES, _role(difference)
        case _, "grant":
            return Step.GRANTS, _grant(difference)
        case _, "owner":
            return Step.OWNERS, f"ALTER {_CALLED.get(kind, kind.upper())} {name} OWNER TO {expected};"
        case "function", _ if expected:
            return _function(difference)
        case "sequence", "definition":
            return Step.PROPERTIES, f"ALTER SEQUENCE {name} {expected};"
        case "relation", "row" | "force" if expected == "enabled":
            return Step.PROPERTIES, f"{table} {'ENABLE' if keyword == 'row' else 'FORCE'} ROW LEVEL SECURITY;"
        case "relation", "persistence":
            return Step.PROPERTIES, f"{table} SET LOGGED;"
        case "relation", "constraint" if found == f"{expected} NOT VALID":
            return Step.PROPERTIES, f"{table} VALIDATE CONSTRAINT {part};"
        case "relation", "constraint":
            drop = f"DROP CONSTRAINT {part}" if found else ""
            add = f"ADD CONSTRAINT {part} {expected}" if expected else ""
            # A foreign key needs the key that it points to.
            step = Step.CONSTRAINTS if " FOREIGN KEY (" in add else Step.KEYS
            return step, f"{table} {', '.join(filter(None, (drop, add)))};"
        case "relation", "index" if found == f"{expected} INVALID":
            return Step.PROPERTIES, f"REINDEX INDEX {name.partition('.')[0]}.{part};"
        case "relation", "index":
            drop = f"DROP INDEX {name.partition('.')[0]}.{part};" if found else ""
            return Step.CONSTRAINTS, "\n".join(filter(None, (drop, expected and f"{expected};")))
        case "relation", "trigger":
            return _trigger(name, part, expected, found)
        case "relation", "policy":
            made = f"\nCREATE POLICY {part} ON {name} {expected};" if expected else ""
            return Step.POLICIES, f"DROP POLICY IF EXISTS {part} ON {name};{made}"
        case "relation", "rule" if not expected:
            return Step.TRIGGERS, f"DROP RULE {part} ON {name};"
        case _:
            return Step.ADVICE, None


def _role(difference: Difference) -> str | None:
    name, aspect = difference.name, difference.aspect
    if not aspect:
        return f"CREATE ROLE {name} NOLOGIN;"
    if aspect != "attributes":
        granted, _, grantor = aspect.removeprefix("member of ").partition(" by ")
        return f"REVOKE {granted} FROM {name}{f' GRANTED BY {grantor}' if grantor else ''};"
    # Somebody may migrate as selene_owner itself.
    login = "" if name == "selene_owner" else "NOLOGIN "
    powers = "NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION"
    return f"ALTER ROLE {name} {login}{powers};" if login or difference.found != "LOGIN" else None


def _trigger(table: str, name: str, expected: str | None, found: str | None) -> tuple[Step, str]:
    enable = f"ALTER TABLE {table} ENABLE TRIGGER {name};"
    if expected is None:
        is_key = str(found).startswith("of a foreign key")
        return (Step.PROPERTIES, enable) if is_key else (Step.TRIGGERS, f"DROP TRIGGER {name} ON {table};")
    definition, _, state = expected.rpartition(", enabled ")
    if state != "ORIGIN":
        enable = enable.replace("ENABLE", f"ENABLE {state}", 1)
    if found and found.rpartition(", enabled ")[0] == definition:
        return Step.PROPERTIES, enable
    return Step.TRIGGERS, f"DROP TRIGGER IF EXISTS {name} ON {table};\n{definition};\n{enable}"


def _function(difference: Difference) -> tuple[Step, str | None]:
    name, aspect = difference.name, difference.aspect
    facts = expected_schema().facts[difference.thing]
    shipped = _shipped().get(name.partition("(")[0])
    step = Step.AGGREGATES if facts["attributes"].startswith("kind a") else Step.FUNCTIONS
    if shipped is None or aspect not in {"", "signature"}:
        return step, shipped
    # A new function belongs to its creator, and PUBLIC may execute it.
    made = (
        f"{shipped}ALTER ROUTINE {name} OWNER TO {facts['owner']};\nREVOKE ALL ON ROUTINE {name} FROM PUBLIC;"
    )
    grants = [
        _grant(Difference(difference.thing, each, value, None))
        for each, value in facts.items()
        if each.startswith("grant") and not each.endswith(" OWNER")
    ]
    return step, "\n".join(filter(None, [f"DROP ROUTINE {name};" if aspect else "", made, *grants]))


def _grant(difference: Difference) -> str | None:
    grant = Grant.parse(difference.aspect)
    if difference.kind == "default privileges":
        maker, _, schema = difference.name.removeprefix("of ").partition(" in schema ")
        prefix = f"ALTER DEFAULT PRIVILEGES FOR ROLE {maker} {f'IN SCHEMA {schema} ' if schema else ''}"
        place, owner = str(grant.objects), maker
    else:
        prefix = ""
        place = f"{_CALLED.get(difference.kind, difference.kind.upper())} {difference.name}"
        owner = expected_schema().facts.get(difference.thing, {}).get("owner", "CURRENT_USER")
    grantee = owner if grant.grantee == "OWNER" else grant.grantee

    def listed(names: set[str]) -> str:
        return ", ".join(f"{name} ({grant.column})" if grant.column else name for name in sorted(names))

    expected, found = privileges(difference.expected), privileges(difference.found)
    plain, held = ({name.rstrip("*") for name in names} for names in (expected, found))
    passable = {name.rstrip("*") for name in found - expected if name.endswith("*")} & plain
    cascade = " CASCADE" if any(name.endswith("*") for name in found) else ""
    changes = (
        ("REVOKE", held - plain, f"FROM {grantee}{cascade}"),
        ("REVOKE GRANT OPTION FOR", passable, f"FROM {grantee} CASCADE"),
        ("GRANT", plain - held, f"TO {grantee}"),
    )
    statements = [
        f"{prefix}{verb} {listed(names)} ON {place} {end};" for verb, names, end in changes if names
    ]
    if grant.grantor:
        # Only the grantor can revoke it; it may be gone already, with the grantor's own right to grant.
        statements = [f"SET ROLE {grant.grantor};", *statements, "RESET ROLE;"]
    return "\n".join(statements) or None


@cache
def _shipped() -> dict[str, str]:
    """Return the newest file in alembic/sql of every function, by the function's name."""
    files = sorted((script_directory() / "sql").rglob("*.sql"), key=lambda file: file.name)
    texts = [file.read_text(encoding="utf-8") for file in files]
    return {made[1]: text for text in texts if (made := _MADE.search(text))}


_MADE: Final = re.compile(r"^CREATE OR REPLACE (?:FUNCTION|PROCEDURE|AGGREGATE) ([\w.]+)", re.MULTILINE)
