"""`flawline edge spool` beside a spool that is in use: what waits, what is dead, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.event import Attachment, Missed, part_ref
from edge_runtime.spool import Draft, Spool
from edge_runtime.spool_tables import SPOOL_FILE
from flawline import main

BASE = {"edge_id": "e", "spool_id": "-", "seq": 1, "run_id": "-", "t_wall_ns": 10**18}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "edge.toml"
    path.write_text(
        'edge_id = "e"\nbundle = "bundle"\nstate_dir = "state"\n[[cameras]]\nid = "top"\nurl = "synthetic://line"\n'
    )
    return str(path)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Open while the commands run, as in a running edge; two of its three messages are dead."""
    made = Spool(tmp_path / "state" / SPOOL_FILE)
    picture = part_ref("image", b"pixels", codec="png", shape=(1, 1))
    made.append(
        [
            Draft(Missed(**BASE, part_id="p1", camera_id="top", trigger_id=1, frame_no=0, reason="test")),
            Draft(Attachment(**BASE, part_id="p1", result_seq=1, parts=(picture,)), (b"pixels",)),
            Draft(Missed(**BASE, part_id="p2", camera_id="top", trigger_id=2, frame_no=0, reason="test")),
        ]
    )
    made.bury(made.spool_id, 2, "parts", "the bytes do not match")
    made.bury(made.spool_id, 3, "schema", "kind is not known")
    yield made
    made.close()


def call(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["edge", "spool", *words]) == code
    out = capfd.readouterr()
    return out.out + out.err


def test_the_list_says_what_waits_and_what_is_dead(
    spool: Spool, config: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = call(capfd, "list", config, code=3)
    assert "verdict rows         1" in shown and "day(s) ago" in shown
    assert "dead letters         2" in shown
    shown = call(capfd, "dead", "list", config)
    assert "attachment" in shown and "parts: the bytes do not match" in shown and "schema: kind is not known" in shown
    shown = call(capfd, "dead", "show", config, "1")
    assert '"part_id":"p1"' in shown and "a part of 0.0 kB" in shown


def test_dead_letters_are_sent_again_as_they_were(spool: Spool, config: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "1 dead letter(s) wait" in call(capfd, "dead", "retry", config, "--all", "--code", "parts", "--yes")
    (row,) = spool.pending(2, 2, 10)
    assert (row.seq, row.parts) == (2, (b"pixels",)), "behind what was read before, under its own number"
    spool.mark_alive()
    assert (spool.dead, spool.size[0]) == ((1, 0), 2)
    spool.forget(spool.spool_id, [2])
    assert spool.size[0] == 1


def test_nothing_is_dropped_without_a_word_and_what_is_exported_stays(
    spool: Spool, config: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "refused"
    call(capfd, "dead", "export", config, str(out), "--all")
    assert json.loads((out / "1.json").read_text())["part_id"] == "p1" and (out / "1-1.bin").read_bytes() == b"pixels"
    monkeypatch.setattr("typer.confirm", lambda question, abort: (_ for _ in ()).throw(SystemExit(1)))
    assert main(["edge", "spool", "dead", "drop", config, "1"]) == 1
    monkeypatch.undo()
    assert len(call(capfd, "dead", "list", config).splitlines()) == 2
    assert "2 dead letter(s) removed" in call(capfd, "dead", "drop", config, "--all", "--yes")
    assert "dead letters         0" in call(capfd, "list", config)


def test_mistakes_are_sentences(spool: Spool, config: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no dead letter 9" in call(capfd, "dead", "show", config, "9", code=2)
    assert "by their numbers, or give --all" in call(capfd, "dead", "drop", config, code=2)
    other = tmp_path / "other.toml"
    other.write_text(Path(config).read_text().replace('"state"', '"nothing"'))
    assert "no spool" in call(capfd, "list", str(other), code=2)
    assert not (tmp_path / "nothing").exists()
