"""Count the processor's instructions of a call, on a server in single-user mode under callgrind.

Counts repeat to 0.1 % where times do not. A call's count is the slope between two run lengths, so neither the
server's start nor the first plans are in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg.sql import Literal
from sqlalchemy import make_url

from benchmarks import bare
from benchmarks.calls import CASES
from benchmarks.databases import databases
from benchmarks.events import append_all, batches
from selene_core.local import LocalServer, local_server, private_folder, server_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.calls import Case

# Past the sixth call every plan is the generic one.
_SHORT, _LONG = 8, 24
# The seconds of a bucket of os_core.work_orders_current.updated_bucket (contract section 2).
_BUCKET: Final = 300
_SETTINGS: Final = {
    "autovacuum": "off",
    "jit": "off",
    "log_error_verbosity": "verbose",
    "log_min_error_statement": "panic",
}
_PREPARED: Final = (
    "PREPARE append(text, jsonb) AS SELECT * FROM os_core.append_work_order_events($1, $2)",
    bare.PREPARE_SET_FIELD,
)


@dataclass(frozen=True, slots=True)
class Count:
    """The instructions of one event or call, by major version of the server."""

    name: str
    instructions: dict[int, float]
    goal: float | None

    @property
    def ratio(self) -> float | None:
        """How many times those of the newest version the oldest one needs; None if there is one version."""
        oldest, newest = min(self.instructions), max(self.instructions)
        return None if oldest == newest else self.instructions[oldest] / self.instructions[newest]


class NoValgrind(Exception):
    """There is no valgrind."""


def count(versions: Sequence[int], names: Sequence[str] = (), *, workers: int | None = None) -> list[Count]:
    """Count the cases of these names, or all, on each version; raises NoValgrind."""
    if shutil.which("valgrind") is None:
        raise NoValgrind("valgrind is not installed (Debian: apt-get install valgrind)")
    cases = [case for case in CASES if not names or case.name in names]
    found = {version: _count_on(version, cases, workers or os.cpu_count() or 1) for version in versions}
    return [
        Count(case.name, {version: found[version][place] for version in versions}, case.goal)
        for place, case in enumerate(cases)
    ]


def _count_on(version: int, cases: Sequence[Case], workers: int) -> list[float]:
    with (
        local_server(version=version, settings=_SETTINGS) as server,
        databases(make_url(server.admin_url)) as places,
        places.new() as database,
    ):
        with database.app() as app, database.admin() as admin:
            # The orders of all cases, so that a count does not depend on which others are asked for.
            events = [item for case in CASES for n in range(_LONG) for item in case.events_before(n)]
            append_all(app, batches(events, 500))
            # In an earlier bucket, whenever the count begins.
            admin.execute(
                "UPDATE os_core.work_orders_current SET updated_bucket = updated_bucket - interval '1 hour'"
            )
            bare.copy_tables(admin, database.app_url.username or "")
            admin.execute("VACUUM ANALYZE")
        server.stop()
        try:
            run = _Runs(server, database.app_url.database or "", database.app_url.username or "")
            with ThreadPoolExecutor(workers) as pool:
                jobs = [[pool.submit(run, case, length) for length in (_SHORT, _LONG)] for case in cases]
                slopes = [(long.result() - short.result()) / (_LONG - _SHORT) for short, long in jobs]
        finally:
            server.start()  # so that the databases can be dropped
    return [slope / case.events_in_call for slope, case in zip(slopes, cases, strict=True)]


class _Runs:
    """Runs on copies of a stopped server's data."""

    def __init__(self, server: LocalServer, database: str, login: str) -> None:
        self._server, self._database, self._login = server, database, login

    def __call__(self, case: Case, length: int) -> int:
        """Run a case so many times, and count the instructions of the whole server."""
        # What is said before is the same for each length, so it falls out of the slope.
        calls = [*case.statements_before(_LONG), *(case.call(n) for n in range(length))]
        session = f"SET SESSION AUTHORIZATION {Literal(self._login).as_string()}"
        while True:
            bucket = time.time() // _BUCKET
            told = self._single_user([session, *_PREPARED, *calls])
            if bucket == time.time() // _BUCKET:
                break  # else some of the orders have crossed their bucket meanwhile
        errors = re.findall(r"ERROR:  (\w{5}): (.*)", told)
        if [code for code, _ in errors] != [case.refusal] * (length if case.refusal else 0):
            raise RuntimeError(f"{case.name}: {case.refusal or 'no refusal'} expected, not {errors[:1]}")
        return int(re.findall(r"Collected : (\d+)", told)[0])

    def _single_user(self, statements: Sequence[str]) -> str:
        user = server_user()
        folder = private_folder(user)
        try:
            shutil.copytree(self._server.data_directory, folder / "data")
            if user is not None:
                for place in (folder / "data", *(folder / "data").rglob("*")):
                    os.chown(place, user.pw_uid, user.pw_gid)
            settings = [f"-c{name}={value}" for name, value in {**_SETTINGS, "fsync": "off"}.items()]
            program = [f"{self._server.binaries}/postgres", "--single", "-D", f"{folder}/data", *settings]
            valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/calls"]
            done: subprocess.CompletedProcess[str] = subprocess.run(
                [*valgrind, *program, self._database],
                input="".join(" ".join(statement.split()) + "\n" for statement in statements),
                capture_output=True,
                text=True,
                check=False,
                cwd=folder,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "TZ": "UTC", "LC_ALL": "C"},
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=[] if user else None,
            )
        finally:
            shutil.rmtree(folder)
        if done.returncode != 0:
            raise RuntimeError(f"the server in single-user mode failed: {done.stderr[-1000:]}")
        return done.stderr


def table(counts: Sequence[Count]) -> str:
    """Lay the counts out in millions, a column for each version."""
    versions = sorted(counts[0].instructions) if counts else []
    lines = [f"{'':<38}" + "".join(f"{version:>9}" for version in versions) + "    ratio     goal"]
    for each in counts:
        cells = "".join(f"{each.instructions[version] / 1e6:9.3f}" for version in versions)
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        goal = "" if each.goal is None else f"{each.goal / 1e6:.2f}"
        verdict = "" if each.goal is None or each.instructions[versions[-1]] <= each.goal else "above"
        lines.append(f"{each.name:<38}{cells}{ratio:>9}{goal:>9} {verdict}".rstrip())
    return "\n".join(lines)
