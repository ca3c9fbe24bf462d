"""One host, fifty edges at once: every event of each is acknowledged, stored once, and told to the line once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from contract.event import Verdict, part_ref
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.postgres import PostgreSQL

EDGES = 50
PARTS = 4


def messages_of(edge: str) -> list[list[bytes]]:
    """So many parts, the last of them flagged and with a picture; 2 events a part, one more for the picture."""
    own: dict[str, Any] = {"edge_id": edge, "spool_id": edge}
    made = []
    for part in range(1, PARTS + 1):
        made.append(s.frames(s.trigger(2 * part - 1, f"p{part}", **own)))
        verdict = Verdict.REJECT if part == PARTS else Verdict.PASS
        made.append(s.frames(s.result(2 * part, f"p{part}", verdict, **own)))
    data = edge.encode() * 5000
    attached = s.attachment(2 * PARTS + 1, f"p{PARTS}", 2 * PARTS, (part_ref("image", data, codec="png", shape=(1,)),))
    return [*made, s.frames(attached.model_copy(update=own), [data])]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_fifty_edges_are_served_at_once(
    kind: str,
    make_host: Callable[..., HostProcess],
    make_dealer: Callable[[str], Dealer],
    request: pytest.FixtureRequest,
) -> None:
    store = ""
    if kind == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgres")
        store = f'[store]\nurl = "{server.database()}"\n'
    host = make_host(deadline_ms=60_000, http=store)
    edges = {f"edge-{number}": make_dealer(host.endpoint) for number in range(1, EDGES + 1)}
    by_turns = zip(*(messages_of(edge) for edge in edges), strict=True)
    for turn in by_turns:
        for dealer, message in zip(edges.values(), turn, strict=True):
            dealer.send(message)
    for edge, dealer in edges.items():
        dealer.send(s.frames(s.state(1, edge_id=edge)))
        dealer.wait_acked(*range(1, 2 * PARTS + 2), spool=edge, timeout_s=60)
    summary = host.get("/api/summary")
    assert (summary["parts"], summary["events"]) == (EDGES * PARTS, EDGES * (2 * PARTS + 1))
    assert (summary["holes"], summary["duplicates"], summary["line"]["open"]) == (0, 0, 0)
    s.until(lambda: len(host.get("/api/summary")["states"]) == EDGES)
    published = s.until(lambda: len(found := host.published()) == EDGES * PARTS and found)
    assert max(Counter((row["edge_id"], row["part_id"]) for row in published).values()) == 1
    assert len(list((host.folder / "state" / "blobs").glob("*/*"))) == EDGES
