"""The event on the wire: typed headers, their multipart form, acknowledgements (hop 6 to hop 7).

A message is ``[MAGIC, envelope, header, part, part, ...]``. The header never changes once spooled; the envelope
says what differs between transmissions (age, attempt). Identity is ``(edge_id, spool_id, seq)``.
"""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from contract.errors import EventError

MAGIC = b"FLAWLINE1"
SCHEMA = "flawline.event/1.0"
MAX_ENVELOPE_BYTES = 4 << 10
MAX_HEADER_BYTES = 256 << 10
MAX_PART_BYTES = 64 << 20
MAX_PARTS = 8
CHUNK_BYTES = 256 << 10
"""Largest piece of an attachment that is sent at once; one with more to send goes in chunks."""

MAX_BODY_BYTES = 127 << 20
"""All binary parts of a message together."""


class Verdict(StrEnum):
    """What a part is told to be; whatever goes wrong is NOT_INSPECTED."""

    PASS = "PASS"
    REVIEW = "REVIEW"
    REJECT = "REJECT"
    NOT_INSPECTED = "NOT_INSPECTED"


class LineCode(IntEnum):
    """The same for a line controller: only a fresh, sequence-matched 1 is OK."""

    PASS = 1
    REJECT = 2
    REVIEW = 3
    NOT_INSPECTED = 4


class Wire(BaseModel):
    """Base of wire models: unknown fields are ignored, new fields have defaults, numbers are finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


Text = Annotated[str, Field(max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has a sign that cannot be printed")
    return text


Label = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
"""What a plant calls a part or a lot: it is shown to people, so it can be printed."""

Encoder = Annotated[int, Field(ge=-(2**53) + 1, le=2**53 - 1)]
"""A count of the line's encoder; every reader of JSON holds it exactly."""


class Region(Wire):
    """One connected area of deviation, in pixels of the cut-out part: ``box_px`` is x, y, width, height.

    ``peak`` is the highest value of the map in it; ``level`` the same over the normal level of its place, where the
    calibration knows it: 0 is the usual, 1 what good parts seldom exceed. ``zone``: in which it has its peak.
    """

    view: Name
    box_px: tuple[float, float, float, float]
    area_px: float
    box_mm: tuple[float, float, float, float] | None = Field(None, description="the same box, where calibrated")
    area_mm2: float | None = None
    peak: float
    level: float | None = None
    zone: Name | None = None


