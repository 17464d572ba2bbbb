"""A service that uses everything that selene_core offers: mypy --strict reads it with the installed package.

It is checked, not run. tests/packaging/test_consumer.py fails for a public name, or a method of a repository,
that is not used here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import assert_never
from uuid import UUID, uuid4

from alembic import context
from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from selene_core import (
    PENDING_STATUSES,
    TERMINAL_STATUSES,
    Appender,
    AppendOnlyViolation,
    AppendResult,
    ApprovalOutcome,
    AsyncAppender,
    AsyncConversationRepository,
    AsyncFeed,
    AsyncFeedBatch,
    AsyncIdentityRepository,
    AsyncLeaseHold,
    AsyncLeaseRepository,
    AsyncStepAttemptRepository,
    AsyncWorkOrderRepository,
    AttemptConflict,
    AttemptOutcome,
    AttemptStatus,
    BoundExceeded,
    BrokenChain,
    CancelInvalidState,
    Claim,
    ConcurrencyConflict,
    ContractViolation,
    ConversationRepository,
    ConversationRole,
    ConversationSource,
    ConversationTurn,
    ConversationTurnNotFound,
    CorrelationConflict,
    Created,
    Device,
    DeviceIdUnavailable,
    DeviceNotFound,
    DriftedOrder,
    Erasure,
    ExternalApprovalPending,
    Feed,
    FeedBatch,
    FeedConsumer,
    FeedEvent,
    FeedEventType,
    FeedProblem,
    HeldLease,
    IdempotencyConflict,
    IdentityNotFound,
    IdentityRepository,
    IdentityStatus,
    InvalidTransition,
    Lease,
    LeaseHeld,
    LeaseHold,
    LeaseLost,
    LeaseRepository,
    LeaseState,
    OrderCursor,
    PendingCursor,
    Personal,
    PrivacyScope,
    ProjectionDamaged,
    PromptAction,
    PromptDecision,
    PromptReason,
    PromptSuppressed,
    RebuildReport,
    RetryAction,
    RetryDecision,
    SchemaDrifted,
    SchemaError,
    SchemaLocked,
    SchemaOutdated,
    SchemaTooNew,
    SeleneCoreError,
    SeleneError,
    SessionNotFound,
    SessionState,
    SessionStateInvalid,
    StepAttempt,
    StepAttemptRepository,
    TenantScopeViolation,
    TombstoneConflict,
    TurnResult,
    UserIdentity,
    UserSession,
    WorkOrder,
    WorkOrderEvent,
    WorkOrderEventType,
    WorkOrderIdUnavailable,
    WorkOrderLedgerEventInput,
    WorkOrderNotFound,
    WorkOrderRepository,
    WorkOrderStatus,
    append_events,
    async_append_events,
    async_check_schema,
    async_erase_subject,
    async_feed_status,
    async_hold_lease,
    async_read_feed,
    async_rebuild_tenant,
    async_run_in_tenant,
    async_tenant_scope,
    async_verify_feed,
    check_schema,
    create_async_selene_engine,
    create_selene_engine,
    decide_prompt,
    erase_subject,
    feed_status,
    hold_lease,
    http_status,
    include_name,
    include_object,
    is_retryable,
    new_work_order_id,
    read_feed,
    rebuild_tenant,
    run_in_tenant,
    tenant_scope,
    verify_feed,
    work_order_event_schema,
)
from selene_core.local import LocalDatabase, LocalServerUnavailable, local_database

log = logging.getLogger(__name__)


# --- connections


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    engine: Engine = create_selene_engine(
        url,
        statement_timeout=timedelta(seconds=30),
        idle_in_transaction_timeout=timedelta(minutes=1),
        pool_size=10,
    )
    try:
        revision: str = check_schema(engine)
        log.info("revision %s", revision)
        yield engine
    finally:
        engine.dispose()


async def connected_asynchronously(url: str) -> AsyncEngine:
    engine: AsyncEngine = create_async_selene_engine(url, pooler=True)
    revision: str = await async_check_schema(engine)
    log.info("revision %s", revision)
    return engine


def migrate(connection: Connection, metadata: MetaData) -> None:
    """What stands in a host's own env.py."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_schemas=True,
        include_name=include_name,
        include_object=include_object,
    )


