"""No setting of a session, a role or a database changes what is written, folded, refused or read."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Final
from unittest.mock import patch

import pytest
from psycopg.sql import SQL, Composable, Identifier, Literal
from sqlalchemy import URL

from selene_core import (
    ContractViolation,
    WorkOrderEventType,
    WorkOrderRepository,
    append_events,
    check_schema,
    create_selene_engine,
    tenant_scope,
)
from selene_core.migrations import upgrade
from tests.support.calls import append, refused
from tests.support.chain import differing
from tests.support.factories import created, event, new_id, wire
from tests.support.raw import Connection, connect
from tests.support.scenario import Story, Told, read
from tests.support.servers import LOGIN_ROLES, Database, Server
from tests.support.writes import CALLS, statement

Settings = Mapping[str, str]
# A POSIX zone has the abbreviations that it says: such letters mean what the zone makes of them.
ZONES: Final = [
    *(
        "UTC+5",
        "UTC-14",
        "<UTC>-3:30",
        "<Z>5",
        "<Z>-5",
        "<T>5",
        "<T>-5",
        "ZULU3",
        "GMT9",
        "<+00>-7",
        "PST8PDT",
    ),
    *(
        "Asia/Tokyo",
        "Pacific/Kiritimati",
        "America/St_Johns",
        "Africa/Casablanca",
        "5.5",
        "<Z>5<T>,M3.2.0,M11.1.0",
    ),
]
PLANNER_NODES: Final = (
    *("bitmapscan", "gathermerge", "hashagg", "hashjoin", "incremental_sort", "indexonlyscan", "indexscan"),
    *("material", "memoize", "mergejoin", "nestloop", "seqscan", "sort", "tidscan"),
)
PARALLEL: Final = {
    **dict.fromkeys(["parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"], "0"),
    "min_parallel_index_scan_size": "0",
    "max_parallel_workers_per_gather": "4",
}
HOSTILE: Final[dict[str, Settings]] = {
    **{f"zone {zone}": {"TimeZone": zone} for zone in ZONES},
    "abbreviations": {"timezone_abbreviations": "India", "TimeZone": "Asia/Kolkata"},
    "abbreviations, Australia": {"timezone_abbreviations": "Australia", "TimeZone": "<Z>5"},
    "SQL dates": {"DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard"},
    "Postgres dates": {"DateStyle": "Postgres, MDY", "IntervalStyle": "postgres_verbose", "TimeZone": "<Z>5"},
    "German dates": {"DateStyle": "German, YMD", "IntervalStyle": "iso_8601", "TimeZone": "Asia/Tokyo"},
    "text": {
        "extra_float_digits": "-15",
        "bytea_output": "escape",
        "xmloption": "document",
        "xmlbinary": "hex",
        "lc_monetary": "C",
        "lc_numeric": "C",
        "lc_time": "C",
        "client_encoding": "LATIN1",
        "default_text_search_config": "pg_catalog.german",
    },
    "literals": {
        "standard_conforming_strings": "off",
        "escape_string_warning": "off",
        "backslash_quote": "off",
        "array_nulls": "off",
        "transform_null_equals": "on",
        "quote_all_identifiers": "on",
    },
    "names": {
        "search_path": "pg_temp, conversation, os_core, public, pg_catalog",
        "client_min_messages": "error",
    },
    "no path": {"search_path": "", "check_function_bodies": "off"},
    "custom plans": {"plan_cache_mode": "force_custom_plan", "jit": "off", "work_mem": "64kB"},
    "generic plans": {
        "plan_cache_mode": "force_generic_plan",
        "from_collapse_limit": "1",
        "join_collapse_limit": "1",
    },
    "no plans": {**{f"enable_{node}": "off" for node in PLANNER_NODES}, "jit": "off"},
    "compiled": {
        "jit": "on",
        **dict.fromkeys(["jit_above_cost", "jit_inline_above_cost", "jit_optimize_above_cost"], "1000"),
    },
    "parallel": {**PARALLEL, "{debug_parallel}": "on"},
    "parallel, TimeZone": {**PARALLEL, "{debug_parallel}": "regress", "TimeZone": "<Z>5"},
    "serializable": {"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on"},
    "repeatable read": {"default_transaction_isolation": "repeatable read", "synchronous_commit": "off"},
    "timeouts": {
        "statement_timeout": "60s",
        "lock_timeout": "60s",
        "idle_in_transaction_session_timeout": "60s",
        "idle_session_timeout": "60s",
    },
    "PL/pgSQL": {
        "plpgsql.extra_errors": "all",
        "plpgsql.extra_warnings": "all",
        "plpgsql.check_asserts": "off",
    },
    "storage": {"default_toast_compression": "pglz", "temp_buffers": "800kB", "gin_fuzzy_search_limit": "1"},
}
# A superuser may set these for others.
SUPERUSERS: Final[dict[str, Settings]] = {
    "columns first": {"plpgsql.variable_conflict": "use_column"},
    "variables first": {"plpgsql.variable_conflict": "use_variable", "lc_messages": "C"},
    "replica": {"session_replication_role": "replica", "TimeZone": "UTC+5"},
}
REFUSED: Final[dict[str, tuple[Settings, str]]] = {
    "row security": ({"row_security": "off"}, "42501"),
    "read only": ({"default_transaction_read_only": "on"}, "25006"),
}
LEVELS: Final = ("PGOPTIONS", "role", "database")
TENANTS: Final = count(1)
VERIFY: Final = "SELECT * FROM os_core.verify_work_orders(%s)"
APP: Final = LOGIN_ROLES["app"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A database for many stories, a plain session of its superuser's, and what a story leaves."""

    database: Database
    plain: Connection
    expected: Told

    def tell(self, level: str, settings: Settings) -> tuple[str, Told]:
        """Tell the story in a session with settings; return its tenant and what it left."""
        tenant_id = f"tenant-{next(TENANTS):04}"
        with hostile_session(self.database, self.plain, level, settings) as conn:
            return tenant_id, Story(conn, self.plain, tenant_id).tell()


