"""Reviews with class, comment, dwell time, station, what judged the part; each chained to the one before (hop 12)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from plugin.reviews import FIRST, seal

revision = "0005"
down_revision = "0004"

NEW = "reviews_chained"
REFUSE = tuple(
    f"CREATE TRIGGER reviews_no_{word.lower()} BEFORE {word} ON reviews "
    "BEGIN SELECT RAISE(ABORT, 'reviews are append-only'); END"
    for word in ("UPDATE", "DELETE")
)


def upgrade() -> None:
    """A new table takes the old one's place: what was said before is chained as it stands, in its order.

    With which recipe and model a part was judged then is not recorded afterwards: nobody said so at the time.
    """
    op.execute(f"DROP TABLE IF EXISTS {NEW}")  # of an upgrade that was interrupted
    op.create_table(
        NEW,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("part", sa.Integer, sa.ForeignKey("parts.id"), nullable=False),
        sa.Column("edge_id", sa.Text, nullable=False),
        sa.Column("part_id", sa.Text, nullable=False),
        sa.Column("machine_verdict", sa.Text),
        sa.Column("recipe", sa.Text),
        sa.Column("model_sha256", sa.Text),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("defect_class", sa.Text),
        sa.Column("comment", sa.Text),
        sa.Column("inspector", sa.Text, nullable=False),
        sa.Column("station", sa.Text),
        sa.Column("dwell_ms", sa.BigInteger),
        sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("supersedes", sa.Integer, sa.ForeignKey(f"{NEW}.id")),
        sa.Column("prev", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.CheckConstraint("decision IN ('defect', 'good', 'unsure', 'undo')", name="reviews_decision"),
    )
    _carry_over()
    op.drop_table("reviews")
    op.rename_table(NEW, "reviews")
    op.create_index("reviews_of_part", "reviews", ["part"])
    op.create_index("reviews_by_recipe", "reviews", ["edge_id", "recipe", "decision", "id"])
    for statement in REFUSE:
        op.execute(statement)


def _carry_over() -> None:
    names = ("id", "part", "decision", "inspector", "t_wall_ns", "supersedes")
    old = sa.table("reviews", *(sa.column(name) for name in names))
    parts = sa.table("parts", *(sa.column(name) for name in ("id", "edge_id", "part_id", "verdict")))
    said = sa.select(*old.c, parts.c.edge_id, parts.c.part_id, parts.c.verdict.label("machine_verdict")).select_from(
        old.join(parts, parts.c.id == old.c.part)
    )
    rows, before = [], FIRST
    for found in op.get_bind().execute(said.order_by(old.c.id)):
        row = {**found._mapping, "prev": before}
        before = seal(row)
        rows.append({**row, "sha256": before})
    if rows:
        new = sa.table(NEW, *(sa.column(name) for name in rows[0]))
        op.get_bind().execute(sa.insert(new), rows)
