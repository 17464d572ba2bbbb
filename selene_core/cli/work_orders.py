"""The commands about work orders: demo, import, show, pending, verify, rebuild (contract §15)."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click
from sqlalchemy import func, select, union

from selene_core import migrations
from selene_core.cli import demo as scenario
from selene_core.cli.errors import going_on, warn, warned_of_none
from selene_core.cli.import_files import opened, read_lines
from selene_core.cli.importing import import_lines
from selene_core.cli.options import engine_on, json_option, limit_option, moment, required, url_option
from selene_core.cli.rendering import (
    attempt_lines,
    conversation_lines,
    counted,
    pending_lines,
    state_lines,
    timeline_lines,
    to_json,
)
from selene_core.cli.terminal import is_watched, page_on, progress, say
from selene_core.cli.timeline import timeline_svg
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
    from selene_core.contract.rows import RebuildReport, WorkOrder, WorkOrderEvent


_REFUSED_SHOWN: Final = 20
_GO_ON: Final = "run it again to go on: events with an idempotency_key are not appended twice"
_PICTURE: Final = click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path)


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
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what an import would do, in transactions that are rolled back. Who writes the same work orders"
    " waits until it ends.",
)
@url_option
@json_option
def import_(file: Path, dry_run: bool, url: str, as_json: bool) -> None:
    """Import events from FILE, each line of JSON an event with its tenant_id; gzip is read too.

    FILE is - for standard input. Can be interrupted and run again: an event with an idempotency_key is
    appended once.
    """
    then = "nothing was imported" if dry_run else _GO_ON
    with engine_on(url) as engine, opened(file) as raw:
        size = file.stat().st_size if raw.seekable() and str(file) != "-" else 0
        with (
            going_on(then),
            progress("Importing", size, hidden=not (size and is_watched(as_json))) as reach,
        ):

            def show(_report: ImportReport) -> None:
                # The position in the file as it is on disk: what a compressed one will hold is not known.
                if size:
                    reach(raw.tell())

            report = import_lines(engine, read_lines(raw), show, dry_run=dry_run)
    if not report.lines:
        warn(f"there are 0 events in {click.format_filename(file)}")
    if as_json:
        say(to_json({**asdict(report), "dry_run": True} if dry_run else report))
    else:
        for refused in report.refused[:_REFUSED_SHOWN]:
            say(f"line {refused.line}: {refused.code}: {refused.reason}", err=True)
        if len(report.refused) > _REFUSED_SHOWN:
            say(f"… and {len(report.refused) - _REFUSED_SHOWN} more (--json lists them all)", err=True)
        say(
            f"{'Dry run: ' if dry_run else ''}"
            f"{counted(report.lines, 'line')}: {report.appended:,} appended,"
            f" {report.replayed:,} replays, {len(report.refused):,} refused"
        )
    sys.exit(bool(report.refused))


@click.command()
@click.argument("tenant")
@click.argument("work_order")
@click.option("--conversation", is_flag=True, help="With what was said, turn by turn beside the events.")
@click.option("--seq", type=click.IntRange(1), metavar="N", help="As it was after its event N.")
@click.option(
    "--at",
    callback=moment,
    metavar="TIME",
    help="As it was then: a time with an offset, as 2027-03-14T09:00:00Z.",
)
@click.option("--svg", type=_PICTURE, metavar="FILE", help="Draw the time line into FILE; - is the output.")
@url_option
@json_option
def show(
    tenant: str,
    work_order: str,
    conversation: bool,
    seq: int | None,
    at: datetime | None,
    svg: Path | None,
    url: str,
    as_json: bool,
) -> None:
    """Show the state, lease, attempts and time line of WORK_ORDER.

    Of an earlier state: the fields and events until then. Lease and attempts are known as they are now, and
    are left out.
    """
    past = seq is not None or at is not None
    if (seq is not None and at is not None) or (conversation and (past or svg)) or (svg and as_json):
        raise click.UsageError(
            "choose one of --seq and --at, one of --svg and --json, and neither of the first three"
            " with --conversation"
        )
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        orders = WorkOrderRepository(conn)
        state = _as_of(orders, work_order, seq, at) if past else required(orders, work_order)
        events = takewhile(lambda event: event.work_order_seq <= state.last_seq, orders.events(work_order))
        if svg is not None:
            _draw(svg, state, [*events], past=past)
            return
        lease = None if past else LeaseRepository(conn).current(work_order)
        attempts = [] if past else StepAttemptRepository(conn).history(work_order)
        turns_of = ConversationRepository(conn).turns
        if as_json:
            now: dict[str, object] = {} if past else {"lease": lease, "attempts": attempts}
            shown: dict[str, object] = {"state": state, **now, "events": (kept := list(events))}
            if conversation:
                threads = dict.fromkeys(event.correlation_id for event in kept)
                shown["conversation"] = [turn for thread in threads for turn in turns_of(thread)]
            say(to_json(shown))
            return
        page = page_on(sys.stdout)
        for line in state_lines(state, held=None if past else lease is not None, page=page):
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


def _as_of(orders: WorkOrderRepository, work_order: str, seq: int | None, at: datetime | None) -> WorkOrder:
    """Return an earlier state; raises WorkOrderNotFound for one that there never was."""
    now = required(orders, work_order)
    if seq is not None and seq > now.last_seq:
        raise WorkOrderNotFound(
            f"work order {work_order} has no event {seq}: its last is {now.last_seq}",
            work_order_id=work_order,
        )
    if (state := orders.as_of(work_order, seq=seq, at=at)) is None:
        raise WorkOrderNotFound(f"work order {work_order} did not exist then", work_order_id=work_order)
    return state


def _draw(file: Path, state: WorkOrder, events: list[WorkOrderEvent], *, past: bool) -> None:
    picture = timeline_svg(state, events, f"As of event {state.last_seq}." if past else "")
    if str(file) == "-":
        say(picture.rstrip())
        return
    file.write_text(picture, encoding="utf-8")
    say(f"{click.format_filename(file)}: {counted(len(events), 'event')} drawn")


@click.command()
@click.argument("tenant")
@click.option("--requester", metavar="USER", help="Only those that this user requested.")
@click.option(
    "--hours", type=click.IntRange(1, 876_000), help="Only those updated in the last so many hours."
)
@limit_option
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
                required(WorkOrderRepository(conn), work_order)
    warning = warned_of_none(tenant, count)
    if as_json:
        say(to_json({"clean": not drifted, "work_orders": count, "drifted": drifted, **warning}))
    elif drifted:
        for order in drifted:
            say(f"{order.work_order_id}: {order.problem}")
        say(f"{len(drifted):,} of {count:,} differ. To mend them: selene-core rebuild {tenant}")
    else:
        say(f"Clean: the projection is the fold of the ledger ({counted(count, 'work order')}).")
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
            required(WorkOrderRepository(conn), work_order)
    warning = {} if work_order is not None else warned_of_none(tenant, reached)
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
                required(WorkOrderRepository(conn), work_order)
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
    warning = warned_of_none(tenant, report.work_orders)
    if as_json:
        say(to_json({**asdict(report), **warning}))
    else:
        say(
            f"{counted(report.work_orders, 'work order')}, {report.events:,} events folded,"
            f" {report.changed:,} rows changed"
        )


def _count_work_orders(conn: Connection, tenant: str) -> int:
    """Count what verify and rebuild look at: each work order with a row in the projection or events."""
    tables = work_orders_current, work_order_ledger
    ids = union(*(select(each.c.work_order_id).where(each.c.tenant_id == tenant) for each in tables))
    return conn.scalar(select(func.count()).select_from(ids.subquery())) or 0


def _count_events(conn: Connection, tenant: str) -> int:
    return conn.scalar(select(func.count()).where(work_order_ledger.c.tenant_id == tenant)) or 0


WORK_ORDER_COMMANDS: Final = (demo, import_, show, pending, verify, rebuild)
"""What is done with the work orders of a tenant."""
