"""What a run says: a line for each round, a table at the end, and everything about what it found."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak.checker.cut import cut, save, show
from soak.checker.finding import KINDS, Finding
from soak.checker.tables import Order, Tables
from soak.history import Transaction

SHOWN, LINES = 5, 60


@dataclass(slots=True)
class Figures:
    """What a run has done and seen."""

    seconds: float = 0
    rounds: int = 0
    kills: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)

    def add(self, tables: Tables, history: Iterable[Transaction], found: Iterable[Finding]) -> None:
        """Take in a round."""
        self.rounds += 1
        for transaction in history:
            self.counts["transactions"] += 1
            for call in transaction.calls:
                self.counts[f"calls {call.fate}"] += 1
                self.calls[call.op] += call.fate == "acknowledged"
                if call.sqlstate is not None:
                    self.refusals[call.sqlstate] += 1
        self.counts["work orders"] += len(tables.orders)
        self.counts["events"] += sum(len(order.ledger) for order in tables.orders.values())
        self.counts["leases"] += sum(len(order.leases) for order in tables.orders.values())
        self.counts["attempts"] += sum(len(order.attempts) for order in tables.orders.values())
        self.counts["turns"] += sum(map(len, tables.turns.values()))
        self.found.update(finding.kind for finding in found)

    def lines(self) -> list[str]:
        """Say it."""
        return [
            f"{self.seconds:.0f} s, {self.rounds} rounds, {self.kills:,} kills",
            *(f"{number:>9,} {what}" for what, number in self.counts.items()),
            "the nemesis:",
            *(f"{number:>9,} {what}" for what, number in self.deeds.most_common()),
            "calls acknowledged: " + ", ".join(f"{op} {n:,}" for op, n in self.calls.most_common()),
            "calls refused, by SQLSTATE: " + ", ".join(f"{c} {n:,}" for c, n in self.refusals.most_common()),
            "found:",
            *(f"{self.found[kind]:>9,} {kind}: {what}" for kind, what in KINDS.items()),
        ]


def explain(
    found: Sequence[Finding], tables: Tables, history: Sequence[Transaction], folder: Path, again: str
) -> list[str]:
    """Say what was found: the first of each kind with its shortest history, and how to run it again."""
    lines: list[str] = []
    first = {finding.kind: finding for finding in reversed(found)}
    for number, finding in enumerate([*first.values()][:SHOWN], start=1):
        order = tables.orders.get((finding.tenant, finding.subject)) or Order()
        kept = cut(finding, tables, history)
        path = folder / f"finding-{number}.json"
        save(path, finding, order, kept)
        lines += [
            "",
            f"FOUND {finding}",
            f"  its meaning: {KINDS[finding.kind]}",
            "  the shortest history of it:",
        ]
        lines += [*show(kept)][:LINES] or ["  none is needed: the rows show it"]
        lines += [f"  the order's events: {len(order.ledger)}", *_timeline(order)[-LINES:]]
        lines += [f"  check it again, without a server: python -m soak --again {path}"]
    lines += ["", f"{len(found)} findings; the histories are in {folder}", f"run it again: {again}"]
    return lines


def _timeline(order: Order) -> list[str]:
    return [
        f"  seq {event['work_order_seq']} id {event['work_order_event_id']} {event['created_at']:%H:%M:%S.%f}"
        f" {event['event_type']} {event['work_order_status']} reason {event['reason_code']}"
        f" key {event['idempotency_key']} {json.dumps(event['payload'], default=str)}"
        for event in order.ledger
    ]
