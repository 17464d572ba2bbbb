"""Make seals of a tenant's ledger, and hold the ledger against them (contract §17)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click
from sqlalchemy import text

from selene_core.cli.seal_files import (
    NotASeal,
    Seal,
    SealFile,
    read_seal,
    seals_in,
    shown,
    write_seal,
)
from selene_core.contract.events import rfc3339
from selene_core.store.feed import alone, give_all_positions
from selene_core.store.feed_statements import LAST_POSITION
from selene_core.store.scope import tenant_scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from sqlalchemy import Connection, Engine

    Progress: TypeAlias = Callable[[int, int], object]

MAX_POSITIONS: Final = 100_000
"""How many positions of the feed one seal covers: more are sealed by several, so that memory stays flat."""

_HEADS_AT_ONCE: Final = 2_000
_PATIENCE: Final = 60.0  # seconds

_NOW: Final = text("SELECT clock_timestamp()")
_HEADS: Final = text("""
  SELECT DISTINCT ON (ledger.work_order_id) ledger.work_order_id, ledger.work_order_seq, ledger.event_hash
  FROM os_core.work_order_feed AS feed
  JOIN os_core.work_order_ledger AS ledger
    ON ledger.tenant_id = :tenant_id AND ledger.work_order_event_id = feed.work_order_event_id
  WHERE feed.tenant_id = :tenant_id AND feed.feed_position > :after AND feed.feed_position <= :to
  ORDER BY ledger.work_order_id, ledger.work_order_seq DESC
""")
_DIFFERING: Final = text("""
  SELECT head.work_order_id, head.work_order_seq, ledger.event_hash, last.work_order_seq, first.created_at
  FROM unnest(CAST(:orders AS text[]), CAST(:seqs AS bigint[]), CAST(:hashes AS text[]))
    AS head (work_order_id, work_order_seq, event_hash)
  LEFT JOIN os_core.work_order_ledger AS ledger
    ON ledger.tenant_id = :tenant_id
      AND ledger.work_order_id = head.work_order_id
      AND ledger.work_order_seq = head.work_order_seq
  LEFT JOIN LATERAL (
    SELECT event.work_order_seq
    FROM os_core.work_order_ledger AS event
    WHERE event.tenant_id = :tenant_id AND event.work_order_id = head.work_order_id
    ORDER BY event.work_order_seq DESC
    LIMIT 1
  ) AS last ON TRUE
  LEFT JOIN os_core.work_order_ledger AS first
    ON first.tenant_id = :tenant_id AND first.work_order_id = head.work_order_id AND first.work_order_seq = 1
  WHERE ledger.event_hash IS DISTINCT FROM decode(head.event_hash, 'hex')
  ORDER BY head.work_order_id
""")
_REMOVED_AT: Final = text("SELECT max(recorded_at) FROM os_core.tenant_removals WHERE tenant_id = :tenant_id")


@dataclass(frozen=True, slots=True)
class SealProblem:
    """A seal that is not what it should be, or is not there."""

    seal: int
    problem: str


@dataclass(frozen=True, slots=True)
class OrderProblem:
    """A work order that is not what a seal says it was at an event."""

    work_order_id: str
    work_order_seq: int
    seal: int
    problem: str


@dataclass(slots=True)
class SealReport:
    """What a check has found: how many seals and heads it looked at, and what does not hold.

    `removed` are the work orders that went with the tenant, by the record of its removal.
    """

    seals: int = 0
    heads: int = 0
    last_number: int = 0
    sealed_to: int = 0
    not_sealed: int = 0
    seal_problems: list[SealProblem] = field(default_factory=list)
    order_problems: list[OrderProblem] = field(default_factory=list)
    removed_at: datetime | None = None
    removed: list[OrderProblem] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether every seal and every head holds."""
        return not (self.seal_problems or self.order_problems)


def make_seals(
    engine: Engine, tenant_id: str, key: Ed25519PrivateKey, folder: Path, progress: Progress | None = None
) -> list[Seal]:
    """Seal what has happened since the folder's last seal; return the new seals, none if nothing has.

    What is committed before the call is sealed. What comes meanwhile is left for the next call, or a busy
    tenant's call would never end. `progress` is called with the positions sealed so far, and with how many
    there are.
    """
    end = _give_positions(engine, tenant_id)
    made: list[Seal] = []
    begin = None
    while (seal := _next_seal(engine, tenant_id, shown(key.public_key()), folder, end)) is not None:
        begin = seal.after if begin is None else begin
        try:
            write_seal(folder, seal, key)
        except FileExistsError:
            continue  # another run was faster: go on after its seal
        made.append(seal)
        if progress is not None:
            progress(seal.to - begin, end - begin)
    return made


def _give_positions(engine: Engine, tenant_id: str) -> int:
    """Give every event that is committed by now its position; return the last one."""
    if not alone(engine, lambda conn: give_all_positions(conn, tenant_id, _PATIENCE)):
        raise click.ClickException(f"another session has been at the feed of {tenant_id} for a minute")
    with tenant_scope(engine, tenant_id) as conn:
        end: int = conn.scalar(LAST_POSITION, {"tenant_id": tenant_id}) or 0
    return end


