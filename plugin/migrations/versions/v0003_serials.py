"""What a plant calls its parts and lots, and the line's encoder, as a trigger said or a code on the part (hop 8)."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """What was stored before has none of them. A serial is no identity: two parts may bear the same."""
    op.execute("ALTER TABLE parts ADD COLUMN serial TEXT")
    op.execute("ALTER TABLE parts ADD COLUMN lot TEXT")
    op.execute("ALTER TABLE parts ADD COLUMN encoder BIGINT")
    op.execute("CREATE INDEX parts_serial ON parts (serial) WHERE serial IS NOT NULL")
    op.execute("CREATE INDEX parts_lot ON parts (lot) WHERE lot IS NOT NULL")
