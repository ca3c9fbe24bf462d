"""What goes the other way: requests of a host to an edge, and their replies (the control socket, beside hops 6 and 7).

A message is ``[MAGIC, JSON]``. The edge connects out and says ``hello`` at once and every second; the host answers on
that connection with requests.

A deadline is an instant on the edge's own monotonic clock. A request repeats the time of sending of the newest hello
(``hello_ns``, the edge's clock) and says how many milliseconds after it the deadline lies, as the host measures them
since that hello arrived. Because a hello is sent before it arrives, the edge's deadline is never later than the
host's, whatever the clocks say and however long either message lay on its way.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from contract.errors import EventError
from contract.event import Count, Encoder, Label, Name, Text, Wire

MAGIC = b"FLAWLINE-CONTROL1"
MAX_BYTES = 64 << 10
HELLO_S = 1.0

Kind = Literal["status", "recipe", "start", "stop", "trigger"]
Outcome = Literal["ok", "refused", "unknown"]
Model = TypeVar("Model")
Number = Annotated[int, Field(ge=1, le=65535)]


class Status(Wire):
    """What an edge does: its state, the recipe that judges the next part, and counts since its start."""

    state: Literal["starting", "running", "stopping", "stopped", "failed"] = "starting"
    inspecting: bool = True
    recipe_number: int = 1
    recipe: Name
    bundle_id: Name
    bundle_state: Name | None = Field(None, description="as verified by an edge in production mode; none: nobody did")
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    engine: Name
    loading: int | None = Field(None, description="number of the recipe that is being loaded")
    recipes: tuple[int, ...] = Field((), max_length=1024, description="numbers that can be selected")
    parts: Count = 0
    not_inspected: Count = 0
    spool_rows: Count = 0


class Hello(Wire):
    """Edge to host, at once, every HELLO_S and after a change: who is there and what it does."""

    kind: Literal["hello"] = "hello"
    edge_id: Name
    run_id: Name
    t_sent_ns: Count = Field(description="the edge's monotonic clock at this sending")
    status: Status


class Part(Wire):
    """What ``trigger`` asks for: a picture of the part that is in view now, and what the plant calls that part.

    ``cameras``: those with ``trigger = "software"`` that shall take it, one part each; none named: all of them.
    """

    serial: Label | None = None
    lot: Label | None = None
    encoder: Encoder | None = None
    cameras: tuple[Name, ...] = Field((), max_length=64)


class Request(Wire):
    """Host to edge. The same ``idempotency_key`` is done once, and answered alike each time it comes."""

    kind: Literal["request"] = "request"
    id: Name
    idempotency_key: Name
    run_id: Name = Field(description="of the hello: a request to a run of the edge that has ended is not done")
    hello_ns: Count
    deadline_after_hello_ms: float = Field(ge=0, le=86_400_000)
    what: Kind
    number: Number | None = Field(None, description="of the recipe to select")
    part: Part | None = Field(None, description="to be triggered")

    @property
    def deadline_ns(self) -> int:
        """The last instant, by the edge's monotonic clock, at which this may still be done."""
        return self.hello_ns + int(self.deadline_after_hello_ms * 1e6)


class Reply(Wire):
    """Edge to host: done (``ok``) or not (``refused``, with the reason), and how the edge is afterwards.

    ``unknown`` is said by the host itself where no answer came: the request may or may not have been done.
    """

    kind: Literal["reply"] = "reply"
    id: Name
    edge_id: Name
    outcome: Outcome
    reason: Text | None = None
    status: Status | None = None
    part_ids: tuple[Name, ...] = Field((), max_length=64, description="of the events about what was triggered")


FROM_EDGE: TypeAdapter[Hello | Reply] = TypeAdapter(Annotated[Hello | Reply, Field(discriminator="kind")])
FROM_HOST: TypeAdapter[Request] = TypeAdapter(Request)


def encode(message: Hello | Request | Reply) -> list[bytes]:
    """The frames to send."""
    return [MAGIC, message.model_dump_json().encode()]


def from_edge(frames: list[bytes]) -> Hello | Reply:
    """What an edge said. Raises EventError."""
    return _decode(FROM_EDGE, frames)


def from_host(frames: list[bytes]) -> Request:
    """What a host asks. Raises EventError."""
    return _decode(FROM_HOST, frames)


def _decode(adapter: TypeAdapter[Model], frames: list[bytes]) -> Model:
    if len(frames) != 2 or frames[0] != MAGIC:
        raise EventError(f"{len(frames)} frame(s) are not a Flawline control message", "version")
    if len(frames[1]) > MAX_BYTES:
        raise EventError(f"a control message of {len(frames[1])} bytes, at most {MAX_BYTES}", "size")
    try:
        return adapter.validate_json(frames[1])
    except ValidationError as error:
        first = error.errors()[0]
        raise EventError(f"control message at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
