"""The conversation ledger: what was said comes back as it was, and not at all once it is hidden."""

import hashlib
import os
import re
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from functools import partial
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel, pq
from sqlalchemy.engine import make_url

from selene_core import (
    ContractViolation,
    ConversationRepository,
    ConversationRole,
    ConversationSource,
    ConversationTurn,
    ConversationTurnNotFound,
    DeviceNotFound,
    IdempotencyConflict,
    IdentityNotFound,
    IdentityRepository,
    PrivacyScope,
    SessionNotFound,
    TenantScopeViolation,
    TombstoneConflict,
    TurnResult,
    WorkOrderRepository,
    tenant_scope,
)
from selene_core.cli.rendering import conversation_lines
from selene_core.local import LocalServerUnavailable, local_database
from selene_core.store.conversation import TURNS_PAGE
from selene_core.store.tables import conversation_ledger
from tests.support.calls import Tenant, refused
from tests.support.plans import scans
from tests.support.races import wait_until
from tests.support.raw import Connection, connect
from tests.support.servers import Database, Role, Server
from tests.support.sessions import Sessions

LEDGER = "conversation.conversation_ledger"
SAID = "conversation.turn_texts"
THREAD = UUID("6b0f0a54-1c2e-4c57-9d1a-0a7c4b2f9e11")
SECRET = "my number is 4711"
READABLE = [column.name for column in conversation_ledger.columns]
ID_RULE = "must be 1..128 ASCII letters, digits or ._:/@+-, starting with a letter or digit"


def furnish(conn: sa.Connection, *users: str) -> None:
    """Give each user a device and a session, named after the user."""
    repository = IdentityRepository(conn)
    for user in users:
        repository.register_identity(user)
        repository.register_device(user, f"{user}-device", device_type="mobile")
        repository.open_session(f"{user}-session", user_id=user, device_id=f"{user}-device")


@pytest.fixture(scope="module")
def shared_engine(shared_database: Database) -> sa.Engine:
    """Return the application's engine on the module's database."""
    return shared_database.engine("app")


@pytest.fixture
def scope(shared_engine: sa.Engine) -> Iterator[sa.Connection]:
    """Return a connection in a tenant_scope of acme, which has alice and bob; it is rolled back."""
    with shared_engine.connect() as conn, conn.begin() as transaction, tenant_scope(conn, "acme"):
        furnish(conn, "alice", "bob")
        yield conn
        transaction.rollback()


@pytest.fixture
def repository(scope: sa.Connection) -> ConversationRepository:
    """Return the repository of tenant acme, in a transaction of its own."""
    return ConversationRepository(scope)


def turn(turn_id: Any = 1, text: Any = "Hello", **given: Any) -> dict[str, Any]:
    """Compose a turn of alice's."""
    return {
        "correlation_id": THREAD,
        "turn_id": turn_id,
        "user_id": "alice",
        "role": "USER",
        "source": "TYPED_TEXT",
        "text": text,
        "privacy_scope": "PUBLIC_CHAT",
        **given,
    }


def hashed(text: str, salt: bytes = b"") -> str:
    return hashlib.sha256(salt + text.encode()).hexdigest()


def refusal_of(
    conn: sa.Connection, error: type[Exception], method: Callable[..., object], *given: Any, **named: Any
) -> Any:
    """Expect a call to be refused, in a savepoint; return the error."""
    with pytest.raises(error) as caught, conn.begin_nested():
        method(*given, **named)
    return caught.value


# --- append and read


def test_append__returns_what_was_written(repository: ConversationRepository) -> None:
    result = repository.append(
        **turn(session_id="alice-session", device_id="alice-device", idempotency_key="k")
    )
    assert re.fullmatch("[0-9a-f]{64}", result.text_hash)
    assert not result.replayed
    (read,) = repository.page(THREAD)
    assert read == ConversationTurn(
        conversation_turn_id=result.conversation_turn_id,
        tenant_id="acme",
        correlation_id=THREAD,
        turn_id=1,
        session_id="alice-session",
        user_id="alice",
        device_id="alice-device",
        role=ConversationRole.USER,
        source=ConversationSource.TYPED_TEXT,
        text="Hello",
        text_hash=result.text_hash,
        privacy_scope=PrivacyScope.PUBLIC_CHAT,
        created_at=result.created_at,
        idempotency_key="k",
        tombstone_of_conversation_turn_id=None,
        tombstone_reason_code=None,
        tombstoned_by_conversation_turn_id=None,
    )
    assert "Hello" not in repr(read)
    assert repository.get(THREAD, 1) == read
    assert repository.get(THREAD, 2) is None
    assert repository.page(uuid4()) == []


TEXTS = [
    "",
    " \n\t leading, trailing, \r\n between \n ",
    "👩‍👩‍👧‍👦🏴󠁧󠁢󠁳󠁣󠁴󠁿 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "שלום مرحبا \u202eright to left\u202c",
    "e\u0301 is not \u00e9, \u1100\u1161 is not \uac00, \u212b is not \u00c5",
    "\\ \" ' / \\u0041 %s %(x)s :name $1 {} \b\f\x01\x7f\x85\u2028\ufeff\ufffe\uffff\U0010ffff",
    "'; DROP TABLE conversation.conversation_ledger; --",
    "x" * 65_536,
    "é" * 32_768,
    "👍" * 16_384,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_append__text_comes_back_byte_for_byte(repository: ConversationRepository, text: str) -> None:
    written = repository.append(**turn(text=text))
    (read,) = repository.turns(THREAD)
    assert read.text is not None
    assert read.text.encode() == text.encode()
    assert read.text_hash == written.text_hash
    assert repository.append(**turn(text=text)).replayed


@pytest.mark.parametrize(
    "text",
    [
        *("x" * 65_537, "é" * 32_769, "👍" * 16_385, "x" * 1_048_576, "é" * 1_048_576),
        *("a\0b", "\0", "\ud800", "a\udfff", "\ud83d\ude00", None, 5, b"bytes", ["x"]),
    ],
    ids=lambda text: ascii(text)[:12],
)
def test_append__text_that_is_refused(scope: sa.Connection, text: Any) -> None:
    repository = ConversationRepository(scope)
    error = refusal_of(scope, ContractViolation, repository.append, **turn(text=text))
    assert error.field == "text"
    assert str(error) == (
        "text: must be text of at most 65536 bytes in UTF-8, without NUL or lone surrogates"
    )


CALL = (
    "SELECT * FROM conversation.append_turn(%(tenant)s, %(correlation_id)s, %(turn_id)s, %(user_id)s,"
    " %(role)s, %(source)s, %(text)s, %(privacy_scope)s, %(session_id)s, %(device_id)s, %(idempotency_key)s)"
)


def call(conn: Connection, tenant_id: str, **given: Any) -> tuple[Any, ...]:
    """Append a turn as a service in any language does."""
    optional = dict.fromkeys(("session_id", "device_id", "idempotency_key"))
    row = conn.execute(CALL, {"tenant": tenant_id, **optional, **turn(**given)}).fetchone()
    assert row is not None
    return row


def ready(tenant: Tenant) -> None:
    """Give a tenant alice, with a device and a session."""
    for each in (
        "register_identity(%(tenant)s, 'alice')",
        "register_device(%(tenant)s, 'alice', 'alice-device', 'mobile')",
        "open_session(%(tenant)s, 'alice-session', 'alice', 'alice-device')",
    ):
        tenant.app.execute(f"SELECT os_core.{each}".encode(), {"tenant": tenant.id})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("correlation_id", value) for value in (None, "x", "", 5)),
        *(("turn_id", value) for value in (0, -1, None, 2**63 - 1, 2**63, 1.5, "1", True)),
        *(("user_id", value) for value in ("", " ", "a b", "é", "x" * 129, None, 5)),
        *(("session_id", value) for value in ("", " ", "a b", "é", "x" * 129, 5)),
        *(("device_id", value) for value in ("", " ", "a b", "é", "x" * 129, 5)),
        *(("role", value) for value in ("", "user", "SYSTEM", None, 5)),
        *(("source", value) for value in ("", "typed_text", "TOMBSTONE", "EMAIL", None, 5)),
        *(("privacy_scope", value) for value in ("", "PUBLIC", "public_chat", None, 5)),
        *(("idempotency_key", value) for value in ("", " ", "a\n", " a", "x" * 129, 5)),
        *(("text", value) for value in ("x" * 65_537, "é" * 32_769, "x" * 1_048_576, None)),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_append__contract(scope: sa.Connection, acme: Tenant, field: str, value: Any) -> None:
    """Refused in Python at the door, and in the database by itself: neither shows what was said."""
    repository = ConversationRepository(scope)
    given = {**turn(text=SECRET), field: value}
    error = refusal_of(scope, ContractViolation, repository.append, **given)
    assert error.field == field
    assert SECRET not in str(error)
    ready(acme)
    of_another_type = value == "1" or (field == "correlation_id" and value is not None)
    if of_another_type or (type(value) in (int, float, bool) and value not in (0, -1)):
        return  # PostgreSQL refuses or casts it before the function begins
    with refused("SL001") as refusal:
        call(acme.app, acme.id, **given)
    assert refusal.facts["field"] == field
    assert SECRET not in refusal.message


