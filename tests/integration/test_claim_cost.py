"""What a claim costs: nothing for orders that are done, leased, waiting or backing off (contract §9)."""

from tests.support.calls import Tenant
from tests.support.factories import new_id, wire
from tests.support.plans import buffers
from tests.support.workers import new_token

CLAIM = "SELECT * FROM os_core.claim_work_order(%s, 'worker-1', %s, 60000, %s)"
OPEN = ["DRAFT", "CLARIFY", "CONFIRM", "EXECUTING"]
# Status, queued_at, steps_due_at, external_approval_pending, lease_expires_at: as leases, attempts and
# approvals leave them. All were created before the orders that a claim can get.
LONG_AGO, LATER = "now() - INTERVAL '1 day'", "now() + INTERVAL '1 hour'"
AHEAD = {
    "done": f"'DONE', {LONG_AGO}, {LONG_AGO}, FALSE, NULL",
    "leased": f"'EXECUTING', {LATER}, {LONG_AGO}, FALSE, {LATER}",
    "waiting for an approval": f"'EXECUTING', {LONG_AGO}, {LONG_AGO}, TRUE, NULL",
    "waiting for a decision": f"'EXECUTING', {LONG_AGO}, NULL, FALSE, NULL",
    "backing off": f"'EXECUTING', {LONG_AGO}, {LATER}, FALSE, NULL",
    "given back for later": f"'EXECUTING', {LATER}, {LONG_AGO}, FALSE, NULL",
}


def stand(tenant: Tenant, what: str, number: int) -> None:
    """Put many orders ahead of the tenant's; rows without a ledger will do here."""
    with tenant.admin.transaction():
        tenant.admin.execute("SET LOCAL session_replication_role = replica")
        tenant.admin.execute(
            f"""
            INSERT INTO os_core.work_orders_current (
              work_order_id, tenant_id, correlation_id, turn_id, last_event_id, last_seq, last_reason_code,
              last_updated_at, created_at, fields_json, asked_fields_json, resolved_fields_json,
              conflicts_json, prompt_dedupe_keys_json, external_approval_notices, last_state_change_seq,
              updated_bucket, work_order_status, queued_at, steps_due_at, external_approval_pending,
              lease_expires_at
            )
            SELECT %s || n, %s, gen_random_uuid(), 1, n, 1, 1, now(), {LONG_AGO}, '{{}}', '{{}}', '{{}}',
              '{{}}', '{{}}', 0, 1, now(), {AHEAD[what]}
            FROM generate_series(1, %s) AS n
            """.encode(),
            (new_id(what.replace(" ", "-")), tenant.id, number),
        )


def test_claim__costs_the_same_however_many_stand_ahead(acme: Tenant) -> None:
    for _ in range(100):
        acme.order("EXECUTING")

    def cost() -> int:
        """Return the pages of one claim, once its session has planned its statements."""
        return max(
            min(buffers(acme.app, CLAIM, (acme.id, new_token(), statuses)) for _ in range(3))
            for statuses in (["EXECUTING"], OPEN)
        )

    alone, costs = cost(), {}
    for what in AHEAD:
        stand(acme, what, 50_000 if what == "done" else 10_000)
        costs[what] = cost()
    acme.admin.execute("ANALYZE os_core.work_orders_current")
    costs["analysed"] = cost()
    # A walk past the 10,000 would read some hundreds of pages of the index, and the rows' own.
    assert max(costs.values()) < alone + 60, (alone, costs)


def test_claim__costs_the_same_after_many_claims(acme: Tenant) -> None:
    """What was claimed stood in the front of the queue: nobody walks past it for ever."""
    acme.append(*(wire("WORK_ORDER_CREATED", new_id(), work_order_status="EXECUTING") for _ in range(1000)))
    costs = [buffers(acme.app, CLAIM, (acme.id, new_token(), ["EXECUTING"])) for _ in range(1000)]
    # An ANALYZE makes the session plan anew, and one claim read more: the two dearest do not count.
    first, last = sorted(costs[5:100]), sorted(costs[-100:])
    assert last[-3] < 3 * first[-3]  # not thousands: what others' snapshots keep is left to walk past
