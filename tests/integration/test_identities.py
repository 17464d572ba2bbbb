"""Identities, devices and sessions: legal moves, clocks that never go back, and nobody else's device."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel

from selene_core import (
    ContractViolation,
    Device,
    DeviceIdUnavailable,
    DeviceNotFound,
    IdempotencyConflict,
    IdentityNotFound,
    IdentityRepository,
    IdentityStatus,
    SeleneError,
    SessionNotFound,
    SessionState,
    SessionStateInvalid,
    TenantScopeViolation,
    UserIdentity,
    UserSession,
    tenant_scope,
)
from selene_core.store.identities import OWNED_PAGE
from tests.support.calls import Tenant, refused
from tests.support.factories import new_id
from tests.support.plans import scans
from tests.support.races import wait_until
from tests.support.raw import Connection
from tests.support.servers import Database, Role, Server
from tests.support.sessions import Sessions

STATES = list(SessionState)
LEGAL = {
    ("OPEN", "ACTIVE"),
    *(("OPEN", "SOFT_CLOSED"), ("ACTIVE", "SOFT_CLOSED")),
    *(("OPEN", "SUSPENDED"), ("ACTIVE", "SUSPENDED"), ("SOFT_CLOSED", "SUSPENDED")),
    *(("SOFT_CLOSED", "ACTIVE"), ("SUSPENDED", "ACTIVE")),
    *(("OPEN", "CLOSED"), ("ACTIVE", "CLOSED"), ("SOFT_CLOSED", "CLOSED"), ("SUSPENDED", "CLOSED")),
}
MOVES: dict[str, Callable[[IdentityRepository, str], UserSession]] = {
    "ACTIVE": IdentityRepository.resume_session,
    "SOFT_CLOSED": IdentityRepository.soft_close_session,
    "SUSPENDED": IdentityRepository.suspend_session,
    "CLOSED": IdentityRepository.close_session,
}
BAD_IDS: list[Any] = [
    *("", " ", "a b", "a\n", "-a", "é", "а", "a\u200b", "a\0", "\ud800", "x" * 129, None, 5, True, ["a"])
]
EVERY_CALL: list[Callable[[IdentityRepository], object]] = [
    lambda repository: repository.register_identity("alice"),
    lambda repository: repository.register_device("alice", "phone"),
    lambda repository: repository.open_session("session", user_id="alice", device_id="phone"),
    lambda repository: repository.touch_session("session"),
    lambda repository: repository.suspend_session("session"),
    lambda repository: repository.resume_session("session"),
    lambda repository: repository.soft_close_session("session"),
    lambda repository: repository.close_session("session"),
    lambda repository: repository.get_identity("alice"),
    lambda repository: repository.get_identity("nobody"),
    lambda repository: repository.get_device("phone"),
    lambda repository: repository.get_session("session"),
    lambda repository: list(repository.devices("alice")),
    lambda repository: list(repository.sessions("nobody")),
]


@pytest.fixture(scope="module")
def shared_engine(shared_database: Database) -> sa.Engine:
    """Return the application's engine on the module's database."""
    return shared_database.engine("app")


@pytest.fixture
def repository(shared_engine: sa.Engine) -> Iterator[IdentityRepository]:
    """Return the repository of acme, in which alice has a phone, and bob a tablet; it is rolled back."""
    with shared_engine.connect() as conn, conn.begin() as transaction, tenant_scope(conn, "acme"):
        repository = IdentityRepository(conn)
        furnish(repository)
        yield repository
        transaction.rollback()


def furnish(repository: IdentityRepository) -> None:
    for user, device in (("alice", "phone"), ("bob", "tablet")):
        repository.register_identity(user)
        repository.register_device(user, device, device_type="mobile")


def opened(repository: IdentityRepository, session_id: str = "session") -> UserSession:
    return repository.open_session(session_id, user_id="alice", device_id="phone")


def brought_to(repository: IdentityRepository, state: str) -> UserSession:
    session = opened(repository)
    return session if state == "OPEN" else MOVES[state](repository, "session")


# --- identities


def test_identity__is_made_and_updated_piece_by_piece(repository: IdentityRepository) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    made = repository.register_identity("carol", speaker_id="voice-1")
    assert made == UserIdentity("acme", "carol", "voice-1", None, IdentityStatus.ACTIVE, made.created_at)
    assert before < made.created_at < before + timedelta(minutes=2)
    repository.register_identity("carol", primary_language="pt-BR")
    disabled = repository.register_identity("carol", status="DISABLED")
    assert disabled == UserIdentity(
        "acme", "carol", "voice-1", "pt-BR", IdentityStatus.DISABLED, made.created_at
    )
    assert repository.register_identity("carol") == disabled  # does not make active again
    bare = repository.register_identity("carol", speaker_id="", primary_language="", status="ACTIVE")
    assert bare == UserIdentity("acme", "carol", None, None, IdentityStatus.ACTIVE, made.created_at)
    assert repository.get_identity("carol") == bare
    assert repository.get_identity("nobody") is None


def test_identity__two_who_each_know_one_thing_lose_nothing(sessions: Sessions, acme: Tenant) -> None:
    def register(**given: str) -> Callable[[Connection], object]:
        names = "".join(f", p_{name} => '{value}'" for name, value in given.items())
        call = f"SELECT os_core.register_identity('{acme.id}', 'alice'{names})".encode()
        return lambda conn: conn.execute(call)

    sessions.at_once([register(speaker_id="voice"), register(primary_language="de")] * 8)
    found = acme.admin.execute(
        "SELECT speaker_id, primary_language, status FROM os_core.identities WHERE tenant_id = %s", (acme.id,)
    ).fetchall()
    assert found == [("voice", "de", "ACTIVE")]


@pytest.mark.parametrize("language", ["de", "pt-BR", "zh-Hant-TW", "sgn-ase", "de-1996", "x" * 8])
def test_identity__takes_language_tags(repository: IdentityRepository, language: str) -> None:
    assert repository.register_identity("alice", primary_language=language).primary_language == language


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("user_id", value) for value in BAD_IDS),
        *(("speaker_id", value) for value in BAD_IDS if value not in ("", None)),
        *(
            ("primary_language", value)
            for value in (" ", "d", "de_DE", "de-", "-de", "dé", "de\n", "x" * 36, 5)
        ),
        *(("primary_language", value) for value in ("de-" + "x" * 9, "de" + "-12345678" * 4)),
        *(("status", value) for value in ("", "active", "GONE", 5)),
    ],
)
def test_identity__contract(repository: IdentityRepository, field: str, value: Any) -> None:
    check_contract(repository, "register_identity", {"user_id": "carol"}, field, value)


def check_contract(
    repository: IdentityRepository, function: str, given: dict[str, Any], field: str, value: Any
) -> None:
    """Python refuses it at the door, and the database by itself, with the field's name."""
    arguments = {**given, field: value}
    with pytest.raises(ContractViolation) as caught:
        getattr(repository, function)(**arguments)
    assert caught.value.field == field
    if not isinstance(value, str | None) or (value and ("\0" in value or "\ud800" in value)):
        return  # is no text that can be sent
    conn = repository._conn
    named = ", ".join(f"p_{name} => CAST(:{name} AS text)" for name in arguments)
    call = sa.text(f"SELECT * FROM os_core.{function}('acme', {named})")
    with pytest.raises(sa.exc.DBAPIError) as refusal, conn.begin_nested():
        conn.execute(call, arguments)
    cause = refusal.value.orig
    assert isinstance(cause, psycopg.Error)
    assert cause.sqlstate == "SL001"
    assert (cause.diag.message_primary or "").startswith(f"{field}: ")


