"""The SQL that makes a difference from the golden catalogue good, derived from what kind of thing differs.

No fault has a statement of its own here: a new table or function needs nothing but its facts in catalogue.txt
and its file in alembic/sql. The statements are a superuser's. None of them takes data away, or makes an empty
table or column where data was: what only a backup or an operator's decision mends has no statement.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from functools import cache
from typing import TYPE_CHECKING, Final

from selene_core.schema.drift import Difference, Grant, describe, golden, privileges
from selene_core.sql_files import script_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in a sentence, and what mends it: SQL, or a command of the shell, or nothing known."""

    what: str
    sql: str | None = None
    command: str | None = None


def printable(fault: Fault) -> Fault:
    """Write a fault's statement so that no name in it steers a terminal, or goes over the end of its line."""
    if fault.sql is None:
        return fault
    return replace(fault, sql=_TOKENS.sub(_escape, fault.sql))


# What is not looked into, and what may have a name in it.
_TOKENS: Final = re.compile(
    r"""\$\$.*?\$\$|--[^\n]*|E'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*\"""", re.DOTALL
)


def _escape(token: re.Match[str]) -> str:
    text = token[0]
    if text[0] not in "\"'" or text.isprintable():
        return text
    escaped = text.replace("\\", "\\\\")
    return "U&" + "".join(each if each.isprintable() else f"\\+{ord(each):06x}" for each in escaped)


class Step(IntEnum):
    """The order in which statements can be run: first what others need, at last what must not be there."""

    ROLES = auto()
    SCHEMAS = auto()
    PARENTS = auto()  # strange ones: what a child has from them cannot be changed
    VIEWS = auto()  # strange ones: the columns that they read may have to change
    SEQUENCES = auto()
    TABLES = auto()
    FUNCTIONS = auto()
    COLUMNS = auto()  # one may be made by a function; aggregates need the functions too
    KEYS = auto()
    CONSTRAINTS = auto()  # foreign keys need the keys, CHECKs the functions; with them the indexes
    POLICIES = auto()
    TRIGGERS = auto()
    FLAGS = auto()
    OWNERS = auto()
    GRANTS = auto()
    STRANGE_FUNCTIONS = auto()
    STRANGE_RELATIONS = auto()
    STRANGE_SEQUENCES = auto()
    STRANGE_TYPES = auto()
    NONE = auto()


_ATTRIBUTES: Final = ("LOGIN", "SUPERUSER", "BYPASSRLS", "CREATEROLE", "CREATEDB", "REPLICATION")
COLUMN: Final = re.compile(
    r"(?P<type>.+?)(?P<required> NOT NULL)?(?P<generated> GENERATED .+)?(?: DEFAULT (?P<default>.+))?",
    re.DOTALL,
)
_EXPRESSION: Final = re.compile(r" GENERATED ALWAYS AS (\(.+\)) STORED", re.DOTALL)
_SETS_EXPRESSIONS: Final = 17
_CLEARS_STATISTICS: Final = 18
VERSION_TABLE: Final = "relation os_core.alembic_version"
_PROJECTION: Final = "relation os_core.work_orders_current"
# What the grammar calls a thing in GRANT, ALTER and DROP.
_CALLED: Final = {
    "schema": "SCHEMA",
    "relation": "TABLE",
    "sequence": "SEQUENCE",
    "function": "ROUTINE",
    "type": "TYPE",
}


def faults(found: Iterable[Difference], version: int) -> list[Fault]:
    """Return the faults, in an order in which their statements can be run by a server of that version."""
    listed = [*found]
    missing = {d.thing for d in listed if not d.aspect and d.found is None}
    seen = {(d.thing, d.aspect): d for d in listed}
    lost = [*_lost(listed)]
    has_lost_tables = any(not column for _, column in lost)
    views = [d for d in listed if d.kind == "relation" and not d.aspect and str(d.found).endswith("VIEW")]
    ranked: list[tuple[Step, str, Fault]] = []
    for difference in listed:
        if difference.thing in missing and not _is_apart(difference):
            continue
        if _follows(difference, seen) or _needs_what_is_lost(difference, lost):
            continue
        hint = _hint(difference, has_lost_tables=has_lost_tables)
        is_new = difference.thing in missing
        rank, sql = (Step.TABLES, None) if hint else _statement(difference, version, anew=is_new)
        if difference in views:
            rank, sql = Step.VIEWS, _drop_views(views, str(difference.found))
        fault = Fault(describe(difference), sql, hint)
        ranked.append((rank, f"{difference.thing} {difference.aspect}", fault))
    merged: dict[str, tuple[Step, str, Fault]] = {}
    for rank, key, fault in sorted(ranked, key=lambda entry: entry[:2]):
        same = merged.get(fault.sql or fault.what)
        what = f"{same[2].what}; {fault.what}" if same else fault.what
        merged[fault.sql or fault.what] = (rank, key, Fault(what, fault.sql, fault.command))
    return [fault for _, _, fault in merged.values()]