def is_of_the_package(error: Exception) -> bool:
    return isinstance(error, SeleneCoreError)


def why_not(error: SchemaError) -> str:
    stands: str | None = error.revision
    match error:
        case SchemaOutdated():
            return f"upgrade from {stands} to {error.expected}"
        case SchemaTooNew() | SchemaDrifted():
            return "; ".join(error.problems)
        case SchemaLocked():
            return "later"
        case _:
            return f"{error.code}: {error.message}"


# --- work orders


def create(engine: Engine, tenant_id: str, fields: dict[str, object]) -> tuple[str, AppendResult]:
    first = WorkOrderLedgerEventInput(
        work_order_id=new_work_order_id(),
        correlation_id=uuid4(),
        turn_id=1,
        event_type=WorkOrderEventType.WORK_ORDER_CREATED,
        work_order_status=WorkOrderStatus.DRAFT,
        reason_code=1,
        payload={"fields": fields, "requester_user_id": "alice"},
        idempotency_key="create",
        occurred_at=datetime.now(UTC),
        expected_seq=0,
    )
    results: list[AppendResult] = append_events(engine, tenant_id, [first])
    return first.work_order_id, results[0]


def start_booking(sessions: sessionmaker[Session], tenant_id: str, order: WorkOrder) -> AppendResult:
    """Append in the transaction of a host's ORM."""
    confirmed = WorkOrderLedgerEventInput(
        work_order_id=order.work_order_id,
        event_type=WorkOrderEventType.STATUS_CHANGED,
        work_order_status=WorkOrderStatus.EXECUTING,
        reason_code=3,
    )
    with sessions.begin() as session:
        [result] = append_events(session, tenant_id, [confirmed])
        with tenant_scope(session.connection(), tenant_id) as conn:
            leases = LeaseRepository(conn)
            log.info("%s", leases.current(order.work_order_id))
        return result


def cancel_safely(engine: Engine, tenant_id: str, work_order_id: str) -> int:
    def work(conn: Connection) -> AppendResult:
        return WorkOrderRepository(conn).cancel(work_order_id, reason_code=7, idempotency_key="cancel")

    try:
        result: AppendResult = run_in_tenant(engine, tenant_id, work, attempts=3, retry_unknown=True)
    except SeleneError as exc:
        status: int = http_status(exc)
        again: bool = is_retryable(exc, retry_unknown=True)
        log.info("%d %s %d", status, again, exc.http_status)
        return status
    return 201 if result.replayed else 200


async def seen_safely(engine: AsyncEngine, tenant_id: str, work_order_id: str) -> WorkOrder | None:
    async def work(conn: AsyncConnection) -> WorkOrder | None:
        return await AsyncWorkOrderRepository(conn).get(work_order_id)

    found: WorkOrder | None = await async_run_in_tenant(engine, tenant_id, work, retry_unknown=True)
    return found


def known(session: scoped_session[Session], tenant_id: str, work_order_id: str) -> bool:
    with tenant_scope(session, tenant_id) as conn:
        return WorkOrderRepository(conn).get(work_order_id) is not None


def begin(engine: Engine, tenant_id: str, correlation_id: UUID, message: str) -> Created:
    with tenant_scope(engine, tenant_id) as conn:
        created: Created = WorkOrderRepository(conn).create(
            correlation_id=correlation_id,
            turn_id=1,
            reason_code=1,
            fields={"city": "Bern"},
            requester_user_id="alice",
            status=WorkOrderStatus.CLARIFY,
            idempotency_key=message,
        )
        log.info("%s %s %s", created.work_order_id, created.work_order_seq, created.code)
        return created


def settle(engine: Engine, tenant_id: str, work_order_id: str, turn_id: int) -> AppendResult:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        orders.set_field(work_order_id, "city", "Bern", turn_id=turn_id, idempotency_key=f"turn-{turn_id}")
        orders.detect_conflict(work_order_id, "city", candidates=["Bern", None], turn_id=turn_id)
        orders.resolve_conflict(work_order_id, "city", {"name": "Bern"}, idempotency_key="city")
        orders.request_approval(work_order_id, "ask-1", "bob", expires_at=datetime.now(UTC), reason_code=2)
        orders.resolve_approval(work_order_id, "ask-1", ApprovalOutcome.EXPIRED, work_order_status=None)
        moved: AppendResult = orders.change_status(
            work_order_id, "EXECUTING", previous_status=WorkOrderStatus.CLARIFY, note="go", expected_seq=6
        )
        return moved


def answer(
    engine: Engine, tenant_id: str, correlation_id: UUID, turn_id: int, key: str, value: object
) -> AppendResult | None:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        order: WorkOrder | None = orders.get_by_correlation(correlation_id)
        if order is None or order.work_order_status in TERMINAL_STATUSES:
            return None
        said = WorkOrderLedgerEventInput(
            work_order_id=order.work_order_id,
            turn_id=turn_id,
            event_type=WorkOrderEventType.FIELD_SET,
            payload={"field_key": key, "value": value},
            idempotency_key=f"{key}-answer",
        )
        resolved = said.model_copy(
            update={
                "event_type": WorkOrderEventType.EXTERNAL_APPROVAL_RESOLVED,
                "payload": {"request_id": "ask-1", "outcome": ApprovalOutcome.APPROVED},
            }
        )
        result: AppendResult = orders.append(said)
        more: list[AppendResult] = orders.append_many([resolved])
        return max(result, *more, key=lambda each: each.work_order_seq)


def record_steps(engine: Engine, tenant_id: str, steps: list[WorkOrderLedgerEventInput]) -> list[int]:
    """Record steps of several orders, each from a thread of its own."""
    with Appender(engine, calls=2) as appender, ThreadPoolExecutor() as pool:
        appended: list[AppendResult] = list(pool.map(lambda step: appender.append(tenant_id, step), steps))
    return [each.work_order_seq for each in appended]


async def record_steps_asynchronously(
    engine: AsyncEngine, tenant_id: str, steps: list[WorkOrderLedgerEventInput]
) -> list[int]:
    """Record steps of several orders, each from a task of its own."""
    async with AsyncAppender(engine) as appender:
        appended = await asyncio.gather(*(appender.append(tenant_id, step) for step in steps))
    return [each.work_order_seq for each in appended]


def next_step(status: WorkOrderStatus) -> str:
    if status in PENDING_STATUSES:
        return "ask"
    match status:
        case WorkOrderStatus.EXECUTING:
            return "work"
        case WorkOrderStatus.DONE | WorkOrderStatus.REFUSED | WorkOrderStatus.FAILED:
            return "tell"
        case WorkOrderStatus.CANCELED:
            return "nothing"
        case WorkOrderStatus.DRAFT | WorkOrderStatus.CLARIFY | WorkOrderStatus.CONFIRM:
            return "ask"
        case _:
            assert_never(status)


def story(engine: Engine, tenant_id: str, work_order_id: str) -> list[str]:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        events: Iterator[WorkOrderEvent] = orders.events(work_order_id, after=0)
        lines = [
            f"{event.work_order_seq} {event.event_type.value} {event.created_at:%H:%M}" for event in events
        ]
        yesterday: WorkOrder | None = orders.as_of(work_order_id, at=datetime.now(UTC) - timedelta(days=1))
        if yesterday is not None:
            lines.insert(0, f"yesterday: {yesterday.work_order_status.value}")
        return lines


def maintain(engine: Engine, tenant_id: str) -> RebuildReport:
    with tenant_scope(engine, tenant_id) as conn:
        drifted: list[DriftedOrder] = WorkOrderRepository(conn).verify()
        broken: list[BrokenChain] = WorkOrderRepository(conn).verify_chain()
        assert not broken
    for order in drifted:
        log.warning("%s: %s", order.work_order_id, order.problem)
        with tenant_scope(engine, tenant_id) as conn:
            mended: RebuildReport = WorkOrderRepository(conn).rebuild(order.work_order_id)
            log.info("%d", mended.changed)
    return rebuild_tenant(engine, tenant_id, lambda so_far: log.info("%d", so_far.work_orders))