def known_to(server: Server, settings: Settings) -> dict[str, str]:
    """Return settings by the names that a server has for them."""
    debug = "debug_parallel_query" if server.version >= 16 else "force_parallel_mode"
    return {name.format(debug_parallel=debug): value for name, value in settings.items()}


@contextmanager
def hostile_sessions(database: Database, plain: Connection, level: str, settings: Settings) -> Iterator[URL]:
    """Let new sessions of the application's begin with settings; yield the address for them."""
    url = database.server.url_for(APP, database.name)
    named = known_to(database.server, settings)
    if level == "PGOPTIONS":
        options = (f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in named.items())
        with patch.dict(os.environ, PGOPTIONS=" ".join(options)):
            yield url
        return
    whose = SQL("DATABASE {}").format(Identifier(database.name))
    if level == "role":
        whose = SQL("ROLE {} IN {}").format(Identifier(APP), whose)
    for name, value in named.items():
        plain.execute(
            SQL("ALTER {} SET {} = {}").format(whose, Identifier(*name.split(".")), literal(name, value))
        )
    try:
        yield url
    finally:
        plain.execute(SQL("ALTER {} RESET ALL").format(whose))


@contextmanager
def hostile_session(
    database: Database, plain: Connection, level: str, settings: Settings
) -> Iterator[Connection]:
    """Open a session of the application's with settings."""
    if level == "session":
        with connect(database.server.url_for(APP, database.name), autocommit=True) as conn:
            for name, value in known_to(database.server, settings).items():
                conn.execute(SQL("SET {} = {}").format(Identifier(*name.split(".")), literal(name, value)))
            yield conn
    else:
        with (
            hostile_sessions(database, plain, level, settings) as url,
            connect(url, autocommit=True) as conn,
        ):
            yield conn


def literal(name: str, value: str) -> Composable:
    """Write a value; that of search_path is a list."""
    if name != "search_path" or not value:
        return Literal(value)
    return SQL(", ").join(map(Identifier, value.split(", ")))


@pytest.fixture(scope="module")
def stage(server: Server, template_database: str) -> Iterator[Stage]:
    """Return a database where the story has been told in a plain session."""
    with (
        server.new_database("settings", template_database) as database,
        connect(database.admin_url, autocommit=True) as plain,
    ):
        plain.execute("SET TimeZone = 'UTC'")
        with hostile_session(database, plain, "session", {}) as conn:
            yield Stage(database, plain, Story(conn, plain, "tenant-0000").tell())


def test_story__has_every_event_type_table_and_function(stage: Stage) -> None:
    assert [table for table, rows in stage.expected.rows.items() if not rows] == ["os_core.tenant_removals"]
    ledger = " ".join(stage.expected.rows["os_core.work_order_ledger"])
    assert [kind for kind in WorkOrderEventType if f'"{kind}"' not in ledger] == []
    for sqlstate in ("SL001", "SL005", "SL006", "SL007", "SL008", "SL009", "SL010", "SL012"):
        assert [answer for answer in stage.expected.answers if answer.startswith(sqlstate)], sqlstate


@pytest.mark.parametrize("name", HOSTILE)
def test_settings__change_nothing(stage: Stage, name: str) -> None:
    """The story is told in a hostile session, and read by Python in one; a plain one compares."""
    for level in ("session", LEVELS[list(HOSTILE).index(name) % len(LEVELS)]):
        tenant_id, told = stage.tell(level, HOSTILE[name])
        assert told == stage.expected, level
        assert stage.plain.execute(VERIFY, (tenant_id,)).fetchall() == [], level
        assert differing(stage.plain, tenant_id) == [], level
    with hostile_sessions(stage.database, stage.plain, "PGOPTIONS", HOSTILE[name]) as url:
        engine = create_selene_engine(url)
        try:
            found = read(engine, tenant_id)
        finally:
            engine.dispose()
    assert repr(found) == repr(read(stage.database.engine("admin"), tenant_id))