def _lost(listed: list[Difference]) -> Iterator[tuple[str, str]]:
    """Return tables, and columns of tables, whose data is gone: nothing but a backup brings it back."""
    for difference in listed:
        if difference.kind != "relation" or difference.found is not None or difference.thing == VERSION_TABLE:
            continue
        if not difference.aspect:
            yield difference.name, ""
        elif difference.aspect.startswith("column ") and " GENERATED ALWAYS AS (" not in (
            difference.expected or ""
        ):
            yield difference.name, difference.aspect.removeprefix("column ")


def _needs_what_is_lost(difference: Difference, lost: list[tuple[str, str]]) -> bool:
    """Tell whether a statement would need a table or column that is not there, or comes back with it."""
    if difference.expected is None:
        return False
    facts = golden().facts.get(difference.thing, {})
    owned, aspect = facts.get("owned by", ""), difference.aspect
    made_of = ""
    if difference.kind == "function":
        body = _shipped(difference.name.partition("(")[0], facts["body"].partition(" ")[0])
        made_of = f"{facts['signature']} {body}"
    for table, column in lost:
        is_its_own = difference.kind == "relation" and difference.name == table
        if not column:
            told = f"{difference.thing} {difference.expected} {owned} {made_of}"
            if (aspect and is_its_own) or (not is_its_own and _mentions(told, table)):
                return True
        elif is_its_own and aspect != f"column {column}" and not aspect.startswith(("trigger ", "policy ")):
            if _mentions(f"{aspect} {difference.expected}", column):
                return True
        elif _mentions(f"{difference.expected} {owned}", table) and _mentions(
            f"{difference.expected} {owned}", column
        ):
            return aspect != f"column {column}"
    return False


def _mentions(text: str, name: str) -> bool:
    return re.search(rf'(?<![\w"]){re.escape(name)}(?![\w"])', text) is not None


def _hint(difference: Difference, *, has_lost_tables: bool) -> str | None:
    """Say what is to be done where no statement may do it, because data is lost or would be."""
    is_strange = not difference.aspect and difference.expected is None
    if difference.kind == "outside":
        return None if _outside(difference.name) else "see what a host may add, in docs/deployment.md"
    if difference.thing == "role selene_owner" and difference.found == "LOGIN":
        return "GRANT selene_owner TO a login, and migrate as that one; then ALTER ROLE selene_owner NOLOGIN"
    if is_strange and has_lost_tables and not str(difference.found).endswith("VIEW"):
        return "look whether it is what is left of a table that is missing, before it is put out of the way"
    if difference.kind != "relation" or difference.thing == VERSION_TABLE:
        return None
    if difference.aspect.startswith("column "):
        if difference.expected is None:
            return "nothing is dropped here: what it holds, and whether it may go, is for you to decide"
        if difference.found is None and " GENERATED ALWAYS AS (" not in difference.expected:
            return "restore it with its data from a backup: a new one would be empty"
        if difference.found is not None and not _converts_whole(difference.expected, difference.found):
            return "another type may keep less of its values: how they are converted is for you to decide"
    elif not difference.aspect and difference.found is None:
        more = (
            ", or make it anew as selene-core sql has it, then run selene-core rebuild for every tenant"
            if difference.thing == _PROJECTION
            else ": a new one would be empty"
        )
        return f"restore it with its data from a backup{more}; then ask doctor again"
    return None


def _converts_whole(expected: str, found: str) -> bool:
    """Tell whether every value of a column's type is kept in the other one, or refused."""
    wanted, there = COLUMN.fullmatch(expected), COLUMN.fullmatch(found)
    if wanted is None or there is None or wanted["type"] == there["type"]:
        return True
    to, of = (re.sub(r"\(\d+\)| COLLATE .*", "", match["type"]) for match in (wanted, there))
    return to == of or {to, of} <= _INTEGERS or (to == "text" and of == "character varying")