# --- devices


def test_device__is_seen_again(repository: IdentityRepository) -> None:
    made = repository.register_device("alice", "watch", device_type="smart watch")
    assert made == Device("acme", "watch", "alice", "smart watch", made.last_seen_at, None)
    again = repository.register_device("alice", "watch", audio_profile_ref="profiles/近距離")
    assert again.last_seen_at > made.last_seen_at
    assert (again.device_type, again.audio_profile_ref) == ("smart watch", "profiles/近距離")
    assert repository.register_device("alice", "watch", audio_profile_ref="").audio_profile_ref is None
    assert repository.get_device("nothing") is None


def test_device__is_never_seen_earlier_than_before(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        furnish(IdentityRepository(conn))
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("UPDATE os_core.devices SET last_seen_at = '2999-01-01T00:00:00Z'")
    with tenant_scope(engine, "acme") as conn:
        assert IdentityRepository(conn).register_device("alice", "phone").last_seen_at.year == 2999


def test_device__stays_its_users(repository: IdentityRepository) -> None:
    with pytest.raises(DeviceIdUnavailable) as caught, repository._conn.begin_nested():
        repository.register_device("bob", "phone", device_type="mobile")
    assert (caught.value.user_id, caught.value.device_id) == ("bob", "phone")
    with pytest.raises(IdentityNotFound) as missing, repository._conn.begin_nested():
        repository.register_device("nobody", "new", device_type="mobile")
    assert missing.value.user_id == "nobody"
    with pytest.raises(ContractViolation, match="device_type: is required"), repository._conn.begin_nested():
        repository.register_device("bob", "new")
    device = repository.get_device("phone")
    assert device is not None
    assert device.user_id == "alice"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("user_id", value) for value in BAD_IDS),
        *(("device_id", value) for value in BAD_IDS),
        *(("device_type", value) for value in ("", " ", " a", "a\n", "a\x01", "x" * 65, 5)),
        *(("audio_profile_ref", value) for value in (" ", "a ", "\u00a0", "x" * 257, 5)),
    ],
)
def test_device__contract(repository: IdentityRepository, field: str, value: Any) -> None:
    given = {"user_id": "alice", "device_id": "new", "device_type": "mobile"}
    check_contract(repository, "register_device", given, field, value)


