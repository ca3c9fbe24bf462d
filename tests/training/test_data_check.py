"""The data's doctor: what it must find, what it must not cry about, and the report in its three forms."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from contract.dataset import load_dataset
from flawline import main
from tests.bundles import draw_data, draw_part
from tests.shared_data import shared_data
from training.data_check import Examination, check, summary
from training.data_findings import Level

SIDE = 128


def codes(found: Examination, level: Level | None = None) -> set[str]:
    return {finding.code for finding in found.findings if level in (None, finding.level)}


def grained(number: int, exposure: int = 0, turn: float = 0.0) -> NDArray[np.uint8]:
    """A turned plate with grain of its own, lit, placed and noisy by ``exposure``: uint8 [128, 128]."""
    part = np.random.default_rng(number)
    picture = np.full((SIDE, SIDE), 60.0, np.float32)
    middle = (SIDE / 2, SIDE / 2)
    corners = cv2.boxPoints((middle, (100.0, 80.0), turn))
    plate = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(plate, [corners.astype(np.int32)], 255)
    cv2.circle(plate, (SIDE // 2, SIDE // 2), 14, 0, -1)
    grain = cv2.GaussianBlur(part.normal(0, 1, picture.shape).astype(np.float32), (0, 0), 1.5)
    picture = np.where(plate > 0, 150 + 9 * grain / grain.std(), picture).astype(np.float32)
    shot = np.random.default_rng([number, exposure])
    move = np.float32([[1, 0, shot.uniform(-1.5, 1.5)], [0, 1, shot.uniform(-1.5, 1.5)]])
    picture = cv2.warpAffine(picture, move, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
    slope = np.linspace(-1, 1, SIDE, dtype=np.float32) * shot.uniform(-0.15, 0.15)
    picture = picture * (shot.uniform(0.7, 1.2) * (1 + slope))[None, :] + shot.normal(0, 2, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write(folder: Path, name: str, picture: NDArray[np.generic]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(folder / name), np.asarray(picture))
    return folder / name


def exposures(root: Path, by_part: bool, parts: int = 21) -> Path:
    """Three exposures of each part under names that say nothing, split by part or at random."""
    random = np.random.default_rng(3)
    order = random.permutation(3 * parts)
    for place, shot in enumerate(order):
        part = int(shot) // 3
        test = part < parts // 3 if by_part else place < parts
        write(root / ("test" if test else "train") / "good", f"p{place:03d}x.png", grained(part, int(shot) % 3))
    return root


def test_exposures_of_one_part_on_both_sides_are_a_leak(tmp_path: Path) -> None:
    found = check(exposures(tmp_path, by_part=False))
    assert {"leak", "one-part-twice"} <= codes(found, Level.ERROR)
    assert len(found.twins) > 17, "nearly every one of 21 test images"
    for twin in found.twins:
        assert (twin.first.parent.parent.name, twin.second.parent.parent.name) == ("test", "train")


def test_a_split_by_part_is_no_leak_though_train_repeats_itself(tmp_path: Path) -> None:
    found = check(exposures(tmp_path, by_part=True))
    assert found.twins == []
    assert "no-leak" in codes(found, Level.NOTE)
    assert "one-part-twice" in codes(found, Level.ERROR), "names say nothing: holdout would hold learnt parts"
    pairs = [frozenset((twin.first, twin.second)) for twin in found.own_twins]
    assert len(set(pairs)) == len(pairs)


def test_parts_named_on_both_sides_are_found_by_name_alone(tmp_path: Path) -> None:
    for shot in range(40):
        side = "test" if shot % 4 == 0 else "train"
        write(tmp_path / side / "good", f"part{shot // 2:02d}_{shot % 2}.png", draw_part(shot))
    found = check(tmp_path, r"part(\d+)_")
    assert "parts-on-both-sides" in codes(found, Level.ERROR)
    assert "one-part-twice" not in codes(found), "exposures that the names declare are no surprise"


@pytest.mark.parametrize("kind", ["aligned", "turned", "same light", "holes", "grid"])
def test_parts_of_one_product_are_no_twins(kind: str, tmp_path: Path) -> None:
    """Aligned, or so densely turned that each has a neighbour in nearly its pose: alike, and another part."""
    for number in range(56):
        if kind == "turned":
            picture = grained(number, turn=float(np.random.default_rng(number).uniform(0, 180)))
        elif kind == "holes":
            picture = holes(number)
        elif kind == "grid":
            picture = grid(number)
        else:
            picture = draw_part(number) if kind == "aligned" else grained(number)
        write(tmp_path / ("test" if number < 16 else "train") / "good", f"p{number:03d}x.png", picture)
    found = check(tmp_path)
    assert (found.twins, found.own_twins) == ([], [])


def holes(number: int) -> NDArray[np.uint8]:
    """A disc with eight holes at any angle, without any mark of its own but noise."""
    random = np.random.default_rng(number)
    picture = np.full((SIDE, SIDE), 40.0, np.float32)
    cv2.circle(picture, (64, 64), 50, 180.0, -1, cv2.LINE_AA)
    start = random.uniform(0, np.pi / 4)
    for angle in start + np.arange(8) * np.pi / 4:
        cv2.circle(picture, (int(64 + 35 * np.cos(angle)), int(64 + 35 * np.sin(angle))), 7, 40.0, -1, cv2.LINE_AA)
    return np.clip(picture + random.normal(0, 2.5, picture.shape), 0, 255).astype(np.uint8)


def grid(number: int) -> NDArray[np.uint8]:
    """A woven pattern, each time at another place: two pieces agree wherever they are laid over each other."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE] + random.uniform(0, 20, 2)[:, None, None]
    picture = 128 + 60 * np.sin(2 * np.pi * x / 11) * np.sin(2 * np.pi * y / 11)
    return np.clip(picture + random.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def test_copies_that_were_mirrored_or_turned_are_found(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / "train" / "good", f"a{number:02d}x.png", grained(number))
    turned = {"mirrored": cv2.flip(grained(3, 1), 1), "turned by 90 degrees": np.rot90(grained(4, 1))}
    for name, picture in turned.items():
        write(tmp_path / "test" / "good", f"{name.replace(' ', '')}.png", picture)
    found = check(tmp_path)
    assert {twin.second.name for twin in found.twins} == {"a03x.png", "a04x.png"}
    assert all(twin.turned for twin in found.twins)


def test_copies_byte_for_byte(tmp_path: Path) -> None:
    draw_data(tmp_path, 12, 6, 6)
    shutil.copy(tmp_path / "train/good/part_000.png", tmp_path / "train/good/again.png")
    shutil.copy(tmp_path / "train/good/part_001.png", tmp_path / "test/good/seen.png")
    shutil.copy(tmp_path / "test/good/part_002.png", tmp_path / "test/spot/both.png")
    found = check(tmp_path)
    by_code = {finding.code: finding for finding in found.findings}
    assert set(by_code["copies-duplicate"].files) == {"train/good/again.png", "train/good/part_000.png"}
    assert set(by_code["copies-leak"].files) == {"train/good/part_001.png", "test/good/seen.png"}
    assert set(by_code["copies-conflict"].files) == {"test/good/part_002.png", "test/spot/both.png"}
    assert {by_code[code].level for code in ("copies-leak", "copies-conflict")} == {Level.ERROR}


def lit_data(root: Path, masks: str) -> Path:
    """Good and defective plates of which the defective ones were photographed on a darker ground."""
    draw_data(root, 30, 20, 20)
    for path in (root / "test" / "spot").iterdir():
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        picture[:8, :] //= 2
        cv2.imwrite(str(path), picture)
        mask = np.zeros(picture.shape, np.uint8)
        mask[(slice(0, 8) if masks == "corner" else slice(30, 50)), :] = 255
        if masks != "none":
            write(root / "ground_truth" / "spot", f"{path.stem}_mask.png", mask)
    return root


def test_light_that_gives_the_answer_away(tmp_path: Path) -> None:
    away = check(lit_data(tmp_path / "away", "middle"))
    (confound,) = [finding for finding in away.findings if finding.code == "light-confound"]
    assert confound.level is Level.ERROR
    assert "top left corner 1.00" in confound.what
    assert "bottom left" not in confound.what
    there = check(lit_data(tmp_path / "there", "corner"))
    assert "light-confound" not in codes(there), "the defect lies in these corners: that is no confound"
    unknown = check(lit_data(tmp_path / "unknown", "none"))
    assert "light-confound" in codes(unknown, Level.WARNING), "without masks nobody knows"


def test_a_format_that_gives_the_answer_away(tmp_path: Path) -> None:
    draw_data(tmp_path, 12, 6, 6)
    for path in sorted((tmp_path / "test" / "spot").iterdir()):
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
        path.unlink()
    assert "format-confound" in codes(check(tmp_path), Level.ERROR)


def test_masks(tmp_path: Path) -> None:
    draw_data(tmp_path, 12, 6, 8)
    good = np.zeros((80, 80), np.uint8)
    good[20:30, 20:30] = 255
    truth = tmp_path / "ground_truth" / "spot"
    grey = good.copy()
    grey[20:25] //= 2
    masks = {
        "000": good,
        "001": np.zeros_like(good),
        "002": good // 255,
        "003": good[:40],
        "004": grey,
        "005": 255 - good,
    }
    masks["005"][20:30, 20:30] = 0
    for number, mask in masks.items():
        write(truth, f"part_{number}_mask.png", mask)
    (truth / "part_006_mask.png").write_bytes(b"no mask")
    write(truth, "part_999_mask.png", good)
    write(tmp_path / "ground_truth" / "good", "part_000_mask.png", good)
    found = {finding.code: finding for finding in check(tmp_path).findings if finding.code.startswith("mask")}
    files = {code: [Path(name).name[:8] for name in finding.files] for code, finding in found.items()}
    assert files == {
        "mask-missing": ["part_007"],
        "mask-unreadable": ["part_006"],
        "mask-size": ["part_003"],
        "mask-empty": ["part_001", "part_002"],
        "mask-grey": ["part_004"],
        "mask-full": ["part_005"],
        "mask-good": ["part_000"],
        "mask-idle": ["part_999"],
    }


class Page(HTMLParser):
    """Tags that stay open, and every address that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img", "line", "rect"):
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag


def test_the_command_its_exit_codes_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = exposures(tmp_path / "leaky", by_part=False, parts=12)
    write(data / "test" / "<b>", "p&q.png", grained(99))
    words = [str(data), "--json", str(tmp_path / "out" / "f.json"), "--html", str(tmp_path / "f.html")]
    assert main(["data", "check", *words]) == 1
    said = capsys.readouterr().out
    assert "error" in said
    assert "name the parts in groups.csv" in " ".join(said.split())
    document: dict[str, Any] = json.loads((tmp_path / "out" / "f.json").read_text())
    assert document["levels"]["error"] == sum(row["level"] == "error" for row in document["findings"]) >= 2
    assert document["twins"][0]["first"].startswith("test/good/")
    assert {row["name"] for row in document["baselines"]} >= {"mean brightness", "nearest neighbour", "ECOD"}
    page = Page()
    page.feed((tmp_path / "f.html").read_text())
    assert page.open == []
    assert "script" not in page.tags
    assert "b" in page.tags
    assert page.loads and all(address.startswith("data:image/") for address in page.loads)


def test_good_data_passes_and_strict_minds_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_data(tmp_path / "parts", 40, 25, 25)
    assert main(["data", "check", str(data)]) == 0
    assert main(["data", "check", str(data), "--strict"]) == 0, capsys.readouterr().out
    (data / "train" / "good" / "notes.bmp").symlink_to(data / "nowhere")
    assert main(["data", "check", str(data)]) == 0
    assert main(["data", "check", str(data), "--strict"]) == 1
    assert "1 link that leads nowhere" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["data", "check", str(data), "--json", str(blocked / "f.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_summary_for_training_opens_no_test_image(tmp_path: Path) -> None:
    data = exposures(tmp_path, by_part=False, parts=12)
    said = summary(load_dataset(data))
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"not an image")
    assert summary(load_dataset(data)) == said
    assert said[0] == "data: 24 good images of 24 parts, one image, one part"
    assert "show a part that counts as another one" in said[1]
    assert "test" not in " ".join(said)


def test_the_summary_of_good_data_is_one_sentence(parts: Path) -> None:
    assert summary(load_dataset(parts)) == ["data: 40 good images of 40 parts, one image, one part"]


@pytest.mark.long
def test_tiles_as_they_are_split_by_tile_are_no_leak() -> None:
    found = check(shared_data("magnetic_tile"))
    assert codes(found, Level.ERROR) == set()
    assert len(found.twins) <= 20, "few tiles were photographed again under another number"


def tiles(root: Path, files: list[Path], test: set[Path]) -> Path:
    """Links to ``files`` under names that do not tell the tile."""
    for place, path in enumerate(files):
        folder = root / ("test" if path in test else "train") / "good"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"t{place:03d}x{path.suffix}").symlink_to(path)
    return root


def test_tiles_split_by_tile_are_no_leak_and_a_random_split_is(tmp_path: Path) -> None:
    dataset = load_dataset(shared_data("magnetic_tile"))
    learnt = sorted(dataset.train, key=lambda sample: sample.group)[:90]
    tested = sorted((s for s in dataset.test if s.label == "good"), key=lambda sample: sample.group)[:60]
    files = [sample.path for sample in (*learnt, *tested)]
    by_tile = check(tiles(tmp_path / "tile", files, {sample.path for sample in tested}))
    assert "leak" not in codes(by_tile)
    assert len(by_tile.twins) <= 3
    drawn = np.random.default_rng(1).permutation(len(files))[:60]
    at_random = check(tiles(tmp_path / "random", files, {files[at] for at in drawn}))
    assert {"leak", "one-part-twice"} <= codes(at_random, Level.ERROR)
    assert len(at_random.twins) > 45


def test_the_light_of_the_cookies_is_found_and_no_leak() -> None:
    found = check(shared_data("cookie"))
    assert codes(found, Level.ERROR) == {"light-confound"}
    assert found.twins == []
    (confound,) = [finding for finding in found.findings if finding.code == "light-confound"]
    assert "top right corner" in confound.what


def test_boards_of_one_kind_are_no_leak() -> None:
    assert check(shared_data("pcb")).twins == []


def test_drawn_parts_are_no_leak(synthetic_data: Path) -> None:
    found = check(synthetic_data)
    assert codes(found, Level.ERROR) == set()
    assert (found.twins, found.own_twins) == ([], [])
