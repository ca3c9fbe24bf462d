"""Containment: exactly the parts since the last good check of a line, whatever else passed meanwhile."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from contract.event import Verdict
from plugin.connectors import registers as r
from tests.plugin import synthetic as s
from tests.plugin.controller import library
from tests.plugin.station import Line
from tests.plugin.synthetic import Dealer, HostProcess

OTHER = "edge-3"
MODEL = "ab" * 32
NEXT = "cd" * 32


@pytest.fixture
def line(make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]) -> Iterator[Line]:
    """line-1 with two edges and a controller; line-2 with another edge."""
    library()
    host = make_host(
        deadline_ms=5000,
        line='silence_ms = 60000\nedges = ["edge-1", "edge-2"]\n'
        f'[[lines]]\nid = "line-2"\nedges = ["{OTHER}"]\n'
        '[[connectors]]\nurl = "modbus://127.0.0.1:0"\nlines = ["line-1"]',
        connectors=(),
    )
    made = Line(host, make_dealer(host.endpoint))
    for edge in ("edge-1", "edge-2"):
        made.beat(edge)
    yield made
    made.plc.master.close()


def challenge(line: Line, result: str, scratched: Verdict = Verdict.REJECT) -> int:
    """Masters at both edges; the journal's row of what came of it."""
    line.begin()
    for edge in ("edge-1", "edge-2"):
        for name, verdict in (("good", Verdict.PASS), ("scratched", scratched)):
            line.part(f"{name} {edge} {line.seq}", verdict, edge=edge)
    s.until(lambda: line.word("challenge") == r.CHALLENGES[result])  # type: ignore[index]
    s.until(lambda: line.bit("ready") == (result == "passed"))
    assert line.word("error") == r.ERRORS["none" if result == "passed" else "challenge_failed"]
    row = line.host.get("/api/lines/line-1/journal")[0]
    assert row["kind"] == f"challenge_{result}"
    return int(row["id"])


def elsewhere(line: Line, name: str) -> None:
    """A part of the other line, which shares host and store."""
    line.send(s.result, name, edge=OTHER)


def names(found: dict[str, object]) -> list[str]:
    return [str(part["part_id"]) for part in found["parts"] if part["master"] is None]  # type: ignore[attr-defined]


