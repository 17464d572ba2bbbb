"""The pictures in docs/ are those of this schema and this demo; `make docs` would change nothing."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from pictures.catalogue import read_tables
from pictures.schema import schema_svg
from pictures.timeline import demo_svg

DOCS = Path(__file__).resolve().parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: str) -> list[str]:
    """Return what is written in a picture; it is well-formed."""
    return [each.text or "" for each in ET.fromstring(picture).iter(f"{SVG}text")]  # noqa: S314 - ours


def test_schema__is_up_to_date(admin_engine: Engine) -> None:
    with admin_engine.connect() as conn:
        drawn = schema_svg(conn)
    assert drawn == (DOCS / "schema.svg").read_text(encoding="utf-8"), "make docs"


def test_timeline__is_up_to_date(engine: Engine, admin_engine: Engine) -> None:
    drawn = demo_svg(engine, admin_engine)
    assert drawn == (DOCS / "timeline.svg").read_text(encoding="utf-8"), "make docs"


def test_schema__shows_every_table_and_column(admin_engine: Engine) -> None:
    with admin_engine.connect() as conn:
        written = texts(schema_svg(conn))
        tables = read_tables(conn)
        known = conn.execute(
            text(
                "SELECT table_schema || '.' || table_name, count(*) FROM information_schema.columns"
                " WHERE table_schema IN ('os_core', 'conversation') AND table_name <> 'alembic_version'"
                " GROUP BY 1"
            )
        ).all()
    assert {table.name: len(table.columns) for table in tables} == dict(known)
    for table in tables:
        assert table.name in written
        for column in table.columns:
            assert f"{column.name}{'?' if column.optional else ''}" in written
    assert [table.name for table in tables if table.append_only] != []


NEW_TABLES = """
  CREATE TABLE os_core.first (tenant_id text, id text, PRIMARY KEY (tenant_id, id));
  CREATE TABLE os_core.second (
    tenant_id text, id text, first_id text, note text, PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, first_id) REFERENCES os_core.first
  );
  CREATE TABLE conversation.third (
    tenant_id text, id text, first_id text, second_id text, earlier_id text, PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, first_id) REFERENCES os_core.first,
    FOREIGN KEY (tenant_id, second_id) REFERENCES os_core.second,
    FOREIGN KEY (tenant_id, earlier_id) REFERENCES conversation.third
  );
  ALTER TABLE os_core.first ADD third_id text,
    ADD FOREIGN KEY (tenant_id, third_id) REFERENCES conversation.third;
  CREATE UNIQUE INDEX ON conversation.third (tenant_id, second_id) WHERE first_id IS NULL;
"""


def test_schema__takes_in_new_tables_by_itself(admin_engine: Engine) -> None:
    """Over several columns, to itself, in a circle, and by a partial index."""
    with admin_engine.connect() as conn:
        before = ET.fromstring(schema_svg(conn))  # noqa: S314 - ours
        conn.exec_driver_sql(NEW_TABLES)
        drawn = schema_svg(conn)
        conn.rollback()
    written = texts(drawn)
    assert {"os_core.first", "os_core.second", "conversation.third", "earlier_id?"} <= {*written}
    assert "unique (tenant_id, second_id) where first_id IS NULL" in written

    def arrows(picture: ET.Element) -> int:
        return sum(path.get("class") == "tip" for path in picture.iter(f"{SVG}path"))

    assert arrows(ET.fromstring(drawn)) == arrows(before) + 5  # noqa: S314 - ours


@pytest.mark.parametrize("name", ["schema.svg", "timeline.svg"])
def test_pictures__are_legible_on_light_and_dark_pages(name: str) -> None:
    """Each has a ground of its own, and every style that it uses in both palettes."""
    picture = (DOCS / name).read_text(encoding="utf-8")
    root = ET.fromstring(picture)  # noqa: S314 - ours
    shapes = [each for each in root.iter() if each.get("class")]
    assert shapes[0].get("class") == "ground"
    light, dark = "".join(style.text or "" for style in root.iter(f"{SVG}style")).split("@media", 1)
    for used in {shape.get("class") for shape in shapes}:
        assert f".{used}{{" in light
        assert f".{used}{{" in dark
