"""Run the benchmarks on an embedded server with default settings: python -m benchmarks [append-1 …].

`instructions` counts instead, under valgrind: PostgreSQL 18 and, where it is installed, 15.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import suppress

from sqlalchemy import make_url

from benchmarks import instructions
from benchmarks.databases import databases
from benchmarks.report import document, machine, table
from benchmarks.scale import FULL, LONG, Scale
from benchmarks.suite import SUITE
from selene_core.local import LocalServerUnavailable, local_server
from selene_core.local.binaries import find_binaries

INSTRUCTIONS = "instructions"


def main() -> None:
    """Run what the command line names, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{INSTRUCTIONS}, or some of {', '.join(SUITE)}; without any, all of these",
    )
    parser.add_argument("--long", action="store_true", help="let growth go on to 100,000 orders")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUITE) - {INSTRUCTIONS}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    version = os.environ.get("SELENE_TEST_PG")
    if INSTRUCTIONS in options.names:
        if len(options.names) > 1:
            parser.error(f"{INSTRUCTIONS} runs alone")
        _count([int(version)] if version else [18, 15], as_json=options.json)
    else:
        _time(options.names or list(SUITE), version, LONG if options.long else FULL, as_json=options.json)


def _count(wanted: list[int], *, as_json: bool) -> None:
    versions = []
    for version in wanted:
        with suppress(LocalServerUnavailable):
            versions.append(find_binaries(version).version)
    try:
        counts = instructions.count(versions)
    except instructions.NoValgrind as exc:
        sys.exit(str(exc))
    if as_json:
        found = {each.name: each.instructions for each in counts}
        print(json.dumps({"machine": machine(), "instructions": found}, indent=2))
    else:
        print(f"Million instructions of an event or call, by PostgreSQL's version; {machine()}.\n")
        print(instructions.table(counts))


def _time(names: list[str], version: str | None, scale: Scale, *, as_json: bool) -> None:
    results = []
    with local_server(version=int(version) if version else None, durable=True) as server:
        with server.connect() as conn:
            release = conn.info.parameter_status("server_version")
        with databases(make_url(server.admin_url)) as places:
            for name in names:
                start = time.monotonic()
                results += SUITE[name](places, scale)
                print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    about = f"PostgreSQL {release}, default settings"
    if as_json:
        print(json.dumps(document(about, results), indent=2))
    else:
        print(f"{about}; {machine()}.")
        print("Medians; the ratio says how many times faster (memory: smaller) ours is.\n")
        print(table(results))


if __name__ == "__main__":
    main()