def contain(line: Line, **body: object) -> dict[str, object]:
    answer = httpx.post(f"{line.host.url}api/lines/line-1/containments", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = line.host.get(f"/api/containments/{answer.json()['id']}")
    return found


def test_exactly_the_parts_of_the_interval_over_edges_lines_and_a_restart(line: Line) -> None:
    line.part("before masters")
    for name, expected in (("good", "pass"), ("scratched", "reject")):
        body = {"name": name, "expected": expected}
        assert httpx.post(f"{line.host.url}api/lines/line-1/masters", json=body).status_code == 200
    line.part("held")
    challenge(line, "passed")
    elsewhere(line, "other line, before")
    image, _, _, _ = s.washer(1)
    inside = ["in 1", "in 2", "in 3", "in 4", "in 5"]
    line.part("in 1", serial="=cmd()", lot="L1")
    picture = s.part_ref("image", image, codec="png", shape=(256, 256, 3))
    line.seq += 1
    header = s.attachment(line.seq, "in 1", line.seq - 1, (picture,), edge_id="edge-1", spool_id="spool-edge-1")
    line.dealer.send(s.frames(header, [image]))
    line.dealer.wait_acked(line.seq, spool="spool-edge-1")
    line.part("in 2", Verdict.REJECT, edge="edge-2")
    elsewhere(line, "other line, in")
    line.part("in 3")
    line.restart()  # with which masters are due
    for edge in ("edge-1", "edge-2"):
        line.beat(edge)
    line.part("in 4", edge="edge-2")
    line.part("in 5")
    failed = challenge(line, "failed", Verdict.PASS)
    line.part("after")
    elsewhere(line, "other line, after")
    s.until(lambda: sum(part["master"] is not None for part in line.host.get("/api/parts")) == 8)

    found = contain(line, event=failed, by="eve")
    assert names(found) == inside
    assert [part["told"] for part in found["parts"][:5]] == [  # type: ignore[index]
        "PASS",
        "REJECT",
        "PASS",
        "NOT_INSPECTED",
        "NOT_INSPECTED",
    ]
    assert sum(part["master"] is not None for part in found["parts"]) == 4  # type: ignore[attr-defined]
    assert (found["opened_by"], found["good_check"] is not None) == ("eve", True)
    assert names(contain(line)) == [*inside, "after"], "up to now"

    challenge(line, "passed")
    line.part("next")
    assert names(contain(line, event=failed)) == inside, "the same at any time"
    assert names(contain(line)) == ["next"]

    exports_of(line, found["id"], inside)


def exports_of(line: Line, number: object, inside: list[str]) -> None:
    with httpx.Client(base_url=line.host.url) as web:
        table = list(csv.DictReader(io.StringIO(web.get(f"/api/containments/{number}/parts.csv").text)))
        assert [row["part_id"] for row in table if not row["master"]] == inside
        assert (table[0]["serial"], table[0]["lot"]) == ("'=cmd()", "L1"), "no formula"
        with zipfile.ZipFile(io.BytesIO(web.get(f"/api/containments/{number}/parts.zip").content)) as archive:
            assert archive.testzip() is None
            pictures = [name for name in archive.namelist() if name.startswith("pictures/")]
            assert [archive.read(name) for name in pictures] == [s.washer(1)[0]]
            assert f"{int(table[0]['number']):08d}" in pictures[0]
            assert json.loads(archive.read("containment.json"))["opened_by"] == "eve"
        page = web.get(f"/containments/{number}")
        assert page.status_code == 200
        assert all(name in page.text for name in inside)
        for text in ("2 <b>scrapped</b>", "1 sorted again"):
            assert web.post(f"/containments/{number}/notes", data={"text": text}).status_code == 303
        notes = web.get(f"/api/containments/{number}").json()["notes"]
        assert [note["text"] for note in notes] == ["2 <b>scrapped</b>", "1 sorted again"]
        assert "<b>scrapped</b>" not in web.get(f"/containments/{number}").text
        assert web.get("/containments/99").status_code == 404


def test_a_bad_model_s_parts_are_those_that_it_judged_whatever_check_was_passed_since(line: Line) -> None:
    for name in ("pass", "reject"):
        httpx.post(f"{line.host.url}api/lines/line-1/masters", json={"name": name, "expected": name})

    def check(model: str) -> None:
        line.begin()
        for edge in ("edge-1", "edge-2"):
            for verdict in (Verdict.PASS, Verdict.REJECT):
                line.part(f"m {line.seq}", verdict, edge=edge, model_sha256=model)
        s.until(lambda: line.word("challenge") == r.CHALLENGES["passed"])

    check(MODEL)
    line.part("old")
    for edge in ("edge-1", "edge-2"):
        line.beat(edge, model_sha256=NEXT)
    s.until(lambda: line.word("challenge") == r.CHALLENGES["due"])
    check(NEXT)
    line.part("new 1", model_sha256=NEXT)
    check(NEXT)
    line.part("new 2", edge="edge-2", model_sha256=NEXT)
    s.until(lambda: sum(part["master"] is not None for part in line.host.get("/api/parts")) == 12)
    assert names(contain(line, model=NEXT)) == ["new 1", "new 2"]
    assert names(contain(line)) == ["new 2"]
    answer = httpx.post(f"{line.host.url}api/lines/line-1/containments", json={"model": "00" * 32})
    assert (answer.status_code, "has judged no part" in answer.text) == (409, True)


def test_a_stop_contains_to_the_next_good_check(line: Line, tmp_path: Path) -> None:
    line.part("in 1")
    answer = httpx.post(f"{line.host.url}api/lines/line-1/alarm", json={"text": "scores drift", "by": "monitor"})
    assert answer.json()["stop_text"] == "scores drift"
    line.part("in 2")
    (stop,) = line.host.get("/api/lines/line-1/journal")
    done = line.flawline("contain", "line-1", "--list")
    assert done.stdout.strip() == f"{stop['id']}  stop, after part no. 1: scores drift"
    table, archive = tmp_path / "parts.csv", tmp_path / "parts.zip"
    files = ["--csv", str(table), "--zip", str(archive)]
    arguments = ["--event", str(stop["id"]), *files, "--note", "all sorted again"]
    done = line.flawline("contain", "line-1", *arguments)
    assert "Containment 1: line line-1, numbers 1 to 2, stop: scores drift" in done.stdout, done.stderr
    assert len(table.read_text().splitlines()) == 3
    assert zipfile.is_zipfile(archive)
    assert line.host.get("/api/containments/1")["notes"][0]["text"] == "all sorted again"
    assert line.flawline("contain", "line-1", *arguments).returncode == 2, "files are never overwritten"
