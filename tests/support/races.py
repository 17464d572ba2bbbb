"""Races without luck: watch the server until the other side is where the test wants it."""

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

T = TypeVar("T")
DEADLINE_SECONDS = 60.0


def backend_pid(conn: sa.Connection) -> int:
    """Return the process id of a connection's backend."""
    pid: int = conn.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
    return pid


def wait_until(happened: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """Ask again and again until the answer is true, and return it; fail with `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while not (answer := happened()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} seconds: {what}")
        time.sleep(0.005)  # until the next look
    return answer


def wait_until_blocked(admin_conn: sa.Connection, pid: int, seconds: float = DEADLINE_SECONDS) -> list[int]:
    """Wait until a backend waits for a lock, and return the backends that hold it up."""
    blockers = sa.text("SELECT pg_blocking_pids(:pid)")

    def blocked() -> list[int]:
        pids: list[int] = admin_conn.execute(blockers, {"pid": pid}).scalar_one()
        return pids

    return wait_until(blocked, f"backend {pid} waits for a lock", seconds)


def end_session(admin_engine: sa.Engine, pid: int) -> None:
    """End a backend, and wait until it has ended."""
    with admin_engine.connect() as admin:
        admin.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        wait_until_gone(admin, pid)


def wait_until_gone(admin_conn: sa.Connection, pid: int, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a backend has ended, and its locks with it."""
    forget = sa.text("SELECT pg_stat_clear_snapshot()")  # or else a transaction sees one activity for ever
    alive = sa.text("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")

    def gone() -> bool:
        admin_conn.execute(forget)
        return not admin_conn.execute(alive, {"pid": pid}).scalar_one()

    wait_until(gone, f"backend {pid} ends", seconds)
