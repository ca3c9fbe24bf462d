"""``flawline calibrate replay`` on real files and processes: every part once, whatever dies, breaks off or lies."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from calibration import replay as module
from calibration.archive import Place
from calibration.calibrate import propose, write
from calibration.errors import CalibrationError
from calibration.exports import Source
from calibration.methods import Rates
from calibration.replay import Replay, document, replay, rows_of, whole
from calibration.rescoring import Row, Scoring
from calibration.rescoring_pool import Chunk, Pool
from contract.bundle import ROLE_GRAPH_INT8, BundleError, open_bundle, put_files
from contract.dataset import load_dataset, sha256_of_image
from contract.event import Verdict
from contract.images import read_image
from contract.recipe import Recipe
from flawline import main
from tests.bundles import draw_data
from tests.calibration.deadly import DEADLY, DeadlyPlace
from tests.graphs import write_bundle

PARTS = 60 + 30 + 20


@pytest.fixture(scope="module")
def bundles(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The current bundle and a candidate that learnt from fewer parts, and is stricter."""
    made = []
    for name, learnt, share in (("current", 30, 0.05), ("candidate", 12, 0.3)):
        folder = tmp_path_factory.mktemp("replay") / name
        fitted = load_dataset(drawn).train[:learnt]
        hashes = [sha256_of_image(sample.path) for sample in fitted]
        write_bundle(folder, [read_image(s.path, 1) for s in fitted], fit=hashes[:-5], validation=hashes[-5:])
        write(propose(folder, drawn, Rates(share)))
        made.append(folder)
    return made[0], made[1]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)


def scoring_of(bundles: tuple[Path, Path], archive: Path) -> Scoring:
    return Scoring(bundles[1], bundles[0], Place(Source(str(archive)), of_cameras=False))


@pytest.fixture(scope="module")
def undisturbed(bundles: tuple[Path, Path], drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Every part's verdicts, from one process that nothing happens to."""
    out = tmp_path_factory.mktemp("undisturbed")
    replay(scoring_of(bundles, drawn), out, workers=1)
    return list(rows_of(out / "work"))


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]


def keys(root: Path) -> Counter[str]:
    return Counter(
        path.relative_to(root).as_posix() for path in root.rglob("*.png") if "ground_truth" not in path.parts
    )


