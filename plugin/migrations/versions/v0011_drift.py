"""Alarms of drift: what an edge's watch said, what was contained, who cleared it (hop 8)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

Whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """An alarm stands until somebody clears it; the reports themselves are events."""
    op.create_table(
        "drift_alarms",
        sa.Column("id", Whole, primary_key=True),
        sa.Column("edge_id", sa.Text, nullable=False),
        sa.Column("camera_id", sa.Text, nullable=False),
        sa.Column("spool_id", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("again", sa.BigInteger, nullable=False),
        sa.Column("last_ns", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("containment", Whole, sa.ForeignKey("containments.id")),
        sa.Column("cleared_by", sa.Text),
        sa.Column("cleared_ns", sa.BigInteger),
    )
    op.execute(
        "CREATE UNIQUE INDEX drift_alarms_standing ON drift_alarms (edge_id, camera_id) WHERE cleared_ns IS NULL"
    )
    op.execute("CREATE INDEX events_drift ON events (edge_id, id) WHERE kind = 'drift'")