# --- sessions


def test_session__is_opened_once(repository: IdentityRepository) -> None:
    session = opened(repository)
    assert session == UserSession(
        "acme", "session", "alice", "phone", SessionState.OPEN, session.opened_at, session.opened_at, None
    )
    assert opened(repository) == session
    closed = repository.close_session("session")
    assert opened(repository) == closed  # as it is now
    for user, device in (("bob", "tablet"), ("alice", "other"), ("nobody", "phone")):
        with pytest.raises(IdempotencyConflict) as caught, repository._conn.begin_nested():
            repository.open_session("session", user_id=user, device_id=device)
        assert caught.value.session_id == "session"


def test_session__a_foreign_device_is_like_none(engine: sa.Engine) -> None:
    with tenant_scope(engine, "rival") as conn:
        repository = IdentityRepository(conn)
        repository.register_identity("alice")
        repository.register_device("alice", "theirs", device_type="mobile")
    with tenant_scope(engine, "acme") as conn:
        repository = IdentityRepository(conn)
        furnish(repository)
        told = set()
        for device in ("tablet", "theirs", "nothing"):
            with pytest.raises(DeviceNotFound) as caught, conn.begin_nested():
                repository.open_session("session", user_id="alice", device_id=device)
            assert (caught.value.user_id, caught.value.device_id) == ("alice", device)
            told.add(str(caught.value).replace(device, "?"))
        assert len(told) == 1
        with pytest.raises(IdentityNotFound), conn.begin_nested():
            repository.open_session("session", user_id="nobody", device_id="phone")
        assert repository.get_session("session") is None


@pytest.mark.parametrize(
    "call",
    [
        "register_device(%(tenant)s, %(user)s, 'new', 'mobile')",
        "register_device(%(tenant)s, %(user)s, 'theirs-phone', 'mobile')",
        "open_session(%(tenant)s, 'new', %(user)s, 'phone')",
        "open_session(%(tenant)s, 'new', %(user)s, 'theirs-phone')",
        "open_session(%(tenant)s, 'theirs-session', %(user)s, 'theirs-phone')",
    ],
)
def test_user__of_another_tenant_is_like_none(sessions: Sessions, acme: Tenant, call: str) -> None:
    rival = sessions.tenant(new_id("rival"))
    for furnishing in (
        "register_identity(%s, 'theirs')",
        "register_device(%s, 'theirs', 'theirs-phone', 'mobile')",
        "open_session(%s, 'theirs-session', 'theirs', 'theirs-phone')",
    ):
        rival.app.execute(f"SELECT os_core.{furnishing}".encode(), (rival.id,))
    ready(acme)
    for user in ("theirs", "nobody"):
        with refused("SL020") as refusal:
            acme.app.execute(f"SELECT os_core.{call}".encode(), {"tenant": acme.id, "user": user})
        assert (refusal.message, refusal.facts) == (f"user {user} does not exist", {"user_id": user})
    for table in ("devices", "sessions"):
        ours = f"SELECT FROM os_core.{table} WHERE tenant_id = %s"
        assert acme.admin.execute(ours.encode(), (acme.id,)).rowcount == (table == "devices")