_INTEGERS: Final = {"smallint", "integer", "bigint"}


def _drop_views(views: list[Difference], kind: str) -> str:
    """Drop all of a kind at once, because one may be made of another; they have no data of their own."""
    names = ", ".join(view.name for view in views if view.found == kind)
    return f"DROP {kind} {names};"


def _is_apart(difference: Difference) -> bool:
    """Tell whether a fact of a missing thing takes a statement besides the one that makes the thing."""
    keyword = difference.aspect.partition(" ")[0]
    match difference.kind:
        case "relation":
            if keyword in {"row", "force"}:
                return difference.expected == "enabled"
            if keyword == "grant":
                return not _is_owners(difference)
            return keyword not in {"kind", "columns", "column", "owner"}
        case "sequence":
            return keyword in {"", "owned"} or (keyword == "grant" and not _is_owners(difference))
        case _:
            return not keyword or (keyword == "grant" and not _is_owners(difference))


def _is_owners(difference: Difference) -> bool:
    return Grant.parse(difference.aspect).grantee == "OWNER"


def _follows(difference: Difference, seen: dict[tuple[str, str], Difference]) -> bool:
    """Tell whether a difference only comes with another one."""
    keyword, _, name = difference.aspect.partition(" ")
    if difference.kind == "function":
        return (difference.thing, "signature") in seen and keyword in {"attributes", "body", "settings"}
    if difference.kind == "sequence" and not keyword and difference.expected is None:
        return (f"relation {str(difference.found).rpartition('.')[0]}", "") in seen
    if difference.kind != "relation":
        return False
    if keyword == "columns":
        return any(thing == difference.thing and aspect.startswith("column ") for thing, aspect in seen)
    if keyword == "index":
        constraint = seen.get((difference.thing, f"constraint {name}"))
        return constraint is not None and (difference.expected is None, difference.found is None) == (
            constraint.expected is None,
            constraint.found is None,
        )
    return False


def _statement(difference: Difference, version: int, *, anew: bool) -> tuple[Step, str | None]:
    """Return where among the statements one stands, and the statement."""
    if difference.aspect.startswith("grant"):
        return Step.GRANTS, _grant(difference)
    match difference.kind:
        case "role":
            return Step.ROLES, _role(difference)
        case "relation":
            return _relation(difference, version)
        case "sequence":
            return _sequence(difference, anew=anew)
        case "function":
            return _function(difference)
        case "outside":
            return Step.FLAGS, _outside(difference.name)
        case _:
            return _other(difference)


def _outside(name: str) -> str | None:
    kind, _, called = name.partition(" ")
    match kind:
        case "view":
            return f"ALTER VIEW {called} SET (security_invoker = true);"
        case "function" | "procedure":
            return f"ALTER ROUTINE {called} SECURITY INVOKER;"
        case _:
            return None


def _role(difference: Difference) -> str | None:
    name, expected = difference.name, difference.expected
    if not difference.aspect:
        return f"CREATE ROLE {name} NOLOGIN;"
    if difference.aspect == "attributes":
        wanted, there = ({*(value or "").split()} for value in (expected, difference.found))
        options = [
            option if option in wanted else f"NO{option}"
            for option in _ATTRIBUTES
            if (option in wanted) != (option in there)
            # Somebody may migrate as selene_owner itself.
            and (name, option) != ("selene_owner", "LOGIN")
        ]
        return f"ALTER ROLE {name} {' '.join(options)};" if options and there else None
    granted, _, grantor = difference.aspect.removeprefix("member of ").partition(" by ")
    return f"REVOKE {granted} FROM {name}{f' GRANTED BY {grantor}' if grantor else ''};"