JSON_ESCAPES = [(r"\ud800", "22P02"), (r"\udc00\ud800", "22P02"), (r"\u0000", "22P05")]


@pytest.mark.parametrize(
    ("text", "sqlstate"),
    [
        *((rf"E'a{escape}'", "42601") for escape in (r"\ud800", r"\ud83d", r"\udc00\ud800", r"\u0000")),
        *((rf"convert_from('\x61{octets}', 'UTF8')", "22021") for octets in ("eda080", "edbfbf", "00")),
        *((f"jsonb_build_array(chr({number})) ->> 0", "54000") for number in (0, 0xD800)),
        *((rf"""'["a{escape}"]'::jsonb ->> 0""", sqlstate) for escape, sqlstate in JSON_ESCAPES),
    ],
)
def test_append__what_no_text_can_hold_is_refused_by_the_server(
    acme: Tenant, text: str, sqlstate: str
) -> None:
    ready(acme)
    with refused(sqlstate):
        acme.app.execute(
            f"SELECT conversation.append_turn('{acme.id}', '{THREAD}', 1, 'alice', 'USER', 'TYPED_TEXT',"
            f" {text}, 'PUBLIC_CHAT')".encode()
        )
    assert rows_of(acme) == []


@pytest.mark.parametrize(
    "octets", [b"a\0", b"\0", b"a\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb8\x80"]
)
def test_append__nor_as_bytes(acme: Tenant, octets: bytes) -> None:
    """As a service in a language whose strings are bytes would send them."""
    ready(acme)
    query = (
        f"SELECT conversation.append_turn('{acme.id}', '{THREAD}', 1, 'alice', 'USER', 'TYPED_TEXT',"
        " $1, 'PUBLIC_CHAT')"
    )
    text, binary = acme.app.adapters.types["text"].oid, pq.Format.BINARY
    result = acme.app.pgconn.exec_params(query.encode(), [octets], [text], [binary])
    assert result.error_field(pq.DiagnosticField.SQLSTATE) == b"22021"
    assert rows_of(acme) == []


def rows_of(tenant: Tenant) -> list[tuple[Any, ...]]:
    """Return the whole ledger of a tenant."""
    query = f"SELECT * FROM {LEDGER} WHERE tenant_id = %s ORDER BY conversation_turn_id"
    return tenant.admin.execute(query.encode(), (tenant.id,)).fetchall()


def test_append__nobody_gives_id_time_or_hash(scope: sa.Connection) -> None:
    repository = ConversationRepository(scope)
    for name in ("conversation_turn_id", "created_at", "text_hash", "tombstone_reason_code"):
        with pytest.raises(TypeError):
            repository.append(**turn(**{name: 1}))


