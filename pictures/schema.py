"""The schema as a picture: tables in columns, each to the right of those that it refers to."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING, Final

from pictures.catalogue import read_tables
from selene_core.cli.svg import Picture, text_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from pictures.catalogue import Key, Table

_HEAD: Final = 30
_ROW: Final = 18
_PAD: Final = 10
_MARK: Final = 34  # the place for PK and FK in front of a name
_GAP: Final = 26  # between two tables, one above the other
_LANE: Final = 16  # a line that passes between them
_TRACK: Final = 12  # between two lines that go up or down side by side
_MARGIN: Final = 28
_TOP: Final = 92
_BADGE: Final = "append-only"
_INDENT: Final = 14  # of the second line of a key
_LEGEND: Final = "PK primary key · FK foreign key · ? may be null · an arrow points at what is referred to"


@dataclass(eq=False)
class _Node:
    """A table, or a lane that keeps room for a line to a table further on."""

    rank: int
    table: Table | None = None
    x: float = 0
    y: float = 0
    width: float = 0
    before: list[_Port] = field(default_factory=list)

    @property
    def height(self) -> float:
        """How high its box is."""
        if self.table is None:
            return _LANE
        lines = sum(len(_key_lines(key)) for key in self.table.keys)
        return _HEAD + _ROW * (len(self.table.columns) + lines) + 2 * _PAD + (_PAD if lines else 0)

    @property
    def least_width(self) -> float:
        """How wide its box must be."""
        if self.table is None:
            return 0
        badge = text_width(_BADGE, 10) + 24 if self.table.append_only else 0
        return max(
            text_width(self.table.name, 13) + badge + 2 * _PAD,
            *(
                _MARK + text_width(f"{column.name}?") + 24 + text_width(column.type) + 2 * _PAD
                for column in self.table.columns
            ),
            *(
                text_width(line, 11) + 2 * _PAD + _INDENT
                for key in self.table.keys
                for line in _key_lines(key)
            ),
        )


@dataclass(frozen=True)
class _Port:
    """Where a line meets a node: at a column's row."""

    node: _Node
    row: int = 0

    @property
    def y(self) -> float:
        if self.node.table is None:
            return self.node.y + _LANE / 2
        return self.node.y + _HEAD + _PAD + _ROW * self.row + _ROW / 2

    @property
    def right(self) -> float:
        return self.node.x + self.node.width


def schema_svg(conn: Connection) -> str:
    """Draw the schema of a migrated database."""
    tables = read_tables(conn)
    picture = Picture("The schema of selene-core", _description(tables))
    picture.text("strong", _MARGIN, 34, "selene-core: tables, keys and foreign keys", size=16)
    isolated = [table for table in tables if table.isolated]
    every = "every table" if len(isolated) == len(tables) else ", ".join(table.name for table in isolated)
    picture.text("faint", _MARGIN, 54, _LEGEND, size=11)
    picture.text(
        "faint", _MARGIN, 70, f"Row-level security by tenant_id, enabled and forced: {every}", size=11
    )
    right, y = _MARGIN + text_width(_LEGEND, 11), float(_TOP)
    for group in _connected(tables):
        right_of_group, y = _draw_group(picture, group, y)
        right, y = max(right, right_of_group), y + 2 * _GAP
    return picture.render(right + _MARGIN, y - 2 * _GAP + _MARGIN)


def _description(tables: Iterable[Table]) -> str:
    return "; ".join(
        f"{table.name} ({', '.join(column.name for column in table.columns)})"
        + "".join(f" refers to {key.target} by {key.name}" for key in table.foreign_keys)
        for table in tables
    )


def _key_lines(key: Key) -> list[str]:
    """Write a unique index in lines that are no wider than a usual table."""
    if key.primary:
        return []
    where = f" where {key.predicate}" if key.predicate else ""
    return wrap(f"unique ({', '.join(key.columns)}){where}", 54)


def _connected(tables: list[Table]) -> list[list[Table]]:
    """Part the tables into groups between which there is no foreign key, the largest first."""
    group = {table.name: {table.name} for table in tables}
    for table in tables:
        for key in table.foreign_keys:
            joined = group[table.name] | group[key.target]
            group.update(dict.fromkeys(joined, joined))
    seen: set[str] = set()
    result = []
    for table in tables:
        if table.name not in seen:
            result.append([each for each in tables if each.name in group[table.name]])
            seen |= group[table.name]
    return sorted(result, key=lambda tables: -sum(len(table.columns) for table in tables))


def _ranks(tables: list[Table]) -> dict[str, int]:
    """Count how many tables stand before each; a reference in a circle, or to itself, does not count."""
    by_name = {table.name: table for table in tables}
    ranks: dict[str, int] = {}

    def visit(name: str, above: tuple[str, ...]) -> int:
        if name not in ranks:
            targets = {key.target for key in by_name[name].foreign_keys} - {name, *above}
            ranks[name] = 1 + max((visit(target, (*above, name)) for target in sorted(targets)), default=-1)
        return ranks[name]

    for table in tables:
        visit(table.name, ())
    return ranks


