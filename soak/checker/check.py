"""All checks of a round: the tables by themselves, and against the histories of the clients."""

from collections.abc import Iterable, Iterator
from typing import Any

import psycopg

from soak.checker.answers import OrderAnswers, by_order, check_torn, check_writes
from soak.checker.finding import Finding
from soak.checker.orders import check_order
from soak.checker.reads import check_not_found, check_reads
from soak.checker.tables import Order, Tables
from soak.checker.turns import check_turns
from soak.checker.workers import check_attempts, check_leases, check_tokens
from soak.history import Call, Transaction

# What a client may be told besides our own refusals, and why.
EXPECTED_ERRORS = {
    "40001": "serialization: another writer was first",
    "40P01": "a deadlock: some transactions of several calls lock orders in no sequence",
    "57014": "a statement timeout, or a cancel by the nemesis",
    "55P03": "a lock timeout",
    "53100": "the disk is full",
    "53200": "no memory, as a full disk may look",
    "53300": "too many connections",
    "58030": "the disk is full",
    "42883": "a function of a revision that is not there yet",
    "42P01": "a table of a revision that is not there yet",
    "3F000": "a schema of a revision that is not there yet",
    "25P02": "a transaction that an error has ended already",
}
# Our own that mean damage, or a caller's mistake that these clients do not make.
NEVER = {"SL002": "a second tenant", "SL003": "an UPDATE of a ledger", "SL017": "a damaged projection"}


def check(tables: Tables, history: Iterable[Transaction] | None) -> Iterator[Finding]:
    """Find all that must not be; without a history, in the tables alone."""
    for (tenant, name), order in tables.orders.items():
        yield from check_order(tenant, name, order)
    if history is None:
        return
    transactions = [*history]
    answers = by_order(tables, transactions)
    for place in tables.orders.keys() - answers.keys():
        answers[place] = OrderAnswers(place, tables.orders[place])
    for each in answers.values():
        yield from _order_answers(each)
    yield from check_torn(transactions, answers)
    yield from check_turns(tables, transactions)
    yield from check_errors(transactions)


def _order_answers(answers: OrderAnswers) -> Iterator[Finding]:
    for look in (check_writes, check_leases, check_tokens, check_attempts, check_reads, check_not_found):
        for kind, what, calls in look(answers):
            yield Finding(kind, *answers.place, what, tuple(call.name for call in calls))


def check_one(place: tuple[str, str], order: Order, history: Iterable[Transaction]) -> Iterator[Finding]:
    """Find what is wrong with one order, given what concerns it."""
    tables = Tables()
    tables.orders[place] = order
    yield from check(tables, history)


def check_verify(conn: psycopg.Connection[Any], tenants: Iterable[str]) -> Iterator[Finding]:
    """Compare what the database's own verify says with what we have found: nothing."""
    for tenant in tenants:
        query = "SELECT work_order_id, problem FROM os_core.verify_work_orders(%s)"
        for order, problem in conn.execute(query.encode(), [tenant]).fetchall():
            yield Finding("fold", tenant, order, f"verify says: {problem}")


def check_errors(history: Iterable[Transaction]) -> Iterator[Finding]:
    """Every error is one that the clients brought about, or the nemesis."""
    for transaction in history:
        for call in transaction.calls:
            if call.sqlstate is not None and not _is_expected(call.sqlstate):
                yield Finding(
                    "error", transaction.tenant, call.op, f"{call.sqlstate} {_says(call)}", (call.name,)
                )


def _is_expected(sqlstate: str) -> bool:
    return sqlstate in EXPECTED_ERRORS or (sqlstate.startswith("SL") and sqlstate not in NEVER)


def _says(call: Call) -> str:
    return next(
        (str(r.get("says")) for r in call.transaction.records if r.get("s") == call.step and "says" in r), ""
    )
