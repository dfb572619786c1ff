"""Evidence and incarnations: what the resolver, retries and a failed-over database need"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("incarnation", sa.Text(), nullable=True))
    op.add_column("projects", sa.Column("changed_to", sa.Text(), nullable=True))
    op.add_column("projects", sa.Column("changed_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("projects", sa.Column("changed_restored", sa.Boolean(), nullable=True))
    op.add_column("attempts", sa.Column("effect", sa.Text(), nullable=True))
    op.add_column("projects", sa.Column("trouble_code", sa.Text(), nullable=True))
    op.add_column("projects", sa.Column("trouble_message", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("rebuilt_again", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("retries", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "last_rebuilds",
        sa.Column("actions", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    )
    op.add_column("leases", sa.Column("incarnation", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    op.drop_column("leases", "incarnation")
    op.drop_column("last_rebuilds", "actions")
    op.drop_column("jobs", "retries")
    op.drop_column("jobs", "rebuilt_again")
    op.drop_column("projects", "trouble_message")
    op.drop_column("projects", "trouble_code")
    op.drop_column("attempts", "effect")
    op.drop_column("projects", "changed_restored")
    op.drop_column("projects", "changed_at")
    op.drop_column("projects", "changed_to")
    op.drop_column("projects", "incarnation")