def _draw_group(picture: Picture, tables: list[Table], top: float) -> tuple[float, float]:
    """Draw tables that hang together; return where the drawing ends to the right and below."""
    ranks = _ranks(tables)
    nodes = {table.name: _Node(ranks[table.name], table) for table in tables}
    columns: list[list[_Node]] = [[] for _ in range(max(ranks.values()) + 1)]
    for node in nodes.values():
        columns[node.rank].append(node)
    lines: list[list[_Port]] = []
    loops: list[tuple[_Port, _Port]] = []
    for start, end in sorted(_references(tables, nodes), key=lambda line: (line[0].node.rank, line[0].row)):
        if start.node.rank < end.node.rank:
            lanes = [_Node(rank) for rank in range(start.node.rank + 1, end.node.rank)]
            for lane in lanes:
                columns[lane.rank].append(lane)
            lines.append([start, *map(_Port, lanes), end])
        else:
            loops.append((start, end))
    for line in lines:
        for before, after in pairwise(line):
            after.node.before.append(before)
    tracks = _tracks(lines, loops, len(columns))
    right, bottom = _place(columns, tracks, top)
    for line in lines:
        _draw_line(picture, line, tracks)
    for start, end in loops:
        x = end.right + _GAP + _TRACK * tracks[end.node.rank].index(_Port(end.node, start.row))
        picture.path("edge", [(end.right, end.y), (x, end.y), (x, start.y), (start.right + 7, start.y)])
        picture.tip(start.right, start.y)
    for table in tables:
        _draw_table(picture, table, nodes[table.name])
    return right, bottom


def _references(tables: list[Table], nodes: dict[str, _Node]) -> Iterator[tuple[_Port, _Port]]:
    """Yield for each foreign key the rows that it joins: the last of its columns, which tenant_id leads."""
    rows = {table.name: [column.name for column in table.columns] for table in tables}
    for table in tables:
        for key in table.foreign_keys:
            start = _Port(nodes[key.target], rows[key.target].index(key.target_columns[-1]))
            yield start, _Port(nodes[table.name], rows[table.name].index(key.columns[-1]))


def _tracks(lines: list[list[_Port]], loops: list[tuple[_Port, _Port]], columns: int) -> list[list[_Port]]:
    """Give every row that lines leave a track of its own in the gap to the right of its column."""
    tracks: list[list[_Port]] = [[] for _ in range(columns)]
    starts = [port for line in lines for port in line[:-1]]
    for port in (*starts, *(_Port(end.node, start.row) for start, end in loops)):
        if port not in tracks[port.node.rank]:
            tracks[port.node.rank].append(port)
    return tracks


def _place(columns: list[list[_Node]], tracks: list[list[_Port]], top: float) -> tuple[float, float]:
    """Order each column by what its tables refer to, and give every node its place."""
    x, bottom = float(_MARGIN), top
    for column, leaving in zip(columns, tracks, strict=True):
        column.sort(key=lambda node: sum(port.y for port in node.before) / max(len(node.before), 1))
        column.sort(key=lambda node: node.table is not None)  # lanes pass above, where identities stand
        y, width = top, max(node.least_width for node in column)
        for node in column:
            node.x, node.y, node.width = x, y, width
            y += node.height + (_GAP if node.table is not None else 0)
        bottom = max(bottom, y - _GAP)
        x += width + (2 * _GAP + _TRACK * (len(leaving) - 1) if leaving else 0)
    return x, bottom


def _draw_line(picture: Picture, line: list[_Port], tracks: list[list[_Port]]) -> None:
    points = [(line[0].right + 7, line[0].y)]
    for before, after in pairwise(line):
        x = before.right + _GAP + _TRACK * tracks[before.node.rank].index(before)
        points += [(x, before.y), (x, after.y), (after.node.x, after.y)]
    picture.path("edge", points)
    picture.tip(line[0].right, line[0].y)


def _draw_table(picture: Picture, table: Table, node: _Node) -> None:
    picture.rect("box", node.x, node.y, node.width, node.height, 6)
    picture.rect("head", node.x + 1, node.y + 1, node.width - 2, _HEAD - 2, 5)
    picture.text("strong", node.x + _PAD, node.y + 20, table.name, size=13)
    if table.append_only:
        width = text_width(_BADGE, 10) + 12
        picture.badge("badge", node.x + node.width - _PAD - width, node.y + 7, _BADGE)
    primary = {column for key in table.keys if key.primary for column in key.columns}
    referring = {column for key in table.foreign_keys for column in key.columns}
    for row, column in enumerate(table.columns):
        y = _Port(node, row).y + 4
        mark = "PK" if column.name in primary else "FK" if column.name in referring else ""
        if mark:
            picture.text("key" if mark == "PK" else "link", node.x + _PAD, y, mark, size=10)
        style = "strong" if column.name in primary else "text"
        picture.text(style, node.x + _PAD + _MARK, y, column.name + ("?" if column.optional else ""))
        picture.text("faint", node.x + node.width - _PAD, y, column.type, anchor="end")
    y = _Port(node, len(table.columns)).y
    lines = [(line, position) for key in table.keys for position, line in enumerate(_key_lines(key))]
    if lines:
        picture.path("rule", [(node.x + _PAD, y - 4), (node.x + node.width - _PAD, y - 4)])
    for row, (line, position) in enumerate(lines):
        x = node.x + _PAD + (_INDENT if position else 0)
        picture.text("faint", x, y + 14 + _ROW * row, line, size=11)
