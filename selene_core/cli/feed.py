"""The commands about the feed: tail, feed status, feed verify (contract §15 and §16)."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click
import psycopg
from sqlalchemy.exc import DBAPIError

from selene_core.cli.errors import warn
from selene_core.cli.options import engine_on, json_option, url_option
from selene_core.cli.rendering import feed_event_lines, feed_status_lines, to_json
from selene_core.cli.terminal import page_on, say
from selene_core.contract.events import check_tenant_id
from selene_core.contract.frozen_json import MAX_INT64
from selene_core.store import feed_statements as statements
from selene_core.store.feed import MAX_FEED_PAGE, feed_status, give_all_positions, give_positions, verify_feed
from selene_core.store.repository import fetch
from selene_core.store.scope import autocommitting, tenant_scope

if TYPE_CHECKING:
    from sqlalchemy import Engine

_LAST: Final = 20
_LOOK: Final = 0.05  # seconds
_PATIENCE: Final = 5.0  # seconds


@click.command()
@click.argument("tenant")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option(
    "--after",
    type=click.IntRange(0, MAX_INT64),
    metavar="POSITION",
    help=f"From the position after this one (0: from the first); without it, the last {_LAST}.",
)
@url_option
@click.option("--json", "as_json", is_flag=True, help="One JSON value a line, for machines.")
def tail(tenant: str, follow: bool, after: int | None, url: str, as_json: bool) -> None:
    """Show the events of TENANT as its feed has them, position by position."""
    with engine_on(url) as engine:
        page = page_on(sys.stdout)
        gives = _gives_positions(engine, check_tenant_id(tenant))
        place = _last_position(engine, tenant) - _LAST if after is None else after
        place = max(place, 0)
        with engine.connect() as conn, autocommitting(conn):
            while True:
                if gives:
                    give_positions(conn, tenant)
                found = statements.events(
                    fetch(conn, statements.READ, tenant_id=tenant, after=place, limit=MAX_FEED_PAGE)
                )
                for event in found:
                    for line in [to_json(event)] if as_json else feed_event_lines(event, page=page):
                        say(line)
                    place = event.feed_position
                if len(found) < MAX_FEED_PAGE:
                    if not follow:
                        return
                    time.sleep(_LOOK)


def _gives_positions(engine: Engine, tenant: str) -> bool:
    """Give positions to all events that have none; False where the login or the server does not let us."""
    try:
        with engine.connect() as conn, autocommitting(conn):
            if not give_all_positions(conn, tenant, _PATIENCE):
                warn("another session is at the feed: the newest events may have no position yet")
    except DBAPIError as exc:
        if not isinstance(
            exc.orig, psycopg.errors.InsufficientPrivilege | psycopg.errors.ReadOnlySqlTransaction
        ):
            raise
        warn(
            "this login or server cannot give positions: events are shown once a consumer has asked for them"
        )
        return False
    return True


def _last_position(engine: Engine, tenant: str) -> int:
    with tenant_scope(engine, tenant) as conn:
        return conn.scalar(statements.LAST_POSITION, {"tenant_id": tenant}) or 0


@click.group()
def feed() -> None:
    """Look at the feed of a tenant: its consumers, and whether all is there."""


@feed.command()
@click.argument("tenant")
@url_option
@json_option
def status(tenant: str, url: str, as_json: bool) -> None:
    """Show where each consumer of TENANT's feed stands: position, head, how long it lags, and its lease."""
    with engine_on(url) as engine:
        consumers = feed_status(engine, tenant)
    if as_json:
        say(to_json({"consumers": consumers}))
        return
    for line in feed_status_lines(consumers, now=datetime.now(UTC), page=page_on(sys.stdout)):
        say(line)
    if not consumers:
        say("The feed has no consumers.")


@feed.command()
@click.argument("tenant")
@url_option
@json_option
def verify(tenant: str, url: str, as_json: bool) -> None:
    """Compare TENANT's feed with its ledger; names each event that was lost or is out of order."""
    with engine_on(url) as engine:
        problems = verify_feed(engine, tenant)
    if as_json:
        say(to_json({"clean": not problems, "problems": problems}))
    else:
        for each in problems:
            named = (
                ("position", each.feed_position),
                ("event", each.work_order_event_id),
                ("work order", each.work_order_id),
                ("consumer", each.consumer),
            )
            where = ", ".join(f"{name} {value}" for name, value in named if value is not None)
            say(f"{where}: {each.problem}")
        if not problems:
            say("Clean: every event has its position, in the order of its work order.")
    sys.exit(bool(problems))


FEED_COMMANDS: Final = (tail, feed)
"""What is done with the feed of a tenant."""
