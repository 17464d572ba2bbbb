"""The enums of Python and the lists of the database are the same, in both directions."""

import re
from enum import StrEnum
from typing import LiteralString

import pytest

from selene_core.contract.enums import TERMINAL_STATUSES, WorkOrderEventType, WorkOrderStatus
from selene_core.sql_files import script_directory
from tests.support.sessions import Sessions

# Whatever the database's lists hold is a word of some SQL file; an enum's member need not be.
WORDS = sorted(
    {
        word
        for file in (script_directory() / "sql").rglob("*.sql")
        for word in re.findall(r"[A-Z][A-Z_]{2,}", file.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize(
    ("question", "members"),
    [
        ("SELECT os_core.is_event_type(%s)", WorkOrderEventType),
        ("SELECT os_core.is_work_order_status(%s)", WorkOrderStatus),
        ("SELECT os_core.is_terminal(%s)", TERMINAL_STATUSES),
        (
            "SELECT os_core.payload_violation(%s, '{}') IS DISTINCT FROM"
            " 'event_type: has no rules for its payload'",
            [kind for kind in WorkOrderEventType if not kind.startswith("LEASE_")],
        ),
    ],
    ids=["event types", "statuses", "terminal statuses", "payload rules"],
)
def test_vocabulary__is_the_same_in_python_and_the_database(
    sessions: Sessions, question: LiteralString, members: type[StrEnum] | frozenset[StrEnum]
) -> None:
    names = {member.value for member in members}
    assert len(names) >= 4
    found = {
        word for word in {*WORDS, *names} if sessions.admin.execute(question, [word]).fetchone() == (True,)
    }
    assert found == names
