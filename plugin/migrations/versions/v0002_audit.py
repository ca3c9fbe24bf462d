"""Audited parts: which of those that passed were drawn for an inspector, and with what probability (hop 8)."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """What was stored before was drawn by nobody: a share of 0."""
    op.execute("ALTER TABLE parts ADD COLUMN audit_share FLOAT NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE parts ADD COLUMN audited BOOLEAN NOT NULL DEFAULT 0")
    op.execute("DROP INDEX parts_queue")
    op.execute(
        "CREATE INDEX parts_queue ON parts (severity DESC, id) "
        "WHERE review IS NULL AND (audited OR verdict IN ('REJECT', 'REVIEW'))"
    )
    op.execute("CREATE INDEX parts_audited ON parts (review) WHERE audited")