def _relation(difference: Difference, version: int) -> tuple[Step, str | None]:
    name, expected, found = difference.name, difference.expected, difference.found
    keyword, _, part = difference.aspect.partition(" ")
    match keyword:
        case "":
            if expected is None:
                return Step.STRANGE_RELATIONS, _move(str(found), name)
            return Step.TABLES, _create_table(difference.thing)
        case "owner":
            return Step.OWNERS, f"ALTER TABLE {name} OWNER TO {expected};"
        case "row":
            return Step.FLAGS, f"ALTER TABLE {name} {_enable(expected)} ROW LEVEL SECURITY;"
        case "force":
            return (
                Step.FLAGS,
                f"ALTER TABLE {name} {'' if expected == 'enabled' else 'NO '}FORCE ROW LEVEL SECURITY;",
            )
        case "persistence":
            return Step.FLAGS, f"ALTER TABLE {name} SET LOGGED;"
        case "column":
            # After the functions, one of which may make its value.
            return Step.COLUMNS, column_statement(name, part, expected, found, version)
        case "constraint":
            return _constraint(name, part, expected, found)
        case "index":
            return Step.CONSTRAINTS, _index(name, part, expected, found)
        case "policy":
            drop = f"DROP POLICY IF EXISTS {part} ON {name};"
            return (
                Step.POLICIES,
                drop if expected is None else f"{drop}\nCREATE POLICY {part} ON {name} {expected};",
            )
        case "trigger":
            return Step.TRIGGERS, _trigger(name, part, expected, found)
        case "rule":
            return Step.TRIGGERS, f"DROP RULE {part} ON {name};" if expected is None else None
        case "child" if found == "a partition":
            return Step.FLAGS, f"ALTER TABLE {name} DETACH PARTITION {part};"
        case "child":
            return Step.FLAGS, f"ALTER TABLE {part} NO INHERIT {name};"
        case "parent" if found == "it is a partition":
            return Step.PARENTS, f"ALTER TABLE {part} DETACH PARTITION {name};"
        case "parent":
            return Step.PARENTS, f"ALTER TABLE {name} NO INHERIT {part};"
        case "statistics":
            return Step.FLAGS, _statistics(name, part.removeprefix("target of "), expected, version)
        case "extended":
            return Step.FLAGS, _extended(part.removeprefix("statistics "), expected, found)
        case _:  # kind, and the order of the columns: no statement changes them
            return Step.NONE, None


def _statistics(table: str, column: str, expected: str | None, version: int) -> str:
    target = f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS {expected or -1};"
    if expected != "0":
        return target
    # What ANALYZE has kept it does not take away. Before there was a function for it, only superusers could.
    if version >= _CLEARS_STATISTICS:
        place = ", ".join(f"'{part}'" for part in (*table.split("."), column))
        return f"{target}\nSELECT pg_catalog.pg_clear_attribute_stats({place}, FALSE);"
    return (
        f"{target}\nDELETE FROM pg_catalog.pg_statistic AS s USING pg_catalog.pg_attribute AS a\n"
        f"WHERE s.starelid = '{table}'::regclass AND a.attrelid = s.starelid AND a.attnum = s.staattnum\n"
        f"  AND pg_catalog.quote_ident(a.attname) = '{column}';"
    )


def _extended(name: str, expected: str | None, found: str | None) -> str:
    statements = [f"DROP STATISTICS {name};" if found else "", f"{expected};" if expected else ""]
    return "\n".join(filter(None, statements))


def _enable(state: str | None) -> str:
    return "ENABLE" if state == "enabled" else "DISABLE"


def _move(kind: str, name: str) -> str:
    """Move what is not ours out of our schemas: it may hold somebody's data."""
    return f"ALTER {kind.removeprefix('PARTITIONED ')} {name} SET SCHEMA public;"


def _create_table(thing: str) -> str:
    facts = golden().facts[thing]
    name = thing.removeprefix("relation ")
    columns = ",\n  ".join(f"{column} {facts[f'column {column}']}" for column in facts["columns"].split(", "))
    return f"CREATE TABLE {name} (\n  {columns}\n);\nALTER TABLE {name} OWNER TO {facts['owner']};"


def column_statement(
    table: str, name: str, expected: str | None, found: str | None, version: int
) -> str | None:
    """Return what makes a column as it must be; None for what would take data away."""
    if expected is None:
        return None
    if found is None:
        return f"ALTER TABLE {table} ADD COLUMN {name} {expected};"  # of the version table, or generated
    wanted, there = COLUMN.fullmatch(expected), COLUMN.fullmatch(found)
    if wanted is None or there is None:
        return None
    alter = f"ALTER COLUMN {name}"
    changes: list[str] = []
    first: list[str] = []
    if wanted["generated"] != there["generated"]:
        expression = _EXPRESSION.fullmatch(wanted["generated"] or "")
        # Made anew it would come last, and without its grants.
        if (
            version < _SETS_EXPRESSIONS
            or not expression
            or not _EXPRESSION.fullmatch(there["generated"] or "")
        ):
            return None
        # Apart: the server makes what depends on it anew only once in a statement.
        first.append(f"ALTER TABLE {table} {alter} SET EXPRESSION AS {expression[1]};")
    if wanted["type"] != there["type"]:
        changes.append(f"{alter} TYPE {wanted['type']}")
    if wanted["default"] != there["default"]:
        default = wanted["default"]
        changes.append(f"{alter} SET DEFAULT {default}" if default else f"{alter} DROP DEFAULT")
    if wanted["required"] != there["required"]:
        changes.append(f"{alter} {'SET' if wanted['required'] else 'DROP'} NOT NULL")
    rest = [f"ALTER TABLE {table} {', '.join(changes)};"] if changes else []
    return "\n".join([*first, *rest])


