"""${message}

What it does is read from the catalogue, so that it fits every table and function of its core revision. It begins by refusing
another core revision.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "raise AssertionError('write me')"}


def downgrade() -> None:
    raise NotImplementedError("the way back is a copy: docs/howto/citus.md")
