"""${message}

One concern, about sixty lines. Tables, columns, indexes, keys and CHECKs are operations with their final name in op.f("...");
functions, triggers and policies are files in alembic/sql/, loaded by sql("name", version=N) and frozen once released.
Every downgrade is written and tested. Data steps begin with SET LOCAL row_security = off. Nothing of selene_core but the loader,
nothing of alembic but op.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

${imports if imports else ""}
from alembic import op

from selene_core.sql_files import sql

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "raise AssertionError('write me')"}


def downgrade() -> None:
    ${downgrades if downgrades else "raise AssertionError('write me')"}
