"""Messages of both directions, damaged and senseless: decoded or refused with an EventError, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from contract import control, event
from contract.errors import EventError
from contract.event import REPLY, Ack, Envelope, from_frames, identity_of
from tests.hostile.fuzz import QUICK, bent, bounded, damaged, trees

GOLDEN = {
    path.stem.removeprefix("1.0-"): json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[1] / "contract" / "golden_events").glob("*.json"))
}
NAMES = sorted(
    {name for model in vars(event).values() if isinstance(model, type) and issubclass(model, BaseModel)
     for name in model.model_fields} | {"schema", "__class__", "kind"}
)  # fmt: skip
ENVELOPE = {"age_ms": 1.5, "attempt": 1, "t_sent_ns": 5, "clock_id": "c"}
STATUS = {
    "state": "running", "recipe": "r", "bundle_id": "b", "model_sha256": "ab" * 32, "engine": "e", "recipes": [1, 2],
}  # fmt: skip
HELLO = {"kind": "hello", "edge_id": "e", "run_id": "r", "t_sent_ns": 5, "status": STATUS}
REQUEST = {
    "kind": "request", "id": "i", "idempotency_key": "k", "run_id": "r", "hello_ns": 5, "deadline_after_hello_ms": 1.0,
    "what": "recipe", "number": 2,
}  # fmt: skip
ANSWER = {"kind": "reply", "id": "i", "edge_id": "e", "outcome": "ok", "status": STATUS}
ACK = {"kind": "ack", "spool_id": "s", "seqs": [1, 2, 3]}
NACK = {"kind": "nack", "spool_id": "s", "seq": 1, "code": "schema", "message": "m"}


def as_json(tree: Any) -> bytes:
    """JSON as a foreign program may write it: NaN, huge numbers and lone surrogates stand in it."""
    try:
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    except ValueError:  # a number of too many digits for Python to write
        return b'{"kind": 1' + b"0" * 5000 + b"}"


def decoded_or_refused(frames: list[bytes]) -> None:
    identity = identity_of(frames)
    assert identity is None or (isinstance(identity[0], str) and identity[1] > 0)
    try:
        message = from_frames(frames)
    except EventError as error:
        assert str(error) and error.code in ("schema", "size", "parts", "version", "identity")
        return
    assert event.encode_header(message.header)


@pytest.mark.parametrize("kind", GOLDEN)
@bounded(QUICK)
@given(drawn=st.data())
def test_events_with_senseless_fields(kind: str, drawn: st.DataObject) -> None:
    header = drawn.draw(bent(GOLDEN[kind], NAMES))
    envelope = drawn.draw(st.one_of(st.just(ENVELOPE), bent(ENVELOPE, NAMES)))
    parts = drawn.draw(st.lists(st.binary(max_size=20), max_size=3))
    decoded_or_refused([event.MAGIC, as_json(envelope), as_json(header), *parts])


@bounded(QUICK)
@given(trees(NAMES), trees(NAMES))
def test_events_that_are_trees_of_anything(envelope: Any, header: Any) -> None:
    decoded_or_refused([event.MAGIC, as_json(envelope), as_json(header)])


@pytest.mark.parametrize("kind", GOLDEN)
@bounded(QUICK)
@given(drawn=st.data())
def test_events_with_damaged_bytes(kind: str, drawn: st.DataObject) -> None:
    header = drawn.draw(damaged(as_json(GOLDEN[kind])))
    decoded_or_refused([event.MAGIC, drawn.draw(damaged(as_json(ENVELOPE))), header])
    decoded_or_refused([event.MAGIC, as_json(ENVELOPE), header])


@pytest.mark.parametrize(
    ("decode", "whole"),
    [(control.from_edge, HELLO), (control.from_edge, ANSWER), (control.from_host, REQUEST)],
    ids=["hello", "reply", "request"],
)
@bounded(QUICK)
@given(drawn=st.data())
def test_control_messages(decode: Callable[[list[bytes]], Any], whole: Any, drawn: st.DataObject) -> None:
    names = [*NAMES, "idempotency_key", "hello_ns", "deadline_after_hello_ms", "what", "number", "status", "outcome"]
    tree, noise = drawn.draw(bent(whole, names)), drawn.draw(damaged(as_json(whole)))
    for data in (as_json(tree), noise, as_json(drawn.draw(trees(names)))):
        try:
            decode([control.MAGIC, data])
        except EventError as error:
            assert str(error)
    assert decode([control.MAGIC, as_json(whole)])


@pytest.mark.parametrize(
    ("adapter", "whole"),
    [(REPLY, ACK), (REPLY, NACK), (TypeAdapter(Envelope), ENVELOPE)],
    ids=["ack", "nack", "envelope"],
)
@bounded(QUICK)
@given(drawn=st.data())
def test_replies_and_envelopes(adapter: TypeAdapter[Any], whole: Any, drawn: st.DataObject) -> None:
    """The emitter takes ValidationError for a reply that it does not understand, and goes on."""
    for data in (as_json(drawn.draw(bent(whole, NAMES))), drawn.draw(damaged(as_json(whole)))):
        try:
            found = adapter.validate_json(data)
        except ValidationError:
            continue
        assert not isinstance(found, Ack) or all(isinstance(seq, int) for seq in found.seqs)


@pytest.mark.parametrize("depth", [100, 5_000, 100_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_without_an_end(depth: int, opening: bytes) -> None:
    deep = opening * depth
    for header in (deep, b'{"kind":"state","detail":' + deep):
        decoded_or_refused([event.MAGIC, as_json(ENVELOPE), header])
        with pytest.raises(EventError):
            control.from_edge([control.MAGIC, header[: control.MAX_BYTES]])
