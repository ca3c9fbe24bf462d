"""Parts that have no end yet, of which an edge may say at once that they get none (hop 8)."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """An index of the open parts alone: all but the last of a store's parts have ended."""
    op.execute("CREATE INDEX parts_open ON parts (edge_id, spool_id) WHERE state = 'triggered'")
