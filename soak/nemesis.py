"""The nemesis: it ends clients, backends, the server and its postmaster, fills the disk, and holds locks."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError

from selene_core.migrations import MigrationLocked, MigrationRefused, downgrade, history, upgrade
from soak.place import DATABASE, LOGIN, Place

BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = %s AND usename = %s AND backend_type = 'client backend'"
)
# What counts as a kill: something ended that did not want to.
KILLS = (
    "client killed",
    "backend terminated",
    "backend killed",
    "server stopped at once",
    "postmaster killed",
    "disk filled",
)


class Nemesis:
    """It does one thing after another, by a luck of its own."""

    def __init__(
        self, place: Place, luck: random.Random, kill_client: Callable[[random.Random], bool]
    ) -> None:
        self._place, self._luck, self._kill_client = place, luck, kill_client
        self._revisions = [each.revision for each in history()]
        self._first, self._newest = self._revision(), len(self._revisions) - 1
        self.done: Counter[str] = Counter()

    @property
    def kills(self) -> int:
        """How many things it has ended."""
        return sum(self.done[what] for what in KILLS)

    def strike(self) -> None:
        """Do one thing. The server runs again when it returns, or is about to by itself."""
        with suppress(psycopg.Error):  # the server may still be going, from the strike before
            deed = self._luck.choices([*DEEDS], [*DEEDS.values()])[0]
            if self._revision() < self._newest:
                deed = Nemesis.migrate
            if what := deed(self):
                self.done[what] += 1
        if self._place.server.pid is None:
            self._place.start()

    def kill_client(self) -> str | None:
        """End a client between any two of its instructions."""
        return "client killed" if self._kill_client(self._luck) else None

    def terminate_backend(self) -> str | None:
        """End a session, as an administrator would."""
        return "backend terminated" if self._at_backend("pg_terminate_backend") else None

    def cancel_backend(self) -> str | None:
        """Cancel what a session does."""
        return "call canceled" if self._at_backend("pg_cancel_backend") else None

    def _at_backend(self, function: str) -> bool:
        with self._place.admin() as conn:
            pid = self._backend(conn)
            return pid is not None and conn.execute(f"SELECT {function}(%s)".encode(), [pid]).fetchone() == (
                True,
            )

    def kill_backend(self) -> str | None:
        """Kill a server process: the postmaster then ends all others and recovers."""
        with self._place.admin() as conn:
            pid = self._backend(conn)
        if pid is None:
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return "backend killed"

    def _backend(self, conn: psycopg.Connection[Any]) -> int | None:
        pids = [row[0] for row in conn.execute(BACKENDS.encode(), [DATABASE, LOGIN])]
        return self._luck.choice(pids) if pids else None

    def stop_server(self) -> str:
        """Stop the server at once, as a crash would, and start it again."""
        self._place.server.stop(immediate=True)
        self._place.start()
        return "server stopped at once"

    def restart_server(self) -> str:
        """Restart the server in good order."""
        self._place.server.stop()
        self._place.start()
        return "server restarted"

    def kill_postmaster(self) -> str:
        """Kill the postmaster: its children are on their own until they notice."""
        self._place.kill_postmaster()
        self._place.start()
        return "postmaster killed"

    def fill_disk(self) -> str | None:
        """Leave no byte on the disk for a while."""
        if self._place.disk is None:
            return None
        ballast = self._place.disk / "ballast"
        try:
            with ballast.open("wb") as file:
                free = os.statvfs(self._place.disk)
                os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize))
            time.sleep(self._luck.uniform(0.3, 1.5))  # the clients meet it
        except OSError:
            pass  # somebody else took the last byte
        finally:
            ballast.unlink()
        return "disk filled"

    def hold_locks(self) -> str:
        """Hold rows of orders for longer than a lock timeout."""
        query = (
            "SELECT FROM os_core.work_orders_current ORDER BY created_at DESC LIMIT 3"
            " FOR NO KEY UPDATE SKIP LOCKED"
        )
        with self._place.admin() as conn, conn.transaction():
            conn.execute(query.encode())
            time.sleep(self._luck.uniform(0.05, 0.4))  # others wait for it
        return "rows locked"

    def checkpoint(self) -> str:
        """Write everything out, and clean up."""
        with self._place.admin() as conn:
            conn.execute("CHECKPOINT")
            conn.execute("VACUUM os_core.work_orders_current")
        return "checkpoint and vacuum"

    def migrate(self) -> str:
        """Go up; or down by one, which must be refused where rows would go."""
        stands, newest = self._revision(), self._newest
        down = stands == newest or (stands > self._first and self._luck.random() < 0.3)
        aim = stands - 1 if down else self._luck.choice((newest, min(stands + 2, newest)))
        try:
            if down:
                downgrade(self._place.admin_url, self._revisions[aim])
            else:
                upgrade(self._place.admin_url, self._revisions[aim])
        except MigrationRefused:
            if not down:
                raise
            return "downgrade refused: rows"
        except (MigrationLocked, DBAPIError):
            return "migration ended midway"
        return "downgraded" if down else "upgraded"

    def _revision(self) -> int:
        with self._place.admin() as conn:
            row = conn.execute("SELECT version_num FROM os_core.alembic_version").fetchone()
        return self._revisions.index(row[0] if row else "")


Deed = Callable[[Nemesis], str | None]
DEEDS: Mapping[Deed, float] = {
    Nemesis.kill_client: 16,
    Nemesis.terminate_backend: 10,
    Nemesis.cancel_backend: 4,
    Nemesis.kill_backend: 3,
    Nemesis.stop_server: 2,
    Nemesis.restart_server: 1,
    Nemesis.kill_postmaster: 2,
    Nemesis.fill_disk: 2,
    Nemesis.hold_locks: 4,
    Nemesis.checkpoint: 1,
    Nemesis.migrate: 1,
}
