"""check_schema: can this version of the library work with the database? (contract §13)"""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from selene_core.contract.errors import SchemaDrifted, SchemaError, SchemaLocked, SchemaOutdated, SchemaTooNew
from selene_core.schema.catalogue import Facts, read, read_revisions
from selene_core.schema.drift import (
    Difference,
    describe,
    differences,
    expected_schema,
    has_tables,
    is_related_outside,
    privileges,
)
from selene_core.schema.logins import POWERS
from selene_core.store.binds import AsyncBind, Bind, async_bound, async_joined, bound, joined
from selene_core.store.scope import in_autocommit

if TYPE_CHECKING:
    from collections.abc import Iterator

_APPLICATION: Final = "selene_app"
_LOOKS: Final = 5
_NAMED: Final = 5  # problems in a message; the attribute has all


def check_schema(bind: Bind) -> str:
    """Return the database's revision if this version of the library can work with it; changes nothing.

    Call it when a service starts, and again after an error that looks like another schema. It needs no more
    rights than a member of selene_app.

    A newer database passes if it still has every function and column that the application uses at this
    version's revision, with their types and privileges. Row-level security must be enabled and forced on the
    tables, with both policies; no table may have a parent or child outside our schemas; the ledgers must be
    append-only. What a host may add passes (docs/howto/extensions.md).

    Raises SchemaOutdated for an older or unmigrated database; SchemaTooNew for a newer one that lacks
    something; SchemaDrifted for one that was changed by hand or is not ours, and for a login that must not be
    used; SchemaLocked if a migration locks a table for seconds; ValueError for a connection in AUTOCOMMIT;
    TypeError for anything that tenant_scope does not take. async_check_schema is the asynchronous twin.
    """
    bind = bound("check_schema", bind)
    if isinstance(bind, Engine):
        with bind.connect() as conn:
            return check_alone(conn)
    bind = joined(bind)
    if in_autocommit(bind):
        raise ValueError("check_schema needs a transaction: the connection is in AUTOCOMMIT")
    with nullcontext() if bind.in_transaction() else bind.begin():
        return _check(bind)


def check_alone(conn: Connection) -> str:
    """Check as check_schema() does, on a connection that has no transaction yet."""
    if in_autocommit(conn):
        conn.execution_options(isolation_level="READ COMMITTED")
    return _check(conn)


def _check(conn: Connection) -> str:
    wanted = expected_schema()
    revisions, facts = _look(conn)
    revision = " and ".join(revisions) or None
    stands = f"the database stands at revision {revision}" if revision else "the database is not migrated"

    def refused(kind: type[SchemaError], message: str, *problems: str) -> SchemaError:
        return kind(message, revision, wanted.head, problems)

    if len(revisions) > 1:
        problem = f"the version table has {len(revisions)} revisions, {revision}: it can stand at one only"
        raise refused(SchemaDrifted, f"{problem}. selene-core doctor says how to fix it", problem)
    if revision not in wanted.revisions and revision and not has_tables(facts):
        problem = f"{stands}, but none of our tables is there"
        raise refused(SchemaDrifted, f"{problem}: this os_core is not ours", problem)
    if revision is None or revision in wanted.revisions[:-1]:
        needs = f"this version of selene-core needs {wanted.head}: run selene-core upgrade, then start again"
        raise refused(SchemaOutdated, f"{stands}, {needs}")
    problems = [*_login_problems(conn)]
    kind: type[SchemaError]
    if revision == wanted.head:
        problems += (describe(d) for d in differences(wanted.facts, facts) if not d.is_harmless)
        kind, why = SchemaDrifted, "but is not as it must be"
        remedy = "selene-core doctor says how to fix it"
    else:
        problems += _unmet(wanted.facts, facts)
        kind, why = SchemaTooNew, f"this version of selene-core is for {wanted.head} and cannot work with it"
        remedy = "Install the newer version"
    if problems:
        named = "; ".join(problems[:_NAMED])
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise refused(kind, f"{stands}, {why}: {named}{more}. {remedy}", *problems)
    return revision


def _look(conn: Connection) -> tuple[tuple[str, ...], Facts]:
    """Read the revision and its facts; read again if a migration went on meanwhile."""
    head = expected_schema().head
    try:
        with conn.begin_nested():
            for _ in range(_LOOKS):
                revisions, facts = read_revisions(conn) or (), read(conn)
                if (read_revisions(conn) or ()) == revisions:
                    break
        return revisions, facts
    except DBAPIError as exc:
        match exc.orig:
            case psycopg.errors.LockNotAvailable():
                problem = "a table is locked, as by a migration that is under way: ask again"
                raise SchemaLocked(problem, None, head, (problem,)) from exc
            case psycopg.errors.InsufficientPrivilege():
                problem = f"the login may not read the version table ({exc.orig.diag.message_primary})"
                more = "make it a member of selene_app; selene-core doctor says what else is missing"
                raise SchemaDrifted(f"{problem}: {more}", None, head, (problem,)) from exc
        raise


_LOGIN: Final = f"""
    SELECT session_user, current_user, (
        SELECT pg_catalog.pg_has_role(current_user, app.oid, 'USAGE')
        FROM pg_catalog.pg_roles AS app WHERE app.rolname = '{_APPLICATION}'
      ) IS TRUE
"""


