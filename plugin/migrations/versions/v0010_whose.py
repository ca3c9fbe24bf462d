"""Which ledger gave out the numbers of a containment (hop 8)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Of containments of before nothing is known."""
    op.add_column("containments", sa.Column("ledger", sa.Text))