# --- prompts, approvals, what is pending


def converse(engine: Engine, tenant_id: str, work_order_id: str, required: list[str]) -> str:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        order = orders.get(work_order_id)
        if order is not None:
            planned: PromptDecision = decide_prompt(order, required, prefilled_fields=["city"])
            log.info("%s", planned.reason is PromptReason.POLICY_NEXT_FIELD)
        asked: PromptDecision = orders.ask(work_order_id, required_fields=required, idempotency_key="ask")
        match asked.decision:
            case PromptAction.ASK | PromptAction.ASK_DIFFERENT_FIELD:
                event_id = asked.prompt.work_order_event_id if asked.prompt is not None else None
                return f"{asked.field_key} ({asked.prompt_dedupe_key}, {event_id})?"
            case PromptAction.WAIT:
                told: bool = orders.notify_wait(work_order_id, turn_id=3, reason_code=4)
                return "please wait" if told else ""
            case PromptAction.SKIP | PromptAction.STOP:
                return ""
            case _:
                assert_never(asked.decision)


def resume(engine: Engine, tenant_id: str, user_id: str) -> list[WorkOrder]:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        found: list[WorkOrder] = orders.list_pending(user_id, within=timedelta(days=30), limit=100)
        if found:
            last = PendingCursor(found[-1].last_updated_at, found[-1].last_event_id)
            found += orders.list_pending(user_id, oldest_first=False, after=last)
        for order in found:
            canceled: AppendResult = orders.cancel(
                order.work_order_id, reason_code=7, idempotency_key="cancel", note="too old"
            )
            log.info("%d", canceled.work_order_seq)
        return found


# --- work


def work(engine: Engine, tenant_id: str, work_order_id: str) -> RetryDecision:
    with tenant_scope(engine, tenant_id) as conn:
        leases = LeaseRepository(conn)
        lease: HeldLease = leases.acquire(work_order_id, "worker-1", ttl_ms=30_000)
        attempt: StepAttempt = StepAttemptRepository(conn).start(
            work_order_id,
            "book",
            timeout_ms=20_000,
            max_retries=3,
            retry_backoff_ms=5_000,
            idempotency_key="book-1",
            lease_token=lease.token,
        )
    with tenant_scope(engine, tenant_id) as conn:
        leases = LeaseRepository(conn)
        lease = leases.renew(work_order_id, lease.token, ttl_ms=30_000)
        decision: RetryDecision = StepAttemptRepository(conn).finish(
            attempt.step_attempt_id,
            outcome=AttemptOutcome.FAILED,
            reason_code=9,
            retryable=True,
            lease_token=lease.token,
            idempotency_key="book-1-over",
        )
        leases.release(work_order_id, lease.token)
        held: Lease | None = leases.current(work_order_id)
        if held is not None and held.lease_state is LeaseState.ACTIVE:
            log.info("%s until %s", held.lease_owner_id, held.lease_expires_at)
    if decision.action is RetryAction.RETRY_AT:
        log.info("attempt %s at %s", decision.next_attempt_index, decision.next_due_at)
    return decision


def work_on_next(engine: Engine, tenant_id: str, do: Callable[[WorkOrder, LeaseHold], None]) -> bool:
    with tenant_scope(engine, tenant_id) as conn:
        claim: Claim | None = LeaseRepository(conn).claim("worker-1", ttl_ms=30_000)
    if claim is None:
        return False
    lease, order = claim
    holding = hold_lease(
        engine, tenant_id, order_id := lease.work_order_id, "worker-1", ttl_ms=30_000, token=lease.token
    )
    with holding as hold:
        do(claim.work_order, hold)
        if hold.lost or hold.wait(0.1):
            hold.check()
        hold.not_before = datetime.now(UTC) + timedelta(minutes=1)
    log.info("%s until %s: %s", order_id, hold.lease.lease_expires_at, order)
    return True


