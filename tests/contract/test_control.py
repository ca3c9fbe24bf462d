"""Control messages: every kind survives the wire, garbage is refused, a deadline is never later than the host's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.control import MAGIC, MAX_BYTES, Hello, Reply, Request, Status, encode, from_edge, from_host
from contract.errors import EventError

STATUS = Status(recipe="washer", bundle_id="b", model_sha256="ab" * 32, engine="e")
REQUEST = Request(
    id="1", idempotency_key="k", run_id="r", hello_ns=5, deadline_after_hello_ms=10, what="recipe", number=2
)


def test_every_kind_survives_the_wire() -> None:
    hello = Hello(edge_id="e", run_id="r", t_sent_ns=7, status=STATUS)
    reply = Reply(id="1", edge_id="e", outcome="refused", reason="no", status=STATUS)
    assert from_edge(encode(hello)) == hello
    assert from_edge(encode(reply)) == reply
    assert from_host(encode(REQUEST)) == REQUEST


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], "version"),
        ([b"FLAWLINE1", b"{}"], "version"),
        ([MAGIC], "version"),
        ([MAGIC, b"{}", b""], "version"),
        ([MAGIC, b"\xff"], "schema"),
        ([MAGIC, b'{"kind": "wish"}'], "schema"),
        ([MAGIC, b" " * (MAX_BYTES + 1)], "size"),
    ],
)
def test_garbage_is_refused_by_code(frames: list[bytes], code: str) -> None:
    for decode in (from_edge, from_host):
        with pytest.raises(EventError) as refused:
            decode(frames)
        assert refused.value.code == code


@given(
    offset_ns=st.integers(0, 10**18),
    sent_ns=st.integers(0, 10**15),
    hello_transit_ns=st.integers(0, 10**12),
    asked_after_ns=st.integers(0, 10**12),
    timeout_ns=st.integers(0, 10**13),
)
def test_the_edge_s_deadline_is_never_later_than_the_host_s(
    offset_ns: int, sent_ns: int, hello_transit_ns: int, asked_after_ns: int, timeout_ns: int
) -> None:
    """``offset_ns``: by which the edge's clock is ahead of the host's; all other times are the host's."""
    arrived_ns = sent_ns + hello_transit_ns
    deadline_ns = arrived_ns + asked_after_ns + timeout_ns
    request = REQUEST.model_copy(
        update={
            "hello_ns": sent_ns + offset_ns,
            "deadline_after_hello_ms": (deadline_ns - arrived_ns) / 1e6,
        }
    )
    edge_s = request.deadline_ns - offset_ns
    assert edge_s <= deadline_ns + 1000  # a float's rounding
    assert deadline_ns - edge_s <= hello_transit_ns + 1000
