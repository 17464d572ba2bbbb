"""examples/service: its requests, its worker, and both as programs of their own (contract §14)."""

import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest
import yaml
from fastapi.testclient import TestClient
from sqlalchemy import URL

from examples.service import worker as example
from examples.service.app import app
from examples.service.worker import Worker, work_on_next
from selene_core import (
    LeaseRepository,
    PromptAction,
    WorkOrderEventType,
    WorkOrderStatus,
    create_selene_engine,
    hold_lease,
    tenant_scope,
)
from tests.integration.test_deployment import environment
from tests.integration.test_documents import ROOT, guides_block
from tests.integration.test_tutorial import DOCS, direct_url, examples, url_of
from tests.support.calls import Tenant
from tests.support.races import wait_until
from tests.support.servers import Database

Json = dict[str, Any]
TTL_MS, TIMEOUT_MS = 2_000, 8_000


@pytest.fixture
def client(shared_database: Database, acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Return a client of the application, as alice of the test's tenant."""
    for name, value in url_of(direct_url(shared_database)).items():
        monkeypatch.setenv(name, value)
    with TestClient(app, headers={"x-tenant": acme.id, "x-user": "alice"}) as client:
        yield client


@pytest.fixture
def worker(shared_database: Database, acme: Tenant, tmp_path: Path) -> Iterator[Worker]:
    """Return a worker for the test's tenant, whose steps are retried at once."""
    engine = create_selene_engine(direct_url(shared_database))
    yield Worker(engine, acme.id, "worker-1", tmp_path, retry_backoff_ms=1)
    engine.dispose()


def new_trip(**fields: Any) -> Json:
    """Compose the message in which a user asks for a trip."""
    return {
        "correlation_id": str(uuid.uuid4()),
        "turn_id": 1,
        "message_id": "message-1",
        "fields": {"city": "Zürich", **fields},
    }


def executing(client: TestClient | httpx2.Client) -> str:
    """Make an order that may be worked on, by requests; return its id."""
    order: str = client.post("/orders", json=new_trip(date="2027-03-14")).json()["work_order_id"]
    path = f"/orders/{order}"
    assert client.post(f"{path}/ask", json={"message_id": "m", "turn_id": 2}).json()["decision"] == "SKIP"
    client.put(f"{path}/approvals/budget-7", json={"turn_id": 4, "target_user_id": "bob"})
    said = {"turn_id": 5, "outcome": "APPROVED"}
    assert client.put(f"{path}/approvals/budget-7/decision", json=said).status_code == 200
    return order


def kinds(client: TestClient, order: str) -> list[tuple[str, str]]:
    """Return type and status of each event of an order."""
    rows = client.get(f"/orders/{order}/events").json()
    return [(row["event_type"], row["work_order_status"]) for row in rows]


def count(client: TestClient, order: str, event_type: str, status: str | None = None) -> int:
    """Count the events of a type."""
    return sum(
        kind == event_type and status in (None, its_status) for kind, its_status in kinds(client, order)
    )


# --- the application


def test_example__the_tutorial_is_its_first_half(client: TestClient, worker: Worker) -> None:
    """The steps of the tutorial as requests: the same answers, and the same ledger."""
    printed = [says for _, says in examples(DOCS / "tutorial.md") if says]
    ledger = [line.split()[1:] for line in next(says for says in printed if "CREATED" in says).splitlines()]

    def says(*facts: Any) -> str:
        return f"{' '.join(map(str, facts))}\n"

    def decided(answer: Json) -> str:
        return says(*(answer[name] for name in ("decision", "field_key", "reason")))

    trip = new_trip()
    created, again = (client.post("/orders", json=trip).json() for _ in range(2))
    path = f"/orders/{created['work_order_id']}"
    assert says(created["work_order_seq"], created["replayed"]) in printed
    assert says(again["work_order_seq"], again["replayed"], again["work_order_id"] in path) in printed
    order = client.get(path).json()
    assert says(order["work_order_status"], order["fields_json"]) in printed
    for message in ("message-2", "another process"):
        asked = client.post(f"{path}/ask", json={"message_id": message, "turn_id": 2}).json()
        assert decided(asked) in printed
    said = {"message_id": "message-3", "turn_id": 3, "value": "2027-03-14"}
    for _ in range(2):  # sent twice
        known = client.put(f"{path}/fields/date", json=said).json()
        assert says(known["decision"], known["reason"]) in printed
    for _ in range(2):
        wanted = {"turn_id": 4, "target_user_id": "bob"}
        assert client.put(f"{path}/approvals/budget-7", json=wanted).status_code == 200
    assert "".join(says(client.post(f"{path}/notify-wait").json()) for _ in range(2)) in printed
    for _ in range(2):
        said = {"turn_id": 5, "outcome": "APPROVED"}
        assert client.put(f"{path}/approvals/budget-7/decision", json=said).status_code == 200
    assert says(client.get(path).json()["work_order_status"]) in printed
    half = [[*kind] for kind in kinds(client, created["work_order_id"])]
    assert half == ledger[: len(half)]
    assert ledger[len(half)][0] == "LEASE_ACQUIRED", "the other half is the worker's"

    assert work_on_next(worker)
    whole = [[*kind] for kind in kinds(client, created["work_order_id"])]
    attempt_that_fails = ["STEP_STARTED", "STEP_FAILED", "STEP_RETRY_SCHEDULED"]
    assert [kind for kind in ledger if kind[0] not in attempt_that_fails] == [
        kind for kind in whole if kind[0] not in attempt_that_fails
    ]


def test_example__its_openapi_shows_our_types(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert {"work_order_id", "fields_json", "asked_fields_json"} <= schemas["WorkOrder"]["properties"].keys()
    status = schemas["WorkOrder"]["properties"]["work_order_status"]
    assert status == {"$ref": "#/components/schemas/WorkOrderStatus"}
    for enum in (WorkOrderStatus, WorkOrderEventType, PromptAction):
        assert schemas[enum.__name__]["enum"] == [*enum]
    assert {"Created", "AppendResult", "PromptDecision", "WorkOrderEvent"} <= schemas.keys()
    assert {"field", "rule"} <= schemas["Refusal"]["properties"].keys()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            refused = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            assert refused == {"$ref": "#/components/schemas/Refusal"}, (method, path)
            assert "422" not in operation["responses"], "FastAPI's own form is not ours"
            assert operation["description"], (method, path)


@pytest.mark.parametrize(
    ("changed", "field", "rule"),
    [
        ({"turn_id": 0}, "turn_id", "must be an integer from 1 to 9223372036854775807"),
        ({"turn_id": "secret"}, "turn_id", "Input should be a valid integer"),
        ({"turn_id": None}, "turn_id", "Input should be a valid integer"),
        ({"correlation_id": "secret"}, "correlation_id", "Input should be a valid UUID"),
        ({"fields": ["secret"]}, "fields", "Input should be a valid dictionary"),
        ({"fields": {"a field": "secret"}}, "fields", "must be"),
        ({"fields": {"city": "x" * 20_000}}, "payload", "must be"),
        ({"message_id": "x" * 200}, "idempotency_key", "must be 1..128 characters"),
    ],
)
def test_example__refuses_a_body_by_field_and_rule(
    client: TestClient, changed: Json, field: str, rule: str
) -> None:
    answer = client.post("/orders", json={**new_trip(), **changed})
    told = answer.json()
    assert (answer.status_code, told["code"]) == (422, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED")
    assert (told["field"], told["rule"][: len(rule)], told["retryable"]) == (field, rule, False)
    assert "secret" not in answer.text


def test_example__refuses_a_request_by_field_and_rule(client: TestClient, acme: Tenant) -> None:
    def told(method: str, path: str, **request: Any) -> tuple[int, str, str]:
        answer = client.request(method, path, **request)
        return answer.status_code, answer.json()["field"], answer.json()["rule"].partition(" ")[0]

    broken = {"content": b"{", "headers": {"content-type": "application/json"}}
    assert told("POST", "/orders", **broken) == (422, "body", "JSON")
    assert told("POST", "/orders") == (422, "body", "Field")
    assert told("GET", "/orders?status=DONE&status=secret") == (422, "status", "Input")
    assert told("GET", "/orders?limit=0") == (422, "limit", "must")
    assert told("GET", "/orders/wo-1", headers={"x-tenant": "a b"}) == (422, "tenant_id", "must")
    assert told("GET", "/orders/wo 1") == (422, "work_order_id", "must")
    del client.headers["x-tenant"]
    assert told("GET", "/orders/wo-1") == (422, "x-tenant", "Field")


def test_example__refuses_what_does_not_follow(client: TestClient) -> None:
    def code(answer: Any) -> tuple[int, str]:
        return answer.status_code, answer.json()["code"]

    assert code(client.get("/orders/wo-1")) == (404, "OS_WORK_ORDER_NOT_FOUND")
    assert code(client.get("/orders?after=wo-1")) == (404, "OS_WORK_ORDER_NOT_FOUND")
    trip = new_trip()
    path = f"/orders/{client.post('/orders', json=trip).json()['work_order_id']}"
    assert code(client.get(path, headers={"x-tenant": "globex"})) == (404, "OS_WORK_ORDER_NOT_FOUND")
    other = client.post("/orders", json={**trip, "turn_id": 2})
    assert code(other) == (422, "OS_WORK_ORDER_IDEMPOTENCY_CONFLICT")
    assert other.json()["work_order_id"] in path
    taken = client.post("/orders", json={**trip, "message_id": "message-2"})
    assert code(taken) == (409, "OS_WORK_ORDER_CORRELATION_CONFLICT")
    assert taken.json()["correlation_id"] == trip["correlation_id"]
    said = {"turn_id": 5, "outcome": "APPROVED"}
    decision = client.put(f"{path}/approvals/budget-7/decision", json=said)
    assert code(decision) == (409, "OS_WORK_ORDER_INVALID_TRANSITION")
    assert [client.post(f"{path}/cancel").json()["replayed"] for _ in range(2)] == [False, True]
    late = {"message_id": "message-3", "turn_id": 3, "value": "2027-03-14"}
    assert code(client.put(f"{path}/fields/date", json=late)) == (409, "OS_WORK_ORDER_INVALID_TRANSITION")


def test_example__a_rejected_trip_is_refused(client: TestClient, worker: Worker) -> None:
    order = client.post("/orders", json=new_trip(date="2027-03-14")).json()["work_order_id"]
    path = f"/orders/{order}"
    client.post(f"{path}/ask", json={"message_id": "m", "turn_id": 2})
    client.put(f"{path}/approvals/budget-7", json={"turn_id": 4, "target_user_id": "bob"})
    client.put(f"{path}/approvals/budget-7/decision", json={"turn_id": 5, "outcome": "REJECTED"})
    assert client.get(path).json()["work_order_status"] == "REFUSED"
    too_late = client.post(f"{path}/cancel")
    assert (too_late.status_code, too_late.json()["work_order_status"]) == (409, "REFUSED")
    assert not work_on_next(worker)


def test_example__one_message_may_answer_several_questions(client: TestClient) -> None:
    path = f"/orders/{client.post('/orders', json={**new_trip(), 'fields': {}}).json()['work_order_id']}"
    for _ in range(2):  # sent twice
        for field_key, value, decision in (("city", "Bern", "ASK"), ("date", "2027-03-14", "SKIP")):
            said = {"message_id": "message-2", "turn_id": 2, "value": value}
            answer = client.put(f"{path}/fields/{field_key}", json=said)
            assert answer.status_code == 200
            assert answer.json()["decision"] == decision
    order = client.get(path).json()
    assert (order["work_order_status"], [*order["fields_json"]]) == ("CONFIRM", ["city", "date"])


@pytest.mark.parametrize(("outcome", "status"), [("APPROVED", "EXECUTING"), ("REJECTED", "REFUSED")])
def test_example__an_approval_that_is_asked_for_early_can_be_decided(
    client: TestClient, outcome: str, status: str
) -> None:
    path = f"/orders/{client.post('/orders', json=new_trip()).json()['work_order_id']}"
    client.put(f"{path}/approvals/budget-7", json={"turn_id": 2, "target_user_id": "bob"})
    said = {"turn_id": 3, "outcome": outcome}
    assert client.put(f"{path}/approvals/budget-7/decision", json=said).status_code == 200
    assert client.get(path).json()["work_order_status"] == status


def test_example__pages_of_orders(client: TestClient) -> None:
    made = [client.post("/orders", json=new_trip()).json()["work_order_id"] for _ in range(3)]
    found: list[str] = []
    while page := client.get(
        "/orders", params={"limit": 2, **({"after": found[-1]} if found else {})}
    ).json():
        found += [order["work_order_id"] for order in page]
    assert found == made[::-1]
    assert client.get("/orders?status=DONE&status=EXECUTING").json() == []


def test_example__without_a_database_answers_503(client: TestClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        lost = create_selene_engine(f"postgresql://secret@127.0.0.1:{taken.getsockname()[1]}/x")
        found, client.app.state.engine = client.app.state.engine, lost  # type: ignore[attr-defined]
        answer = client.get("/orders/wo-1")
        client.app.state.engine = found  # type: ignore[attr-defined]
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    assert "secret" not in answer.text


# --- the worker


def ticket(worker: Worker, order: str) -> Path:
    return worker.tickets / worker.tenant_id / f"{order}.json"


def test_worker__tries_again_what_may_succeed_later(client: TestClient, worker: Worker) -> None:
    order = executing(client)
    (worker.tickets / worker.tenant_id).write_text("in the way of the folder")
    assert work_on_next(worker)
    assert count(client, order, "STEP_RETRY_SCHEDULED") == 1
    (worker.tickets / worker.tenant_id).unlink()
    wait_until(lambda: work_on_next(worker), "the retry is due")
    assert json.loads(ticket(worker, order).read_text())["trip"]["city"] == "Zürich"
    assert kinds(client, order)[-2:] == [("STATUS_CHANGED", "DONE"), ("LEASE_RELEASED", "DONE")]


def test_worker__gives_up_after_the_last_retry(client: TestClient, worker: Worker) -> None:
    order = executing(client)
    (worker.tickets / worker.tenant_id).write_text("in the way of the folder")
    for _ in range(4):
        wait_until(lambda: work_on_next(worker), "the retry is due")
    assert count(client, order, "STEP_FAILED") == 4
    assert client.get(f"/orders/{order}").json()["work_order_status"] == "FAILED"


def test_worker__leaves_to_a_person_what_can_never_succeed(client: TestClient, worker: Worker) -> None:
    order = executing(client)
    ticket(worker, order).parent.mkdir()
    ticket(worker, order).write_text("no ticket")
    assert [work_on_next(worker) for _ in range(2)] == [True, False]
    assert count(client, order, "STEP_FAILED") == 1
    assert client.get("/orders?status=EXECUTING").json()[0]["work_order_id"] == order


def test_worker__does_not_write_over_a_later_one(client: TestClient, worker: Worker) -> None:
    order = executing(client)
    ticket(worker, order).parent.mkdir()
    later = json.dumps({"trip": {}, "fence": 1_000})
    ticket(worker, order).write_text(later)
    assert work_on_next(worker)
    assert ticket(worker, order).read_text() == later
    assert count(client, order, "STATUS_CHANGED", "DONE") == 0


def test_worker__ends_what_another_has_done(client: TestClient, worker: Worker) -> None:
    """The one before it died between the end of the step and the end of the order."""
    order = executing(client)
    with tenant_scope(worker.engine, worker.tenant_id) as conn:
        claim = LeaseRepository(conn).claim(worker.name, ttl_ms=60_000)
    assert claim is not None
    with hold_lease(
        worker.engine, worker.tenant_id, order, worker.name, ttl_ms=60_000, token=claim.lease.token
    ) as hold:
        done = example.run_step(worker, claim.work_order, hold, "book", lambda: None)
    assert done == "DONE"
    assert work_on_next(worker)
    assert not ticket(worker, order).exists(), "the step is not done again"
    assert (count(client, order, "STEP_FINISHED"), count(client, order, "STATUS_CHANGED", "DONE")) == (1, 1)


def test_worker__ends_quietly_if_the_order_is_canceled_meanwhile(
    client: TestClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = executing(client)
    monkeypatch.setattr(example, "book", lambda *_: client.post(f"/orders/{order}/cancel"))
    assert [work_on_next(worker) for _ in range(2)] == [True, False]
    assert client.get(f"/orders/{order}").json()["work_order_status"] == "CANCELED"


def test_worker__a_tenant_that_fails_holds_up_no_other(client: TestClient, worker: Worker) -> None:
    order = executing(client)
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            # Such a tenant is refused each time.
            running = pool.submit(example.run, [replace(worker, tenant_id="no tenant"), worker], stop)
            wait_until(lambda: count(client, order, "LEASE_RELEASED"), "the order is done")
            assert not running.done()
        finally:
            stop.set()
    running.result()


# --- as programs of their own


@contextmanager
def program(*arguments: str, folder: Path, url: URL) -> Iterator[subprocess.Popen[str]]:
    """Run a program of the example; kill it if the test fails."""
    place = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with subprocess.Popen(
        arguments,
        cwd=folder,
        env={**os.environ, "PATH": place, "PYTHONPATH": str(ROOT), **url_of(url)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_worker__killed_in_the_middle_is_replaced_after_its_ttl(
    client: TestClient, acme: Tenant, shared_database: Database, tmp_path: Path
) -> None:
    order = executing(client)
    folder = tmp_path / acme.id
    folder.mkdir()
    here = {"acme": acme.id, "tickets": str(tmp_path)}
    command = [here.get(part, part) for part in guides_block("work-for-the-example", "sh").split()]
    times = [f"--ttl-ms={TTL_MS}", f"--timeout-ms={TIMEOUT_MS}"]

    def start(name: str) -> Any:
        arguments = [*command, "--name", name, *times]
        return program(*arguments, folder=tmp_path, url=direct_url(shared_database))

    with ExitStack() as stack:
        barrier = stack.enter_context((folder / ".lock").open("a"))
        fcntl.flock(barrier, fcntl.LOCK_EX)  # the ticket cannot be written now
        first = stack.enter_context(start("first"))
        # It is in the middle of the step, and its lease is kept beside it.
        wait_until(lambda: count(client, order, "LEASE_RENEWED") > 0, "the first one works")
        assert count(client, order, "STEP_STARTED") == 1
        first.kill()
        assert first.wait() == -signal.SIGKILL
        second = stack.enter_context(start("second"))
        wait_until(lambda: count(client, order, "STEP_STARTED") > 1, "the second one takes over")
        second.send_signal(signal.SIGTERM)  # it finishes the order that it works on
        fcntl.flock(barrier, fcntl.LOCK_UN)
        _, logged = second.communicate(timeout=60)
    assert second.returncode == 0, logged
    assert all(isinstance(json.loads(line)["message"], str) for line in logged.splitlines())

    events = acme.ledger(order)
    expiry = max(row["lease_expires_at"] for row in events if row["lease_owner_id"] == "first")
    taken = [
        row for row in events if (row["event_type"], row["lease_owner_id"]) == ("LEASE_ACQUIRED", "second")
    ]
    assert taken[0]["created_at"] >= expiry
    assert json.loads((folder / f"{order}.json").read_text())["fence"] == taken[-1]["work_order_seq"]
    assert count(client, order, "STEP_FINISHED") == 1
    assert count(client, order, "STATUS_CHANGED", "DONE") == 1
    assert acme.verify() == {}
    assert acme.unsound() == []


@pytest.mark.slow
def test_example__runs_as_docker_compose_says(database: Database, tmp_path: Path) -> None:
    """All but the containers: the login is made, the application answers, the worker books the trip."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    password = "p@ss: w/%'\"#$"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    def arguments(service: str) -> list[str]:
        """Return what a container executes in the end, for this machine."""
        shell, option, script = shlex.split(compose[service]["command"])
        assert (shell, option) == ("sh", "-c")
        here = {"0.0.0.0": "127.0.0.1", "8000": port, "$$SELENE_TENANTS": "acme", "/tickets": str(tmp_path)}  # noqa: S104
        return [here.get(part, part) for part in shlex.split(script.partition(" exec ")[2])]

    def make_login() -> None:
        *shell, script = compose["login"]["command"]
        made = subprocess.run(
            [*shell, script.replace("$$", "$")],
            env=environment(database.server, PGDATABASE=database.name, SERVICE_PASSWORD=password),
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr

    with ExitStack() as stack:
        admin = stack.enter_context(database.server.admin(database.name))
        stack.callback(admin.execute, "DROP ROLE trips")
        for _ in range(2):  # with every `up`
            make_login()
        kept = admin.execute("SELECT rolpassword, rolsuper FROM pg_authid WHERE rolname = 'trips'").fetchone()
        assert kept is not None
        assert (kept[0].startswith("SCRAM-SHA-256$"), kept[1]) == (True, False)
        url = database.server.url_for("trips", database.name).set(password=password)
        application, worker = (
            stack.enter_context(program(*arguments(name), folder=tmp_path, url=url))
            for name in ("service", "worker")
        )
        headers = {"x-tenant": "acme", "x-user": "alice"}
        client = stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers))

        def answers() -> bool:
            with suppress(httpx2.ConnectError):
                return client.get("/orders").status_code == 200
            return False

        wait_until(answers, "the service answers")
        order = executing(client)
        wait_until(lambda: client.get("/orders?status=DONE").json(), "the worker has done the order")
        assert (tmp_path / "acme" / f"{order}.json").exists()
        for process, last_words in ((worker, ""), (application, "Application shutdown complete")):
            process.send_signal(signal.SIGTERM)
            _, logged = process.communicate(timeout=60)
            assert last_words in logged
        assert worker.returncode == 0


def test_guides__start_the_programs_as_docker_compose_does() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    serve = guides_block("serve-the-example", "sh").strip().replace("127.0.0.1", "0.0.0.0")  # noqa: S104
    assert compose["service"]["command"].endswith(f"exec {serve}'")
    work = guides_block("work-for-the-example", "sh").strip().partition(" acme ")[0]
    assert f"exec {work} $$SELENE_TENANTS " in compose["worker"]["command"]
