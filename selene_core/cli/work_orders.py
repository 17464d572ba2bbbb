"""The commands about work orders: demo, import, show, pending, verify, rebuild (contract §15)."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click
from sqlalchemy import func, select, union

from selene_core import migrations
from selene_core.cli import demo as scenario
from selene_core.cli.errors import going_on, warn
from selene_core.cli.import_files import read_lines
from selene_core.cli.importing import import_lines
from selene_core.cli.options import engine_on, json_option, url_option
from selene_core.cli.rendering import (
    attempt_lines,
    conversation_lines,
    pending_lines,
    state_lines,
    timeline_lines,
    to_json,
)
from selene_core.cli.terminal import is_watched, page_on, progress, say
from selene_core.contract.errors import WorkOrderNotFound
from selene_core.local import local_database
from selene_core.store.attempts import StepAttemptRepository
from selene_core.store.conversation import ConversationRepository
from selene_core.store.leases import LeaseRepository
from selene_core.store.scope import tenant_scope
from selene_core.store.tables import work_order_ledger, work_orders_current
from selene_core.store.transactions import rebuild_tenant
from selene_core.store.work_orders import WorkOrderRepository

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from selene_core.cli.importing import ImportReport
    from selene_core.contract.rows import RebuildReport, WorkOrder


_REFUSED_SHOWN: Final = 20


@click.command()
def demo() -> None:
    """Play a scenario on an embedded PostgreSQL and show what the database keeps, refuses and restores."""
    page = page_on(sys.stdout)
    for line in page.fold("Starting an embedded PostgreSQL and migrating it …"):
        say(line)
    with local_database() as database:
        say(f"PostgreSQL {database.server_version}, revision {migrations.current(database.admin_url)}\n")
        held = scenario.run_on(database.url, database.admin_url, say, page)
    say("\nEverything held." if held else "\nSomething did not hold: see above.")
    sys.exit(not held)


@click.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@url_option
@json_option
def import_(file: Path, url: str, as_json: bool) -> None:
    """Import events from FILE, each line of JSON an event with its tenant_id; gzip is read too.

    Can be interrupted and run again: an event with an idempotency_key is appended once.
    """
    with engine_on(url) as engine, file.open("rb") as raw:
        size = file.stat().st_size
        with (
            going_on("run it again to go on: events with an idempotency_key are not appended twice"),
            progress("Importing", size, hidden=not is_watched(as_json)) as reach,
        ):

            def show(_report: ImportReport) -> None:
                # The position in the file as it is on disk: what a compressed one will hold is not known.
                if raw.seekable():
                    reach(raw.tell())

            report = import_lines(engine, read_lines(raw), show)
    if not report.lines:
        warn(f"there are 0 events in {click.format_filename(file)}")
    if as_json:
        say(to_json(report))
    else:
        for refused in report.refused[:_REFUSED_SHOWN]:
            say(f"line {refused.line}: {refused.code}: {refused.reason}", err=True)
        if len(report.refused) > _REFUSED_SHOWN:
            say(f"… and {len(report.refused) - _REFUSED_SHOWN} more (--json lists them all)", err=True)
        say(
            f"{report.lines:,} line{'' if report.lines == 1 else 's'}: {report.appended:,} appended,"
            f" {report.replayed:,} replays, {len(report.refused):,} refused"
        )
    sys.exit(bool(report.refused))


@click.command()
@click.argument("tenant")
@click.argument("work_order")
@click.option("--conversation", is_flag=True, help="With what was said, turn by turn beside the events.")
@url_option
@json_option
def show(tenant: str, work_order: str, conversation: bool, url: str, as_json: bool) -> None:
    """Show the state, lease, attempts and time line of WORK_ORDER."""
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        orders = WorkOrderRepository(conn)
        state = _require(orders, work_order)
        lease = LeaseRepository(conn).current(work_order)
        attempts = StepAttemptRepository(conn).history(work_order)
        events, turns_of = orders.events(work_order), ConversationRepository(conn).turns
        if as_json:
            shown: dict[str, object] = {
                "state": state,
                "lease": lease,
                "attempts": attempts,
                "events": (kept := list(events)),
            }
            if conversation:
                threads = dict.fromkeys(event.correlation_id for event in kept)
                shown["conversation"] = [turn for thread in threads for turn in turns_of(thread)]
            say(to_json(shown))
            return
        page = page_on(sys.stdout)
        for line in state_lines(state, held=lease is not None, page=page):
            say(line)
        for line in attempt_lines(attempts, page=page):
            say(line)
        say("")
        for line in (
            conversation_lines(events, turns_of, page=page)
            if conversation
            else timeline_lines(events, page=page)
        ):
            say(line)


@click.command()
@click.argument("tenant")
@click.option("--requester", metavar="USER", help="Only those that this user requested.")
@click.option(
    "--hours", type=click.IntRange(1, 876_000), help="Only those updated in the last so many hours."
)
@click.option("--limit", type=click.IntRange(1, 999), default=20, show_default=True)
@click.option("--oldest-first", is_flag=True, help="Those that have waited longest.")
@url_option
@json_option
def pending(
    tenant: str,
    requester: str | None,
    hours: int | None,
    limit: int,
    oldest_first: bool,
    url: str,
    as_json: bool,
) -> None:
    """List the work orders in DRAFT, CLARIFY and CONFIRM, most recently updated first."""
    within = None if hours is None else timedelta(hours=hours)
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        found = WorkOrderRepository(conn).list_pending(requester, within, limit + 1, oldest_first)
    if as_json:
        say(to_json({"pending": found[:limit], "more": len(found) > limit}))
        return
    for line in pending_lines(found[:limit], page=page_on(sys.stdout)):
        say(line)
    if len(found) > limit:
        say(f"… and more: --limit is {limit}", err=True)
    elif not found:
        say("Nothing is pending.")


@click.command()
@click.argument("tenant")
@click.option("--work-order", help="Only this one.")
@click.option("--chain", is_flag=True, help="Make the hashes of the events anew instead: is one changed?")
@url_option
@json_option
def verify(tenant: str, work_order: str | None, chain: bool, url: str, as_json: bool) -> None:
    """Compare the projection with the fold of the ledger; names every work order that differs."""
    if chain:
        _verify_chain(tenant, work_order, url, as_json)
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        drifted = WorkOrderRepository(conn).verify(work_order)
        if work_order is None:
            count = _count_work_orders(conn, tenant)
        else:
            count = 1
            if not drifted:
                _require(WorkOrderRepository(conn), work_order)
    warning = _warned(tenant, count)
    if as_json:
        say(to_json({"clean": not drifted, "work_orders": count, "drifted": drifted, **warning}))
    elif drifted:
        for order in drifted:
            say(f"{order.work_order_id}: {order.problem}")
        say(f"{len(drifted):,} of {count:,} differ. To mend them: selene-core rebuild {tenant}")
    else:
        say(f"Clean: the projection is the fold of the ledger ({_work_orders(count)}).")
    sys.exit(bool(drifted))


def _verify_chain(tenant: str, work_order: str | None, url: str, as_json: bool) -> NoReturn:
    reached = 0
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        watched = is_watched(as_json) and work_order is None
        total = _count_events(conn, tenant) if watched else 0
        with progress("Checking", total, hidden=not watched) as reach:

            def show(events: int) -> None:
                nonlocal reached
                reached = events
                reach(events)

            broken = WorkOrderRepository(conn).verify_chain(work_order, show)
        if work_order is not None and not reached:
            _require(WorkOrderRepository(conn), work_order)
    warning = {} if work_order is not None else _warned(tenant, reached)
    if as_json:
        say(to_json({"clean": not broken, "events": reached, "broken": broken, **warning}))
    else:
        for link in broken:
            say(f"{link.work_order_id}, event {link.work_order_seq}: {link.problem}")
        if broken:
            say(f"{len(broken):,} of {reached:,} events are not what was appended.")
        else:
            say(f"Clean: every event is what was appended ({reached:,} events).")
    sys.exit(bool(broken))


@click.command()
@click.argument("tenant")
@click.option("--work-order", help="Only this one.")
@url_option
@json_option
def rebuild(tenant: str, work_order: str | None, url: str, as_json: bool) -> None:
    """Make the projection the fold of the ledger again, while appends go on."""
    with engine_on(url) as engine:
        if work_order is not None:
            with tenant_scope(engine, tenant) as conn:
                report = WorkOrderRepository(conn).rebuild(work_order)
                _require(WorkOrderRepository(conn), work_order)
        else:
            watched, total = is_watched(as_json), 0
            if watched:
                with tenant_scope(engine, tenant) as conn:
                    total = _count_work_orders(conn, tenant)
            with (
                going_on("what was mended stays, run it again for the rest"),
                progress("Rebuilding", total, hidden=not watched) as reach,
            ):

                def show(so_far: RebuildReport) -> None:
                    reach(so_far.work_orders)

                report = rebuild_tenant(engine, tenant, show)
    warning = _warned(tenant, report.work_orders)
    if as_json:
        say(to_json({**asdict(report), **warning}))
    else:
        say(
            f"{_work_orders(report.work_orders)}, {report.events:,} events folded,"
            f" {report.changed:,} rows changed"
        )


def _require(orders: WorkOrderRepository, work_order: str) -> WorkOrder:
    if (found := orders.get(work_order)) is None:
        raise WorkOrderNotFound(f"work order {work_order} does not exist", work_order_id=work_order)
    return found


def _count_work_orders(conn: Connection, tenant: str) -> int:
    """Count what verify and rebuild look at: each work order with a row in the projection or events."""
    tables = work_orders_current, work_order_ledger
    ids = union(*(select(each.c.work_order_id).where(each.c.tenant_id == tenant) for each in tables))
    return conn.scalar(select(func.count()).select_from(ids.subquery())) or 0


def _count_events(conn: Connection, tenant: str) -> int:
    return conn.scalar(select(func.count()).where(work_order_ledger.c.tenant_id == tenant)) or 0


def _work_orders(count: int) -> str:
    return f"{count:,} work order{'' if count == 1 else 's'}"


def _warned(tenant: str, count: int) -> dict[str, str]:
    """Warn of a tenant without work orders; return the warning for JSON."""
    if count:
        return {}
    warning = f"tenant {tenant} has 0 work orders: is it spelled right?"
    warn(warning)
    return {"warning": warning}


WORK_ORDER_COMMANDS: Final = (demo, import_, show, pending, verify, rebuild)
"""What is done with the work orders of a tenant."""
