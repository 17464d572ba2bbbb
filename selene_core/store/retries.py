"""run_in_tenant: a piece of work in a transaction of its own, again if it met a passing failure."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, event

from selene_core.contract.errors import TenantScopeViolation
from selene_core.contract.events import check_tenant_id
from selene_core.contract.rules import flag, integer
from selene_core.store.binds import checked
from selene_core.store.failures import is_lost, is_retryable, sqlstate_of
from selene_core.store.logs import log_retry
from selene_core.store.scope import driver_status, tenant_scope

T = TypeVar("T")

_ATTEMPTS: Final = integer(1, 100)
_FLAG: Final = flag()
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_COMMITS: Final = re.compile(r"\s*(COMMIT|END|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)
_UNKNOWN: Final = "the connection was lost during the commit: whether it took effect is not known"


def run_in_tenant(
    engine: Engine,
    tenant_id: str,
    work: Callable[[Connection], T],
    attempts: int = 5,
    *,
    retry_unknown: bool = False,
) -> T:
    """Return work(conn), run in a tenant_scope of its own, and again after a passing failure (contract §14).

    At most `attempts` (1..100) times, after a random pause of up to 0.1 s, 0.2 s, 0.4 s and so on, never more
    than 2 s. What is_retryable() names is passing. So is a connection that is lost before the commit was
    sent: then nothing of the transaction stays. If it is lost during the commit, nobody knows; that is
    tried again with `retry_unknown` only. Give True if each write of the work has an idempotency_key that is
    the same each time, or if the work writes nothing.

    Each attempt begins `work` anew, so what it does outside its transaction happens again. If it commits by
    itself, it is not run again. Raises the last error as it is; what tenant_scope raises;
    ContractViolation for invalid arguments; TenantScopeViolation if `work` hides an error that has ended its
    transaction.
    """
    owned: Engine = checked("run_in_tenant", "an Engine", engine, Engine)
    attempting = Attempts(tenant_id, attempts, retry_unknown)
    while True:
        try:
            with tenant_scope(owned, attempting.tenant_id) as conn, attempting.one_on(conn):
                return work(conn)
        except Exception as exc:
            pause = attempting.pause_after(exc)
        time.sleep(pause)


class Attempts:
    """The attempts at one piece of work: what each has reached, and whether another may follow."""

    def __init__(self, tenant_id: str, attempts: int, retry_unknown: bool) -> None:
        self.tenant_id = check_tenant_id(tenant_id)
        self._most = _ATTEMPTS.check("attempts", attempts)
        self._retry_unknown = _FLAG.check("retry_unknown", retry_unknown)
        self._made = 0
        self._begin()

    def _begin(self) -> None:
        self._works = False
        self._failure: Exception | None = None
        self._ended_itself = False
        self._commit_sent = False

    @contextmanager
    def one_on(self, conn: Connection) -> Iterator[None]:
        """Watch the work on the connection of its tenant_scope, and the commit that follows."""
        event.listen(conn, "commit", self._note_commit)
        event.listen(conn, "before_cursor_execute", self._note_statement)
        self._works = True
        try:
            yield
        except Exception as exc:
            # The rollback that comes now may fail in its turn, and hide it.
            self._failure = exc
            raise
        finally:
            self._works = False
        if conn.invalidated or driver_status(conn) is TransactionStatus.INERROR:
            # The server would answer a COMMIT with ROLLBACK, which no driver takes for an error.
            raise TenantScopeViolation(
                "the work hid an error that ended its transaction, and nothing is written:"
                " let the error pass, or try what may fail inside conn.begin_nested()"
            )

    def _note_commit(self, conn: Connection) -> None:
        if self._works:
            self._ended_itself = True
        # On a connection that is known to be dead nothing is sent any more.
        elif driver_status(conn) is not TransactionStatus.UNKNOWN:
            self._commit_sent = True

    def _note_statement(self, conn: Connection, _cursor: object, statement: str, *_more: object) -> None:
        # Who writes COMMIT himself goes past the event; afterwards the connection has no transaction.
        if _COMMITS.match(statement) or driver_status(conn) is TransactionStatus.IDLE:
            self._ended_itself = True

    def pause_after(self, exc: Exception) -> float:
        """Return how many seconds to wait before the next attempt; raises the error if there is none."""
        self._made += 1
        failure = self._failure or exc
        if not self._may_follow(failure) or self._made == self._most:
            if self._commit_sent and is_lost(failure):
                failure.add_note(_UNKNOWN)
            raise failure
        pause = _pause(self._made)
        name, sqlstate = type(failure).__name__, sqlstate_of(failure)
        log_retry(self.tenant_id, name, sqlstate, self._made, self._most, pause)
        self._begin()
        return pause

    def _may_follow(self, failure: Exception) -> bool:
        if self._ended_itself:
            return False
        # Before its commit a transaction has no effect, whatever becomes of its connection.
        return is_retryable(failure, retry_unknown=self._retry_unknown or not self._commit_sent)


def _pause(attempt: int) -> float:
    """Return a random pause, so that those who failed together do not meet again."""
    return random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1)))  # noqa: S311 - no secret