def test_owner__cannot_give_a_hash_either(database: Database, engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        furnish(conn, "alice")
    with tenant_scope(database.engine("owner"), "acme") as conn:
        written = ConversationRepository(conn).append(**turn(1))
        take = f"DELETE FROM {SAID}"
        with pytest.raises(sa.exc.DBAPIError, match="is changed by an erasure only"), conn.begin_nested():
            conn.exec_driver_sql(take)
    with tenant_scope(database.engine("owner"), "acme") as conn:
        # Another text under the turn's hash, and the turn's text under another hash.
        for salt, said, text_hash, constraint in (
            ("'x'", "'b'", f"'{written.text_hash}'", "ck_turn_texts_contract"),
            ("decode(repeat('00', 32), 'hex')", "'b'", f"'{written.text_hash}'", "ck_turn_texts_contract"),
            (
                "decode(repeat('00', 32), 'hex')",
                "'b'",
                "os_core.salted_hash(decode(repeat('00', 32), 'hex'), 'b')",
                "(fk|pk)_turn_texts",
            ),
        ):
            insert = (
                f"INSERT INTO {SAID} (tenant_id, conversation_turn_id, text_hash, salt, text)"
                f" VALUES ('acme', {written.conversation_turn_id}, {text_hash}, {salt}, {said})"
            )
            with pytest.raises(sa.exc.IntegrityError, match=constraint), conn.begin_nested():
                conn.exec_driver_sql(insert)


@pytest.mark.parametrize(
    ("given", "error", "missing"),
    [
        ({"user_id": "{}"}, IdentityNotFound, ("theirs", "nobody")),
        ({"device_id": "{}"}, DeviceNotFound, ("bob-device", "theirs-device", "nothing")),
        ({"session_id": "{}"}, SessionNotFound, ("bob-session", "theirs-session", "nothing")),
    ],
)
def test_append__a_foreign_id_is_like_none(
    engine: sa.Engine, given: dict[str, str], error: type[Exception], missing: tuple[str, ...]
) -> None:
    with tenant_scope(engine, "rival") as conn:
        furnish(conn, "theirs")
    with tenant_scope(engine, "acme") as conn:
        furnish(conn, "alice", "bob")
        repository = ConversationRepository(conn)
        told = set()
        for name in missing:
            named = {field: value.format(name) for field, value in given.items()}
            raised = refusal_of(conn, error, repository.append, **turn(**named))
            told.add(str(raised).replace(name, "?"))
        assert len(told) == 1
        assert repository.page(THREAD) == []


def test_append__hashes_are_salted(acme: Tenant) -> None:
    """Equal texts have other hashes: nobody finds a short text by trying."""
    ready(acme)
    hashes = [call(acme.app, acme.id, turn_id=n, text="yes")[2] for n in (1, 2)]
    stored = acme.admin.execute(
        f"SELECT text_hash, salt FROM {SAID} WHERE tenant_id = %s ORDER BY conversation_turn_id".encode(),
        (acme.id,),
    ).fetchall()
    assert len(set(hashes)) == len({salt for _, salt in stored}) == 2
    assert [hashed("yes", salt) for _, salt in stored] == [row[0] for row in stored] == hashes
    assert {len(salt) for _, salt in stored} == {32}


# --- replays


def test_append__replays_by_key_and_by_place(scope: sa.Connection) -> None:
    repository = ConversationRepository(scope)
    original = repository.append(**turn(idempotency_key="k", session_id="alice-session"))
    replay = TurnResult(original.conversation_turn_id, 1, original.text_hash, original.created_at, True)
    same = turn(session_id="alice-session")
    for key in ("k", None, "another"):
        assert repository.append(**same, idempotency_key=key) == replay
    assert len(repository.page(THREAD)) == 1
    # What is taken in one conversation is free in another.
    elsewhere = {**same, "correlation_id": uuid4()}
    assert not repository.append(**elsewhere, idempotency_key="k").replayed


CHANGES: list[dict[str, Any]] = [
    {"text": "Hello "},
    {"text": ""},
    {"role": "SELENE"},
    {"source": "VOICE_TRANSCRIPT"},
    {"privacy_scope": "PRIVATE_DELIVERY"},
    {"session_id": "alice-session"},
    {"device_id": "alice-device"},
    {"user_id": "bob"},
    {"user_id": "nobody"},  # a replay is looked for before anything that can refuse
    {"session_id": "bob-session"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ascii(change))
@pytest.mark.parametrize("by", ["key", "place", "both"])
def test_append__other_content_is_refused(scope: sa.Connection, change: dict[str, Any], by: str) -> None:
    repository = ConversationRepository(scope)
    original = repository.append(**turn(idempotency_key="k"))
    key = None if by == "place" else "k"
    place = 2 if by == "key" else 1
    given = {**turn(place, idempotency_key=key), **change}
    error = refusal_of(scope, IdempotencyConflict, repository.append, **given)
    assert error.correlation_id == THREAD
    assert error.conversation_turn_id == original.conversation_turn_id
    assert (error.turn_id, error.idempotency_key) == (place, key)
    assert error.code == "OS_WORK_ORDER_IDEMPOTENCY_CONFLICT"
    assert len(repository.page(THREAD)) == 1


def test_append__key_of_one_turn_and_place_of_another(scope: sa.Connection) -> None:
    repository = ConversationRepository(scope)
    repository.append(**turn(1, idempotency_key="one"))
    repository.append(**turn(2, idempotency_key="two"))
    error = refusal_of(scope, IdempotencyConflict, repository.append, **turn(2, idempotency_key="one"))
    assert "idempotency key one" in str(error)


# --- tombstones


def test_tombstone__hides_the_text_and_keeps_the_hash(repository: ConversationRepository) -> None:
    first = repository.append(**turn(1, SECRET, idempotency_key="k", session_id="alice-session"))
    repository.append(**turn(2, "Noted", role="SELENE", source="SELENE_OUTPUT"))
    tombstone = repository.tombstone(THREAD, first.conversation_turn_id, reason_code=451)
    assert (tombstone.turn_id, tombstone.replayed, tombstone.text_hash) == (3, False, hashed(""))
    hidden, other, mark = repository.turns(THREAD)
    assert (hidden.text, hidden.text_hash) == (None, first.text_hash)
    assert hidden.tombstoned_by_conversation_turn_id == tombstone.conversation_turn_id
    assert hidden.tombstone_reason_code == 451
    assert hidden.tombstone_of_conversation_turn_id is None
    assert (other.text, other.tombstone_reason_code) == ("Noted", None)
    assert (mark.source, mark.text) == (ConversationSource.TOMBSTONE, "")
    assert mark.tombstone_of_conversation_turn_id == first.conversation_turn_id
    assert (mark.tombstone_reason_code, mark.tombstoned_by_conversation_turn_id) == (451, None)
    assert (mark.user_id, mark.session_id, mark.role) == ("alice", "alice-session", "USER")
    assert repository.get(THREAD, 1) == hidden
    # A page that ends before the tombstone knows of it, too.
    assert repository.page(THREAD, limit=1) == [hidden]
    # What is hidden still replays, by its hash, and tells nothing that the hash does not.
    again = repository.append(**turn(1, SECRET, idempotency_key="k", session_id="alice-session"))
    assert (again.conversation_turn_id, again.replayed) == (first.conversation_turn_id, True)


def test_tombstone__replays_or_conflicts(scope: sa.Connection) -> None:
    repository = ConversationRepository(scope)
    first = repository.append(**turn(1, SECRET)).conversation_turn_id
    second = repository.append(**turn(2)).conversation_turn_id
    original = repository.tombstone(THREAD, first, reason_code=1, turn_id=10, idempotency_key="hide")
    replay = TurnResult(original.conversation_turn_id, 10, original.text_hash, original.created_at, True)
    for given in ({}, {"turn_id": 10}, {"idempotency_key": "hide"}, {"idempotency_key": "other"}):
        assert repository.tombstone(THREAD, first, reason_code=1, **given) == replay
    for reason, turn_id in ((2, None), (1, 11)):
        error = refusal_of(
            scope, TombstoneConflict, repository.tombstone, THREAD, first, reason_code=reason, turn_id=turn_id
        )
        assert (error.correlation_id, error.conversation_turn_id) == (THREAD, first)
    conflicts: list[Callable[[], object]] = [
        lambda: repository.tombstone(THREAD, second, reason_code=1, idempotency_key="hide"),
        lambda: repository.tombstone(THREAD, second, reason_code=1, turn_id=10),
        lambda: repository.append(**turn(10)),
        lambda: repository.append(**turn(20, idempotency_key="hide")),
    ]
    for conflict in conflicts:
        refusal_of(scope, IdempotencyConflict, conflict)
    # The place after the last is the default.
    assert repository.tombstone(THREAD, second, reason_code=1).turn_id == 11


def test_tombstone__names_an_earlier_turn_of_this_conversation(engine: sa.Engine) -> None:
    with tenant_scope(engine, "rival") as conn:
        furnish(conn, "alice")
        theirs = ConversationRepository(conn).append(**turn(1, SECRET)).conversation_turn_id
    with tenant_scope(engine, "acme") as conn:
        furnish(conn, "alice")
        repository = ConversationRepository(conn)
        elsewhere = repository.append(**turn(1, correlation_id=uuid4())).conversation_turn_id
        ours = repository.append(**turn(5)).conversation_turn_id
        told = set()
        for named in (theirs, elsewhere, ours + 1, 2**63 - 1):
            error = refusal_of(
                conn, ConversationTurnNotFound, repository.tombstone, THREAD, named, reason_code=1
            )
            told.add(str(error).removesuffix(f" {named}"))
            assert (error.correlation_id, error.conversation_turn_id) == (THREAD, named)
        assert len(told) == 1
        mark = repository.tombstone(THREAD, ours, reason_code=1).conversation_turn_id
        error = refusal_of(conn, TombstoneConflict, repository.tombstone, THREAD, mark, reason_code=1)
        assert "is a tombstone itself" in str(error)
        late = repository.append(**turn(9)).conversation_turn_id
        for turn_id in (9, 8):  # a place at or before the turn itself
            error = refusal_of(
                conn, ContractViolation, repository.tombstone, THREAD, late, reason_code=1, turn_id=turn_id
            )
            assert error.field == "turn_id"
    with tenant_scope(engine, "rival") as conn:
        (untouched,) = ConversationRepository(conn).turns(THREAD)
        assert untouched.text == SECRET


def test_tombstone__names_no_later_turn(acme: Tenant) -> None:
    """One that is there, in the same conversation: later is by place, whichever was written first."""
    ready(acme)
    late, early, latest = (call(acme.app, acme.id, turn_id=place)[0] for place in (8, 4, 9))
    hide = "SELECT * FROM conversation.tombstone_turn(%s, %s, %s, 1, %s)"
    for target, place in ((late, 8), (late, 7), (late, 3), (early, 4), (early, 3), (latest, 9), (latest, 5)):
        with refused("SL001") as refusal:
            acme.app.execute(hide, (acme.id, THREAD, target, place))
        assert refusal.message == "turn_id: must be greater than that of the turn to hide"
        assert refusal.facts["field"] == "turn_id"
    assert [row[0] for row in rows_of(acme)] == [late, early, latest]
    for target, place in ((early, 5), (late, 10)):
        row = acme.app.execute(hide, (acme.id, THREAD, target, place)).fetchone()
        assert row is not None
        assert row[1] == place


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("correlation_id", value) for value in (None, "x")),
        *(("conversation_turn_id", value) for value in (0, -1, None, "1", True, 2**63)),
        *(("reason_code", value) for value in (0, -1, 2**32, None, "1", True)),
        *(("turn_id", value) for value in (0, -1, "1", True, 2**63)),
        *(("idempotency_key", value) for value in ("", "a\n", "x" * 129, 5)),
    ],
)
def test_tombstone__contract(scope: sa.Connection, acme: Tenant, field: str, value: Any) -> None:
    repository = ConversationRepository(scope)
    given = {"correlation_id": THREAD, "conversation_turn_id": 1, "reason_code": 1, field: value}
    error = refusal_of(scope, ContractViolation, repository.tombstone, **given)
    assert error.field == field
    if value in ("x", "1", 2**63) or value is True or (field, value) == ("idempotency_key", 5):
        return  # PostgreSQL refuses or casts it before the function begins
    named = ", ".join(f"p_{name} => %({name})s" for name in given)
    with refused("SL001") as refusal:
        acme.app.execute(
            f"SELECT conversation.tombstone_turn(p_tenant_id => '{acme.id}', {named})".encode(), given
        )
    assert refusal.facts["field"] == field


