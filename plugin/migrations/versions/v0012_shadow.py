"""What candidates in shadow would have said: sums, counts of each run, and the parts that would change (hop 8)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

Whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Nothing of before: candidates were not heard of."""
    op.create_table(
        "shadow_tally",
        sa.Column("edge_id", sa.Text, primary_key=True),
        sa.Column("recipe", sa.Text, primary_key=True),
        sa.Column("candidate", sa.Text, primary_key=True),
        sa.Column("live", sa.Text, primary_key=True),
        sa.Column("verdict", sa.Text, primary_key=True),
        sa.Column("n", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "shadow_runs",
        sa.Column("edge_id", sa.Text, primary_key=True),
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("recipe", sa.Text, primary_key=True),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("offered", sa.BigInteger, nullable=False),
        sa.Column("scored", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("unseen", sa.BigInteger, nullable=False),
        sa.Column("waiting", sa.BigInteger, nullable=False),
        sa.Column("trouble", sa.Text),
        sa.Column("received_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "shadow_changes",
        sa.Column("id", Whole, primary_key=True),
        sa.Column("edge_id", sa.Text, nullable=False),
        sa.Column("part_id", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("live", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("threshold", sa.Float),
        sa.Column("reason", sa.Text),
    )
    op.create_index("shadow_changes_by_candidate", "shadow_changes", ["edge_id", "recipe", "candidate", "id"])