@pytest.mark.parametrize("name", SUPERUSERS)
def test_settings_of_a_superuser__change_nothing(stage: Stage, name: str) -> None:
    for level in ("role", "database"):
        tenant_id, told = stage.tell(level, SUPERUSERS[name])
        assert told == stage.expected, level
        assert stage.plain.execute(VERIFY, (tenant_id,)).fetchall() == [], level
        assert differing(stage.plain, tenant_id) == [], level


@pytest.mark.parametrize("name", REFUSED)
def test_settings__that_forbid_are_refused_and_leave_nothing(stage: Stage, name: str) -> None:
    settings, sqlstate = REFUSED[name]
    for level in LEVELS:
        with hostile_session(stage.database, stage.plain, level, settings) as conn:
            for call in (CALLS[name] for name in ("create", "identity")):
                with refused(sqlstate):
                    conn.execute(statement(call, "nobody").encode())
        query = "SELECT FROM os_core.work_order_ledger WHERE tenant_id = 'nobody'"
        assert stage.plain.execute(query).rowcount == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"PGTZ": "UTC+5"}, {"PGTZ": "<Z>-5", "PGDATESTYLE": "German"}, {"PGTZ": "Asia/Tokyo"}]
)
def test_command_line__has_nothing_to_mend_in_any_environment(
    stage: Stage, environment: dict[str, str]
) -> None:
    tenant_id, _ = stage.tell("session", {})
    url = stage.database.server.url_for(APP, stage.database.name).render_as_string(hide_password=False)
    answers = {}
    for command in ("verify", "rebuild"):
        answers[command] = subprocess.run(
            [sys.executable, "-m", "selene_core", command, tenant_id, "--json"],
            env={**os.environ, **environment, "SELENE_DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert answers["verify"].returncode == 0, answers["verify"].stdout
    assert json.loads(answers["rebuild"].stdout)["changed"] == 0
    assert stage.plain.execute(VERIFY, (tenant_id,)).fetchall() == []


def test_never__is_written_and_read_by_python_east_and_west(stage: Stage) -> None:
    never = "9999-12-31T23:59:59.999999Z"
    ask = {"request_id": "ask", "target_user_id": "bob", "expires_at": never}
    for zone in ("Pacific/Kiritimati", "UTC+12", "UTC"):
        order = new_id()
        with hostile_sessions(stage.database, stage.plain, "PGOPTIONS", {"TimeZone": zone}) as url:
            engine = create_selene_engine(url)
            try:
                first = created(order, occurred_at=datetime.min.replace(tzinfo=UTC))
                asked = event("EXTERNAL_APPROVAL_REQUESTED", order, payload=ask)
                append_events(engine, "acme", [first, asked])
                append_events(engine, "acme", [event("FIELD_SET", order, occurred_at=never)])
                with tenant_scope(engine, "acme") as conn:
                    found = WorkOrderRepository(conn).get(order)
                    times = [each.occurred_at for each in WorkOrderRepository(conn).events(order)]
            finally:
                engine.dispose()
        assert found is not None
        assert found.external_approval_expires_at == datetime.max.replace(tzinfo=UTC)
        assert times == [datetime.min.replace(tzinfo=UTC), None, datetime.max.replace(tzinfo=UTC)]


@pytest.mark.parametrize(
    "value", ["9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01", "2026-01-01T00:00:00"]
)
def test_time_out_of_range__is_refused_in_the_same_words_by_both(stage: Stage, value: str) -> None:
    ask = {"request_id": "ask", "target_user_id": "bob", "expires_at": value}
    for kind, given in (
        ("FIELD_SET", {"occurred_at": value}),
        ("EXTERNAL_APPROVAL_REQUESTED", {"payload": ask}),
    ):
        with pytest.raises(ContractViolation) as caught:
            event(kind, "order", **given)
        with hostile_session(stage.database, stage.plain, "session", {}) as conn, refused("SL001") as refusal:
            append(conn, "acme", wire(kind, "order", **given))
        assert (caught.value.field, caught.value.rule) == (refusal.facts["field"], refusal.facts["rule"])
        assert "the years 1 to 9999 of UTC" in refusal.message


def test_upgrade__makes_the_same_schema_under_any_defaults_of_the_database(empty_database: Database) -> None:
    defaults = {
        **HOSTILE["Postgres dates"],
        **HOSTILE["text"],
        **HOSTILE["PL/pgSQL"],
        **HOSTILE["serializable"],
        "standard_conforming_strings": "off",
        "escape_string_warning": "off",
        "backslash_quote": "off",
        "search_path": "pg_temp, public",
        "check_function_bodies": "off",
    }
    with connect(empty_database.admin_url, autocommit=True) as plain:
        with hostile_sessions(empty_database, plain, "database", defaults):
            upgrade(empty_database.admin_url)
        for settings in ({}, defaults, HOSTILE["zone <T>5"], HOSTILE["names"]):
            with hostile_sessions(empty_database, plain, "PGOPTIONS", settings) as url:
                engine = create_selene_engine(url)
                try:
                    check_schema(engine)
                finally:
                    engine.dispose()