def listed(engine: Engine, tenant_id: str) -> list[WorkOrder]:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        found: list[WorkOrder] = orders.list_orders([WorkOrderStatus.EXECUTING, "CONFIRM"], limit=50)
        if found:
            last = OrderCursor(found[-1].created_at, found[-1].work_order_id)
            found += orders.list_orders(lease_owner_id="worker-1", oldest_first=True, after=last)
        return found


def overdue(engine: Engine, tenant_id: str) -> list[str]:
    with tenant_scope(engine, tenant_id) as conn:
        attempts = StepAttemptRepository(conn)
        due: list[StepAttempt] = attempts.due_retries(50)
        history = [each for one in due for each in attempts.history(one.work_order_id, one.step_id)]
        return [each.step_id for each in history if each.attempt_status is AttemptStatus.FAILED]


# --- users and what they say


def greet(engine: Engine, tenant_id: str, correlation_id: UUID) -> list[str | None]:
    with tenant_scope(engine, tenant_id) as conn:
        users = IdentityRepository(conn)
        alice: UserIdentity = users.register_identity("alice", primary_language="de-CH")
        phone: Device = users.register_device("alice", "phone", device_type="phone")
        session: UserSession = users.open_session("s-1", user_id="alice", device_id=phone.device_id)
        session = users.touch_session(session.session_id)
        log.info("%s %s", alice.status is IdentityStatus.ACTIVE, session.session_state is SessionState.ACTIVE)
        conversation = ConversationRepository(conn)
        said: TurnResult = conversation.append(
            correlation_id=correlation_id,
            turn_id=1,
            user_id=alice.user_id,
            role=ConversationRole.USER,
            source=ConversationSource.TYPED_TEXT,
            text="Grüezi",
            privacy_scope=PrivacyScope.PUBLIC_CHAT,
            session_id=session.session_id,
            device_id=phone.device_id,
        )
        conversation.tombstone(correlation_id, said.conversation_turn_id, reason_code=5)
        again: ConversationTurn | None = conversation.get(correlation_id, said.turn_id)
        log.info("%s", again is None or again.text is None)
        turns: Iterator[ConversationTurn] = conversation.turns(correlation_id)
        return [turn.text for turn in turns]


def transcript(engine: Engine, tenant_id: str, correlation_id: UUID, after: int) -> tuple[list[str], int]:
    with tenant_scope(engine, tenant_id) as conn:
        page: list[ConversationTurn] = ConversationRepository(conn).page(
            correlation_id, after=after, limit=50
        )
        said = [f"{turn.role.value}: {turn.text or turn.tombstone_reason_code}" for turn in page]
        return said, page[-1].turn_id if page else after


def household(engine: Engine, tenant_id: str, user_id: str) -> list[str]:
    with tenant_scope(engine, tenant_id) as conn:
        users = IdentityRepository(conn)
        user: UserIdentity | None = users.get_identity(user_id)
        devices: Iterator[Device] = users.devices(user_id)
        sessions: Iterator[UserSession] = users.sessions(user_id)
        used = [users.get_device(session.device_id) for session in sessions]
        seen: list[Device] = [device for device in used if device is not None]
        return [str(user), *(device.device_type for device in (*devices, *seen))]


def leave(engine: Engine, tenant_id: str, session_id: str, *, for_good: bool) -> UserSession | None:
    with tenant_scope(engine, tenant_id) as conn:
        users = IdentityRepository(conn)
        session: UserSession | None = users.get_session(session_id)
        if session is None:
            return None
        if for_good:
            return users.close_session(session_id)
        match session.session_state:
            case SessionState.OPEN | SessionState.ACTIVE:
                return users.soft_close_session(session_id)
            case SessionState.SOFT_CLOSED:
                return users.suspend_session(session_id)
            case SessionState.SUSPENDED | SessionState.CLOSED:
                return session
            case _:
                assert_never(session.session_state)