def _constraint(table: str, name: str, expected: str | None, found: str | None) -> tuple[Step, str]:
    # Keys first: a foreign key needs the one that it points to.
    rank = Step.KEYS if (expected or "").startswith(("PRIMARY KEY", "UNIQUE")) else Step.CONSTRAINTS
    drop = f"ALTER TABLE {table} DROP CONSTRAINT {name};"
    add = f"ALTER TABLE {table} ADD CONSTRAINT {name} {expected};"
    if expected is None:
        return Step.FUNCTIONS, drop  # ahead of a column that would take it along
    if found is None:
        return rank, add
    if found == f"{expected} NOT VALID":
        return rank, f"ALTER TABLE {table} VALIDATE CONSTRAINT {name};"
    return rank, f"{drop}\n{add}"


def _index(table: str, name: str, expected: str | None, found: str | None) -> str:
    index = f"{table.partition('.')[0]}.{name}"
    if expected is None:
        return f"DROP INDEX {index};"
    if found is None:
        return f"{expected};"
    if found == f"{expected} INVALID":
        return f"REINDEX INDEX {index};"
    return f"DROP INDEX {index};\n{expected};"


def _trigger(table: str, name: str, expected: str | None, found: str | None) -> str:
    if expected is None:
        if str(found).startswith("of a foreign key"):
            return f"ALTER TABLE {table} ENABLE TRIGGER {name};"
        return f"DROP TRIGGER IF EXISTS {name} ON {table};"  # it may have gone with the table's parent
    definition, _, state = expected.rpartition(", enabled ")
    enable = f"ALTER TABLE {table} {_TRIGGER_STATES[state]} TRIGGER {name};"
    if found is not None and found.rpartition(", enabled ")[0] == definition:
        return enable
    return f"DROP TRIGGER IF EXISTS {name} ON {table};\n{definition};\n{enable}"


_TRIGGER_STATES: Final = {
    "ALWAYS": "ENABLE ALWAYS",
    "REPLICA": "ENABLE REPLICA",
    "ORIGIN": "ENABLE",
    "NEVER": "DISABLE",
}


def _sequence(difference: Difference, *, anew: bool) -> tuple[Step, str | None]:
    name, expected = difference.name, difference.expected
    match difference.aspect:
        case "" if expected is None:
            return Step.STRANGE_SEQUENCES, _move("SEQUENCE", name)
        case "":
            facts = golden().facts[difference.thing]
            made = f"CREATE SEQUENCE {name} {facts['definition']};"
            return Step.SEQUENCES, f"{made}\nALTER SEQUENCE {name} OWNER TO {facts['owner']};"
        case "definition":
            return Step.SEQUENCES, f"ALTER SEQUENCE {name} {expected};"
        case "owner":
            return Step.OWNERS, f"ALTER SEQUENCE {name} OWNER TO {expected};"
        case "owned by":
            owned = f"ALTER SEQUENCE {name} OWNED BY {expected or 'NONE'};"
            if not anew or expected is None:
                return Step.OWNERS, owned
            table, _, column = expected.rpartition(".")
            # It goes on after what was given out before; a superuser sees the rows of all tenants.
            return Step.OWNERS, f"{owned}\nSELECT setval('{name}', (SELECT max({column}) FROM {table}));"
        case _:
            return Step.NONE, None


