"""The first tables: events, parts, attachments, gaps, edges and the append-only reviews (hop 8)."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

TABLES = [
    """CREATE TABLE events (
        id INTEGER NOT NULL PRIMARY KEY, edge_id TEXT NOT NULL, spool_id TEXT NOT NULL, seq BIGINT NOT NULL,
        kind TEXT NOT NULL, part_id TEXT, verdict TEXT, score FLOAT, age_ms FLOAT NOT NULL, attempt INTEGER NOT NULL,
        t_wall_ns BIGINT NOT NULL, received_ns BIGINT NOT NULL, header TEXT NOT NULL,
        CONSTRAINT events_identity UNIQUE (edge_id, spool_id, seq))""",
    "CREATE INDEX events_by_kind ON events (kind)",
    """CREATE TABLE spools (
        edge_id TEXT NOT NULL, spool_id TEXT NOT NULL, stored BIGINT NOT NULL, max_seq BIGINT NOT NULL,
        duplicates BIGINT NOT NULL, PRIMARY KEY (edge_id, spool_id))""",
    """CREATE TABLE parts (
        id INTEGER NOT NULL PRIMARY KEY, edge_id TEXT NOT NULL, part_id TEXT NOT NULL, camera_id TEXT NOT NULL,
        frame_no BIGINT NOT NULL, box_px TEXT, trigger_id BIGINT NOT NULL, state TEXT NOT NULL, verdict TEXT,
        reason TEXT, score FLOAT, threshold FLOAT, severity FLOAT, timing TEXT NOT NULL, age_ms FLOAT NOT NULL,
        t_wall_ns BIGINT NOT NULL, spool_id TEXT, seq BIGINT, review TEXT, review_by TEXT,
        CONSTRAINT parts_identity UNIQUE (edge_id, part_id))""",
    "CREATE INDEX parts_by_state ON parts (state, verdict)",
    "CREATE INDEX parts_reviewed ON parts (verdict, review) WHERE review IS NOT NULL",
    "CREATE INDEX parts_lost ON parts (id) WHERE verdict = 'NOT_INSPECTED'",
    """CREATE INDEX parts_queue ON parts (severity DESC, id)
        WHERE review IS NULL AND verdict IN ('REJECT', 'REVIEW')""",
    """CREATE TABLE attachments (
        id INTEGER NOT NULL PRIMARY KEY, edge_id TEXT NOT NULL, part_id TEXT NOT NULL, role TEXT NOT NULL,
        view TEXT NOT NULL, codec TEXT NOT NULL, dtype TEXT NOT NULL, shape TEXT NOT NULL, to_part TEXT,
        sha256 TEXT, size BIGINT NOT NULL)""",
    "CREATE INDEX attachments_of_part ON attachments (edge_id, part_id)",
    """CREATE TABLE gaps (
        id INTEGER NOT NULL PRIMARY KEY, edge_id TEXT NOT NULL, camera_id TEXT, reason TEXT NOT NULL,
        from_wall_ns BIGINT NOT NULL, to_wall_ns BIGINT NOT NULL, duration_ns BIGINT NOT NULL)""",
    """CREATE TABLE edges (
        edge_id TEXT NOT NULL PRIMARY KEY, received_ns BIGINT NOT NULL, header TEXT NOT NULL)""",
    """CREATE TABLE reviews (
        id INTEGER NOT NULL PRIMARY KEY, part INTEGER NOT NULL REFERENCES parts (id), decision TEXT NOT NULL,
        inspector TEXT NOT NULL, t_wall_ns BIGINT NOT NULL, supersedes INTEGER REFERENCES reviews (id),
        CONSTRAINT reviews_decision CHECK (decision IN ('defect', 'good', 'undo')))""",
    "CREATE INDEX reviews_of_part ON reviews (part)",
]

APPEND_ONLY = [
    ("reviews", "UPDATE"),
    ("reviews", "DELETE"),
    ("events", "UPDATE"),
]


def upgrade() -> None:
    """Create the tables and let the database itself refuse to change what was said."""
    for statement in TABLES:
        op.execute(statement)
    for table, verb in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )
