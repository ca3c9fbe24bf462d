"""What programs are given of the host: the models of the HTTP API, its stream and an embedding program (hop 11)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from contract.event import Verdict


class Given(BaseModel):
    """Base: what a later version adds is no error to whoever reads it; numbers are finite."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Item = TypeVar("Item", bound=Given)


class Page(Given, Generic[Item]):
    """Some of what was asked for. ``next``: give it as ``after`` to go on; null: this was the last."""

    items: list[Item]
    next: int | None


class Problem(Given):
    """Why a request was not answered, as a sentence for people."""

    error: str


class Part(Given):
    """One part as it stands now. ``id`` is the host's own number; ``(edge_id, part_id)`` is the part's identity.

    What the machine said is null, and ``blind`` true, where who asks is to judge the part without it.
    """

    id: int
    edge_id: str
    part_id: str
    line: str
    camera_id: str
    trigger_id: int
    frame_no: int
    box_px: list[int] | None = Field(None, description="x, y, width, height in the camera's frame")
    state: str = Field(description="triggered, result or missed")
    verdict: Verdict | None = Field(None, description="null: not decided yet, or kept from who asks (blind)")
    reason: str | None = None
    score: float | None = None
    threshold: float | None = None
    severity: float | None = Field(None, description="how far over the limit")
    t_wall_ns: int = Field(description="UTC nanoseconds by the edge's clock, a label")
    time: str | None = Field(None, description="the same as ISO 8601 with milliseconds; null where it is no date")
    age_ms: float = Field(description="capture to the event's first sending")
    spool_id: str | None = None
    seq: int | None = None
    serial: str | None = None
    lot: str | None = None
    encoder: int | None = None
    audited: bool | None = Field(False, description="it passed and was drawn for an inspector to judge")
    review: str | None = Field(
        None, description="what stands: good or defect, else nothing is decided; disputed: inspectors disagree"
    )
    review_by: str | None = None
    recipe: str | None = None
    bundle_id: str | None = None
    model_sha256: str | None = None
    calibration_id: str | None = None
    engine: str | None = None
    blind: bool = False

    @property
    def flagged(self) -> bool:
        """Whether the machine wants somebody to look."""
        return self.verdict in (Verdict.REVIEW, Verdict.REJECT)


class Image(Given):
    """A picture or map of a part; ``url`` has its bytes, which ``sha256`` names."""

    id: int
    role: str = Field(description="image, reconstruction, thumbnail or map")
    view: str
    codec: str = Field(description="png, jpeg, or raw: C order, little endian, dtype and shape")
    dtype: str
    shape: list[int]
    to_part: list[float] | None = Field(None, description="x = a*u + b*v + c, y = d*u + e*v + f, pixels of the part")
    size: int
    sha256: str
    url: str


class Review(Given):
    """One decision of an inspector; never changed. An ``undo`` takes back the one that it supersedes."""

    id: int
    part: int
    decision: str
    defect_class: str | None = None
    comment: str | None = None
    inspector: str
    station: str | None = None
    dwell_ms: int | None = None
    t_wall_ns: int
    supersedes: int | None = None
    purpose: str | None = Field(
        None, description="null: production; arbiter; second, known: a blind opinion, which by itself decides nothing"
    )
    sha256: str | None = Field(None, description="of the record, which names the one before it")


class Output(Given):
    """What the line controller was told of a part: 1 PASS, 2 REJECT, 3 REVIEW, 4 NOT_INSPECTED."""

    line: str
    number: int
    code: int
    source: str
    reason: str | None = None
    outcome: str
    age_ms: float
    counter: int | None = None
    late_code: int | None = Field(None, description="of a verdict that came after the deadline and moved nothing")


class PartDetail(Part):
    """A part with its event, pictures, decisions and what the line was told."""

    header: dict[str, Any] | None = Field(None, description="the event (event.schema.json); null: none yet, or blind")
    images: list[Image]
    images_dropped: bool = Field(description="its edge's spool was full, and pictures had to give way")
    reviews: list[Review]
    output: Output | None = None


class Event(Given):
    """One event as an edge sent it; its identity is ``(edge_id, spool_id, seq)``."""

    id: int
    edge_id: str
    spool_id: str
    seq: int
    kind: str
    part_id: str | None = None
    verdict: Verdict | None = None
    score: float | None = None
    age_ms: float
    attempt: int
    t_wall_ns: int
    time: str | None = None
    received_ns: int
    header: dict[str, Any] = Field(description="see event.schema.json")


class Alarm(Given):
    """Something that keeps the host or a line from its work began (``raised``) or ended (``cleared``)."""

    id: int
    t_wall_ns: int
    time: str | None = None
    source: str = Field(description="store, ledger, journal, keys, line, stop (a line is to stop), connector or host")
    name: str = Field("", description="which line or connector")
    state: Literal["raised", "cleared"]
    text: str


class Decided(Given):
    """A decision was recorded under this number."""

    review: int


def iso(t_wall_ns: int) -> str | None:
    """UTC nanoseconds as ISO 8601 with milliseconds; None where an edge's clock says what no calendar has."""
    try:
        moment = datetime.fromtimestamp(t_wall_ns // 10**6 / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
