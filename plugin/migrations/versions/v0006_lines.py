"""What happened at the gate, how master parts were read, what was contained (hop 8)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

Whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Parts that were stored before are no master parts."""
    op.add_column("parts", sa.Column("master", sa.Text))
    _what_the_lines_did()
    _what_was_contained()


def _what_the_lines_did() -> None:
    numbered = [
        ("gate_outcomes", ("edge_id", "part_id"), ("outcome", "who")),
        ("line_events", (), ("kind", "who", "detail")),
        ("master_readings", (), ("edge_id", "part_id", "name", "detail")),
    ]
    for name, optional, texts in numbered:
        op.create_table(
            name,
            sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("line", sa.Text, nullable=False),
            sa.Column("number", sa.BigInteger, nullable=False),
            sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
            *(sa.Column(each, sa.Text) for each in optional),
            *(sa.Column(each, sa.Text, nullable=False) for each in texts),
            *([sa.Column("marked", sa.Boolean, nullable=False)] if name == "master_readings" else []),
        )
    op.create_index("gate_outcomes_of_part", "gate_outcomes", ["edge_id", "part_id"])
    op.create_index("gate_outcomes_of_number", "gate_outcomes", ["line", "number"])
    op.create_index("line_events_of_line", "line_events", ["line", "kind", "id"])
    op.create_index("master_readings_of_part", "master_readings", ["edge_id", "part_id"])
    op.create_index("master_readings_unmarked", "master_readings", ["marked"])


def _what_was_contained() -> None:
    op.create_table(
        "containments",
        sa.Column("id", Whole, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("event", sa.BigInteger),
        sa.Column("model", sa.Text),
        sa.Column("after", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("good_check", sa.BigInteger),
        sa.Column("opened_by", sa.Text, nullable=False),
        sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "containment_notes",
        sa.Column("id", Whole, primary_key=True),
        sa.Column("containment", Whole, sa.ForeignKey("containments.id"), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("containment_notes_of", "containment_notes", ["containment"])
