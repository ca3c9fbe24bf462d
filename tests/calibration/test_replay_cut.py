"""A replay judges parts alone: a frame in which the fixture found none is not inspected, whatever archive it is in."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from calibration.archive import Place
from calibration.calibrate import propose, write
from calibration.camera_file import put_into
from calibration.errors import CalibrationError
from calibration.exports import Source
from calibration.methods import Rates
from calibration.replay import replay, rows_of
from calibration.rescoring import Row, Scoring
from contract.bundle import ROLE_FIXTURE, open_bundle, put_files
from contract.correction import PreprocessFile
from contract.dataset import load_dataset, sha256_of_image
from contract.event import Verdict, part_ref
from contract.fixture import FOLDER, Placer, write_fixture
from contract.images import encode_png, read_image
from contract.recipe import Fixture
from tests.bundles import draw_data
from tests.graphs import write_bundle
from tests.plugin import synthetic as s
from tests.plugin.people import Site
from tests.plugin.synthetic import Dealer

SIDE, LEARNT = 80, 12
FRAME = np.full((120, 160), 90, np.uint8)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of 80 x 80 px with the fixture that has cut them."""
    folder = draw_data(tmp_path_factory.mktemp("cut") / "parts", 40, 4, 4)
    coarse = np.random.default_rng(1).integers(20, 236, (5, 5), np.uint8)
    mark = np.asarray(cv2.resize(coarse, (24, 24), interpolation=cv2.INTER_LINEAR), np.uint8)
    write_fixture(folder / FOLDER, Placer(Fixture(cut_px=(SIDE, SIDE), mark_px=(28, 28, 24, 24)), mark))
    return folder


@pytest.fixture(scope="module")
def taught(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has this fixture, calibrated on the parts."""
    folder = tmp_path_factory.mktemp("taught") / "bundle"
    fitted = load_dataset(cut).train[:LEARNT]
    hashes = [sha256_of_image(sample.path) for sample in fitted]
    bundle = write_bundle(
        folder, [read_image(each.path, 1) for each in fitted], fit=hashes[:-3], validation=hashes[-3:]
    )
    mark = (cut / FOLDER / "mark.png").read_bytes()
    fixture = Fixture(cut_px=(SIDE, SIDE), mark_px=(28, 28, 24, 24))
    put_files(bundle, {ROLE_FIXTURE: ("fixture.png", mark)}, fixture=fixture)
    write(propose(folder, cut, Rates(0.3)))
    return folder


def rows(scoring: Scoring, out: Path) -> list[Row]:
    replay(scoring, out, workers=1)
    return list(rows_of(out / "work"))


def folder_place(folder: Path) -> Place:
    return Place(Source(str(folder)), of_cameras=False)


@pytest.mark.parametrize("against", [False, True])
def test_the_frame_of_a_part_that_was_not_found_is_not_inspected(
    taught: Path, cut: Path, tmp_path: Path, against: bool
) -> None:
    """An edge sends it in the place of the part."""
    site = Site(tmp_path / "host", sign_in=False)
    try:
        dealer = Dealer(site.service.endpoint)
        part = read_image(cut / "test/good/part_000.png", 1)
        shown = ((1, part, Verdict.REJECT), (2, FRAME, Verdict.NOT_INSPECTED))
        for n, pixels, verdict in shown:
            data = encode_png(pixels)
            picture = part_ref("image", data, codec="png", shape=pixels.shape)
            score: dict[str, Any] = {} if verdict is Verdict.REJECT else {"score": None, "reason": "fixture: no mark"}
            dealer.send(s.frames(s.result(2 * n - 1, f"part-{n}", verdict=verdict, **score)))
            dealer.send(s.frames(s.attachment(2 * n, f"part-{n}", 2 * n - 1, (picture,)), (data,)))
        dealer.wait_acked(*range(1, 5), timeout_s=60)
        dealer.close()
        place = Place(Source(site.service.url), of_cameras=False)
        found, lost = rows(Scoring(taught, taught if against else None, place), tmp_path / "out")
    finally:
        site.stop()
    assert found.compared and found.candidate.score is not None
    assert lost.current.verdict == lost.candidate.verdict == Verdict.NOT_INSPECTED and not lost.changed
    assert "160 x 120 px, and the bundle's fixture cuts parts of 80 x 80 px" in (lost.candidate.reason or "")


def test_a_folder_of_raw_frames_is_refused(taught: Path, cut: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        assert cv2.imwrite(str(frames / f"{number}.png"), FRAME)
    with pytest.raises(CalibrationError, match="were cut by no fixture, and the bundle has one"):
        replay(Scoring(taught, taught, folder_place(frames)), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_in_a_folder_that_was_cut_the_mark_is_no_part_and_every_part_is_there(
    taught: Path, cut: Path, tmp_path: Path
) -> None:
    extra = [cut / "test/good/whole.png", cut / FOLDER / "more.png"]
    for path in extra:
        assert cv2.imwrite(str(path), FRAME)
    try:
        found = rows(Scoring(taught, taught, folder_place(cut)), tmp_path / "out")
    finally:
        for path in extra:
            path.unlink()
    assert Counter(row.item.key for row in found) == Counter(
        ["fixture/more.png", "test/good/whole.png"]
        + [p.relative_to(cut).as_posix() for p in cut.rglob("*.png") if p.parts[-3] in ("train", "test")]
    )
    seen = {row.item.key for row in found if not row.compared}
    assert seen == {"fixture/more.png", "test/good/whole.png"}


def test_a_bundle_that_cuts_raw_frames_itself_takes_them(cut: Path, tmp_path: Path) -> None:
    """The frame's size is not that of a part, and the part is judged."""
    data, folder = tmp_path / "raw", tmp_path / "bundle"
    (data / "train/good").mkdir(parents=True)
    mark = read_image(cut / FOLDER / "mark.png", 1)
    for number in range(30):
        part = read_image(cut / f"train/good/part_{number:03d}.png", 1).copy()
        part[28:52, 28:52] = mark
        frame = FRAME.copy()
        frame[20:100, 40:120] = part
        assert cv2.imwrite(str(data / f"train/good/{number:03d}.png"), frame)
    assert cv2.imwrite(str(data / "bare.png"), FRAME)
    fixture = Fixture(cut_px=(SIDE, SIDE), mark_px=(28, 28, 24, 24), max_angle_deg=0)
    template = {"fixture": fixture, "mark": base64.b64encode(encode_png(mark)).decode()}
    made = PreprocessFile(created="", frame_px=(160, 120), template=template)  # type: ignore[arg-type]
    made = made.model_copy(update={"sha256": made.computed_sha256()})
    fitted = load_dataset(data).train[:LEARNT]
    hashes = [sha256_of_image(sample.path) for sample in fitted]
    parts = [read_image(sample.path, 1)[20:100, 40:120] for sample in fitted]
    write_bundle(folder, parts, fit=hashes[:-3], validation=hashes[-3:])
    put_into(folder, made)
    write(propose(folder, data, Rates(0.3)))
    found = rows(Scoring(folder, folder, folder_place(data)), tmp_path / "out")
    assert len(found) == 31 and [row.item.key for row in found if not row.compared] == ["bare.png"]
    assert open_bundle(folder).manifest.fixture is not None