class PartRef(Wire):
    """A binary part of this message: what it holds and how to read it.

    ``codec`` is ``raw`` (C order, little endian, ``dtype`` and ``shape``), ``png`` or ``jpeg``.
    ``to_part`` maps array pixels to pixels of the cut-out part: x = a*u + b*v + c, y = d*u + e*v + f.
    """

    role: Literal["map", "image", "reconstruction", "thumbnail"]
    view: Name = "main"
    codec: Literal["raw", "png", "jpeg"]
    dtype: Literal["float16", "float32", "uint8"] = "uint8"
    shape: tuple[int, ...] = Field(max_length=4)
    size: int = Field(ge=0, le=MAX_PART_BYTES, description="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    to_part: tuple[float, float, float, float, float, float] | None = None


class Timing(Wire):
    """When each hop was done, CLOCK_MONOTONIC nanoseconds of the edge; 0 where the hop was not reached."""

    t_capture_ns: Count = 0
    t_trigger_ns: Count = 0
    t_taken_ns: Count = 0
    t_prepared_ns: Count = 0
    t_inferred_ns: Count = 0
    t_decided_ns: Count = 0
    t_spooled_ns: Count = 0

    @property
    def t_begin_ns(self) -> int:
        """What age and deadline count from: the capture, or the request for it where that came first."""
        return min((at for at in (self.t_capture_ns, self.t_trigger_ns) if at), default=0)


class BaseHeader(Wire):
    """Fields of every header. ``run_id`` is new at each start of the edge, ``spool_id`` belongs to the spool."""

    schema_id: str = Field(SCHEMA, alias="schema", max_length=50)
    edge_id: Name
    spool_id: Name
    seq: int = Field(ge=1, le=2**63 - 1)
    run_id: Name
    t_wall_ns: Count = Field(description="UTC nanoseconds since 1970; a label, never used for durations")
    parts: tuple[PartRef, ...] = Field((), max_length=MAX_PARTS)

    model_config = ConfigDict(populate_by_name=True)


class PartHeader(BaseHeader):
    """Fields of what is said about one part: its trigger, camera and frame.

    ``part_id`` is given by the edge and unique on it. ``serial`` and ``lot`` are the plant's own words, from the
    request that triggered the part or read from the part itself: two parts with one serial stay two parts.
    ``frame_no`` is 0 while no frame has been taken.
    """

    part_id: Name
    camera_id: Name
    trigger_id: Count
    frame_no: Count
    box_px: tuple[int, int, int, int] | None = Field(None, description="x, y, width, height in the camera's frame")
    timing: Timing = Timing()
    serial: Label | None = Field(None, description="what the plant calls this part")
    lot: Label | None = None
    encoder: Encoder | None = Field(None, description="the line's encoder when the part was triggered, as it was told")


class Trigger(PartHeader):
    """A part was seen and will be inspected; exactly one Result or Missed follows."""

    kind: Literal["trigger"] = "trigger"


class Result(PartHeader):
    """The verdict on one part. ``score`` is None where nothing was scored; ``reason`` says why it is not PASS."""

    kind: Literal["result"] = "result"
    verdict: Verdict
    reason: Text | None = None
    score: float | None = None
    threshold: float | None = None
    review_threshold: float | None = None
    map_threshold: float | None = Field(None, description="of the map as it is sent")
    region_level: float | None = Field(None, description="above which a region's level lies; none: map_threshold cut")
    regions: tuple[Region, ...] = Field((), max_length=64)
    quality: dict[str, float] = Field(default_factory=dict)
    recipe: Name
    recipe_number: int | None = Field(None, description="by which it is selected")
    bundle_id: Name
    bundle_state: Name | None = Field(None, description="as verified by an edge in production mode; none: nobody did")
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    calibration_id: Name | None = None
    engine: Name
    part_to_frame: tuple[float, float, float, float, float, float] | None = Field(
        None,
        description="where the cut-out part's pixels lie in the camera's frame: x = a*u + b*v + c, y = d*u + e*v + f",
    )
    audit_share: float = Field(0.0, ge=0, le=1, description="probability with which a part that passes is audited")
    audited: bool = Field(False, description="this part passed and was drawn: an inspector is to judge it")


class Missed(PartHeader):
    """A trigger that was never inspected: NOT_INSPECTED to the line, with the reason."""

    kind: Literal["missed"] = "missed"
    reason: Text


class Attachment(BaseHeader):
    """Binary parts of a Result, sent after the verdicts. A spool that ran full keeps the header and says so."""

    kind: Literal["attachment"] = "attachment"
    part_id: Name
    result_seq: int = Field(ge=1)
    dropped: bool = False


class ShadowScore(Wire):
    """What a candidate would have said of a part; ``live`` is what the part was told to be."""

    part_id: Name
    camera_id: Name
    result_seq: int = Field(ge=1)
    live: Verdict
    verdict: Verdict
    score: float | None = None
    reason: Text | None = None


class Shadow(BaseHeader):
    """What a candidate that is never acted on made of some parts, sent after the verdicts.

    The counts are of this run, and of parts that ended until now: ``offered`` is the sum of ``scored``, ``dropped``
    (it had no time, or failed), ``unseen`` (without a picture) and ``waiting``. A spool that ran full may have given up
    some of the scores: then fewer came than were scored.
    """

    kind: Literal["shadow"] = "shadow"
    recipe: Name
    recipe_number: int
    bundle_id: Name | None = Field(None, description="none: it could not be opened")
    model_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    calibration_id: Name | None = None
    beside_bundle_id: Name | None = Field(None, description="the bundle that gave the scored parts their verdicts")
    beside_calibration_id: Name | None = None
    engine: Name | None = None
    threshold: float | None = None
    review_threshold: float | None = None
    scores: tuple[ShadowScore, ...] = Field((), max_length=256)
    offered: Count = 0
    scored: Count = 0
    dropped: Count = 0
    unseen: Count = 0
    waiting: Count = 0
    trouble: Text | None = Field(None, description="why it scores nothing now")


class Chunk(BaseHeader):
    """A piece of a large Attachment, under its identity, from the byte ``offset`` on of its parts laid end to end.

    Two frames follow: the attachment's own header, the same with every piece, and ``length`` bytes. ``sha256`` is that
    header's, which names size and sha256 of each part, and so stands for the whole.
    """

    kind: Literal["chunk"] = "chunk"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offset: int = Field(ge=0, le=MAX_BODY_BYTES)
    length: int = Field(ge=1, le=CHUNK_BYTES)
    size: int = Field(ge=1, le=MAX_BODY_BYTES, description="bytes of all parts together")


class Gap(BaseHeader):
    """A time in which this edge saw nothing: parts that passed then are not accounted for singly."""

    kind: Literal["gap"] = "gap"
    reason: Text
    camera_id: Name | None = Field(None, description="the one camera that was blind; none: the whole edge")
    from_wall_ns: Count
    to_wall_ns: Count
    duration_ns: Count = Field(description="by a clock that survives a restart of the edge where there is one")


class DriftTest(Wire):
    """One test of a camera's watch. ``evidence``: log10 of the most since the report before, over the alarm line: 0."""

    name: Literal["picture", "score", "rejects"]
    evidence: float
    alarm: bool = Field(False, description="it crossed the line since the report before, and began anew")
    alarms: Count = Field(0, description="how often it has, since this watch began")


class DriftQuantile(Wire):
    """So large a share of the last parts measured at most ``now``, and of the good ones at calibration ``usual``."""

    share: float = Field(gt=0, lt=1)
    now: float
    usual: float
    shift: float


class DriftMeasure(Wire):
    """One measure of the last parts beside that of the good ones at calibration.

    ``shift`` is their difference in spreads of the good ones, negative where the last parts measure less.
    """

    name: Name = Field(description="`score`, or the view and the quality gate's name: `main.mean`")
    camera_id: Name
    what: Literal["brightness", "contrast", "focus", "position", "score"]
    now: float = Field(description="median of the last parts, at an alarm of those since the change")
    usual: float = Field(description="median of the good ones")
    spread: float = Field(gt=0)
    shift: float
    quantiles: tuple[DriftQuantile, ...] = Field((), max_length=8, description="of the score")


class Drift(BaseHeader):
    """How far the parts of one camera still are like those of the calibration; regularly, and at once on an alarm.

    All parts count, whatever their verdict. An alarm is a test that crossed its line; no verdict follows from it.
    """

    kind: Literal["drift"] = "drift"
    camera_id: Name = Field(description="whose trigger makes the parts")
    inspected: Count = Field(description="parts since this watch began")
    of_parts: Count = Field(description="parts since the report before")
    flagged: Count = Field(0, description="of those, REJECT or REVIEW")
    lost: Count = Field(0, description="of those, NOT_INSPECTED")
    tests: tuple[DriftTest, ...] = Field((), max_length=8)
    measures: tuple[DriftMeasure, ...] = Field((), max_length=200)
    suspect: Literal["lamp", "lens", "fixture", "product"] | None = Field(
        None, description="what most likely changed, by the measures that moved; none: nothing moved much"
    )
    since_part_id: Name | None = Field(None, description="on an alarm: a part from before the change, as estimated")
    last_part_id: Name = Field(description="the last part that counts here")
    rejects_at_most: float = Field(ge=0, le=1, description="share of flagged parts that is no alarm")
    defect_share: float = Field(ge=0, le=1)
    false_alarms_per_month: float = Field(gt=0, description="of the whole edge, at most, while nothing drifts")
    baseline_parts: Count = Field(description="good parts that the scores are held against")
    recipe: Name
    recipe_number: int | None = None
    bundle_id: Name
    calibration_id: Name | None = None

    @property
    def alarm(self) -> bool:
        return any(test.alarm for test in self.tests)


class CameraState(Wire):
    """One camera in a heartbeat; ages in milliseconds, -1 before the first frame."""

    camera_id: Name
    state: Literal["starting", "running", "stalled", "ended", "failed"]
    frames: Count = 0
    triggers: Count = 0
    frame_age_ms: float = -1.0
    detail: Text | None = None
    skipped: Count = Field(0, description="frames that nobody looked at")
    restarts: Count = Field(0, description="how often its process was replaced")


class State(BaseHeader):
    """The edge's heartbeat: what it does, how much waits in its spool, how fresh its cameras are.

    Never spooled: its ``spool_id`` is ``state-<run_id>``, numbered apart, and one that is lost is not missed.
    """

    kind: Literal["state"] = "state"
    state: Literal["starting", "running", "stopping", "stopped", "failed"]
    detail: Text | None = None
    spool_rows: Count = 0
    spool_bytes: Count = 0
    attachments_dropped: Count = 0
    dead_letters: Count = Field(0, description="messages that the host refused for good and that are kept on the edge")
    dead_removed: Count = Field(0, description="of those, how many had to go for want of room")
    waiting: Count = Field(0, description="parts that were announced and have no verdict yet")
    waiting_ms: float = Field(0.0, description="how long ago the oldest of them was captured")
    inference: Literal["unknown", "ok", "failed"] = Field(
        "unknown", description="how the last inference ended; without parts the edge tries one about every second"
    )
    cameras: tuple[CameraState, ...] = Field((), max_length=64)
    inspecting: bool = Field(True, description="false: stopped by request, every part is NOT_INSPECTED")
    recipe_number: int | None = Field(None, description="of the recipe that judges the next part")
    recipe: Name | None = None
    bundle_id: Name | None = None
    bundle_state: Name | None = Field(None, description="as verified by an edge in production mode; none: nobody did")
    model_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    engine: Name | None = None
    last_seq: Count = Field(0, description="number of the newest event in `events_spool_id`; 0: none")
    events_spool_id: Name | None = Field(None, description="spool_id of the events that this edge numbers now")
    settled: bool = Field(
        False, description="the host has committed every event of before `events_spool_id`; what has no end gets none"
    )
    boot_id: str = Field("", max_length=100, description="names the boot that t_boot_ns counts from")
    t_boot_ns: Count = Field(0, description="of this heartbeat, by a clock that no step moves and that counts sleep")
    clock_synchronised: bool | None = Field(None, description="whether NTP or PTP keeps the wall clock; none: unknown")
    clock_steps: Count = Field(0, description="how often the wall clock was set since this edge started")
    clock_step_ms: float = Field(0.0, description="the last of them: how far ahead, negative for back")
    drift: Literal["unknown", "off", "no_baseline", "watching", "failed"] = Field(
        "unknown",
        description="of the recipe that judges now; no_baseline: calibrate its bundle again; failed: the watch broke, "
        "and begins again when the edge starts",
    )


Header = Annotated[
    Trigger | Result | Missed | Attachment | Shadow | Chunk | Gap | Drift | State, Field(discriminator="kind")
]
# Keys alone: kept for the next header, the ids of parts fill a cache of 16 384 strings with what never comes again.
HEADER: TypeAdapter[Header] = TypeAdapter(Header, config=ConfigDict(cache_strings="keys"))


class Envelope(Wire):
    """What differs between transmissions. ``age_ms``: from capture (or from writing) to this sending.

    ``t_sent_ns`` is the edge's monotonic clock at this sending and ``clock_id`` names that clock (a boot of the box):
    from the fastest arrivals of late a host knows what the way usually takes, and what lay in a buffer longer.
    """

    age_ms: float = Field(ge=0)
    attempt: int = Field(1, ge=1)
    t_sent_ns: Count = 0
    clock_id: str = Field("", max_length=100)


class Ack(Wire):
    """The host has committed these numbers; the edge may forget them."""

    kind: Literal["ack"] = "ack"
    spool_id: Name
    seqs: tuple[int, ...] = Field(max_length=4096)


class Nack(Wire):
    """The host will never take this message: the edge moves it to its dead letters."""

    kind: Literal["nack"] = "nack"
    spool_id: Name
    seq: int
    code: Literal["schema", "size", "parts", "version", "identity"]
    message: Text


class Held(Wire):
    """The host has ``offset`` bytes of a large attachment on its disk: the next chunk begins there."""

    kind: Literal["held"] = "held"
    spool_id: Name
    seq: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offset: int = Field(ge=0, le=MAX_BODY_BYTES)


Reply = Annotated[Ack | Nack | Held, Field(discriminator="kind")]
REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


class Message(NamedTuple):
    """One decoded message: header, its binary parts in the order of ``header.parts``, and the envelope."""

    header: Header
    parts: tuple[bytes, ...]
    envelope: Envelope


def part_ref(role: Literal["map", "image", "reconstruction", "thumbnail"], data: bytes, **fields: Any) -> PartRef:
    """Describe ``data`` as a binary part; ``fields`` are PartRef's (codec, dtype, shape, view, to_part)."""
    return PartRef(role=role, size=len(data), sha256=hashlib.sha256(data).hexdigest(), **fields)


def encode_header(header: Header) -> bytes:
    """Header as JSON bytes, as spooled and sent. Raises EventError where it is over MAX_HEADER_BYTES."""
    data = header.model_dump_json(by_alias=True, exclude_none=True).encode()
    if len(data) > MAX_HEADER_BYTES:
        raise EventError(f"header of {len(data)} bytes, at most {MAX_HEADER_BYTES}", "size")
    return data


def to_frames(header: bytes, parts: tuple[bytes, ...], envelope: Envelope) -> list[bytes]:
    """The frames to send for a spooled header and its parts."""
    return [MAGIC, envelope.model_dump_json().encode(), header, *parts]


def from_frames(frames: list[bytes]) -> Message:
    """Decode and check a message. Raises EventError; never trusts a size or a hash that it did not compute."""
    if len(frames) < 3 or frames[0] != MAGIC:
        raise EventError(
            f"{len(frames)} frame(s) beginning {frames[0][:12]!r} are not a Flawline message"
            if frames
            else "no frames",
            "version",
        )
    if len(frames) > 3 + MAX_PARTS:
        raise EventError(f"{len(frames) - 3} binary parts, at most {MAX_PARTS}", "size")
    for name, frame, limit in (("envelope", frames[1], MAX_ENVELOPE_BYTES), ("header", frames[2], MAX_HEADER_BYTES)):
        if len(frame) > limit:
            raise EventError(f"{name} of {len(frame)} bytes, at most {limit}", "size")
    try:
        envelope = Envelope.model_validate_json(frames[1])
        header = HEADER.validate_json(frames[2])
    except ValidationError as error:
        first = error.errors()[0]
        raise EventError(f"header at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    _check_schema(header.schema_id)
    parts = tuple(frames[3:])
    check_parts(header, parts)
    return Message(header, parts, envelope)


def _check_schema(schema: str) -> None:
    name, _, version = schema.partition("/")
    if name != "flawline.event" or version.split(".")[0] != "1":
        raise EventError(f"schema {schema[:50]!r}; this side reads flawline.event/1.x", "version")


def chunk_of(header: bytes, size: int, offset: int, data: bytes) -> tuple[bytes, tuple[bytes, bytes]]:
    """A chunk's header and its two binary frames, for a large attachment's spooled ``header`` and ``size`` in all."""
    whole = Attachment.model_validate_json(header)
    chunk = Chunk(
        **whole.model_dump(include={"edge_id", "spool_id", "seq", "run_id", "t_wall_ns"}),
        sha256=hashlib.sha256(header).hexdigest(),
        offset=offset,
        length=len(data),
        size=size,
    )
    return encode_header(chunk), (header, data)


def attachment_of(chunk: Chunk, header: bytes) -> Attachment:
    """The attachment whose piece a chunk is. Raises EventError where the two do not belong together."""
    if len(header) > MAX_HEADER_BYTES:
        raise EventError(f"chunk: its attachment's header has {len(header)} bytes, at most {MAX_HEADER_BYTES}", "size")
    if hashlib.sha256(header).hexdigest() != chunk.sha256:
        raise EventError("chunk: its attachment's header does not match its sha256", "parts")
    try:
        whole = Attachment.model_validate_json(header)
    except ValidationError as error:
        raise EventError(f"chunk: its attachment's header: {error.errors()[0]['msg']}") from error
    if (whole.edge_id, whole.spool_id, whole.seq) != (chunk.edge_id, chunk.spool_id, chunk.seq):
        raise EventError("chunk: it and its attachment say different identities", "identity")
    if sum(part.size for part in whole.parts) != chunk.size:
        raise EventError(f"chunk: claims {chunk.size} bytes in all, its attachment's parts make another size", "size")
    return whole


def check_parts(header: Header, parts: tuple[bytes, ...]) -> None:
    """Raise EventError unless the binary parts are those that the header describes, byte for byte."""
    if isinstance(header, Chunk):
        _check_chunk(header, parts)
        return
    if len(parts) != len(header.parts):
        raise EventError(f"header declares {len(header.parts)} binary part(s), {len(parts)} came", "parts")
    for reference, data in zip(header.parts, parts, strict=True):
        if len(data) != reference.size:
            raise EventError(f"{reference.role}: header claims {reference.size} bytes, {len(data)} came", "size")
        if hashlib.sha256(data).hexdigest() != reference.sha256:
            raise EventError(f"{reference.role}: the bytes do not match their sha256", "parts")
        if reference.codec == "raw" and _raw_size(reference) != reference.size:
            raise EventError(f"{reference.role}: shape {reference.shape} does not make {reference.size} bytes", "size")


def _check_chunk(chunk: Chunk, frames: tuple[bytes, ...]) -> None:
    if len(frames) != 2 or chunk.parts:
        raise EventError(
            f"chunk: {len(frames)} binary frame(s), expected its attachment's header and its bytes", "parts"
        )
    if len(frames[1]) != chunk.length:
        raise EventError(f"chunk: header claims {chunk.length} bytes, {len(frames[1])} came", "size")
    if chunk.offset + chunk.length > chunk.size:
        raise EventError(f"chunk: ends at byte {chunk.offset + chunk.length} of {chunk.size}", "size")
    attachment_of(chunk, frames[0])


def _raw_size(reference: PartRef) -> int:
    size = {"float16": 2, "float32": 4, "uint8": 1}[reference.dtype]
    for length in reference.shape:
        if length < 0:
            return -1
        size *= length
    return size


def identity_of(frames: list[bytes]) -> tuple[str, int] | None:
    """(spool_id, seq) of a message that did not decode, so that it can be refused by name; None if it has none."""
    try:
        header = json.loads(frames[2]) if len(frames) > 2 and len(frames[2]) <= MAX_HEADER_BYTES else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict):
        return None
    spool_id, seq = header.get("spool_id"), header.get("seq")
    if isinstance(spool_id, str) and 0 < len(spool_id) <= 100 and type(seq) is int and 0 < seq < 2**63:
        return spool_id, seq
    return None


def json_schema() -> dict[str, Any]:
    """JSON Schema of the header, published as ``docs/event.schema.json``."""
    return HEADER.json_schema(by_alias=True)


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
