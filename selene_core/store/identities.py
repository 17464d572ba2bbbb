"""Users, their devices and their sessions (contract §2).

All rules are functions and keys of the database: this sends one statement a call and gives rows types.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, and_, bindparam, select, true

from selene_core.contract.enums import IdentityStatus, SessionState
from selene_core.contract.rows import Device, UserIdentity, UserSession
from selene_core.contract.rules import IDENTITY_RULES
from selene_core.store.repository import SCOPED_TENANT, TENANT, Repository, call, in_scope
from selene_core.store.scope import scope_tenant
from selene_core.store.tables import devices, identities, sessions

if TYPE_CHECKING:
    from sqlalchemy import RowMapping, Select, Table

OWNED_PAGE: Final = 256


class IdentityRepository(Repository):
    """Register, open, move and read what belongs to the users of the tenant_scope's tenant.

    Every method raises TenantScopeViolation outside the scope, and inside it once its transaction was ended;
    and ContractViolation for a value that is none. All times are the database's clock.
    """

    def register_identity(
        self,
        user_id: str,
        *,
        speaker_id: str | None = None,
        primary_language: str | None = None,
        status: IdentityStatus | str | None = None,
    ) -> UserIdentity:
        """Make a user known, or update what is known: None leaves a value as it is, "" takes it away.

        A new user is ACTIVE unless told otherwise.
        """
        rows = self._run(
            _REGISTER_IDENTITY,
            user_id=_checked("user_id", user_id),
            speaker_id=_changed("speaker_id", speaker_id),
            primary_language=_changed("primary_language", primary_language),
            status=_optional("status", status),
        )
        return _identity(rows[0])

    def register_device(
        self,
        user_id: str,
        device_id: str,
        *,
        device_type: str | None = None,
        audio_profile_ref: str | None = None,
    ) -> Device:
        """Make a user's device known, or update it, and record that it was seen now.

        None leaves a value as it is, "" takes the audio profile away; a new device needs its type. Raises
        IdentityNotFound, and DeviceIdUnavailable where the device is another user's: it stays that user's.
        """
        rows = self._run(
            _REGISTER_DEVICE,
            user_id=_checked("user_id", user_id),
            device_id=_checked("device_id", device_id),
            device_type=_optional("device_type", device_type),
            audio_profile_ref=_changed("audio_profile_ref", audio_profile_ref),
        )
        return Device(**rows[0])

    def open_session(self, session_id: str, *, user_id: str, device_id: str) -> UserSession:
        """Open a session of a user on one of the user's devices.

        Opened again for the same user and device, it is returned as it is now. Raises IdempotencyConflict
        where the session_id stands for another user or device, IdentityNotFound, and DeviceNotFound for a
        device that is not that user's, whoever else's.
        """
        rows = self._run(
            _OPEN_SESSION,
            session_id=_checked("session_id", session_id),
            user_id=_checked("user_id", user_id),
            device_id=_checked("device_id", device_id),
        )
        return _session(rows[0])

    def touch_session(self, session_id: str) -> UserSession:
        """Record activity; an OPEN session becomes ACTIVE.

        Raises SessionNotFound, and SessionStateInvalid where it is neither OPEN nor ACTIVE.
        """
        return _session(self._run(_TOUCH_SESSION, session_id=_checked("session_id", session_id))[0])

    def soft_close_session(self, session_id: str) -> UserSession:
        """Close an OPEN or ACTIVE session so that it can be resumed; raises what resume_session raises."""
        return self._move(session_id, SessionState.SOFT_CLOSED)

    def suspend_session(self, session_id: str) -> UserSession:
        """Set an OPEN, ACTIVE or SOFT_CLOSED session aside; raises what resume_session raises."""
        return self._move(session_id, SessionState.SUSPENDED)

    def resume_session(self, session_id: str) -> UserSession:
        """Make a session ACTIVE that is not CLOSED; one that is ACTIVE already stays as it is.

        Raises SessionNotFound, and SessionStateInvalid where contract §2 does not allow the move.
        """
        return self._move(session_id, SessionState.ACTIVE)

    def close_session(self, session_id: str) -> UserSession:
        """Close a session for good; one that is CLOSED already stays as it is. Raises SessionNotFound."""
        return self._move(session_id, SessionState.CLOSED)

    def get_identity(self, user_id: str) -> UserIdentity | None:
        """Return a user."""
        rows = self._read(_GET_IDENTITY, user_id=_checked("user_id", user_id))
        return _identity(_of(identities, rows[0])) if rows else None

    def get_device(self, device_id: str) -> Device | None:
        """Return a device."""
        rows = self._read(_GET_DEVICE, device_id=_checked("device_id", device_id))
        return Device(**_of(devices, rows[0])) if rows else None

    def get_session(self, session_id: str) -> UserSession | None:
        """Return a session."""
        rows = self._read(_GET_SESSION, session_id=_checked("session_id", session_id))
        return _session(_of(sessions, rows[0])) if rows else None

    def devices(self, user_id: str) -> Iterator[Device]:
        """Iterate over a user's devices in the order of their ids, a page in memory at a time."""
        scope_tenant(self._conn)  # now, and not only where the iteration begins
        rows = self._owned(_DEVICES, "device_id", _checked("user_id", user_id))
        return (Device(**_of(devices, row)) for row in rows)

    def sessions(self, user_id: str) -> Iterator[UserSession]:
        """Iterate over a user's sessions in the order of their ids, a page in memory at a time."""
        scope_tenant(self._conn)
        rows = self._owned(_SESSIONS, "session_id", _checked("user_id", user_id))
        return (_session(_of(sessions, row)) for row in rows)

    def _move(self, session_id: str, state: SessionState) -> UserSession:
        rows = self._run(
            _MOVE_SESSION, session_id=_checked("session_id", session_id), session_state=state.value
        )
        return _session(rows[0])

    def _owned(self, statement: Select[Any], key: str, user_id: str) -> Iterator[RowMapping]:
        after = ""
        while page := self._read(statement, user_id=user_id, after=after):
            yield from page
            if len(page) < OWNED_PAGE:
                return
            after = page[-1][key]


