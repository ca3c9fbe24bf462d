"""Second looks, known parts, and what is counted of each quarter of an hour for the figures (hops 8 and 12)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

Whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

COUNTS_AS = (
    "CASE WHEN master IS NOT NULL THEN '' ELSE coalesce(verdict, '') || CASE WHEN audited THEN '*' ELSE '' END "
    "|| '/' || coalesce(review, '') || '/' || coalesce(review_class, '') END"
)


def upgrade() -> None:
    """Parts of before are counted after the start, a few hundred at a time."""
    for column in ("review_class", "recipe", "tallied"):
        op.add_column("parts", sa.Column(column, sa.Text))
    op.add_column("reviews", sa.Column("purpose", sa.Text))
    op.execute(
        "CREATE INDEX parts_untallied ON parts (id) "
        f"WHERE state <> 'triggered' AND (tallied IS NULL OR tallied <> {COUNTS_AS})"
    )
    op.execute("CREATE INDEX parts_disputed ON parts (id) WHERE review = 'disputed'")
    op.create_table(
        "tally",
        sa.Column("quarter", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("edge_id", sa.Text, primary_key=True),
        sa.Column("recipe", sa.Text, primary_key=True),
        sa.Column("counts_as", sa.Text, primary_key=True),
        sa.Column("n", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "known_parts",
        sa.Column("part", Whole, sa.ForeignKey("parts.id"), primary_key=True, autoincrement=False),
        sa.Column("truth", sa.Text, nullable=False),
        sa.Column("registered_by", sa.Text, nullable=False),
        sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("retired_ns", sa.BigInteger),
    )
    op.create_table(
        "looks",
        sa.Column("id", Whole, primary_key=True),
        sa.Column("part", Whole, sa.ForeignKey("parts.id"), nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("inspector", sa.Text),
        sa.Column("review", Whole, sa.ForeignKey("reviews.id")),
    )
    op.execute("CREATE INDEX looks_open ON looks (purpose, part) WHERE review IS NULL")
    op.create_index("looks_of_part", "looks", ["part", "purpose"])
