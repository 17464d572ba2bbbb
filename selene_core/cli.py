"""The command line (SPEC.md section 15): exit status 0 only when all is well, errors in one line."""

from __future__ import annotations

import gzip
import sys
import zlib
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn

import click
import psycopg
from alembic.util.exc import CommandError
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from selene_core import demo as scenario
from selene_core import migrations
from selene_core.attempts import StepAttemptRepository
from selene_core.cli_database import DATABASE_COMMANDS
from selene_core.cli_options import engine_on, json_option, url_option
from selene_core.conversation import ConversationRepository
from selene_core.database import tenant_scope
from selene_core.errors import SeleneError, WorkOrderNotFound
from selene_core.importing import import_lines
from selene_core.leases import LeaseRepository
from selene_core.local import LocalServerUnavailable, local_database
from selene_core.rendering import (
    attempt_lines,
    conversation_lines,
    pending_lines,
    state_lines,
    timeline_lines,
    to_json,
)
from selene_core.tables import work_orders_current
from selene_core.transactions import rebuild_tenant
from selene_core.work_orders import WorkOrderRepository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from selene_core.contracts import RebuildReport, WorkOrder
    from selene_core.importing import ImportReport

_REFUSED_SHOWN: Final = 20
_LONGEST_LINE: Final = 1 << 20  # bytes; an event has a payload of 16 KiB


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="selene-core")
def cli() -> None:
    """Keep work orders in PostgreSQL: an append-only ledger and its projection."""


for database_command in DATABASE_COMMANDS:
    cli.add_command(database_command)


@cli.command()
def demo() -> None:
    """Play a scenario on an embedded PostgreSQL and show what the database keeps, refuses and restores."""
    click.echo("Starting an embedded PostgreSQL and migrating it …")
    with local_database() as database:
        click.echo(
            f"PostgreSQL {database.server_version}, revision {migrations.current(database.admin_url)}\n"
        )
        held = scenario.run_on(database.url, database.admin_url, click.echo)
    click.echo("\nEverything held." if held else "\nSomething did not hold: see above.")
    sys.exit(not held)


@cli.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@url_option
@json_option
def import_(file: Path, url: str, as_json: bool) -> None:
    """Import events from FILE (.jsonl or .jsonl.gz), each line an event with its tenant_id.

    Can be interrupted and run again: an event with an idempotency_key is appended once.
    """
    with engine_on(url) as engine, file.open("rb") as raw:
        size = file.stat().st_size
        with click.progressbar(
            length=size, label="Importing", file=sys.stderr, hidden=not _is_watched(as_json)
        ) as bar:

            def show(_report: ImportReport) -> None:
                # The position in the file as it is on disk: what a compressed one will hold is not known.
                if raw.seekable() and (done := raw.tell()) > bar.pos:
                    bar.update(done - bar.pos)

            report = import_lines(engine, _lines(raw, file), show)
    if as_json:
        click.echo(to_json(report))
    else:
        for refused in report.refused[:_REFUSED_SHOWN]:
            click.echo(f"line {refused.line}: {refused.code}: {refused.reason}", err=True)
        if len(report.refused) > _REFUSED_SHOWN:
            click.echo(f"… and {len(report.refused) - _REFUSED_SHOWN} more (--json lists them all)", err=True)
        click.echo(
            f"{report.lines:,} lines: {report.appended:,} appended, {report.replayed:,} replays,"
            f" {len(report.refused):,} refused"
        )
    sys.exit(bool(report.refused))


@cli.command()
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
            click.echo(to_json(shown))
            return
        for line in (*state_lines(state, held=lease is not None), *attempt_lines(attempts)):
            click.echo(line)
        click.echo()
        for line in conversation_lines(events, turns_of) if conversation else timeline_lines(events):
            click.echo(line)


@cli.command()
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
        click.echo(to_json({"pending": found[:limit], "more": len(found) > limit}))
        return
    for line in pending_lines(found[:limit]):
        click.echo(line)
    if len(found) > limit:
        click.echo(f"… and more: --limit is {limit}", err=True)
    elif not found:
        click.echo("Nothing is pending.")


@cli.command()
@click.argument("tenant")
@click.option("--work-order", help="Only this one.")
@url_option
@json_option
def verify(tenant: str, work_order: str | None, url: str, as_json: bool) -> None:
    """Compare the projection with the fold of the ledger; names every work order that differs."""
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        drifted = WorkOrderRepository(conn).verify(work_order)
        if work_order is not None and not drifted:
            _require(WorkOrderRepository(conn), work_order)
    if as_json:
        click.echo(to_json({"clean": not drifted, "drifted": drifted}))
    elif drifted:
        for order in drifted:
            click.echo(f"{order.work_order_id}: {order.problem}")
        click.echo(f"{len(drifted):,} differ. To mend them: selene-core rebuild {tenant}")
    else:
        click.echo("Clean: the projection is the fold of the ledger.")
    sys.exit(bool(drifted))


@cli.command()
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
            watched = _is_watched(as_json)
            # A count is next to nothing beside the fold. Rows that are missing come on top of it.
            total = _count_work_orders(engine, tenant) if watched else 0
            with click.progressbar(
                length=total, label="Rebuilding", file=sys.stderr, hidden=not watched
            ) as bar:

                def show(so_far: RebuildReport) -> None:
                    bar.update(so_far.work_orders - bar.pos)

                report = rebuild_tenant(engine, tenant, show)
    if as_json:
        click.echo(to_json(report))
    else:
        click.echo(
            f"{report.work_orders:,} work orders, {report.events:,} events folded,"
            f" {report.changed:,} rows changed"
        )


def _require(orders: WorkOrderRepository, work_order: str) -> WorkOrder:
    if (found := orders.get(work_order)) is None:
        raise WorkOrderNotFound(f"work order {work_order} does not exist", work_order_id=work_order)
    return found


def main() -> None:
    """Run the command line; what goes wrong is one line on standard error and exit status 1."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        _fail(exc.format_message(), exc.exit_code)
    except click.Abort:
        _fail("interrupted: run it again to go on")
    except SeleneError as exc:
        _fail(f"{type(exc).__name__}: {exc}")
    except DBAPIError as exc:
        # Without PostgreSQL's DETAIL and CONTEXT: one line.
        primary = exc.orig.diag.message_primary if isinstance(exc.orig, psycopg.Error) else None
        _fail(primary or str(exc.orig))
    except (SQLAlchemyError, CommandError, LocalServerUnavailable, RuntimeError, OSError, ValueError) as exc:
        _fail(str(exc))


def _fail(reason: str, status: int = 1) -> NoReturn:
    click.echo(f"selene-core: {' '.join(reason.split())}", err=True)
    sys.exit(status)


def _is_watched(as_json: bool) -> bool:
    return not as_json and sys.stderr.isatty()


def _count_work_orders(engine: Engine, tenant: str) -> int:
    counted = select(func.count()).select_from(work_orders_current)
    with tenant_scope(engine, tenant) as conn:
        return conn.scalar(counted.where(work_orders_current.c.tenant_id == tenant)) or 0


def _lines(raw: IO[bytes], file: Path) -> Iterator[bytes]:
    with gzip.open(raw) if file.suffix == ".gz" else nullcontext(raw) as lines:
        try:
            while line := lines.readline(_LONGEST_LINE):
                yield line
                # What follows in an over-long line is passed over, never held: it was refused already.
                while len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    line = lines.readline(_LONGEST_LINE)
        except (EOFError, zlib.error) as exc:
            raise click.ClickException(f"{file} is damaged or cut off ({exc}): import it whole") from exc