def _function(difference: Difference) -> tuple[Step, str | None]:
    name, aspect = difference.name, difference.aspect
    if not aspect and difference.expected is None:
        return Step.STRANGE_FUNCTIONS, f"DROP ROUTINE {name};"
    facts = golden().facts[difference.thing]
    if aspect == "owner":
        return Step.OWNERS, f"ALTER ROUTINE {name} OWNER TO {facts['owner']};"
    shipped = _shipped(name.partition("(")[0], facts["body"].partition(" ")[0])
    if shipped is None:
        return Step.NONE, None
    # An aggregate needs its functions.
    rank = Step.COLUMNS if facts["attributes"].startswith("kind a") else Step.FUNCTIONS
    if aspect and aspect != "signature":
        return rank, shipped
    # Made anew it belongs to who makes it, and PUBLIC may execute it.
    drop = f"DROP ROUTINE {name};\n" if aspect else ""
    grants = [
        _grant(Difference(difference.thing, each, value, None))
        for each, value in facts.items()
        if aspect and each.startswith("grant") and not each.endswith(" OWNER")
    ]
    made = f"{drop}{shipped}ALTER ROUTINE {name} OWNER TO {facts['owner']};"
    return rank, "\n".join([made, f"REVOKE ALL ON ROUTINE {name} FROM PUBLIC;", *filter(None, grants)])


def _other(difference: Difference) -> tuple[Step, str | None]:
    called, name = _CALLED.get(difference.kind), difference.name
    if called is None:
        return Step.NONE, None
    if difference.aspect == "owner":
        return Step.OWNERS, f"ALTER {called} {name} OWNER TO {difference.expected};"
    if not difference.aspect and difference.expected is None:
        return Step.STRANGE_TYPES, _move(called, name)
    if not difference.aspect and called == "SCHEMA":
        return (
            Step.SCHEMAS,
            f"CREATE SCHEMA {name} AUTHORIZATION {golden().facts[difference.thing]['owner']};",
        )
    return Step.NONE, None


def _grant(difference: Difference) -> str | None:
    grant = Grant.parse(difference.aspect)
    if difference.kind == "default privileges":
        maker, _, schema = difference.name.removeprefix("of ").partition(" in schema ")
        prefix = f"ALTER DEFAULT PRIVILEGES FOR ROLE {maker} {f'IN SCHEMA {schema} ' if schema else ''}"
        place, owner = str(grant.objects), maker
    else:
        prefix = ""
        place = f"{_CALLED[difference.kind]} {difference.name}"
        owner = golden().facts.get(difference.thing, {}).get("owner", "CURRENT_USER")
    grantee = owner if grant.grantee == "OWNER" else grant.grantee

    def listed(names: set[str]) -> str:
        return ", ".join(f"{name} ({grant.column})" if grant.column else name for name in sorted(names))

    expected, found = privileges(difference.expected), privileges(difference.found)
    plain = {name.rstrip("*") for name in expected}
    revoked = {name.rstrip("*") for name in found if name.rstrip("*") not in plain}
    passable = {name.rstrip("*") for name in found - expected if name.endswith("*")} - revoked
    granted = {name for name in plain if name not in {name.rstrip("*") for name in found}}
    cascade = " CASCADE" if any(name.endswith("*") for name in found) else ""
    statements = [
        f"{prefix}REVOKE {listed(revoked)} ON {place} FROM {grantee}{cascade};" if revoked else "",
        f"{prefix}REVOKE GRANT OPTION FOR {listed(passable)} ON {place} FROM {grantee} CASCADE;"
        if passable
        else "",
        f"{prefix}GRANT {listed(granted)} ON {place} TO {grantee};" if granted else "",
    ]
    if grant.grantor:
        # Only who granted it can take it back; it may have gone with that role's right to grant.
        statements = [f"SET ROLE {grant.grantor};", *statements, "RESET ROLE;"]
    return "\n".join(filter(None, statements)) or None


@cache
def _bodies() -> dict[tuple[str, str], str]:
    """Return the shipped files by the name of the function and the hash of its body, '' for aggregates."""
    made: dict[tuple[str, str], str] = {}
    for file in sorted((script_directory() / "sql").rglob("*.sql")):
        text = file.read_text(encoding="utf-8")
        called = re.search(r"^CREATE OR REPLACE (FUNCTION|PROCEDURE|AGGREGATE) ([\w.]+)", text, re.MULTILINE)
        if called is None:
            continue
        body = re.search(r"\$\$(.*)\$\$", text, re.DOTALL)
        hashed = hashlib.md5(body[1].encode(), usedforsecurity=False).hexdigest() if body else ""
        made[called[2], hashed] = text
    return made


def _shipped(name: str, hashed: str) -> str | None:
    """Return the file that makes a function with this body; of an aggregate the newest."""
    return _bodies().get((name, hashed)) or _bodies().get((name, ""))
