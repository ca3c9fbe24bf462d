"""Parts that have no end yet, of which an edge may say at once that they get none (hop 8)."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """An index of the open parts alone: all but the last of a store's parts have ended; and a reason put more truly."""
    op.execute("CREATE INDEX parts_open ON parts (edge_id, spool_id) WHERE state = 'triggered'")
    op.execute(
        "UPDATE parts SET reason = 'its edge has neither sent its end nor holds one to be sent, as after a power cut' "
        "WHERE reason = 'its edge lost it: it holds neither the part nor its end any more, as after a power cut'"
    )
