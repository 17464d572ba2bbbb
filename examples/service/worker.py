"""The worker: carry the orders out, one after the other.

python -m examples.service.worker acme globex --tickets /var/lib/tickets
"""

# --- the worker
import argparse
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine

from examples.service.logs import log_as_json
from selene_core import (
    AttemptConflict,
    AttemptOutcome,
    InvalidTransition,
    LeaseHold,
    LeaseLost,
    LeaseRepository,
    RetryAction,
    StepAttemptRepository,
    WorkOrder,
    WorkOrderRepository,
    WorkOrderStatus,
    check_schema,
    create_selene_engine,
    hold_lease,
    run_in_tenant,
)

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """Who works, for which tenant, and within which times."""

    engine: Engine
    tenant_id: str
    name: str
    tickets: Path
    ttl_ms: int = 30_000
    timeout_ms: int = 60_000
    retry_backoff_ms: int = 1_000

    def run_in_tenant(self, work: Callable[[Connection], T]) -> T:
        """Return what the work returns. Each write has a key or a token, so it may be repeated."""
        return run_in_tenant(self.engine, self.tenant_id, work, retry_unknown=True)


# --- a step
def run_step(
    worker: Worker, order: WorkOrder, hold: LeaseHold, step: str, work: Callable[[], None]
) -> RetryAction:
    """Make one attempt at a step; return what follows."""
    lease = hold.lease
    key = f"{step}-{lease.fence}"
    try:
        attempt = worker.run_in_tenant(
            lambda conn: StepAttemptRepository(conn).start(
                order.work_order_id,
                step,
                timeout_ms=worker.timeout_ms,
                max_retries=3,
                retry_backoff_ms=worker.retry_backoff_ms,
                idempotency_key=key,
                lease_token=lease.token,
            )
        )
    except AttemptConflict as conflict:
        if conflict.reason == "SUCCEEDED":
            return RetryAction.DONE  # by a worker before this one, who died then
        raise
    outcome, reason_code, retryable = AttemptOutcome.SUCCEEDED, 1, False
    try:
        work()
    except (OSError, ValueError) as failure:
        log.warning("step %s of work order %s: %s", step, order.work_order_id, type(failure).__name__)
        # What the other system cannot do now, it may do later. What it can never do, a person must look at.
        outcome, reason_code, retryable = AttemptOutcome.FAILED, 9, isinstance(failure, OSError)
    return worker.run_in_tenant(
        lambda conn: StepAttemptRepository(conn).finish(
            attempt.step_attempt_id,
            outcome=outcome,
            reason_code=reason_code,
            retryable=retryable,
            lease_token=lease.token,
            idempotency_key=f"{key}-over",
        )
    ).action


# --- an order
def work_on(worker: Worker, order: WorkOrder, hold: LeaseHold) -> None:
    """Do the steps of an order; end it after the last one."""
    action = run_step(worker, order, hold, "book", lambda: book(worker, order, hold))
    if action is RetryAction.DONE:
        end(worker, order, hold, WorkOrderStatus.DONE)
    elif action is RetryAction.FAIL:
        end(worker, order, hold, WorkOrderStatus.FAILED)


def end(worker: Worker, order: WorkOrder, hold: LeaseHold, status: WorkOrderStatus) -> None:
    """End an order: done or failed."""
    worker.run_in_tenant(
        lambda conn: WorkOrderRepository(conn).change_status(
            order.work_order_id, status, idempotency_key="end", lease_token=hold.lease.token
        )
    )


# --- finding work
def work_on_next(worker: Worker) -> bool:
    """Work on the next order; return False if there is none."""
    token = secrets.token_urlsafe(32)  # the same for each attempt: a repeated claim is the same claim
    claim = worker.run_in_tenant(
        lambda conn: LeaseRepository(conn).claim(worker.name, ttl_ms=worker.ttl_ms, token=token)
    )
    if claim is None:
        return False
    order_id = claim.work_order.work_order_id
    try:
        with hold_lease(
            worker.engine, worker.tenant_id, order_id, worker.name, ttl_ms=worker.ttl_ms, token=token
        ) as hold:
            work_on(worker, claim.work_order, hold)
    except LeaseLost:
        pass  # the log has it; somebody else goes on
    except InvalidTransition:
        log.info("work order %s has ended", order_id)  # somebody has canceled it
    return True


def run(workers: list[Worker], stop: Event) -> None:
    """Work for each tenant in turn, until told to stop."""
    while not stop.is_set():
        found = False
        for worker in workers:
            try:
                found |= work_on_next(worker)
            except Exception:  # whatever it was: the next order may go well
                log.exception("tenant %s", worker.tenant_id)
        if not found:
            stop.wait(1)


# --- another system
def book(worker: Worker, order: WorkOrder, hold: LeaseHold) -> None:
    """Write the ticket, unless a later holder of the lease has written it."""
    folder = worker.tickets / quote(worker.tenant_id, safe="")
    folder.mkdir(exist_ok=True)
    ticket = folder / f"{quote(order.work_order_id, safe='')}.json"
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ticket.exists() and json.loads(ticket.read_text())["fence"] > hold.lease.fence:
            raise LeaseLost(work_order_id=order.work_order_id)
        new = ticket.with_suffix(".new")
        new.write_text(json.dumps({"trip": order.fields_json, "fence": hold.lease.fence}))
        new.replace(ticket)


# --- the program
def main() -> None:
    """Work until SIGTERM or SIGINT; the order under way is finished."""
    parser = argparse.ArgumentParser(description="Carry out the orders of some tenants.")
    parser.add_argument("tenants", nargs="+")
    parser.add_argument("--tickets", type=Path, required=True, help="the folder for the tickets")
    parser.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}")
    parser.add_argument(
        "--ttl-ms", type=int, default=30_000, help="after this time a dead worker is replaced"
    )
    parser.add_argument(
        "--timeout-ms", type=int, default=60_000, help="the longest time that a step may take"
    )
    given = parser.parse_args()
    log_as_json()
    engine = create_selene_engine(os.environ["SELENE_DATABASE_URL"])
    check_schema(engine)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    times = {"ttl_ms": given.ttl_ms, "timeout_ms": given.timeout_ms}
    run([Worker(engine, tenant, given.name, given.tickets, **times) for tenant in given.tenants], stop)
    engine.dispose()


if __name__ == "__main__":
    main()