@pytest.mark.parametrize(("state", "target"), [*product(STATES, MOVES)])
def test_session__moves(repository: IdentityRepository, state: str, target: str) -> None:
    before = brought_to(repository, state)
    assert before.session_state == state
    if state == target:
        assert MOVES[target](repository, "session") == before
    elif (state, target) in LEGAL:
        after = MOVES[target](repository, "session")
        assert after.session_state == target
        assert (after.last_activity_at > before.last_activity_at) == (target == "ACTIVE")
        assert (after.closed_at is not None) == (target == "CLOSED")
        assert (after.opened_at, after.user_id, after.device_id) == (before.opened_at, "alice", "phone")
    else:
        with pytest.raises(SessionStateInvalid) as caught, repository._conn.begin_nested():
            MOVES[target](repository, "session")
        error = caught.value
        assert (error.session_id, error.session_state, error.requested_state) == ("session", state, target)
        assert repository.get_session("session") == before


@pytest.mark.parametrize("state", STATES)
def test_session__touch(repository: IdentityRepository, state: str) -> None:
    before = brought_to(repository, state)
    if state in ("OPEN", "ACTIVE"):
        touched = repository.touch_session("session")
        assert touched.session_state == "ACTIVE"
        assert touched.last_activity_at > before.last_activity_at
        assert repository.touch_session("session").last_activity_at > touched.last_activity_at
    else:
        with pytest.raises(SessionStateInvalid), repository._conn.begin_nested():
            repository.touch_session("session")
        assert repository.get_session("session") == before