def test_tombstone__no_place_after_the_last(scope: sa.Connection) -> None:
    repository = ConversationRepository(scope)
    first = repository.append(**turn(1)).conversation_turn_id
    last = repository.append(**turn(2**63 - 2)).conversation_turn_id
    assert repository.tombstone(THREAD, last, reason_code=1).turn_id == 2**63 - 1
    error = refusal_of(scope, ContractViolation, repository.tombstone, THREAD, first, reason_code=1)
    assert error.field == "turn_id"
    assert repository.tombstone(THREAD, first, reason_code=1, turn_id=7).turn_id == 7


@pytest.mark.parametrize(
    "columns",
    [
        {"source": "'TOMBSTONE'"},
        {"source": "'TOMBSTONE'", "tombstone_reason_code": "1"},
        {"source": "'TOMBSTONE'", "tombstone_of_conversation_turn_id": "{first}"},
        {"tombstone_of_conversation_turn_id": "{first}", "tombstone_reason_code": "1"},
        {"tombstone_reason_code": "1"},
        *(
            {
                "source": "'TOMBSTONE'",
                "tombstone_of_conversation_turn_id": "{first}",
                "tombstone_reason_code": "1",
                **more,
            }
            for more in (
                {"text_hash": "repeat('0', 64)"},
                {"tombstone_reason_code": "0"},
                {"tombstone_reason_code": "4294967296"},
                {"conversation_turn_id": "{first}"},
                {"conversation_turn_id": "{first} - 1"},
            )
        ),
        {"text_hash": "repeat('x', 64)"},
        {"text_hash": "repeat('0', 63)"},
        {"text_hash": "''"},
        {"turn_id": "0"},
        {"role": "'X'"},
        {"source": "'X'"},
        {"privacy_scope": "'X'"},
        {"created_at": "'infinity'"},
        {"idempotency_key": "' '"},
    ],
    ids=lambda columns: ascii(columns)[:60],
)
def test_row__is_refused_whoever_writes_it(
    engine: sa.Engine, admin_engine: sa.Engine, columns: dict[str, str]
) -> None:
    with tenant_scope(engine, "acme") as conn:
        furnish(conn, "alice")
        first = ConversationRepository(conn).append(**turn(1)).conversation_turn_id
    usual = {
        "tenant_id": "'acme'",
        "correlation_id": f"'{THREAD}'",
        "turn_id": "2",
        "user_id": "'alice'",
        "role": "'USER'",
        "source": "'TYPED_TEXT'",
        "text_hash": f"'{hashed('')}'",
        "privacy_scope": "'PUBLIC_CHAT'",
    }
    row = {name: value.format(first=first) for name, value in {**usual, **columns}.items()}
    insert = f"INSERT INTO {LEDGER} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
    with (
        pytest.raises(sa.exc.IntegrityError, match="ck_conversation_ledger_contract"),
        admin_engine.begin() as conn,
    ):
        conn.exec_driver_sql(insert)
    with admin_engine.begin() as conn:  # as it is but for that
        conn.exec_driver_sql(
            f"INSERT INTO {LEDGER} ({', '.join(usual)}) VALUES ({', '.join(usual.values())})"
        )


# --- what no role can read

