"""The store's tables as SQLAlchemy metadata; the migrations create them, a test keeps the two equal (hop 8)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
Whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits in both; only so named is a key of SQLite its row's own number."""


def _where(condition: sa.TextClause) -> dict[str, Any]:
    """The rows that an index has, in both databases."""
    return {"sqlite_where": condition, "postgresql_where": condition}


WRITTEN_LATER = ("id", "review", "review_by", "review_class", "recipe", "tallied", "master")
"""Columns that the writer of events leaves alone."""

DISPUTED = "review = 'disputed'"
# What a part counts as in the figures; kept beside it as it was counted, so that a change is found by its index.
# A master part counts as nothing, also where it is marked as one only after it was counted.
COUNTS_AS = (
    "CASE WHEN master IS NOT NULL THEN '' ELSE coalesce(verdict, '') || CASE WHEN audited THEN '*' ELSE '' END "
    "|| '/' || coalesce(review, '') || '/' || coalesce(review_class, '') END"
)
UNTALLIED = f"state <> 'triggered' AND (tallied IS NULL OR tallied <> {COUNTS_AS})"

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Whole, primary_key=True),
    sa.Column("edge_id", sa.Text, nullable=False),
    sa.Column("spool_id", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("part_id", sa.Text),
    sa.Column("verdict", sa.Text),
    sa.Column("score", sa.Float),
    sa.Column("age_ms", sa.Float, nullable=False),
    sa.Column("attempt", Whole, nullable=False),
    sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    sa.Column("received_ns", sa.BigInteger, nullable=False),
    sa.Column("header", sa.Text, nullable=False),
    sa.UniqueConstraint("edge_id", "spool_id", "seq", name="events_identity"),
    sa.Index("events_by_kind", "kind"),
    sa.Index("events_drift", "edge_id", "id", **_where(sa.text("kind = 'drift'"))),
)

spools = sa.Table(
    "spools",
    metadata,
    sa.Column("edge_id", sa.Text, primary_key=True),
    sa.Column("spool_id", sa.Text, primary_key=True),
    sa.Column("stored", sa.BigInteger, nullable=False),
    sa.Column("max_seq", sa.BigInteger, nullable=False),
    sa.Column("duplicates", sa.BigInteger, nullable=False),
)