def _checked(name: str, value: object) -> str:
    checked: str = IDENTITY_RULES[name].check(name, value)
    return checked


def _optional(name: str, value: object) -> str | None:
    return IDENTITY_RULES[name].check_optional(name, value)


def _changed(name: str, value: object) -> str | None:
    return "" if value == "" else _optional(name, value)


def _of(table: Table, row: RowMapping) -> dict[str, Any]:
    """Leave out what in_scope() puts beside a row."""
    return {name: row[name] for name in table.columns.keys()}  # noqa: SIM118 - iterating it yields columns


def _identity(row: RowMapping | dict[str, Any]) -> UserIdentity:
    return UserIdentity(**{**row, "status": IdentityStatus(row["status"])})


def _session(row: RowMapping | dict[str, Any]) -> UserSession:
    return UserSession(**{**row, "session_state": SessionState(row["session_state"])})


# --- statements, built once; all values are parameters


def _call(function: str, table: Table, *parameters: str) -> Select[Any]:
    arguments = [SCOPED_TENANT, *(bindparam(name, type_=Text) for name in parameters)]
    return call(function, arguments, **{column.name: column.type for column in table.columns})


def _by_id(table: Table, key: str) -> Select[Any]:
    return in_scope(table, and_(table.c.tenant_id == TENANT, table.c[key] == bindparam(key, type_=Text)))


def _page(table: Table, key: str) -> Select[Any]:
    page = (
        select(table)
        .where(
            table.c.tenant_id == TENANT,
            table.c.user_id == bindparam("user_id", type_=Text),
            table.c[key] > bindparam("after", type_=Text),
        )
        .order_by(table.c[key])
        .limit(OWNED_PAGE)
        .lateral("owned")
    )
    return in_scope(page, true()).order_by(page.c[key])


_REGISTER_IDENTITY: Final = _call(
    "register_identity", identities, "user_id", "speaker_id", "primary_language", "status"
)
_REGISTER_DEVICE: Final = _call(
    "register_device", devices, "user_id", "device_id", "device_type", "audio_profile_ref"
)
_OPEN_SESSION: Final = _call("open_session", sessions, "session_id", "user_id", "device_id")
_TOUCH_SESSION: Final = _call("touch_session", sessions, "session_id")
_MOVE_SESSION: Final = _call("move_session", sessions, "session_id", "session_state")
_GET_IDENTITY: Final = _by_id(identities, "user_id")
_GET_DEVICE: Final = _by_id(devices, "device_id")
_GET_SESSION: Final = _by_id(sessions, "session_id")
_DEVICES: Final = _page(devices, "device_id")
_SESSIONS: Final = _page(sessions, "session_id")
