"""Draw docs/schema.svg and docs/timeline.svg on an embedded server: `make docs`."""

from pathlib import Path

from sqlalchemy import create_engine

from pictures.schema import schema_svg
from pictures.timeline import demo_svg
from selene_core.local import local_database

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Write both; a file that is as it should be is left alone."""
    with local_database() as database:
        app, admin = create_engine(database.url), create_engine(database.admin_url)
        with admin.connect() as conn:
            drawn = {"schema.svg": schema_svg(conn), "timeline.svg": demo_svg(app, admin)}
        app.dispose()
        admin.dispose()
    for name, picture in drawn.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != picture:
            path.write_text(picture, encoding="utf-8")
            print(f"docs/{name}: drawn anew")
        else:
            print(f"docs/{name}: nothing to do")


if __name__ == "__main__":
    main()