parts = sa.Table(
    "parts",
    metadata,
    sa.Column("id", Whole, primary_key=True),
    sa.Column("edge_id", sa.Text, nullable=False),
    sa.Column("part_id", sa.Text, nullable=False),
    sa.Column("camera_id", sa.Text, nullable=False),
    sa.Column("frame_no", sa.BigInteger, nullable=False),
    sa.Column("box_px", sa.Text),
    sa.Column("trigger_id", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("score", sa.Float),
    sa.Column("threshold", sa.Float),
    sa.Column("severity", sa.Float),
    sa.Column("timing", sa.Text, nullable=False),
    sa.Column("age_ms", sa.Float, nullable=False),
    sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    sa.Column("spool_id", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("review", sa.Text),
    sa.Column("review_by", sa.Text),
    sa.Column("audit_share", sa.Float, nullable=False, server_default="0"),
    sa.Column("audited", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("serial", sa.Text),
    sa.Column("lot", sa.Text),
    sa.Column("encoder", sa.BigInteger),
    sa.Column("master", sa.Text),
    sa.Column("review_class", sa.Text),
    sa.Column("recipe", sa.Text),
    sa.Column("tallied", sa.Text),
    sa.UniqueConstraint("edge_id", "part_id", name="parts_identity"),
    # The state comes first so that SQLite is not led to search the queue by its verdicts.
    sa.Index("parts_by_state", "state", "verdict"),
    sa.Index("parts_reviewed", "verdict", "review", **_where(sa.text("review IS NOT NULL"))),
    sa.Index("parts_lost", "id", **_where(sa.text("verdict = 'NOT_INSPECTED'"))),
    sa.Index(
        "parts_queue",
        sa.text("severity DESC"),
        "id",
        **_where(sa.text("review IS NULL AND (audited OR verdict IN ('REJECT', 'REVIEW'))")),
    ),
    sa.Index("parts_open", "edge_id", "spool_id", **_where(sa.text("state = 'triggered'"))),
    sa.Index("parts_audited", "review", **_where(sa.text("audited"))),
    sa.Index("parts_serial", "serial", **_where(sa.text("serial IS NOT NULL"))),
    sa.Index("parts_lot", "lot", **_where(sa.text("lot IS NOT NULL"))),
    sa.Index("parts_untallied", "id", **_where(sa.text(UNTALLIED))),
    sa.Index("parts_disputed", "id", **_where(sa.text(DISPUTED))),
)

attachments = sa.Table(
    "attachments",
    metadata,
    sa.Column("id", Whole, primary_key=True),
    sa.Column("edge_id", sa.Text, nullable=False),
    sa.Column("part_id", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("view", sa.Text, nullable=False),
    sa.Column("codec", sa.Text, nullable=False),
    sa.Column("dtype", sa.Text, nullable=False),
    sa.Column("shape", sa.Text, nullable=False),
    sa.Column("to_part", sa.Text),
    sa.Column("sha256", sa.Text),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("received_ns", sa.BigInteger),
    sa.Column("removed_ns", sa.BigInteger),
    sa.Column("removed_by", sa.Text),
    sa.Index("attachments_of_part", "edge_id", "part_id"),
    sa.Index("attachments_kept", "sha256", **_where(sa.text("removed_ns IS NULL"))),
)

gaps = sa.Table(
    "gaps",
    metadata,
    sa.Column("id", Whole, primary_key=True),
    sa.Column("edge_id", sa.Text, nullable=False),
    sa.Column("camera_id", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("from_wall_ns", sa.BigInteger, nullable=False),
    sa.Column("to_wall_ns", sa.BigInteger, nullable=False),
    sa.Column("duration_ns", sa.BigInteger, nullable=False),
)

edges = sa.Table(
    "edges",
    metadata,
    sa.Column("edge_id", sa.Text, primary_key=True),
    sa.Column("received_ns", sa.BigInteger, nullable=False),
    sa.Column("header", sa.Text, nullable=False),
)

reviews = sa.Table(
    "reviews",
    metadata,
    # Numbered by the only writer, for the number is part of what is hashed.
    sa.Column("id", Whole, primary_key=True, autoincrement=False),
    sa.Column("part", Whole, sa.ForeignKey("parts.id"), nullable=False),
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
    sa.Column("supersedes", Whole, sa.ForeignKey("reviews.id")),
    sa.Column("purpose", sa.Text),
    sa.Column("prev", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.CheckConstraint("decision IN ('defect', 'good', 'unsure', 'undo')", name="reviews_decision"),
    sa.Index("reviews_of_part", "part"),
    sa.Index("reviews_by_recipe", "edge_id", "recipe", "decision", "id"),
)

# What is counted of the parts of a quarter of an hour: the figures' only source, small whatever the store holds.
tally = sa.Table(
    "tally",
    metadata,
    sa.Column("quarter", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("edge_id", sa.Text, primary_key=True),
    sa.Column("recipe", sa.Text, primary_key=True),
    sa.Column("counts_as", sa.Text, primary_key=True),
    sa.Column("n", sa.BigInteger, nullable=False),
)

known_parts = sa.Table(
    "known_parts",
    metadata,
    sa.Column("part", Whole, sa.ForeignKey("parts.id"), primary_key=True, autoincrement=False),
    sa.Column("truth", sa.Text, nullable=False),
    sa.Column("registered_by", sa.Text, nullable=False),
    sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    sa.Column("retired_ns", sa.BigInteger),
)

# A look that is asked for beside production: of whom nothing is known before, but for a known part whom it is for.
looks = sa.Table(
    "looks",
    metadata,
    sa.Column("id", Whole, primary_key=True),
    sa.Column("part", Whole, sa.ForeignKey("parts.id"), nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("inspector", sa.Text),
    sa.Column("review", Whole, sa.ForeignKey("reviews.id")),
    sa.Index("looks_open", "purpose", "part", **_where(sa.text("review IS NULL"))),
    sa.Index("looks_of_part", "part", "purpose"),
)

# Parts that are still to be judged blindly: open looks, and known parts that are not retired. What is known of them
# is not shown, and their pictures are not removed.
LOOKED_AT = sa.or_(
    sa.exists().where(looks.c.part == parts.c.id, looks.c.review.is_(None), looks.c.purpose == "second"),
    sa.exists().where(known_parts.c.part == parts.c.id, known_parts.c.retired_ns.is_(None)),
)

gate_outcomes = sa.Table(
    "gate_outcomes",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("edge_id", sa.Text),
    sa.Column("part_id", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    sa.Index("gate_outcomes_of_part", "edge_id", "part_id"),
    sa.Index("gate_outcomes_of_number", "line", "number"),
)

line_events = sa.Table(
    "line_events",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    sa.Index("line_events_of_line", "line", "kind", "id"),
)

master_readings = sa.Table(
    "master_readings",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("edge_id", sa.Text, nullable=False),
    sa.Column("part_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    sa.Column("marked", sa.Boolean, nullable=False),
    sa.Index("master_readings_of_part", "edge_id", "part_id"),
    sa.Index("master_readings_unmarked", "marked"),
)

containments = sa.Table(
    "containments",
    metadata,
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
    sa.Column("ledger", sa.Text),
)

containment_notes = sa.Table(
    "containment_notes",
    metadata,
    sa.Column("id", Whole, primary_key=True),
    sa.Column("containment", Whole, sa.ForeignKey("containments.id"), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("t_wall_ns", sa.BigInteger, nullable=False),
    sa.Index("containment_notes_of", "containment"),
)

drift_alarms = sa.Table(
    "drift_alarms",
    metadata,
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
    sa.Index("drift_alarms_standing", "edge_id", "camera_id", unique=True, **_where(sa.text("cleared_ns IS NULL"))),
)

# A candidate is named by its bundle and its calibration: other limits are another candidate.
shadow_tally = sa.Table(
    "shadow_tally",
    metadata,
    sa.Column("edge_id", sa.Text, primary_key=True),
    sa.Column("recipe", sa.Text, primary_key=True),
    sa.Column("candidate", sa.Text, primary_key=True),
    sa.Column("live", sa.Text, primary_key=True),
    sa.Column("verdict", sa.Text, primary_key=True),
    sa.Column("n", sa.BigInteger, nullable=False),
)

shadow_runs = sa.Table(
    "shadow_runs",
    metadata,
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

shadow_changes = sa.Table(
    "shadow_changes",
    metadata,
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
    sa.Index("shadow_changes_by_candidate", "edge_id", "recipe", "candidate", "id"),
)
