"""Who may enter the schemas, and that PUBLIC may not (contract §10).

Revision ID: 0001
Revises:
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # By default PUBLIC may execute every new function.
    op.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    op.execute("REVOKE ALL ON SCHEMA os_core, conversation FROM PUBLIC")
    op.execute("GRANT USAGE ON SCHEMA os_core, conversation TO selene_app, selene_readonly")


def downgrade() -> None:
    op.execute("REVOKE USAGE ON SCHEMA os_core, conversation FROM selene_app, selene_readonly")
    op.execute("ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC")