def come_back(engine: Engine, tenant_id: str, session_id: str) -> datetime:
    with tenant_scope(engine, tenant_id) as conn:
        resumed: UserSession = IdentityRepository(conn).resume_session(session_id)
        return resumed.last_activity_at


# --- personal values


def remember(engine: Engine, tenant_id: str, order: WorkOrder, subject_id: str, city: str) -> object:
    with tenant_scope(engine, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        orders.set_field(order.work_order_id, "city", Personal(subject_id, city))
        known: WorkOrder | None = orders.get(order.work_order_id, resolve=True)
        return known and orders.resolve(known.conflicts_json)


def forget(engine: Engine, tenant_id: str, subject_id: str) -> int:
    erased: Erasure = erase_subject(engine, tenant_id, subject_id, reason_code=9)
    return 0 if erased.replayed else erased.values_erased + erased.texts_erased


def forgotten(events: list[FeedEvent]) -> list[str | None]:
    return [event.subject_id for event in events if event.event_type is FeedEventType.SUBJECT_ERASED]


async def forget_asynchronously(engine: AsyncEngine, tenant_id: str, subject_id: str) -> datetime:
    erased: Erasure = await async_erase_subject(engine, tenant_id, subject_id, reason_code=9)
    return erased.erased_at


# --- the same, asynchronously


async def serve(engine: AsyncEngine, tenant_id: str, first: WorkOrderLedgerEventInput) -> RebuildReport:
    results: list[AppendResult] = await async_append_events(engine, tenant_id, [first])
    log.info("%d", results[0].work_order_seq)
    async with async_tenant_scope(engine, tenant_id) as conn:
        orders = AsyncWorkOrderRepository(conn)
        order: WorkOrder | None = await orders.get(first.work_order_id)
        set_again: AppendResult = await orders.set_field(first.work_order_id, "city", 1, reason_code=2)
        log.info("%d", set_again.work_order_seq)
        events: AsyncIterator[WorkOrderEvent] = orders.events(first.work_order_id)
        seqs = [event.work_order_seq async for event in events]
        lease: HeldLease = await AsyncLeaseRepository(conn).acquire(first.work_order_id, "w", ttl_ms=1_000)
        history: list[StepAttempt] = await AsyncStepAttemptRepository(conn).history(first.work_order_id)
        user: UserIdentity = await AsyncIdentityRepository(conn).register_identity("alice")
        thread = order.correlation_id if order else uuid4()
        said = [turn.text async for turn in AsyncConversationRepository(conn).turns(thread)]
        log.info("%s %s %s %s %s %s", order, seqs, lease.fence, history, user.user_id, said)
    return await async_rebuild_tenant(engine, tenant_id)


async def work_on_next_async(engine: AsyncEngine, tenant_id: str) -> bool:
    async with async_tenant_scope(engine, tenant_id) as conn:
        await AsyncWorkOrderRepository(conn).list_orders(requester_user_id="alice")
        claim: Claim | None = await AsyncLeaseRepository(conn).claim(
            "w", ttl_ms=30_000, statuses=["EXECUTING"]
        )
    if claim is None:
        return False
    order_id, token = claim.work_order.work_order_id, claim.lease.token
    async with async_hold_lease(engine, tenant_id, order_id, "w", ttl_ms=30_000, token=token) as hold:
        held: AsyncLeaseHold = hold
        return not await held.wait(0.1)


async def serve_in_a_session(
    session: AsyncSession, tenant_id: str, first: WorkOrderLedgerEventInput
) -> WorkOrder | None:
    await async_append_events(session, tenant_id, [first])
    async with async_tenant_scope(await session.connection(), tenant_id) as conn:
        return await AsyncWorkOrderRepository(conn).get(first.work_order_id)


# --- the feed


def bill(engine: Engine, tenant_id: str, stopping: Event) -> int:
    feed = Feed(engine, tenant_id, "billing", limit=500)
    if feed.enroll():
        log.info("from the first event on")
    with feed.batch() as (conn, events):
        billed = len([event for event in events if conn.closed or event.event_type == "STEP_FINISHED"])
    for _, event in feed.follow(stop=stopping):
        last: FeedEvent = event
        billed += last.event_type is not FeedEventType.SUBJECT_ERASED
    return billed


def relay(engine: Engine, tenant_id: str) -> list[str]:
    with Feed(engine, tenant_id, "broker").lease("relay-1", ttl_ms=30_000) as batch:
        sent: FeedBatch = batch
        told = [f"{event.feed_position} {event.work_order_id} {batch.fence}" for event in sent.events]
        if told:
            batch.ack(batch.events[0].feed_position)
        batch.ack()
    return told


def look(engine: Engine, tenant_id: str) -> tuple[list[FeedConsumer], list[FeedProblem], int]:
    page = read_feed(engine, tenant_id, after=10, limit=10)
    return feed_status(engine, tenant_id), verify_feed(engine, tenant_id), len(page)


async def bill_asynchronously(engine: AsyncEngine, tenant_id: str) -> int:
    feed = AsyncFeed(engine, tenant_id, "billing")
    await feed.enroll()
    async with feed.batch() as (_, events):
        billed = len(events)
    async with aclosing(feed.follow(stop=lambda: billed > 10)) as following:
        async for _, event in following:
            billed += event.feed_position > 0
    async with feed.lease("relay-1", ttl_ms=30_000) as batch:
        sent: AsyncFeedBatch = batch
        await sent.ack()
    problems = await async_verify_feed(engine, tenant_id)
    page, consumers = await async_read_feed(engine, tenant_id), await async_feed_status(engine, tenant_id)
    return billed + len(problems) + len(page) + len(consumers)


# --- what the database refuses


def explain(error: SeleneError) -> str:
    match error:
        case ContractViolation(field=field, rule=rule, event_index=index):
            return f"event {index}: {field} {rule}"
        case IdempotencyConflict(idempotency_key=key, work_order_event_id=event_id):
            return f"{key} stands for event {event_id}"
        case ConcurrencyConflict(expected_seq=expected, last_seq=last):
            return f"{expected} is not {last}"
        case InvalidTransition(work_order_status=status) | CancelInvalidState(work_order_status=status):
            return f"not from {status}"
        case LeaseHeld(lease_owner_id=owner, lease_expires_at=until):
            return f"{owner} has it until {until}"
        case BoundExceeded(bound=bound, limit=limit):
            return f"{bound}: at most {limit}"
        case CorrelationConflict(correlation_id=correlation_id):
            return f"{correlation_id} is taken"
        case PromptSuppressed(field_key=key):
            return f"{key} was asked"
        case ExternalApprovalPending(request_id=request_id):
            return f"waits for {request_id}"
        case AttemptConflict(step_id=step_id, next_retry_at=at):
            return f"not {step_id} now but {at}"
        case SessionStateInvalid() | SessionNotFound():
            return f"session {error.session_id}"
        case IdentityNotFound() | DeviceNotFound() | DeviceIdUnavailable():
            return f"user {error.user_id}"
        case ConversationTurnNotFound() | TombstoneConflict():
            return f"turn {error.conversation_turn_id}"
        case AppendOnlyViolation(table=table, operation=operation):
            return f"no {operation} on {table}"
        case WorkOrderNotFound() | WorkOrderIdUnavailable() | LeaseLost() | ProjectionDamaged():
            return str(error.work_order_id)
        case TenantScopeViolation():
            return error.message
        case _:
            return f"{error.code} ({error.sqlstate}{', try again' if error.retryable else ''})"


def published() -> str:
    return str(work_order_event_schema()["title"])


def main() -> None:
    try:
        with local_database() as database:
            local: LocalDatabase = database
            with connected(local.url) as engine:
                work_order_id, _ = create(engine, "acme", {"city": "Zürich"})
                for line in story(engine, "acme", work_order_id):
                    log.info(line)
    except SeleneError as exc:
        log.warning(explain(exc))
    except LocalServerUnavailable:
        log.warning("no PostgreSQL here")
