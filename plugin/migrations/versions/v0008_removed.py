"""Pictures that retention removed: their rows stay and say when, and by which rule (hop 8)."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0006"


def upgrade() -> None:
    """When a picture came, by the host's clock; of those that are there already by their part's."""
    op.execute("ALTER TABLE attachments ADD COLUMN received_ns BIGINT")
    op.execute("ALTER TABLE attachments ADD COLUMN removed_ns BIGINT")
    op.execute("ALTER TABLE attachments ADD COLUMN removed_by TEXT")
    op.execute(
        "UPDATE attachments SET received_ns = (SELECT p.t_wall_ns FROM parts p "
        "WHERE p.edge_id = attachments.edge_id AND p.part_id = attachments.part_id)"
    )
    op.execute("CREATE INDEX attachments_kept ON attachments (sha256) WHERE removed_ns IS NULL")