WAYS_TO_THE_TEXT = [
    "SELECT text FROM {said}",
    "SELECT * FROM {said}",
    "TABLE {said}",
    "SELECT turn FROM {said} AS turn",
    "SELECT turn::text FROM {said} AS turn",
    "SELECT row_to_json(turn) FROM {said} AS turn",
    "SELECT to_jsonb(turn) ->> 'text' FROM {said} AS turn",
    "SELECT (turn).text FROM {said} AS turn",
    "SELECT octet_length(text) FROM {said}",
    "SELECT md5(text) FROM {said}",
    "SELECT pg_column_size(text) FROM {said}",
    "SELECT conversation_turn_id FROM {said} WHERE text LIKE 'my%'",
    "SELECT conversation_turn_id FROM {said} WHERE text > 'm'",
    "SELECT conversation_turn_id FROM {said} ORDER BY text",
    "SELECT count(*) FROM {said} GROUP BY text",
    "SELECT count(text) FROM {said}",
    "SELECT conversation_turn_id FROM {said} WHERE conversation_turn_id > 0 AND text IS NOT NULL",
    "SELECT a.conversation_turn_id FROM {said} AS a JOIN {said} AS b USING (text)",
    "SELECT a.conversation_turn_id FROM {said} AS a NATURAL JOIN {said} AS b",
    "COPY {said} TO STDOUT",
    "COPY {said} (text) TO STDOUT",
    "COPY (SELECT text FROM {said}) TO STDOUT",
    "CREATE TEMPORARY TABLE mine AS SELECT text FROM {said}",
    "CREATE TEMPORARY TABLE mine AS TABLE {said}",
    "EXPLAIN ANALYZE SELECT text FROM {said}",
    "DECLARE mine CURSOR FOR SELECT text FROM {said}",
    "DO $$ BEGIN PERFORM text FROM {said}; END $$",
    "SELECT stavalues1 FROM pg_statistic",
    "SELECT conversation.is_turn_row(1, 1, '', '', text, '', now(), '', 1, 1) FROM {said}",
    "SELECT salt FROM {said}",
    "SELECT conversation_turn_id FROM {said} WHERE text_hash = os_core.salted_hash(salt, 'guess')",
    "SELECT os_core.salted_hash('', 'guess')",
]


@pytest.fixture
def hidden(engine: sa.Engine) -> ConversationTurn:
    """Write and hide a turn, and return it as it can be read."""
    with tenant_scope(engine, "acme") as conn:
        furnish(conn, "alice")
        repository = ConversationRepository(conn)
        written = repository.append(**turn(1, SECRET))
        repository.tombstone(THREAD, written.conversation_turn_id, reason_code=7)
        return repository.page(THREAD)[0]


@pytest.mark.parametrize("role", ["app", "readonly"])
def test_text__cannot_be_read_from_the_table(
    database: Database, hidden: ConversationTurn, role: Role
) -> None:
    with database.engine(role).connect() as conn:
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
        for way in WAYS_TO_THE_TEXT:
            with pytest.raises(sa.exc.DBAPIError) as caught, conn.begin_nested():
                conn.execute(sa.text(way.format(said=SAID)))
            assert isinstance(caught.value.orig, psycopg.errors.InsufficientPrivilege), way
            assert SECRET not in str(caught.value)
        for name in READABLE:
            conn.exec_driver_sql(f"SELECT {name} FROM {LEDGER}")
        found = conn.exec_driver_sql(f"SELECT {', '.join(READABLE)} FROM {LEDGER} WHERE turn_id = 1").one()
        assert found.text_hash == hidden.text_hash


@pytest.mark.parametrize("role", ["app", "readonly"])
def test_text__of_a_hidden_turn_is_in_nothing_that_a_role_gets(
    database: Database, hidden: ConversationTurn, admin_engine: sa.Engine, role: Role
) -> None:
    with admin_engine.connect() as conn:
        conn.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(f"VACUUM ANALYZE {SAID}")
        # Not even among what a superuser sees of the statistics.
        assert SECRET not in str(conn.exec_driver_sql("SELECT * FROM pg_stats").all())
        kept = conn.exec_driver_sql(
            f"SELECT a.attname FROM pg_statistic AS s JOIN pg_attribute AS a ON a.attrelid = s.starelid"
            f" AND a.attnum = s.staattnum WHERE s.starelid = '{SAID}'::regclass"
        ).scalars()
        assert set(kept) == {"tenant_id", "conversation_turn_id", "text_hash"}
    with tenant_scope(database.engine(role), "acme") as conn:
        assert SECRET not in str(ConversationRepository(conn).page(THREAD))
        for query in (
            f"SELECT conversation.read_turns('acme', '{THREAD}', 0, 100)",
            f"EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM conversation.read_turns('acme', '{THREAD}', 0, 100)",
            "SELECT * FROM pg_stats",
        ):
            assert SECRET not in str(conn.exec_driver_sql(query).all())


def test_text__is_in_no_index(admin_engine: sa.Engine) -> None:
    with admin_engine.connect() as conn:
        keys = conn.exec_driver_sql(
            f"SELECT a.attname FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indexrelid"
            f" WHERE i.indrelid IN ('{LEDGER}'::regclass, '{SAID}'::regclass)"
        ).scalars()
        assert set(keys) <= set(READABLE)


def test_text__is_in_no_refusal(engine: sa.Engine, hidden: ConversationTurn) -> None:
    with tenant_scope(engine, "acme") as conn:
        repository = ConversationRepository(conn)
        calls: list[Callable[[], object]] = [
            lambda: repository.append(**turn(1, "something else")),
            lambda: repository.append(**turn(1, SECRET, source="VOICE_TRANSCRIPT")),
            lambda: repository.tombstone(THREAD, hidden.conversation_turn_id, reason_code=8),
            lambda: repository.append(**turn(9, SECRET, session_id="nothing")),
        ]
        for refused_call in calls:
            error = refusal_of(conn, Exception, refused_call)
            cause = error.__cause__.orig
            assert SECRET not in f"{error} {vars(error)} {cause.diag.message_detail} {cause.diag.context}"


def test_read__as_the_readonly_role(database: Database, hidden: ConversationTurn) -> None:
    with tenant_scope(database.engine("readonly"), "acme") as conn:
        repository = ConversationRepository(conn)
        assert repository.page(THREAD)[0] == hidden
        with pytest.raises(sa.exc.DBAPIError, match="permission denied for function append_turn"):
            repository.append(**turn(9))
    with tenant_scope(database.engine("readonly"), "rival") as conn:
        assert ConversationRepository(conn).page(THREAD) == []


def test_read__as_a_superuser_one_tenant_is_seen(
    engine: sa.Engine, admin_engine: sa.Engine, hidden: ConversationTurn
) -> None:
    with tenant_scope(engine, "rival") as conn:
        furnish(conn, "alice")
        ConversationRepository(conn).append(**turn(5, "theirs"))
    with tenant_scope(admin_engine, "acme") as conn:
        assert [each.turn_id for each in ConversationRepository(conn).turns(THREAD)] == [1, 2]


# --- pages


@pytest.mark.parametrize("count", [1, TURNS_PAGE - 1, TURNS_PAGE, TURNS_PAGE + 1, 2 * TURNS_PAGE])
def test_turns__at_the_edges_of_a_page(repository: ConversationRepository, count: int) -> None:
    for number in reversed(range(count)):
        repository.append(**turn(2 * number + 1, str(number)))
    assert [each.text for each in repository.turns(THREAD)] == [str(number) for number in range(count)]
    assert [each.turn_id for each in repository.turns(THREAD, after=1)] == list(range(3, 2 * count, 2))
    assert list(repository.turns(THREAD, after=2 * count)) == []
    assert [each.turn_id for each in repository.page(THREAD, after=0, limit=1000)] == list(
        range(1, 2 * count, 2)
    )


