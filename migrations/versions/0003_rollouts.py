"""Rollouts: bakes, approvals, schedules, queues, disruption budgets, drift, hooks and rollbacks"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)
NEW_COLUMNS = {
    "projects": (("paused_by", sa.Text(), None), ("paused_at", TIME, None)),
    "plans": (
        ("start_at", TIME, None),
        ("queued_for", sa.Text(), None),
        ("approve_first", sa.Boolean(), "false"),
        ("check_drift", sa.Boolean(), "false"),
        ("drift_limit", sa.Integer(), None),
        ("rollback_of", sa.Uuid(), None),
    ),
    "waves": (
        ("bake_seconds", sa.Float(), "0"),
        ("bake_until", TIME, None),
        ("approval", sa.Boolean(), "false"),
        ("approved_by", sa.Text(), None),
        ("approved_at", TIME, None),
    ),
    "jobs": (
        ("budget_group", sa.Text(), None),
        ("seen_status", sa.Text(), None),
        ("seen_metadata", sa.Text(), None),
        ("drained_at", TIME, None),
    ),
}  # fmt: skip


def upgrade() -> None:
    for table, columns in NEW_COLUMNS.items():
        for name, kind, default in columns:
            given = None if default is None else sa.text(default)
            op.add_column(table, sa.Column(name, kind, server_default=given, nullable=default is None))
    op.create_index("ix_plans_scheduled", "plans", ["id"], postgresql_where=sa.text("status = 'scheduled'"))
    op.create_index(
        "ix_jobs_group",
        "jobs",
        ["plan_id", "budget_group", "wave", "ord"],
        postgresql_where=sa.text("state = 'pending' AND budget_group IS NOT NULL"),
    )
    op.create_index("ix_jobs_drained", "jobs", ["plan_id"], postgresql_where=sa.text("drained_at IS NOT NULL"))
    op.create_table(
        "budget_groups",
        sa.Column("plan_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("places", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plans.id"], name=op.f("fk_budget_groups_plan_id_plans"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("plan_id", "name", name=op.f("pk_budget_groups")),
    )
    op.create_table(
        "outages",
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("plan_id", sa.Uuid(), nullable=False),
        sa.Column("since", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("acknowledged_at", TIME, nullable=True),
        sa.Column("acknowledged_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("deployment", "server_id", name=op.f("pk_outages")),
    )
    op.execute("""
        INSERT INTO outages (deployment, server_id, plan_id, since)
        SELECT deployment, server_id, plan_id, at FROM last_rebuilds
        WHERE state IN ('failed', 'stuck', 'unresolved')""")
    op.create_table(
        "hook_calls",
        sa.Column("plan_id", sa.Uuid(), nullable=False),
        sa.Column("ord", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'due'"), nullable=False),
        sa.Column("tries", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("deadline_at", TIME, nullable=False),
        sa.Column("token_sha256", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("http_status", sa.Integer(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("called_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plans.id"], name=op.f("fk_hook_calls_plan_id_plans"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("plan_id", "ord", "phase", "attempt", name=op.f("pk_hook_calls")),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "ix_hook_calls_open", "hook_calls", ["plan_id"], postgresql_where=sa.text("state IN ('due', 'waiting')")
    )


def downgrade() -> None:
    op.drop_table("hook_calls")
    op.drop_table("outages")
    op.drop_table("budget_groups")
    op.drop_index("ix_jobs_drained", table_name="jobs")
    op.drop_index("ix_jobs_group", table_name="jobs")
    op.drop_index("ix_plans_scheduled", table_name="plans")
    for table, columns in reversed(NEW_COLUMNS.items()):
        for name, _, _ in reversed(columns):
            op.drop_column(table, name)