def test_command_writes_page_figures_and_every_part(bundles: tuple[Path, Path], drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["calibrate", "replay", str(bundles[1]), "--against", str(bundles[0]), "--archive", str(drawn)]
    assert main([*words, "--out", str(out), "--workers", "2"]) == 0
    figures = json.loads((out / "replay.json").read_text())
    lines = lines_of(out)
    assert Counter(line["key"] for line in lines) == keys(drawn)
    assert figures["parts"]["listed"] == figures["parts"]["compared"] == len(lines) == PARTS
    changed = [line for line in lines if line["changed"]]
    assert changed, "the stricter candidate rejects more"
    assert figures["parts"]["other_verdict"] == figures["changed_hits"] == len(changed)
    good = [line for line in lines if line["label"] == "good"]
    flagged = sum(line["candidate"]["verdict"] in ("REVIEW", "REJECT") for line in good)
    assert (figures["flagged"]["good"]["candidate_hits"], figures["flagged"]["good"]["candidate_of"]) == (flagged, 90)
    low, high = figures["flagged"]["good"]["candidate_interval"]
    assert low < flagged / 90 < high
    page = (out / "replay.html").read_text()
    shown = figures["largest"]["passes no more"]
    assert shown and all(change["part"] in page for change in shown)
    assert page.count("data:image/jpeg;base64,") == sum(map(len, figures["largest"].values()))
    assert "http" not in page and "<script" not in page


def test_the_largest_changes_come_first(bundles: tuple[Path, Path], drawn: Path, tmp_path: Path) -> None:
    found = replay(scoring_of(bundles, drawn), tmp_path, workers=1)
    for changes in found.largest.values():
        shifts = [change.moved for change in changes]
        assert len(shifts) <= module.SHOWN and shifts == sorted(shifts, reverse=True)
        assert all(change.row.changed for change in changes)


def test_what_a_killed_process_had_is_done_again(
    bundles: tuple[Path, Path], drawn: Path, tmp_path: Path, undisturbed: list[Row]
) -> None:
    died = []

    def killing(scoring: Scoring, workers: int, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
        with Pool(scoring, workers) as pool:
            for at, done in enumerate(pool.run(chunks)):
                if at in (0, 5):
                    os.kill(pool.pids[at % 2], signal.SIGKILL)
                yield done
            died.append(pool.deaths)

    found = replay(scoring_of(bundles, drawn), tmp_path, workers=2, run=killing)
    assert died[0] >= 1 and found.listed == PARTS
    assert list(rows_of(tmp_path / "work")) == undisturbed, "bit for bit, each part once"


def test_a_part_that_ends_every_process_is_not_inspected_and_the_others_are(
    bundles: tuple[Path, Path], drawn: Path, tmp_path: Path, undisturbed: list[Row]
) -> None:
    scoring = scoring_of(bundles, drawn)
    found = replay(scoring._replace(place=DeadlyPlace(scoring.place)), tmp_path, workers=2)  # type: ignore[arg-type]
    rows = {row.item.key: row for row in rows_of(tmp_path / "work")}
    dead = rows.pop(DEADLY)
    assert dead.current.verdict == dead.candidate.verdict == Verdict.NOT_INSPECTED
    assert dead.candidate.reason == "scoring it ends the process (SIGKILL)"
    assert list(rows.values()) == [row for row in undisturbed if row.item.key != DEADLY]
    assert (found.listed, found.compared) == (PARTS, PARTS - 1)


def test_a_replay_that_was_interrupted_goes_on(
    bundles: tuple[Path, Path], drawn: Path, tmp_path: Path, undisturbed: list[Row]
) -> None:
    pids: list[int] = []

    def interrupted(scoring: Scoring, workers: int, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
        with Pool(scoring, workers) as pool:
            for at, done in enumerate(pool.run(chunks)):
                if at == 3:
                    pids.extend(pool.pids)
                    raise KeyboardInterrupt
                yield done

    scoring = scoring_of(bundles, drawn)
    with pytest.raises(KeyboardInterrupt):
        replay(scoring, tmp_path, workers=2, run=interrupted)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    kept = sorted((tmp_path / "work" / "chunks").rglob("*.json"))
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:-20])  # what a power cut may leave
    kept[1].write_text("[]")
    told: list[tuple[int, int]] = []
    found = replay(scoring, tmp_path, workers=1, heard=lambda done, of: told.append((done, of)))
    assert found.resumed == 8 and told[-1] == (PARTS, PARTS)
    assert list(rows_of(tmp_path / "work")) == undisturbed


def test_ctrl_c_says_that_it_goes_on(
    bundles: tuple[Path, Path],
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(scoring: Scoring, workers: int, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
        for done in whole(scoring, workers, chunks):
            yield done
            raise KeyboardInterrupt

    words = ["calibrate", "replay", str(bundles[1]), "--against", str(bundles[0]), "--archive", str(drawn)]
    monkeypatch.setattr(module, "whole", stopped)
    assert main([*words, "--out", str(tmp_path / "out"), "--workers", "1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(module, "whole", whole)
    assert main([*words, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert len(lines_of(tmp_path / "out")) == PARTS


def test_another_replay_in_the_folder_is_refused(bundles: tuple[Path, Path], drawn: Path, tmp_path: Path) -> None:
    scoring = scoring_of(bundles, drawn)
    replay(scoring, tmp_path, workers=1)
    with pytest.raises(CalibrationError, match=r"holds another replay \(bundles differs\)"):
        replay(scoring._replace(candidate=bundles[0]), tmp_path, workers=1)


def test_a_replay_does_not_go_on_with_another_version(
    bundles: tuple[Path, Path], drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = scoring_of(bundles, drawn)
    replay(scoring, tmp_path, workers=1)
    monkeypatch.setattr("calibration.rescoring.installed", lambda name: f"{name} 99")
    with pytest.raises(CalibrationError, match=r"holds another replay \(judged_by differs\)"):
        replay(scoring, tmp_path, workers=1)


def test_a_replay_does_not_go_on_with_another_int8_graph(
    bundles: tuple[Path, Path], drawn: Path, tmp_path: Path
) -> None:
    candidate = Path(shutil.copytree(bundles[1], tmp_path / "candidate"))
    scoring, out = scoring_of((bundles[0], candidate), drawn), tmp_path / "out"
    replay(scoring, out, workers=1)
    before = open_bundle(candidate)
    put_files(before, {ROLE_GRAPH_INT8: ("model.int8.onnx", b"another graph")})
    assert open_bundle(candidate).manifest.calibration_id() == before.manifest.calibration_id()
    with pytest.raises(CalibrationError, match=r"holds another replay \(bundles differs\)"):
        replay(scoring, out, workers=1)


def test_hostile_files_are_counted_with_their_reason(bundles: tuple[Path, Path], drawn: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    (archive / "deep").mkdir(parents=True)
    shutil.copy(drawn / "test" / "good" / "part_000.png", archive / "deep" / "fine.png")
    picture = (drawn / "test" / "good" / "part_001.png").read_bytes()
    hostile = {
        "empty.png": b"",
        "text.png": b"no picture",
        "torn.png": picture[: len(picture) // 2],
        "huge.png": picture[:16] + (60_000).to_bytes(4, "big") * 2 + picture[24:],
        "<script>alert(1)<.png": b"x",
        "line\nbreak.png": picture,
    }
    for name, data in hostile.items():
        (archive / name).write_bytes(data)
    no_text = os.fsencode(archive) + b"/\xff\xfe.png"
    with open(no_text, "wb") as file:
        file.write(b"x")
    small = np.full((4, 200), 90, np.uint8)
    cv2.imwrite(str(archive / "wrong-size.png"), small)
    os.mkfifo(archive / "pipe.png")
    (archive / "nowhere.png").symlink_to(tmp_path / "nothing.png")
    (archive / "loop").symlink_to(archive)
    (archive / "folder.png").mkdir()
    (archive / "notes.txt").write_text("no picture, no part")
    out = tmp_path / "out"
    words = ["calibrate", "replay", str(bundles[1]), "--against", str(bundles[0]), "--archive", str(archive)]
    assert main([*words, "--out", str(out), "--workers", "1"]) == 0
    found = {line["key"]: line for line in lines_of(out)}
    assert set(found) == {*hostile, "deep/fine.png", "\udcff\udcfe.png", "wrong-size.png", "pipe.png", "nowhere.png"}
    inspected = {key for key, line in found.items() if line["compared"]}
    assert inspected == {"deep/fine.png", "line\nbreak.png"}
    for key in set(found) - inspected:
        for side in ("current", "candidate"):
            assert found[key][side]["verdict"] == "NOT_INSPECTED" and found[key][side]["reason"]
    assert "60000 x 60000" in found["huge.png"]["candidate"]["reason"]
    page = (out / "replay.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    figures = json.loads((out / "replay.json").read_text())
    assert figures["parts"]["not_compared"] == len(found) - 2
    assert figures["left_out"] == {
        "folders under another name": {"count": 1, "first": "loop"},
        "files of other types": {"count": 1, "first": "notes.txt"},
    }
    assert "<td>left out: files of other types</td><td>1, first notes.txt</td>" in page


def listed(root: Path) -> tuple[list[str], dict[str, tuple[int, str]]]:
    archive = Place(Source(str(root)), of_cameras=False).open()
    return [item.key for item in archive.items()], archive.left_out


def test_folders_behind_links_are_part_of_the_archive_and_come_once(drawn: Path, tmp_path: Path) -> None:
    picture = (drawn / "test" / "good" / "part_000.png").read_bytes()
    root, store = tmp_path / "archive", tmp_path / "store"
    for folder in (root / "test" / "z", store / "may" / "day", store / "june"):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(picture)
    (root / "test" / "may").symlink_to(store / "may")
    (root / "test" / "store").symlink_to(store)  # holds may once more
    (root / "test" / "a").symlink_to(root / "test" / "z")
    (root / "test" / "dotted.png").symlink_to(store / "june")
    (root / "ground_truth").symlink_to(store)
    (store / "june" / "up").symlink_to(root)
    (store / "june" / "self").symlink_to(store / "june")
    (store / "may" / "day" / "b.gif").write_bytes(b"GIF")
    keys, left_out = listed(root)
    assert keys == ["test/dotted.png/1.png", "test/may/day/1.png", "test/z/1.png"]
    assert listed(root) == (keys, left_out)
    assert left_out == {
        "folders under another name": (5, "test/a"),
        "files of other types": (1, "test/may/day/b.gif"),
    }
    place = Place(Source(str(root)), of_cameras=False)
    labels = {item.key: item.label for item in place.open().items()}
    assert labels["test/may/day/1.png"] == "may"
    assert place.open().read("test/may/day/1.png", Recipe()) is not None


def test_a_link_to_what_is_not_mounted_ends_the_replay(drawn: Path, tmp_path: Path) -> None:
    shutil.copy(drawn / "test" / "good" / "part_000.png", tmp_path / "1.png")
    (tmp_path / "2026.10").symlink_to(tmp_path / "gone")
    with pytest.raises(CalibrationError, match=r"2026.10: a link to .*gone, which is not there; .*mount what"):
        listed(tmp_path)


def test_mistakes_are_explained(
    bundles: tuple[Path, Path], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        assert main(["calibrate", "replay", str(bundles[1]), "--out", str(tmp_path / "out"), *words]) == 2
        return capsys.readouterr().err

    assert "--against CURRENT" in said("--archive", str(drawn))
    assert "no such folder" in said("--archive", str(tmp_path / "none"), "--against", str(bundles[0]))
    assert "--recipe: not without a host" in said("--archive", ".", "--against", str(bundles[0]), "--recipe", "x")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no parts" in said("--archive", str(empty), "--against", str(bundles[0]))
    assert not (tmp_path / "out" / "replay.json").exists()


def test_an_uncalibrated_candidate_is_refused(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not calibrated"):
        replay(scoring_of((fresh, fresh), drawn), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_cameras_folders_are_parts(tmp_path: Path, drawn: Path) -> None:
    """Of a recipe of several cameras each folder is a part, and a picture that lies at the top is one by itself."""
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        for camera in ("left", "right"):
            shutil.copy(drawn / "test" / "good" / "part_000.png", tmp_path / part / f"{camera}.png")
    shutil.copy(drawn / "test" / "good" / "part_000.png", tmp_path / "alone.png")
    place = Place(Source(str(tmp_path)), of_cameras=True)
    assert [item.key for item in place.open().items()] == ["alone.png", "a", "b"]


def test_the_document_is_plain_json(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    archive = draw_data(tmp_path / "few", 3, 0, 0)
    found: Replay = replay(scoring_of(bundles, archive), tmp_path / "out", workers=1)
    figures = json.loads(json.dumps(document(found), allow_nan=False))
    assert figures["parts"]["listed"] == 3 and list(figures["flagged"]) == ["all", "good"]