@pytest.mark.parametrize("after", [-1, 2**63, 1.0, "0", True, None])
def test_page__refuses_what_is_no_place(scope: sa.Connection, after: Any) -> None:
    repository = ConversationRepository(scope)
    for read in (repository.page, repository.turns):
        with pytest.raises(ContractViolation, match=r"^after: "):
            read(THREAD, after=after)
    for limit in (0, 1001, True, None):
        with pytest.raises(ContractViolation, match=r"^limit: "):
            repository.page(THREAD, limit=limit)  # type: ignore[arg-type]
    for arguments in ("NULL, 1", "-1, 1", "0, NULL", "0, 0", "0, 1001"):
        with pytest.raises(sa.exc.DBAPIError, match=r"(after|limit): must be"), scope.begin_nested():
            scope.exec_driver_sql(f"SELECT conversation.read_turns('acme', '{THREAD}', {arguments})")


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "RESET selene.tenant_id"])
def test_turns__tenant_lost_on_the_way(engine: sa.Engine, end: str) -> None:
    with tenant_scope(engine, "acme") as conn:
        furnish(conn, "alice")
        for number in range(1, TURNS_PAGE + 2):
            ConversationRepository(conn).append(**turn(number))
    with tenant_scope(engine, "acme") as conn:
        repository = ConversationRepository(conn)
        turns = repository.turns(THREAD)
        assert next(turns).turn_id == 1
        conn.exec_driver_sql(end)
        with pytest.raises(TenantScopeViolation):
            list(turns)
        conn.rollback()
    calls: list[Callable[[], object]] = [
        lambda: repository.append(**turn(1)),
        lambda: repository.tombstone(THREAD, 1, reason_code=1),
        lambda: repository.page(THREAD),
        lambda: repository.get(THREAD, 1),
        lambda: repository.turns(THREAD),
    ]
    for each in calls:
        with pytest.raises(TenantScopeViolation):
            each()


@pytest.fixture(scope="module")
def full_database(server: Server, template_database: str) -> Iterator[Database]:
    """Return a database with a thousand conversations, and a long one of long turns."""
    with server.new_database("talk", template_database) as database:
        with server.admin(database.name) as admin:
            insert = (
                f"INSERT INTO {LEDGER} (tenant_id, correlation_id, turn_id, user_id, role, source, text_hash,"
                " privacy_scope, tombstone_of_conversation_turn_id, tombstone_reason_code)"
            )
            salt = "decode(repeat('00', 32), 'hex')"
            admin.execute("INSERT INTO os_core.identities VALUES ('acme', 'alice', NULL, NULL, 'ACTIVE')")
            admin.execute(
                f"{insert} SELECT 'acme', md5('talk-' || n % 1000)::uuid, 1 + n / 1000, 'alice', 'USER',"
                f" 'TYPED_TEXT', os_core.salted_hash({salt}, 'turn'), 'PUBLIC_CHAT', NULL, NULL"
                " FROM generate_series(0, 19999) AS n"
            )
            admin.execute(
                f"{insert} SELECT 'acme', '{THREAD}', n, 'alice', 'USER', 'TYPED_TEXT',"
                f" os_core.salted_hash({salt}, repeat('x', 2000)), 'PUBLIC_CHAT', NULL, NULL"
                " FROM generate_series(1, 5000) AS n"
            )
            admin.execute(
                f"INSERT INTO {SAID} SELECT tenant_id, conversation_turn_id, text_hash, {salt},"
                f" CASE correlation_id WHEN '{THREAD}' THEN repeat('x', 2000) ELSE 'turn' END FROM {LEDGER}"
            )
            admin.execute(
                f"{insert} SELECT tenant_id, correlation_id, 1000000 + turn_id, user_id, role, 'TOMBSTONE',"
                f" os_core.salted_hash('', ''), privacy_scope, conversation_turn_id, 1 FROM {LEDGER}"
                " WHERE conversation_turn_id % 3 = 0"
            )
            admin.execute(
                "INSERT INTO os_core.work_order_ledger (tenant_id, work_order_id, work_order_seq,"
                " correlation_id, turn_id, event_type, work_order_status, reason_code, payload, event_hash)"
                " SELECT 'acme', 'order-' || n % 1000, 1 + n / 1000, md5('talk-' || n % 1000)::uuid,"
                " 1 + n / 1000, CASE WHEN n < 1000 THEN 'WORK_ORDER_CREATED' ELSE 'STEP_STARTED' END,"
                " 'DRAFT', 1, '{}', sha256('') FROM generate_series(0, 4999) AS n"
            )
            admin.execute("ANALYZE")
        yield database


def test_turns__memory_does_not_grow_with_the_conversation(full_database: Database) -> None:
    with tenant_scope(full_database.engine("app"), "acme") as conn:
        repository = ConversationRepository(conn)
        tracemalloc.start()
        try:
            read = sum(1 for _ in repository.turns(THREAD))
            _, streamed = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            kept = list(repository.turns(THREAD))
            _, listed = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert read == len(kept) == 5000 + len([each for each in kept if each.text is None])
    assert streamed < listed / 4


def nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name the nodes of a plan, an index scan by its index, with the condition that it is entered by."""
    yield plan.get("Index Name", plan["Node Type"]), plan.get("Index Cond", "")
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.mark.parametrize("state", ["full", "new"])
def test_read__is_one_index_scan(full_database: Database, database: Database, state: str) -> None:
    """The query of the function, as the function plans it: also where it is planned on an empty table."""
    place = full_database if state == "full" else database
    with place.engine("owner").connect() as conn:
        source, settings = conn.exec_driver_sql(
            "SELECT prosrc, proconfig FROM pg_proc WHERE oid = 'conversation.read_turns'::regproc"
        ).one()
        (query,) = re.findall(r"RETURN QUERY\n(.*?);", source, re.DOTALL)
        for number, name in enumerate(("tenant_id", "correlation_id", "after", "limit"), start=1):
            query = query.replace(f"p_{name}", f"${number}")
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
        for setting in settings:
            name, value = setting.split("=")
            conn.exec_driver_sql(f"SET LOCAL {name} = {value}")
        conn.exec_driver_sql(f"PREPARE read (text, uuid, bigint, integer) AS {query}")
        explain = f"EXPLAIN (FORMAT JSON) EXECUTE read ('acme', '{THREAD}', 0, 64)"
        (plan,) = conn.exec_driver_sql(explain).scalar_one()
    found = dict(nodes(plan["Plan"]))
    turns, marks = "ux_conversation_ledger_tenant_turn", "ux_conversation_ledger_tombstone"
    texts = "pk_turn_texts"
    # No scan of a table, no sort.
    assert set(found) == {"Limit", "Nested Loop", "Result", turns, marks, texts}
    for index, columns in (
        (turns, ("tenant_id", "correlation_id", "turn_id")),
        (marks, ("tenant_id", "correlation_id", "tombstone_of_conversation_turn_id")),
        (texts, ("tenant_id", "conversation_turn_id")),
    ):
        for column in columns:
            assert f"({column} " in found[index]


TURNS = "conversation.ux_conversation_ledger_tenant_turn"
MARKS = "conversation.ux_conversation_ledger_tombstone"
TEXTS_OF_TURNS = "conversation.pk_turn_texts"


def test_read__touches_what_it_returns(full_database: Database) -> None:
    """As the server counts it: no sequential scan, and one scan of the conversation."""
    with tenant_scope(full_database.engine("app"), "acme") as conn, scans(conn) as counted:
        turns = ConversationRepository(conn).page(THREAD, after=1000)
    assert counted == {TURNS: 1, MARKS: len(turns), TEXTS_OF_TURNS: len(turns)}


def test_read__beside_the_events_is_one_index_scan_each(full_database: Database) -> None:
    """What `selene-core show --conversation` goes through, also where both tables are large."""
    with tenant_scope(full_database.engine("app"), "acme") as conn, scans(conn) as counted:
        events, turns_of = WorkOrderRepository(conn).events("order-7"), ConversationRepository(conn).turns
        lines = [*conversation_lines(events, turns_of)]
    turns = sum("USER: " in line for line in lines)
    assert (turns, sum("STEP_STARTED" in line for line in lines)) == (27, 4)
    assert counted == {
        "os_core.ux_work_order_ledger_tenant_work_order_seq": 1,
        TURNS: 1,
        MARKS: turns,
        TEXTS_OF_TURNS: turns,
    }


# --- many at once


def test_sixteen__open_move_and_close_sessions_while_they_append(sessions: Sessions, acme: Tenant) -> None:
    """Sessions of one user, turns of one conversation that name them, and each turn sent by two."""
    ready(acme)
    states = ("SUSPENDED", "ACTIVE", "SOFT_CLOSED", "CLOSED")

    def talk(number: int) -> Callable[[Connection], tuple[list[tuple[Any, ...]], list[datetime]]]:
        pair, leads = divmod(number, 2)

        def job(conn: Connection) -> tuple[list[tuple[Any, ...]], list[datetime]]:
            results, seen = [], []

            def do(function: str, *given: str) -> Any:
                arguments = (acme.id, *given)
                holders = ", ".join(["%s"] * len(arguments))
                row = conn.execute(f"SELECT * FROM os_core.{function}({holders})".encode(), arguments)
                return row.fetchone()

            for n in range(5):
                own = f"own-{pair}-{n}"
                do("open_session", own, "alice", "alice-device")
                for place, state in enumerate(states):
                    turn_id = 1 + place + 4 * (pair + 8 * n)
                    given = {"turn_id": turn_id, "text": f"turn {turn_id}", "idempotency_key": f"k{turn_id}"}
                    results.append(call(conn, acme.id, session_id=own, **given))
                    if leads:
                        do("move_session", own, state)
                    else:
                        seen.append(do("touch_session", "alice-session")[6])
            return results, seen

        return job

    done = sessions.at_once([talk(number) for number in range(16)])
    results = [row for rows, _ in done for row in rows]
    assert len(results) == 320
    assert sum(not replayed for *_, replayed in results) == 160
    stored = acme.admin.execute(
        "SELECT turn_id, text, idempotency_key, session_id, conversation_turn_id"
        f" FROM {LEDGER} JOIN {SAID} USING (tenant_id, conversation_turn_id)"
        " WHERE tenant_id = %s ORDER BY turn_id".encode(),
        (acme.id,),
    ).fetchall()
    assert [row[:4] for row in stored] == [
        (1 + n, f"turn {1 + n}", f"k{1 + n}", f"own-{n // 4 % 8}-{n // 32}") for n in range(160)
    ]
    assert {row[4] for row in stored} == {row[0] for row in results}
    assert all(times == sorted(times) for _, times in done)
    touches = [time for _, times in done for time in times]
    assert len(set(touches)) == len(touches) == 160  # each took its own time, and nothing goes back
    found = acme.admin.execute(
        "SELECT session_state, count(*), count(closed_at), max(last_activity_at) FROM os_core.sessions"
        " WHERE tenant_id = %s AND user_id = 'alice' GROUP BY 1 ORDER BY 1",
        (acme.id,),
    ).fetchall()
    assert [row[:3] for row in found] == [("ACTIVE", 1, 0), ("CLOSED", 40, 40)]
    assert found[0][3] == max(touches)


def test_sixteen__hide_one_turn_while_others_append(sessions: Sessions, acme: Tenant) -> None:
    """The place after the last is found anew when somebody takes it; there is one tombstone."""
    ready(acme)
    target = call(acme.app, acme.id, turn_id=1, text=SECRET)[0]

    def hide(conn: Connection) -> Any:
        query = "SELECT * FROM conversation.tombstone_turn(%s, %s, %s, 1)"
        return conn.execute(query, (acme.id, THREAD, target)).fetchone()

    def append(number: int) -> Callable[[Connection], Any]:
        def job(conn: Connection) -> None:
            for n in range(10):
                try:
                    call(conn, acme.id, turn_id=2 + n, text=f"{number}", role="SELENE")
                except psycopg.Error as exc:
                    if exc.sqlstate != "SL005":  # somebody else has said something there
                        raise

        return job

    outcomes = sessions.at_once([hide, append(0), hide, append(1)] * 4)
    marks = [outcome for outcome in outcomes if outcome is not None]
    assert len({mark[0] for mark in marks}) == 1
    assert sum(not mark[4] for mark in marks) == 1
    assert sum(row[-2] is not None for row in rows_of(acme)) == 1


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_frozen_snapshot__is_a_serialization_failure(
    sessions: Sessions, acme: Tenant, isolation: IsolationLevel
) -> None:
    ready(acme)
    target = call(acme.app, acme.id, turn_id=1, text=SECRET)[0]
    hide = partial(Connection.execute, query="SELECT conversation.tombstone_turn(%s, %s, %s, 1)")
    writes: list[Callable[[Connection], object]] = [
        lambda conn: call(conn, acme.id, turn_id=2),
        lambda conn: hide(conn, params=(acme.id, THREAD, target)),
    ]
    for write in writes:
        frozen = sessions.open(autocommit=False, isolation=isolation)
        frozen.conn.execute("SELECT 1")
        write(acme.app)
        with refused("40001"):
            write(frozen.conn)


@pytest.mark.parametrize("what", ["append", "tombstone"])
@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_killed_backend__leaves_nothing(sessions: Sessions, acme: Tenant, what: str, function: str) -> None:
    """In the middle of the insert, which waits for another's of the same turn."""
    ready(acme)
    target = call(acme.app, acme.id, turn_id=1)[0]

    def write(conn: Connection) -> Any:
        if what == "append":
            return call(conn, acme.id, turn_id=2, text="second")
        query = "SELECT * FROM conversation.tombstone_turn(%s, %s, %s, 1)"
        return conn.execute(query, (acme.id, THREAD, target)).fetchone()

    holder, killed = sessions.open(autocommit=False), sessions.open()
    write(holder.conn)
    future = killed.start(write)
    assert sessions.blockers(killed) == {holder.pid}
    acme.admin.execute(f"SELECT {function}(%s)".encode(), (killed.pid,))
    assert isinstance(future.exception(), psycopg.Error)
    holder.conn.rollback()
    assert len(rows_of(acme)) == 1
    first = write(acme.app)
    again = write(acme.app)
    assert (first[4], again[4], again[0]) == (False, True, first[0])
    assert len(rows_of(acme)) == 2