def test_session__activity_never_goes_back(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    """Not when the database's clock is set back, either: to it, the row has a time in the future."""
    with tenant_scope(engine, "acme") as conn:
        furnish(IdentityRepository(conn))
        opened(IdentityRepository(conn))
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("UPDATE os_core.sessions SET last_activity_at = '2999-01-01T00:00:00Z'")
    with tenant_scope(engine, "acme") as conn:
        repository = IdentityRepository(conn)
        assert repository.touch_session("session").last_activity_at.year == 2999
        repository.suspend_session("session")
        assert repository.resume_session("session").last_activity_at.year == 2999
        closed_at = repository.close_session("session").closed_at
        assert closed_at is not None
        assert closed_at.year == 2999


@pytest.mark.parametrize(
    "call", ["touch_session", *(f"{m}_session" for m in ("suspend", "resume", "soft_close", "close"))]
)
def test_session__unknown_or_anothers(engine: sa.Engine, call: str) -> None:
    with tenant_scope(engine, "rival") as conn:
        furnish(IdentityRepository(conn))
        opened(IdentityRepository(conn), "theirs")
    with tenant_scope(engine, "acme") as conn:
        for session_id in ("theirs", "none"):
            with pytest.raises(SessionNotFound) as caught, conn.begin_nested():
                getattr(IdentityRepository(conn), call)(session_id)
            assert str(caught.value) == f"session {session_id} does not exist"


@pytest.mark.parametrize(
    ("field", "value"),
    [*product(["session_id", "user_id", "device_id"], BAD_IDS)],
    ids=lambda value: ascii(value),
)
def test_session__contract(repository: IdentityRepository, field: str, value: Any) -> None:
    given = {"session_id": "new", "user_id": "alice", "device_id": "phone"}
    check_contract(repository, "open_session", given, field, value)


@pytest.mark.parametrize("state", ["OPEN", "", "closed", "GONE", None])
def test_session__contract_of_the_moves(acme: Tenant, state: str | None) -> None:
    with refused("SL001") as refusal:
        acme.app.execute("SELECT os_core.move_session(%s, 'session', %s)", (acme.id, state))
    assert refusal.facts["field"] == "session_state"
    for call in ("touch_session(%s, 'a b')", "move_session(%s, 'a b', 'CLOSED')"):
        with refused("SL001") as refusal:
            acme.app.execute(f"SELECT os_core.{call}".encode(), (acme.id,))
        assert refusal.facts["field"] == "session_id"


# --- reads


def test_lists__page_by_page(repository: IdentityRepository) -> None:
    count = OWNED_PAGE + 3
    for n in range(count):
        repository.open_session(f"s-{n:04}", user_id="alice", device_id="phone")
    repository.open_session("bobs", user_id="bob", device_id="tablet")
    assert [session.session_id for session in repository.sessions("alice")] == [
        f"s-{n:04}" for n in range(count)
    ]
    assert [device.device_id for device in repository.devices("bob")] == ["tablet"]
    assert [*repository.sessions("nobody"), *repository.devices("nobody")] == []


def test_reads__as_the_readonly_role(engine: sa.Engine, database: Database) -> None:
    with tenant_scope(engine, "acme") as conn:
        repository = IdentityRepository(conn)
        furnish(repository)
        session = opened(repository)
    with tenant_scope(database.engine("readonly"), "acme") as conn:
        repository = IdentityRepository(conn)
        assert repository.get_session("session") == session
        assert [device.device_id for device in repository.devices("alice")] == ["phone"]
        with pytest.raises(sa.exc.DBAPIError, match="permission denied for function"):
            repository.touch_session("session")


INDEXES: list[tuple[Callable[[IdentityRepository], object], str]] = [
    (lambda repository: repository.get_identity("user-7"), "pk_identities"),
    (lambda repository: repository.get_device("device-7"), "pk_devices"),
    (lambda repository: repository.get_session("session-7"), "pk_sessions"),
    (lambda repository: next(repository.devices("user-7")), "ux_devices_tenant_user_device"),
    (lambda repository: next(repository.sessions("user-7")), "ux_sessions_tenant_user_session"),
]


@pytest.fixture(scope="module")
def full_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a database with many users, each with a device and a session."""
    with server.new_database("users", template_database) as database:
        with server.admin(database.name) as admin:
            for table, values in (
                ("identities", "'user-' || n, NULL, NULL, 'ACTIVE'"),
                ("devices", "'device-' || n, 'user-' || n, 'mobile'"),
                ("sessions", "'session-' || n, 'user-' || n, 'device-' || n, 'OPEN', now(), now()"),
            ):
                rows = f"SELECT 'acme', {values} FROM generate_series(1, 5000) AS n"
                admin.execute(f"INSERT INTO os_core.{table} {rows}".encode())
            admin.execute("ANALYZE")
        yield database


@pytest.mark.parametrize(("read", "index"), INDEXES, ids=[row[1] for row in INDEXES])
@pytest.mark.parametrize("role", ["app", "readonly"])
def test_reads__are_one_index_scan(
    full_database: Database,
    role: Role,
    read: Callable[[IdentityRepository], object],
    index: str,
) -> None:
    """As the server counts them."""
    with tenant_scope(full_database.engine(role), "acme") as conn, scans(conn) as counted:
        assert read(IdentityRepository(conn)) is not None
    assert counted == {f"os_core.{index}": 1}


@pytest.mark.parametrize(
    "end", ["COMMIT", "ROLLBACK AND CHAIN", "RESET selene.tenant_id", "SET LOCAL selene.tenant_id = 'rival'"]
)
def test_tenant_lost_in_the_block__every_call_is_refused(engine: sa.Engine, end: str) -> None:
    with tenant_scope(engine, "acme") as conn:
        furnish(IdentityRepository(conn))
        opened(IdentityRepository(conn))
    for call in EVERY_CALL:
        with tenant_scope(engine, "acme") as conn:
            repository = IdentityRepository(conn)
            assert repository.get_identity("alice") is not None
            conn.exec_driver_sql(end)
            with pytest.raises(TenantScopeViolation):
                call(repository)
            conn.rollback()
    with engine.begin() as conn:
        for call in EVERY_CALL:
            with pytest.raises(TenantScopeViolation, match="not inside a tenant_scope"):
                call(IdentityRepository(conn))


def test_superuser__sees_one_tenant(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    for tenant_id in ("acme", "rival"):
        with tenant_scope(engine, tenant_id) as conn:
            furnish(IdentityRepository(conn))
            opened(IdentityRepository(conn), f"{tenant_id}-session")
    with tenant_scope(admin_engine, "acme") as conn:
        repository = IdentityRepository(conn)
        assert [session.session_id for session in repository.sessions("alice")] == ["acme-session"]
        assert repository.get_session("rival-session") is None
        assert len(list(repository.devices("alice"))) == 1


# --- many at once


CALL_OPEN = "SELECT os_core.open_session(%s, %s, 'alice', 'phone')"


def ready(tenant: Tenant) -> None:
    tenant.app.execute("SELECT os_core.register_identity(%s, 'alice')", (tenant.id,))
    tenant.app.execute("SELECT os_core.register_device(%s, 'alice', 'phone', 'mobile')", (tenant.id,))


def test_sixteen__close_one_session_at_one_time(sessions: Sessions, acme: Tenant) -> None:
    ready(acme)
    acme.app.execute(CALL_OPEN, (acme.id, "shared"))

    def close(conn: Connection) -> Any:
        call = "SELECT closed_at FROM os_core.move_session(%s, 'shared', 'CLOSED')"
        return conn.execute(call, (acme.id,)).fetchone()

    assert len(set(sessions.at_once([close] * 16))) == 1


def test_move__waits_and_judges_by_what_it_then_finds(sessions: Sessions, acme: Tenant) -> None:
    ready(acme)
    acme.app.execute(CALL_OPEN, (acme.id, "shared"))
    holder = sessions.open(autocommit=False)
    holder.conn.execute("SELECT os_core.move_session(%s, 'shared', 'CLOSED')", (acme.id,))
    waiting = []
    for call in ("touch_session(%s, 'shared')", "move_session(%s, 'shared', 'SUSPENDED')"):
        session, query = sessions.open(), f"SELECT os_core.{call}".encode()
        waiting.append(session.start(partial(Connection.execute, query=query, params=(acme.id,))))
        assert sessions.blockers(session)
    holder.conn.commit()
    for future in waiting:
        error = future.exception()
        assert isinstance(error, psycopg.Error)
        assert error.sqlstate == "SL023"


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_frozen_snapshot__is_a_serialization_failure(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel
) -> None:
    ready(acme)
    acme.app.execute(CALL_OPEN, (acme.id, "old"))
    calls = [
        ("SELECT os_core.touch_session(%s, 'old')",) * 2,
        ("SELECT os_core.open_session(%s, 'new', 'alice', 'phone')",) * 2,
        ("SELECT os_core.register_identity(%s, 'carol', 'a')",) * 2,
        ("SELECT os_core.register_device(%s, 'alice', 'new', 'mobile')",) * 2,
    ]
    for theirs, ours in calls:
        frozen = sessions.open(autocommit=False, isolation=isolation)
        frozen.conn.execute("SELECT 1")
        acme.app.execute(theirs, (acme.id,))
        with refused("40001"):
            frozen.conn.execute(ours, (acme.id,))


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_killed_backend__leaves_nothing(sessions: Sessions, acme: Tenant, function: str) -> None:
    """In the middle of opening: the insert waits for another's of the same session."""
    ready(acme)
    holder = sessions.open(autocommit=False)
    holder.conn.execute(CALL_OPEN, (acme.id, "one"))
    killed = sessions.open()
    future = killed.start(lambda conn: conn.execute(CALL_OPEN, (acme.id, "one")))
    assert sessions.blockers(killed) == {holder.pid}
    acme.admin.execute(f"SELECT {function}(%s)".encode(), (killed.pid,))
    assert isinstance(future.exception(), psycopg.Error)
    holder.conn.rollback()
    count = "SELECT count(*) FROM os_core.sessions WHERE tenant_id = %s"
    assert acme.admin.execute(count, (acme.id,)).fetchone() == (0,)
    acme.app.execute(CALL_OPEN, (acme.id, "one"))
    wait_until(lambda: acme.admin.execute(count, (acme.id,)).fetchone() == (1,), "the retry is there")


# --- the words


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("os_core.is_identity_row('t', 'u', NULL, NULL, {}, now())", IdentityStatus),
        (
            "os_core.is_session_row('s', {0}, now(), now(), CASE WHEN {0} = 'CLOSED' THEN now() END)",
            SessionState,
        ),
    ],
)
def test_enums__are_the_words_of_the_checks(acme: Tenant, check: str, words: Any) -> None:
    every = sorted({word.value for enum in (IdentityStatus, SessionState) for word in enum})
    for word in [*every, "", "active", "OPEN "]:
        quoted = f"'{word}'"
        row = acme.admin.execute(f"SELECT {check.format(quoted)}".encode()).fetchone()
        assert row == (word in list(words),)


def test_errors__are_ours(repository: IdentityRepository) -> None:
    for error in (
        IdentityNotFound,
        DeviceNotFound,
        SessionNotFound,
        SessionStateInvalid,
        DeviceIdUnavailable,
    ):
        assert issubclass(error, SeleneError)
        assert not error.retryable
    with pytest.raises(SessionNotFound):
        repository.touch_session("nothing")