def _next_seal(engine: Engine, tenant_id: str, key: str, folder: Path, end: int) -> Seal | None:
    """Compose the seal that follows the last one of the folder, up to a position; None if there is none."""
    number, after, previous = 1, 0, None
    if files := seals_in(folder):
        last = _last_seal(*files.popitem(), tenant_id, key)
        number, after, previous = last.seal.number + 1, last.seal.to, last.digest
    with tenant_scope(engine, tenant_id) as conn:
        stands = conn.scalar(LAST_POSITION, {"tenant_id": tenant_id}) or 0
        if stands < after:
            raise click.ClickException(
                f"the last seal reaches position {after} of the feed, which ends at {stands}:"
                " was an older database restored? Let check-seals name what is lost"
            )
        if end <= after:
            return None
        to = min(end, after + MAX_POSITIONS)
        rows = conn.execute(_HEADS, {"tenant_id": tenant_id, "after": after, "to": to})
        heads = tuple((order, seq, event_hash.hex()) for order, seq, event_hash in rows)
        now: datetime = conn.execute(_NOW).scalar_one()
    return Seal(number, tenant_id, rfc3339(now), key, previous, after, to, heads)


def _last_seal(number: int, path: Path, tenant_id: str, key: str) -> SealFile:
    """Read the seal that the next one follows; refuse what check-seals would name."""
    try:
        last = read_seal(path)
    except NotASeal as exc:
        raise click.ClickException(f"{path} {exc}") from exc
    if (problem := _misplaced(last.seal, number, tenant_id, key)) is not None:
        raise click.ClickException(
            f"{path} {problem}: seals of another tenant or key need a folder of their own"
        )
    return last


def _misplaced(seal: Seal, number: int, tenant_id: str, key: str) -> str | None:
    if seal.key != key:
        return "is signed by another key"
    if seal.tenant_id != tenant_id:
        return f"is of tenant {seal.tenant_id}"
    if seal.number != number:
        return f"is seal {seal.number} under another name"
    return None


# --- check


def check_seals(
    engine: Engine,
    tenant_id: str,
    key: str,
    files: dict[int, Path],
    newest: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> SealReport:
    """Hold the ledger against seals, by number and in order, and each seal against the one before.

    `newest` is the number of the newest seal, as it was noted elsewhere. `progress` is called with the number
    of seals so far.
    """
    report = SealReport()
    before: SealFile | None = None
    is_whole = True
    with tenant_scope(engine, tenant_id) as conn:
        report.removed_at = conn.scalar(_REMOVED_AT, {"tenant_id": tenant_id})
        for number, path in files.items():
            _note_left_out(report, report.last_number + 1, number - 1)
            found = _sound_seal(report, number, path, tenant_id, key)
            if found is not None:
                _check_sequel(report, found.seal, before)
                is_whole &= _check_heads(report, conn, found.seal)
                report.sealed_to = found.seal.to
            before, report.last_number = found, number
            report.seals += 1
            if progress is not None:
                progress(report.seals)
        _note_left_out(report, report.last_number + 1, max(newest or 1, 1))
        end = conn.scalar(LAST_POSITION, {"tenant_id": tenant_id}) or 0
    report.not_sealed = max(0, end - report.sealed_to)
    if not is_whole:
        report.order_problems += report.removed
        report.removed.clear()
    return report


def _sound_seal(report: SealReport, number: int, path: Path, tenant_id: str, key: str) -> SealFile | None:
    """Read a seal that the key has signed for the tenant; note what is wrong with it otherwise."""
    try:
        found = read_seal(path)
        problem = _misplaced(found.seal, number, tenant_id, key)
    except NotASeal as exc:
        problem = str(exc)
    if problem is not None:
        report.seal_problems.append(SealProblem(number, f"seal {number} {problem}"))
        return None
    return found


def _check_sequel(report: SealReport, seal: Seal, before: SealFile | None) -> None:
    """Hold a seal against the one before it, where that is sound."""
    if seal.number == 1:
        follows, told = seal.previous is None and seal.after == 0, "is not the first of its tenant"
    elif before is None or before.seal.number != seal.number - 1:
        return  # that is named already
    else:
        follows = seal.previous == before.digest and seal.after == before.seal.to
        told = "does not follow from the one before: one of the two was made anew"
    if not follows:
        report.seal_problems.append(SealProblem(seal.number, f"seal {seal.number} {told}"))


def _check_heads(report: SealReport, conn: Connection, seal: Seal) -> bool:
    """Look up every head of a seal in the ledger.

    Tell whether the record of a later removal can be true: a removal takes all that was sealed before it.
    """
    report.heads += len(seal.heads)
    named = {each.work_order_id for each in (*report.order_problems, *report.removed)}
    removed_at = report.removed_at
    if removed_at is not None and removed_at < datetime.fromisoformat(seal.sealed_at):
        removed_at = None
    standing = len(seal.heads)
    for start in range(0, len(seal.heads), _HEADS_AT_ONCE):
        orders, seqs, hashes = zip(*seal.heads[start : start + _HEADS_AT_ONCE], strict=True)
        given = {"tenant_id": seal.tenant_id, "orders": [*orders], "seqs": [*seqs], "hashes": [*hashes]}
        for order, seq, found, last, began in conn.execute(_DIFFERING, given):
            standing -= 1
            if order in named:
                continue  # the first seal says best since when
            named.add(order)
            if found is not None:
                problem = "was written anew after it was sealed"
            elif last is None:
                problem = "was deleted"
            elif last < seq:
                problem = f"was cut after event {last}"
            else:
                problem = f"has lost event {seq}"
            is_removed = removed_at is not None and (began is None or began > removed_at)
            problems = report.removed if is_removed else report.order_problems
            problems.append(OrderProblem(order, seq, seal.number, problem))
    return removed_at is None or standing == 0


def _note_left_out(report: SealReport, first: int, last: int) -> None:
    if first <= last:
        told = f"seal {first} is" if first == last else f"seals {first} to {last} are"
        report.seal_problems.append(SealProblem(first, f"{told} left out"))
