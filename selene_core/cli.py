"""The command line (SPEC.md section 15): exit status 0 only when all is well, errors in one line."""

from __future__ import annotations

import gzip
import sys
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn

import click
import psycopg
from alembic.util.exc import CommandError
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from selene_core import demo as scenario
from selene_core import migrations
from selene_core.attempts import StepAttemptRepository
from selene_core.database import psycopg_url, tenant_scope
from selene_core.errors import SeleneError, WorkOrderNotFound
from selene_core.importing import import_lines
from selene_core.leases import LeaseRepository
from selene_core.local import LocalServerUnavailable, local_database
from selene_core.rendering import attempt_lines, state_lines, timeline_lines, to_json
from selene_core.work_orders import WorkOrderRepository, rebuild_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selene_core.contracts import RebuildReport
    from selene_core.importing import ImportReport

_REFUSED_SHOWN: Final = 20
_LONGEST_LINE: Final = 1 << 20  # bytes; an event has a payload of 16 KiB
_url = click.option(
    "--url",
    envvar="SELENE_DATABASE_URL",
    show_envvar=True,
    required=True,
    help="The database, as postgresql://user:password@host:port/name.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value, for machines.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="selene-core")
def cli() -> None:
    """Keep work orders in PostgreSQL: an append-only ledger and its projection."""


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


@cli.command()
@_url
@_as_json
def upgrade(url: str, as_json: bool) -> None:
    """Upgrade the database to the newest revision."""
    before = migrations.current(url)
    migrations.upgrade(url)
    after = migrations.current(url)
    if as_json:
        click.echo(to_json({"from": before, "to": after}))
    elif before == after:
        click.echo(f"Nothing to do: the database stands at revision {after}.")
    else:
        click.echo(f"Upgraded from {before or 'an empty database'} to revision {after}.")


@cli.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_url
@_as_json
def import_(file: Path, url: str, as_json: bool) -> None:
    """Import events from FILE (.jsonl or .jsonl.gz), each line an event with its tenant_id.

    Can be interrupted and run again: an event with an idempotency_key is appended once.
    """
    with _engine(url) as engine, file.open("rb") as raw:
        size = file.stat().st_size
        with click.progressbar(
            length=size, label="Importing", file=sys.stderr, hidden=not _is_watched(as_json)
        ) as bar:

            def show(_report: ImportReport) -> None:
                # The position in the file as it is on disk: what a compressed one will hold is not known.
                if (done := raw.tell()) > bar.pos:
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
@_url
@_as_json
def show(tenant: str, work_order: str, url: str, as_json: bool) -> None:
    """Show the state, lease, attempts and time line of WORK_ORDER."""
    with _engine(url) as engine, tenant_scope(engine, tenant) as conn:
        orders = WorkOrderRepository(conn)
        state = orders.get(work_order)
        if state is None:
            raise WorkOrderNotFound(f"work order {work_order} does not exist", work_order_id=work_order)
        lease = LeaseRepository(conn).current(work_order)
        attempts = StepAttemptRepository(conn).history(work_order)
        if as_json:
            events = list(orders.events(work_order))
            click.echo(to_json({"state": state, "lease": lease, "attempts": attempts, "events": events}))
            return
        for line in (*state_lines(state, held=lease is not None), *attempt_lines(attempts)):
            click.echo(line)
        click.echo()
        for line in timeline_lines(orders.events(work_order)):
            click.echo(line)


@cli.command()
@click.argument("tenant")
@click.option("--work-order", help="Only this one.")
@_url
@_as_json
def verify(tenant: str, work_order: str | None, url: str, as_json: bool) -> None:
    """Compare the projection with the fold of the ledger; names every work order that differs."""
    with _engine(url) as engine, tenant_scope(engine, tenant) as conn:
        drifted = WorkOrderRepository(conn).verify(work_order)
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
@_url
@_as_json
def rebuild(tenant: str, work_order: str | None, url: str, as_json: bool) -> None:
    """Make the projection the fold of the ledger again, while appends go on."""
    with _engine(url) as engine:
        if work_order is not None:
            with tenant_scope(engine, tenant) as conn:
                report = WorkOrderRepository(conn).rebuild(work_order)
        else:
            watched = _is_watched(as_json)

            def show(so_far: RebuildReport) -> None:
                if watched:
                    click.echo(
                        f"\r{so_far.work_orders:,} work orders, {so_far.events:,} events", nl=False, err=True
                    )

            report = rebuild_tenant(engine, tenant, show)
            if watched and report.work_orders:
                click.echo(err=True)
    if as_json:
        click.echo(to_json(report))
    else:
        click.echo(
            f"{report.work_orders:,} work orders, {report.events:,} events folded,"
            f" {report.changed:,} rows changed"
        )


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


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    # hide_parameters: an error must not print what somebody entered.
    engine = create_engine(psycopg_url(url), hide_parameters=True)
    try:
        yield engine
    finally:
        engine.dispose()
