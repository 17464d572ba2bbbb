"""The commands about privacy: erase-subject, export-subject, remove-tenant (contract §15 and §18)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from selene_core.cli.errors import going_on
from selene_core.cli.options import engine_on, json_option, url_option
from selene_core.cli.rendering import counted, to_json
from selene_core.cli.terminal import is_watched, progress, say
from selene_core.contract.events import check_tenant_id
from selene_core.store.erasure import erase_subject as erase
from selene_core.store.exports import export_subject as export
from selene_core.store.removal import count_tenant
from selene_core.store.removal import remove_tenant as remove
from selene_core.store.scope import tenant_scope

if TYPE_CHECKING:
    from selene_core.store.removal import RemovalReport


@click.command(name="erase-subject")
@click.argument("tenant")
@click.argument("subject")
@click.option("--reason-code", type=int, required=True, help="Why, in a code of your own; it is recorded.")
@url_option
@json_option
def erase_subject(tenant: str, subject: str, reason_code: int, url: str, as_json: bool) -> None:
    """Erase the personal values of SUBJECT and the texts of its turns, and record that it was done."""
    with engine_on(url) as engine:
        erasure = erase(engine, tenant, subject, reason_code=reason_code)
    if as_json:
        say(to_json(erasure))
    elif erasure.replayed:
        say(f"Nothing was left to erase: see erasure {erasure.erasure_id}.")
    else:
        say(
            f"Erasure {erasure.erasure_id}: {counted(erasure.values_erased, 'value')} and"
            f" {counted(erasure.texts_erased, 'text')} of {subject}."
        )


@click.command(name="export-subject")
@click.argument("tenant")
@click.argument("subject")
@url_option
def export_subject(tenant: str, subject: str, url: str) -> None:
    """Print as JSON what is held about SUBJECT."""
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        say(to_json(export(conn, subject)))


@click.command(name="remove-tenant")
@click.argument("tenant")
@click.option("--confirm", metavar="TENANT", help="The tenant's name again, instead of being asked for it.")
@url_option
@json_option
def remove_tenant(tenant: str, confirm: str | None, url: str, as_json: bool) -> None:
    """Delete every row of TENANT, for good; for a login that may act as selene_owner.

    Stop the tenant's services first. Can be interrupted and run again.
    """
    check_tenant_id(tenant)
    with engine_on(url) as engine:
        counts = count_tenant(engine, tenant)
        total = sum(counts.values())
        for table, count in counts.items():
            say(f"{count:>12,}  {table}", err=True)
        say(f"{total:>12,}  rows of {tenant} are deleted for good. Its services must be stopped.", err=True)
        if confirm is None:
            confirm = click.prompt("The tenant's name again", err=True, default="", show_default=False)
        if confirm != tenant:
            raise click.UsageError("that is not the tenant's name: nothing was deleted")
        with (
            going_on("what is deleted is gone, run it again for the rest"),
            progress("Removing", total, hidden=not is_watched(as_json)) as reach,
        ):

            def show(so_far: RemovalReport) -> None:
                reach(min(so_far.rows, total))

            report = remove(engine, tenant, show)
    if as_json:
        say(to_json({**asdict(report), "rows": report.rows}))
    else:
        say(f"{counted(report.rows, 'row')} of {tenant} deleted; nothing is left, and the removal is closed.")


PRIVACY_COMMANDS: Final = (erase_subject, export_subject, remove_tenant)
"""What is done for a person's or a tenant's privacy."""
