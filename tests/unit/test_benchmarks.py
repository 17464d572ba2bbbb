"""The benchmarks run: with tiny counts, and whatever the speed."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import growth, history, instructions, page, plot
from benchmarks.databases import Databases, databases
from benchmarks.events import TENANT, append_all, batches, life, orders
from benchmarks.replay import fold_ledger
from benchmarks.report import table
from benchmarks.scale import TINY
from benchmarks.suite import SUITE
from selene_core import WorkOrderRepository, tenant_scope
from selene_core.local.binaries import find_binaries
from tests.support.servers import Server


@pytest.fixture(scope="module")
def places(server: Server) -> Iterator[Databases]:
    """Return where the benchmarks make their databases."""
    with databases(server.admin_url()) as places:
        yield places


@pytest.mark.parametrize("name", SUITE)
def test_benchmark__runs(name: str, places: Databases) -> None:
    results = SUITE[name](places, TINY)
    assert results
    assert {result.benchmark for result in results} == {name}
    assert all(result.ratio >= 0 for result in results)
    assert max(len(line) for line in table(results).splitlines()) <= 100


def test_python_fold__agrees_with_the_database(places: Databases) -> None:
    (order,) = orders("fold", 1)
    with places.new() as database, database.app() as app, database.admin() as admin:
        append_all(app, batches(life(order), 10))
        (state,) = fold_ledger(app, TENANT, "x")
        query = "SELECT to_jsonb(current) FROM os_core.work_orders_current AS current"
        (held,) = admin.execute(query).fetchone() or ()
        plain = "SELECT to_jsonb(jsonb_populate_record(NULL::os_core.work_orders_current, %s::jsonb))"
        (folded,) = admin.execute(plain, [_json(state)]).fetchone() or ()
        assert folded == held


def _json(state: dict[str, Any]) -> str:
    return json.dumps(state, default=str)


@pytest.mark.slow
@pytest.mark.needs("valgrind")
def test_instructions__are_counted_and_repeat() -> None:
    names = ["FIELD_SET", "refused: leased", "event of a batch: 2 of 2 orders"]
    (version,) = [find_binaries().version]
    first, again = (instructions.count([version], names) for _ in range(2))
    assert [each.name for each in first] == names
    for one, other in zip(first, again, strict=True):
        assert one.instructions[version] == pytest.approx(other.instructions[version], rel=0.01)
    assert "FIELD_SET" in instructions.table(first)


def test_growth__measures_and_draws_each_step(places: Databases) -> None:
    restarts = []
    steps = list(growth.grow(places, TINY, lambda: restarts.append(1)))
    assert [step.events for step in steps] == list(TINY.growth_steps)
    assert len(restarts) == len(steps)
    assert all(step.ledger_bytes > 0 and min(step.ratios.values()) > 0 for step in steps)
    assert len(growth.table(steps).splitlines()) == 2 * (2 + len(steps)) + 1
    root = ElementTree.fromstring(growth.picture(steps))  # noqa: S314 - drawn here
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 5


def test_plot__draws_a_line_for_each_name() -> None:
    drawn = plot.lines("Time & more", "s", [10, 100], {"one": [1, 2], "two": [2, 1]})
    root = ElementTree.fromstring(drawn)  # noqa: S314 - drawn here
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2


def test_history__is_what_a_ledger_of_that_age_would_be(places: Databases) -> None:
    began = datetime(2026, 1, 13, tzinfo=UTC)
    clocks = "SELECT proname FROM pg_proc WHERE prosrc LIKE '%bench_clock%'"
    times = "SELECT created_at FROM os_core.work_order_ledger ORDER BY work_order_event_id"
    with places.new() as database, database.app_engine() as engine, database.admin() as admin:
        loaded = history.load(database, 0, 100, began)
        assert history.load(database, loaded, 200, began) == 2 * loaded == 20
        found = [at for (at,) in admin.execute(times)]
        assert found == [began + timedelta(seconds=n) for n in range(1, len(found) + 1)]
        with tenant_scope(engine, TENANT) as conn:
            repository = WorkOrderRepository(conn)
            assert not repository.verify()
            assert not repository.verify_chain()
            assert len(repository.list_pending()) == 2
        assert not admin.execute(clocks).fetchall()


def test_page__has_the_places_for_what_is_written() -> None:
    text = (page.DOCS / "performance.md").read_text(encoding="utf-8")
    for name in ("instructions", "growth"):
        assert "| new |" in page.put(text, name, "| new |")
    with pytest.raises(LookupError):
        page.put(text, "nothing", "")
