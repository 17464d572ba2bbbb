"""Run the benchmarks on an embedded server with default settings: python -m benchmarks [append-1 …].

`instructions` counts instead, under valgrind: PostgreSQL 18 and, where it is installed, 15. `growth` loads up
to 10 million events, and measures at each step; its server has a quarter of the machine's memory for buffers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace

from sqlalchemy import make_url

from benchmarks import growth, instructions, page
from benchmarks.databases import databases
from benchmarks.report import document, machine, table
from benchmarks.scale import FULL, LONG, Scale
from benchmarks.suite import SUITE
from selene_core.local import LocalServerUnavailable, local_server
from selene_core.local.binaries import find_binaries

INSTRUCTIONS, GROWTH = "instructions", "growth"


def main() -> None:
    """Run what the command line names, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{INSTRUCTIONS}, {GROWTH}, or some of {', '.join(SUITE)}; without any, all of these",
    )
    parser.add_argument("--long", action="store_true", help="let session go on to 100,000 orders")
    parser.add_argument("--to", type=int, metavar="EVENTS", help="end growth at so many events")
    parser.add_argument("--write", action="store_true", help=f"write {INSTRUCTIONS} or {GROWTH} into docs/")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUITE) - {INSTRUCTIONS, GROWTH}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    version = os.environ.get("SELENE_TEST_PG")
    if {INSTRUCTIONS, GROWTH} & set(options.names):
        if len(options.names) > 1:
            parser.error(f"{INSTRUCTIONS} and {GROWTH} run alone")
        if GROWTH in options.names:
            _grow(version, options.to, as_json=options.json, write=options.write)
        else:
            _count([int(version)] if version else [18, 15], as_json=options.json, write=options.write)
    else:
        _time(options.names or list(SUITE), version, LONG if options.long else FULL, as_json=options.json)


def _grow(version: str | None, to: int | None, *, as_json: bool, write: bool) -> None:
    steps = [events for events in FULL.growth_steps if to is None or events <= to]
    scale = replace(FULL, growth_steps=tuple(steps))
    found = []
    with (
        local_server(
            version=int(version) if version else None, settings=growth.SETTINGS, durable=True
        ) as server,
        databases(make_url(server.admin_url)) as places,
    ):
        for step in growth.grow(places, scale, server.restart):
            found.append(step)
            print(growth.table([step]), file=sys.stderr, flush=True)
    settings = ", ".join(f"{name} {value}" for name, value in growth.SETTINGS.items())
    laid_out = f"PostgreSQL {server.version}, {settings}; {page.where()}.\n\n{growth.table(found)}"
    if as_json:
        print(json.dumps({"where": page.where(), "steps": [asdict(step) for step in found]}, indent=2))
    else:
        print(laid_out)
    if write:
        page.write(GROWTH, laid_out, growth.picture(found))


def _count(wanted: list[int], *, as_json: bool, write: bool) -> None:
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
    if write:
        about = f"Million instructions of an event or call, by PostgreSQL's version; {page.where()}."
        page.write(INSTRUCTIONS, f"{about}\n\n```text\n{instructions.table(counts)}\n```")


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
