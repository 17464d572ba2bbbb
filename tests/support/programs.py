"""Programs that the system may have or not: a test says which it needs, by @pytest.mark.needs.

Without the program the test is left out, and the header says so; with CI=true it is run and fails.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import pytest

from selene_core.local.binaries import LocalServerUnavailable, find_binaries


def find_pgbouncer() -> list[str] | None:
    """Find PgBouncer, which Debian puts where not every user's PATH leads."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    return None if program is None else [program]


def find_compose() -> list[str] | None:
    """Find docker compose: the plug-in, else the older program."""
    for command in (["docker", "compose"], ["docker-compose"]):
        with suppress(OSError):
            if subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
                return command
    return None


def find_openssl() -> list[str] | None:
    """Find openssl and perl, which check a seal by hand."""
    found = [shutil.which(program) for program in ("openssl", "perl")]
    return None if None in found else ["openssl"]


def find_server(version: int) -> list[str] | None:
    """Find the programs of a PostgreSQL beside that of the run: the ends of what is supported."""
    try:
        return [str(find_binaries(version).folder / "postgres")]
    except LocalServerUnavailable:
        return None


def find_valgrind() -> list[str] | None:
    """Find valgrind, which counts instructions."""
    program = shutil.which("valgrind")
    return None if program is None else [program]


PROGRAMS: Mapping[str, Callable[[], list[str] | None]] = {
    "pgbouncer": find_pgbouncer,
    "docker compose": find_compose,
    "openssl": find_openssl,
    "valgrind": find_valgrind,
    "PostgreSQL 15": partial(find_server, 15),
    "PostgreSQL 18": partial(find_server, 18),
}


def missing() -> list[str]:
    """Return the programs for whose lack tests are left out."""
    return [] if os.environ.get("CI") == "true" else [name for name, find in PROGRAMS.items() if not find()]


def no_cluster() -> list[str]:
    """Return the cluster if none is given: its tests are left out, with CI=true too."""
    return [] if os.environ.get("SELENE_TEST_CITUS") else ["Citus"]


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a missing program, or a cluster."""
    lacking = missing() + no_cluster()

    def lacks(item: pytest.Item) -> bool:
        return any(mark.args[0] in lacking for mark in item.iter_markers("needs"))

    left_out = [item for item in items if lacks(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not lacks(item)]
