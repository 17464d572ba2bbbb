"""The conversations: what was said, by whom, and what is hidden."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from soak.checker.finding import Finding, moment
from soak.checker.tables import Place, Row, Tables
from soak.history import Call, Transaction

Found = Iterator[tuple[str, str, list[Call]]]
SAID = ("turn_id", "user_id", "device_id", "session_id")


def check_turns(tables: Tables, history: Iterable[Transaction]) -> Iterator[Finding]:
    """Compare the conversations with what was said about them."""
    calls: defaultdict[Place, list[Call]] = defaultdict(list)
    for transaction in history:
        for call in transaction.calls:
            if call.op in ("turn", "tombstone", "turns"):
                calls[transaction.tenant, call.args["correlation_id"]].append(call)
    for place in calls.keys() | tables.turns.keys():
        rows = tables.turns.get(place, [])
        for kind, what, by in (*_turns(rows, calls[place]), *_reads(rows, calls[place])):
            yield Finding(kind, place[0], f"conversation {place[1]}", what, tuple(call.name for call in by))


def _turns(rows: list[Row], calls: list[Call]) -> Found:
    by_id = {row["conversation_turn_id"]: row for row in rows}
    explained: set[int] = set()
    for call in calls:
        if call.op == "turns" or call.fate == "refused":
            continue
        row = _row_of(call, rows)
        if call.fate == "unknown":
            explained |= {row["conversation_turn_id"]} if row is not None else set()
            continue
        told = (call.rows or [])[0]
        if row is None or told["conversation_turn_id"] not in by_id:
            yield "lost", f"{call.op} was acknowledged and is not there", [call]
            continue
        explained.add(row["conversation_turn_id"])
        for column in ("conversation_turn_id", "turn_id", "text_hash", "created_at"):
            if told[column] != moment(row[column]):
                yield "replay", f"turn {row['turn_id']} was told another {column}", [call]
        if call.op == "turn" and not _is_as_said(call, row):
            yield "lost", f"turn {row['turn_id']} was acknowledged, and is not what was said", [call]
    for row in rows:
        if row["conversation_turn_id"] not in explained:
            yield "ghost", f"nobody said turn {row['turn_id']}", []
    hidden = [row["tombstone_of_conversation_turn_id"] for row in rows if row["source"] == "TOMBSTONE"]
    if len(hidden) != len({*hidden}):
        yield "twice", "a turn was hidden twice", []


def _row_of(call: Call, rows: list[Row]) -> Row | None:
    args = call.args
    if call.op == "tombstone":
        found = [r for r in rows if r["tombstone_of_conversation_turn_id"] == args["conversation_turn_id"]]
    else:
        found = [r for r in rows if r["turn_id"] == args["turn_id"] and _is_as_said(call, r)]
    return found[0] if found else None


def _is_as_said(call: Call, row: Row) -> bool:
    same = all(row[column] == call.args[column] for column in SAID)
    return same and row["text"] == call.args["text"] and row["source"] != "TOMBSTONE"


def _reads(rows: list[Row], calls: list[Call]) -> Found:
    """A turn that was known is read from then on; its text is not, once its tombstone was acknowledged."""
    texts = {row["conversation_turn_id"]: row["text"] for row in rows}
    said: list[tuple[int, int]] = []
    hidden: list[tuple[int, int]] = []
    for call in calls:
        if call.settled is not None and call.op == "turn":
            said.append((call.settled, _answer(call)["conversation_turn_id"]))
        elif call.settled is not None and call.op == "tombstone":
            hidden.append((call.settled, call.args["conversation_turn_id"]))
    for call in calls:
        if call.op != "turns" or call.rows is None:
            continue
        read = {row["conversation_turn_id"]: row["text"] for row in call.rows}
        for turn in {turn for at, turn in said if at < call.sent} - read.keys():
            yield "read", f"the turn with the id {turn} was not read after it was acknowledged", [call]
        for turn in {turn for at, turn in hidden if at < call.sent}:
            if read.get(turn) is not None:
                yield "turn", f"the text with the id {turn} was read after it was hidden", [call]
        for turn, text in read.items():
            if turn not in texts or text not in (None, texts[turn]):
                yield "read", f"the turn with the id {turn} was read as it never was", [call]


def _answer(call: Call) -> dict[str, Any]:
    return (call.rows or [{}])[0]
