"""The commands of the seals: seal, check-seals (contract §17)."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from selene_core.cli.errors import going_on
from selene_core.cli.options import engine_on, json_option, url_option
from selene_core.cli.rendering import counted, to_json
from selene_core.cli.seal_files import name_of, private_key, public_key, seals_in
from selene_core.cli.sealing import check_seals, make_seals
from selene_core.cli.terminal import is_watched, progress, say
from selene_core.contract.events import check_tenant_id

if TYPE_CHECKING:
    from selene_core.cli.sealing import SealReport

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("tenant")
@click.option("--key", type=_FILE, required=True, help="The private Ed25519 key that signs, in PEM.")
@click.option("--out", type=_FOLDER, required=True, help="The tenant's folder of seals.")
@url_option
@json_option
def seal(tenant: str, key: Path, out: Path, url: str, as_json: bool) -> None:
    """Sign the last event of each work order that has changed since the last seal in the folder.

    Nothing is written if nothing has changed. A seal is there as a whole or not at all.
    """
    tenant, signer = check_tenant_id(tenant), private_key(key)
    with (
        engine_on(url) as engine,
        going_on("the seals that were made stay; run it again for the rest"),
        progress("Sealing", 1, hidden=not is_watched(as_json)) as reach,
    ):
        made = make_seals(engine, tenant, signer, out, reach)
    if as_json:
        told = [{"seal": each.number, "to": each.to, "work_orders": len(each.heads)} for each in made]
        say(to_json({"seals": told}))
        return
    for each in made:
        orders = counted(len(each.heads), "work order")
        say(f"{name_of(each.number)}: {orders}, up to position {each.to} of the feed")
    if not made:
        say("Nothing has happened since the last seal.")


@click.command(name="check-seals")
@click.argument("tenant")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--public-key", "key", type=_FILE, required=True, help="The public Ed25519 key, in PEM.")
@click.option("--newest", type=click.IntRange(1), help="The number of the newest seal, as noted elsewhere.")
@url_option
@json_option
def check(tenant: str, folder: Path, key: Path, newest: int | None, url: str, as_json: bool) -> None:
    """Hold the ledger against the seals in DIR; names each work order and seal that is not as it was."""
    tenant, checker = check_tenant_id(tenant), public_key(key)
    files = seals_in(folder)
    with (
        engine_on(url) as engine,
        progress("Checking", len(files), hidden=not is_watched(as_json)) as reach,
    ):
        report = check_seals(engine, tenant, checker, files, newest, reach)
    if as_json:
        say(to_json({"clean": report.is_clean, **asdict(report)}))
    else:
        for each in report.seal_problems:
            say(each.problem)
        for order in report.order_problems:
            say(f"{order.work_order_id}, event {order.work_order_seq} in seal {order.seal}: {order.problem}")
        if report.removed:
            orders = counted(len(report.removed), "work order")
            say(f"removed with the tenant, by the record of {report.removed_at:%Y-%m-%d %H:%M}Z: {orders}")
        say(f"{'Clean: the' if report.is_clean else 'The'} {_told(report)}")
    sys.exit(not report.is_clean)


def _told(report: SealReport) -> str:
    seals = f"ledger was held against {report.heads:,} heads of {report.seals:,} seals"
    return f"{seals}. Positions that are not sealed yet: {report.not_sealed:,}."


SEAL_COMMANDS: Final = (seal, check)
"""What proves the history of a tenant."""