def test_append__by_a_user_who_is_registered_at_that_moment(sessions: Sessions, acme: Tenant) -> None:
    """The turn is written, or the user is not there yet: never anything else."""
    answers = []
    for number in range(60):
        user, thread = f"user-{number}", str(uuid4())

        def register(conn: Connection, user: str = user) -> str | None:
            conn.execute("SELECT * FROM os_core.register_identity(%s, %s)", (acme.id, user))
            return None

        def append(conn: Connection, user: str = user, thread: str = thread) -> str | None:
            try:
                conn.execute(
                    "SELECT conversation.append_turn"
                    "(%s, %s, 1, %s, 'USER', 'TYPED_TEXT', 'x', 'PUBLIC_CHAT')",
                    (acme.id, thread, user),
                )
            except psycopg.Error as exc:
                return exc.sqlstate
            return None

        with closing(Sessions(*sessions.urls)) as pair:
            answers += pair.at_once([register, append])
    assert set(answers) <= {None, "SL020"}


def test_sequence__set_back_is_noticed(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        furnish(conn, "alice")
        written = [ConversationRepository(conn).append(**turn(n)) for n in (1, 2, 3)]
    set_back = sa.text("SELECT setval('conversation.conversation_ledger_conversation_turn_id_seq', 1, FALSE)")
    writes: list[Callable[[ConversationRepository], object]] = [
        lambda repository: repository.append(**turn(4)),
        lambda repository: repository.tombstone(THREAD, written[0].conversation_turn_id, reason_code=1),
        lambda repository: repository.tombstone(
            THREAD, written[0].conversation_turn_id, reason_code=1, turn_id=9
        ),
    ]
    hint = ""
    for write in writes:
        with admin_engine.begin() as conn:
            conn.execute(set_back)
        with pytest.raises(sa.exc.DBAPIError) as caught, tenant_scope(engine, "acme") as conn:
            write(ConversationRepository(conn))
        assert isinstance(caught.value.orig, psycopg.errors.ObjectNotInPrerequisiteState)
        hint = caught.value.orig.diag.message_hint or ""
    with admin_engine.begin() as conn:
        conn.exec_driver_sql(hint.removeprefix("Let a superuser run: "))
    with tenant_scope(engine, "acme") as conn:
        for write in writes:
            write(ConversationRepository(conn)) if write is not writes[2] else None


def test_enums__are_the_words_of_the_checks(acme: Tenant) -> None:
    row = "conversation.is_turn_row(1, 1, {}, {}, repeat('0', 64), {}, now(), NULL, NULL, NULL)"
    usual = ["USER", "TYPED_TEXT", "PUBLIC_CHAT"]
    for place, words in enumerate((ConversationRole, ConversationSource, PrivacyScope)):
        every = [word.value for enum in (ConversationRole, ConversationSource, PrivacyScope) for word in enum]
        for word in [*every, "", "user"]:
            given = [f"'{word if n == place else value}'" for n, value in enumerate(usual)]
            found = acme.admin.execute(f"SELECT {row.format(*given)}".encode()).fetchone()
            assert found == (word in list(words) and word != "TOMBSTONE",), word
    mark = (
        f"SELECT conversation.is_turn_row(2, 2, 'USER', 'TOMBSTONE', '{hashed('')}', 'PUBLIC_CHAT', now(),"
        " NULL, 1, 1)"
    )
    assert acme.admin.execute(mark.encode()).fetchone() == (True,)


# --- a backend that is killed


@pytest.mark.slow
def test_killed_server__keeps_what_it_acknowledged(server: Server) -> None:
    """kill -9 of a backend takes all the others with it, in whatever function they are."""
    with ExitStack() as stack:
        try:
            durable = stack.enter_context(local_database(version=server.version, durable=True))
        except LocalServerUnavailable:
            durable = stack.enter_context(local_database(durable=True))
        url, admin_url = make_url(durable.url), make_url(durable.admin_url)
        with (
            closing(connect(url, autocommit=True)) as app,
            closing(connect(admin_url, autocommit=True)) as admin,
        ):
            ready(Tenant("acme", app, admin))
        start, sent, told = Barrier(5), Counter[int](), Counter[int]()

        def write(number: int) -> None:
            """Say, hide and touch until the server is gone; count the rounds begun and those answered."""
            with closing(connect(url, autocommit=True)) as conn, suppress(psycopg.OperationalError):
                start.wait(30)
                while True:
                    sent[number] += 1
                    round_of_writes(conn, number, sent[number])
                    told[number] += 1

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(write, number) for number in range(4)]
            with closing(connect(admin_url, autocommit=True)) as admin:
                victim = "SELECT pid FROM pg_stat_activity WHERE usename = 'selene_local' LIMIT 1"
                start.wait(30)
                wait_until(lambda: len(told) == 4 and min(told.values()) > 5, "everybody writes")
                row = admin.execute(victim).fetchone()
                assert row is not None
                os.kill(row[0], signal.SIGKILL)
            for future in running:
                future.result(60)

        def back() -> list[Connection]:
            with suppress(psycopg.OperationalError):
                return [stack.enter_context(closing(connect(url, autocommit=True)))]
            return []

        (app,) = wait_until(back, "the server is back")
        assert sum(sent.values()) > sum(told.values())
        for number in range(4):
            for n in range(1, sent[number] + 1):
                said, hidden = round_of_writes(app, number, n)
                # What was answered is there; of the last round a part may be, each call wholly or not at all.
                assert (said[-1] and hidden[-1]) or n > told[number]
                assert said[-1] or not hidden[-1]
                assert [row[-1] for row in round_of_writes(app, number, n)] == [True, True]
        texts = "SELECT turn_id, text FROM conversation.read_turns('acme', %s, 0, 1000)"
        for number in range(4):
            rows = app.execute(texts, (UUID(int=number + 1),)).fetchall()
            assert rows == [(place, None if place % 2 else "") for place in range(1, 2 * sent[number] + 1)]


def round_of_writes(conn: Connection, number: int, n: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Say something, hide it, and touch the session that all share."""
    thread = UUID(int=number + 1)
    said = call(
        conn,
        "acme",
        correlation_id=thread,
        turn_id=2 * n - 1,
        text=f"{number} {n}",
        session_id="alice-session",
    )
    query = "SELECT * FROM conversation.tombstone_turn('acme', %s, %s, 1, %s)"
    hidden = conn.execute(query, (thread, said[0], 2 * n)).fetchone()
    assert hidden is not None
    conn.execute("SELECT os_core.touch_session('acme', 'alice-session')")
    return said, hidden