def _login_problems(conn: Connection) -> Iterator[str]:
    name, acts_as, is_member = conn.exec_driver_sql(_LOGIN).one()
    for power, attributes, is_itself in conn.exec_driver_sql(POWERS):
        if not is_itself:
            held = f"{power} ({attributes})" if attributes else power
            yield f"role {name} can become {held}: row-level security would not hold for it"
        elif attributes == "CREATEROLE":
            yield f"role {name} has CREATEROLE: it can grant itself selene_owner"
        elif attributes:
            yield f"role {name} is a superuser or has BYPASSRLS: row-level security does not hold for it"
    if not is_member:
        yield f"role {acts_as} is not a member of {_APPLICATION}"


# --- what a newer database must still have


def _unmet(wanted: Facts, found: Facts) -> Iterator[str]:
    """Report what the application needs at this version's revision and the database lacks."""
    for thing, facts in wanted.items():
        there = found.get(thing, {})
        match thing.partition(" ")[0]:
            case "schema":
                aspect = f"grant to {_APPLICATION}"
                has = privileges(there.get(aspect, "").replace("*", ""))
                if not privileges(facts.get(aspect)) <= has:
                    yield describe(Difference(thing, aspect, facts.get(aspect), there.get(aspect)))
            case "function" if "EXECUTE" in privileges(facts.get(f"grant to {_APPLICATION}")):
                yield from _unmet_function(thing, facts, found)
            case "relation" if _readable(facts):
                yield from _unmet_relation(thing, facts, there)
    around = {thing: facts for thing, facts in found.items() if thing.startswith("outside ")}
    yield from (describe(difference) for difference in differences({}, around) if not difference.is_harmless)


def _readable(facts: dict[str, str]) -> set[str]:
    """Return the columns that the application may read."""
    columns = {aspect.removeprefix("column ") for aspect in facts if aspect.startswith("column ")}
    if "SELECT" in privileges(facts.get(f"grant to {_APPLICATION}")):
        return columns
    return {
        each for each in columns if "SELECT" in privileges(facts.get(f"grant ({each}) to {_APPLICATION}"))
    }


def _unmet_relation(thing: str, facts: dict[str, str], there: dict[str, str]) -> Iterator[str]:
    if not there:
        yield f"{thing} is missing"
        return
    for aspect, value in there.items():
        if is_related_outside(aspect):
            yield describe(Difference(thing, aspect, None, value))
    # Another permissive policy opens nothing: the restrictive one still holds. So do the guards of the
    # ledgers, whatever a newer revision adds.
    for aspect, expected in facts.items():
        if aspect.startswith(_GUARDS) and expected != "disabled" and there.get(aspect) != expected:
            yield describe(Difference(thing, aspect, expected, there.get(aspect)))
    readable = _readable(there)
    for column in sorted(_readable(facts)):
        aspect = f"column {column}"
        expected, has = facts[aspect], there.get(aspect)
        if has is None or _typed(has) != _typed(expected) or (" NOT NULL" in expected) > (" NOT NULL" in has):
            yield describe(Difference(thing, aspect, _typed(expected), has and _typed(has)))
        elif column not in readable:
            yield f"{_APPLICATION} lacks SELECT on {column} of {thing}"


_GUARDS: Final = ("row security", "force row security", "policy ", "trigger reject_mutation_")


def _typed(column: str) -> str:
    return re.sub(r" (?:GENERATED|DEFAULT) .*$", "", column, flags=re.DOTALL)


def _unmet_function(thing: str, facts: dict[str, str], found: Facts) -> Iterator[str]:
    """A call still works with more parameters that have defaults, and with more columns in the result."""
    called = thing.partition("(")[0] + "("
    arguments, result = _signature(facts["signature"])
    candidates = [
        there
        for other, there in found.items()
        if other.startswith(called) and _takes(arguments, _signature(there.get("signature", ""))[0])
    ]
    if not candidates:
        yield f"{thing} is missing"
    elif not any(_returns(result, _signature(there["signature"])[1]) for there in candidates):
        yield f"{thing} no longer returns {result}"
    elif not any("EXECUTE" in privileges(there.get(f"grant to {_APPLICATION}")) for there in candidates):
        yield f"{_APPLICATION} lacks EXECUTE on {thing}"


def _signature(signature: str) -> tuple[list[str], str]:
    arguments, _, result = signature.partition(") -> ")
    return _split(arguments.removeprefix("(")), result


def _split(items: str) -> list[str]:
    """Split at commas outside of brackets and quotes."""
    found = re.findall(r"""(?:[^,("']|\([^)]*\)|"[^"]*"|'[^']*')+""", items)
    return [item.strip() for item in found if item.strip()]


def _takes(arguments: list[str], there: list[str]) -> bool:
    """Tell whether a call that is written for some parameters, in their order, fits others."""
    wanted, offered = ([argument.partition(" DEFAULT ") for argument in each] for each in (arguments, there))
    if len(offered) < len(wanted) or not all(default for _, default, _ in offered[len(wanted) :]):
        return False
    return all(
        mine == theirs and bool(default) <= bool(still)
        for (mine, default, _), (theirs, still, _) in zip(wanted, offered, strict=False)
    )


def _returns(result: str, there: str) -> bool:
    if not (result.startswith("TABLE(") and there.startswith("TABLE(")):
        return result == there
    columns, offered = (_split(each[len("TABLE(") : -1]) for each in (result, there))
    return {*columns} <= {*offered}


async def async_check_schema(bind: AsyncBind) -> str:
    """Return the database's revision as check_schema() does, for an asynchronous service."""
    bind = async_bound("async_check_schema", bind)
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as conn:
            return await conn.run_sync(check_alone)
    conn = await async_joined(bind)
    return await conn.run_sync(check_schema)
