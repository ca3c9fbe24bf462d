"""Exports for training: only what is settled is truth, every file says where it is from, nothing leaves the folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from contract.dataset import load_dataset
from contract.event import Verdict, part_ref
from plugin import datasets
from plugin.database import Place
from plugin.datasets import Wanted
from plugin.errors import ConfigError
from plugin.finder import Filter, Finder
from plugin.layouts import LAYOUTS, Coco, Picture, as_name, in_picture, label_of
from plugin.review import archive
from plugin.settings import ReviewSettings
from tests.plugin import synthetic as s
from tests.plugin.people import TEST, Site
from tests.plugin.synthetic import Dealer
from tests.plugin.test_retention import Kept

EVIL = "../../../evil\n\x1b/part"
GOOD = 12
CLASSES = ["dent", "划 痕"]
UNDECIDED = ["nobody-1", "nobody-2"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Twelve flagged parts called good, six by serial in pairs; one defect with an evil name, after a class that was
    undone; a defect on which the machine marked nothing; one unsure; two that nobody decided; a passed one."""
    site = Site(tmp_path_factory.mktemp("site"), review=ReviewSettings(classes=CLASSES))
    dealer = Dealer(site.service.endpoint)
    names = [f"good-{n}" for n in range(GOOD)] + [EVIL, "unmarked", "unsure", *UNDECIDED, "let-through"]
    for n, name in enumerate(names):
        more: dict[str, Any] = {"serial": f"serial-{n // 2}"} if n < 6 else {}
        if name == "nobody-2":
            more |= {"audited": True, "audit_share": 0.5}
        verdict = Verdict.PASS if name in ("nobody-2", "let-through") else Verdict.REJECT
        messages = s.flagged(3 * n + 1, name, verdict, 4.0, seed=n, **more)
        if name == "unmarked":
            messages[1] = s.frames(s.result(3 * n + 2, name, verdict))
        for message in messages:
            dealer.send(message)
    dealer.wait_acked(*range(1, 3 * len(names) + 1))
    dealer.close()
    web = program(site, "review")
    for part in web.get("/api/v1/parts").json()["items"]:
        for body in decisions_on(part["part_id"]):
            assert web.post(f"/api/v1/parts/{part['id']}/verdicts", json=body).status_code == 201
    yield site
    site.stop()


def decisions_on(name: str) -> list[dict[str, str]]:
    if name == EVIL:
        first, second = ({"decision": "defect", "defect_class": each} for each in reversed(CLASSES))
        return [first, second, {"decision": "undo"}]
    if name in (*UNDECIDED, "let-through"):
        return []
    return [{"decision": {"unmarked": "defect", "unsure": "unsure"}.get(name, "good")}]


def program(site: Site, scope: Any = "read") -> httpx.Client:
    token = site.accounts.make_token("eve", 1, TEST, scope)
    return site.browser(headers={"authorization": f"Bearer {token}"})


def command(site: Site, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    config = site.folder / "host.toml"
    config.write_text(f'state_dir = "state"\n[review]\nclasses = {json.dumps(CLASSES, ensure_ascii=False)}\n')
    line = [sys.executable, "-m", "flawline", "host", "export", str(config), str(out), *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def written(site: Site, folder: Path, kind: str, *, masks: bool = False, share: float = 0.2) -> dict[str, Any]:
    """A data set of the whole site, as the command writes it, in this process."""
    wanted = Wanted(kind, Filter(), share, masks, tuple(CLASSES))
    found = datasets.files(site.service.reader, site.app.state.host.blobs.read, wanted)
    return datasets.write_folder(found, folder)


def read_json(file: Path) -> Any:
    return json.loads(file.read_bytes())


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_file_says_where_it_is_from(site: Site, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "out"
    manifest = written(site, folder, kind)
    listed = {each["file"]: each["sha256"] for each in manifest["files"]} | manifest["lists"]
    listed |= {path: sha for each in manifest["files"] for path, sha in each["drawn_by_machine"].items()}
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest_bytes = found.pop("manifest.json")
    assert {path: hashlib.sha256(data).hexdigest() for path, data in found.items()} == listed
    assert len(manifest["files"]) == GOOD + 2
    assert manifest["left_out"] == {"unsure": 1, "nobody decided": 2}
    assert manifest["counts"]["good parts"] == GOOD and manifest["counts"]["defect parts"] == 1
    defect = next(each for each in manifest["files"] if each["part"]["part_id"] == EVIL)
    assert defect["label"] == "划_痕" and defect["split"] == "test", "the class that was undone is none"
    assert defect["decision"]["inspector"] == "eve" and defect["decision"]["defect_class"] == CLASSES[1]
    assert defect["decision"]["time"] and defect["decision"]["sha256"]
    assert defect["judged_by"]["model_sha256"] == "ab" * 32 and defect["judged_by"]["bundle_id"] == "washer-2026-11-20"
    assert (defect["part"]["edge_id"], defect["part"]["seq"]) == ("edge-1", 3 * GOOD + 2)
    everything = manifest_bytes + b"".join(found.values())
    assert not any(name.encode() in everything for name in (*UNDECIDED, "let-through"))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}, "nothing lies elsewhere"


def test_training_reads_the_folders_and_keeps_parts_together(site: Site, tmp_path: Path) -> None:
    manifest = written(site, tmp_path / "out", "mvtec", share=0.4)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.grouping == "by groups.csv" and len(dataset.train) + len(dataset.test) == GOOD + 2
    assert {sample.label for sample in dataset.test} == {"good", "defect", "划_痕"}
    assert all(sample.mask is None for sample in dataset.test), "the machine's maps are no truth unless asked for"
    sides: dict[str, set[str]] = {}
    for side, samples in (("train", dataset.train), ("test", dataset.test)):
        for sample in samples:
            sides.setdefault(sample.group, set()).add(side)
    assert all(len(each) == 1 for each in sides.values())
    assert len([group for group in sides if group.startswith("serial ")]) == 3 and len(sides) == GOOD - 3 + 2
    again = written(site, tmp_path / "again", "mvtec", share=0.4)
    assert [each["file"] for each in again["files"]] == [each["file"] for each in manifest["files"]]
    with (tmp_path / "out" / "groups.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [each["file"] for each in manifest["files"]]


def test_machine_masks_lie_where_the_map_is_over_its_limit(site: Site, tmp_path: Path) -> None:
    manifest = written(site, tmp_path / "out", "mvtec", masks=True)
    masks = {sample.label: sample.mask for sample in load_dataset(tmp_path / "out").test if sample.label != "good"}
    assert masks["defect"] is None, "of a part without a map there is none"
    assert masks["划_痕"] is not None
    mask = cv2.imdecode(np.frombuffer(masks["划_痕"].read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    raw = np.frombuffer(s.washer(GOOD)[2], "<f2").reshape(64, 64).astype(np.float32)
    assert np.array_equal(mask, np.kron((raw >= 0.5).astype(np.uint8) * 255, np.ones((4, 4), np.uint8)))
    assert any("drawn by nobody" in note for note in manifest["notes"])


@pytest.mark.parametrize(
    ("view", "box", "to_part", "expected"),
    [
        ("top", [10, 10, 5, 5], None, ["machine"]),
        ("top", [500, 500, 5, 5], None, ["nobody: the whole picture"]),
        ("top", [10, 10, 5, 5], (0, 0, 0, 0, 0, 0), ["nobody: the whole picture"]),
        ("side", [10, 10, 5, 5], None, []),
    ],
    ids=["in it", "outside", "nowhere", "in another view"],
)
def test_a_defective_picture_in_which_nothing_can_be_drawn_is_not_taken_for_a_good_one(
    view: str, box: list[int], to_part: tuple[int, ...] | None, expected: list[str]
) -> None:
    part = {"id": 1, "edge_id": "e", "part_id": "p", "serial": None, "lot": None, "t_wall_ns": 0, "verdict": "REJECT"}
    picture = Picture(
        name="1.png",
        data=b"",
        part=part,
        header={"regions": [{"view": view, "box_px": box, "peak": 2.0}]},
        row={"view": "top", "shape": [100, 200, 3], "to_part": to_part, "sha256": "a" * 64},
        map_row=None,
        map_data=None,
        label="scratch",
        split="test",
        group="g",
        decision={"inspector": "i", "t_wall_ns": 0},
    )
    coco = Coco(["top"], False, ())
    list(coco.add(picture))
    said = json.loads(dict(coco.end())["annotations.json"])
    assert [each["flawline"]["drawn_by"] for each in said["annotations"]] == expected


def test_coco_boxes_lie_where_the_machine_saw_them(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(site, folder, "coco")
    found = read_json(folder / "annotations.json")
    images = {each["id"]: each for each in found["images"]}
    assert len(images) == GOOD + 2 == len({each["file_name"] for each in found["images"]})
    for image in images.values():
        picture = cv2.imread(str(folder / image["file_name"]))
        assert picture is not None and picture.shape[:2] == (image["height"], image["width"])
        assert hashlib.sha256((folder / image["file_name"]).read_bytes()).hexdigest() == image["flawline"]["sha256"]
        assert image["flawline"]["inspector"] == "eve" and image["flawline"]["decided"]
    assert [each["name"] for each in found["categories"]] == ["dent", "划_痕", "defect"]
    by_part = {images[each["image_id"]]["flawline"]["part_id"]: each for each in found["annotations"]}
    assert set(by_part) == {EVIL, "unmarked"} and len(found["annotations"]) == 2, "good parts have none"
    x, y, width, height = s.washer(GOOD)[3].box_px
    left, top, right, bottom = max(0.0, x), max(0.0, y), min(256.0, x + width), min(256.0, y + height)
    box = by_part[EVIL]
    assert box["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.01)
    assert box["area"] == pytest.approx(box["bbox"][2] * box["bbox"][3], abs=0.05)
    assert (box["category_id"], box["flawline"]["drawn_by"]) == (2, "machine")
    assert by_part["unmarked"]["bbox"] == [0, 0, 256, 256], "else its picture would be one of a good part"


def test_fiftyone_has_maps_as_heatmaps_and_regions_as_detections(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(site, folder, "fiftyone")
    samples = read_json(folder / "samples.json")["samples"]
    metadata = read_json(folder / "metadata.json")
    assert metadata["media_type"] == "image" and metadata["version"]
    described = {each["name"] for each in metadata["sample_fields"]}
    assert len(samples) == GOOD + 2 == len({each["_id"]["$oid"] for each in samples})
    for number, sample in enumerate(samples[: GOOD + 1]):
        assert {name for name in sample if name[0] != "_"} <= described
        assert (folder / sample["filepath"]).is_file()
        heat = cv2.imread(str(folder / sample["deviation"]["map_path"]), cv2.IMREAD_UNCHANGED)
        _, _, raw, region = s.washer(number)
        values = np.frombuffer(raw, "<f2").reshape(64, 64).astype(np.float32)
        assert heat is not None and heat.shape == (64, 64) and heat.dtype == np.uint8
        assert np.array_equal(heat, np.clip(values / 0.5 * 128, 0, 255).astype(np.uint8))
        (detection,) = sample["regions"]["detections"]
        assert detection["bounding_box"][0] * 256 == pytest.approx(max(0.0, region.box_px[0]))
    assert [each["ground_truth"]["label"] for each in samples] == ["good"] * GOOD + ["划_痕", "defect"]
    assert samples[-1]["deviation"] is None and samples[-1]["regions"]["detections"] == []


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_api_gives_the_same_as_the_command(site: Site, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    done = command(site, folder, "--as", kind, "--line", "line-1", "--edge", "edge-1", "--recipe", "washer")
    assert done.returncode == 0, done.stderr
    assert "Writing 14 picture(s)" in done.stderr and f"Wrote {folder}: " in done.stdout
    assert "Left out: 2 nobody decided, 1 unsure" in done.stdout
    manifest = read_json(folder / "manifest.json")
    web = program(site)
    answer = web.get(f"/api/v1/export/dataset?kind={kind}&edge=edge-1&recipe=washer")
    assert answer.headers["content-type"] == "application/zip" and answer.headers["cache-control"] == "no-store"
    zipped = zipfile.ZipFile(io.BytesIO(answer.content))
    assert zipped.testzip() is None and zipped.namelist()[-1] == "manifest.json"
    assert len(zipped.namelist()) == len([path for path in folder.rglob("*") if path.is_file()])
    for name in zipped.namelist()[:-1]:
        assert not name.startswith("/") and ".." not in name
        assert zipped.read(name) == (folder / name).read_bytes()
    assert {**json.loads(zipped.read("manifest.json")), "made": None} == {**manifest, "made": None}
    nothing = web.get("/api/v1/export/dataset?recipe=none")
    assert json.loads(zipfile.ZipFile(io.BytesIO(nothing.content)).read("manifest.json"))["files"] == []


def test_who_may_have_it_and_how_much_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    url, web = "/api/v1/export/dataset", program(site)
    assert site.browser().get(url).status_code == 401
    assert site.signed_in("ivan").get(url).status_code == 403
    assert web.get(f"{url}?kind=yolo").status_code == web.get(f"{url}?test_share=2").status_code == 422
    with monkeypatch.context() as small:
        small.setattr(archive, "MOST_PICTURES", 3)
        assert web.get(url).status_code == 413 and "14 pictures" in web.get(url).json()["error"]
        small.setattr(archive, "MOST_PICTURES", 100)
        small.setattr(archive, "MOST_BYTES", 1000)
        assert web.get(url).status_code == 413
    reached, go = threading.Semaphore(0), threading.Event()
    read = site.app.state.host.blobs.read

    def held(sha256: str) -> bytes | None:
        reached.release()
        assert go.wait(20)
        return read(sha256)

    monkeypatch.setattr(site.app.state.host.blobs, "read", held)
    statuses: list[int] = []
    two = [threading.Thread(target=lambda: statuses.append(program(site).get(url).status_code)) for _ in range(2)]
    for each in two:
        each.start()
    assert reached.acquire(timeout=20) and reached.acquire(timeout=20)
    third = web.get(url)
    assert third.status_code == 503 and "2 exports are under way" in third.json()["error"]
    go.set()
    for each in two:
        each.join(20)
    assert statuses == [200, 200] and web.get(url).status_code == 200, "the places are free again"


def test_what_breaks_off_is_no_archive_and_no_folder(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = site.app.state.host.blobs.read, []

    def fails(sha256: str) -> bytes | None:
        asked.append(sha256)
        if len(asked) % 10 == 0:
            raise OSError("the bucket does not answer (away)")
        return read(sha256)

    monkeypatch.setattr(site.app.state.host.blobs, "read", fails)
    with pytest.raises(ConfigError, match=r"the bucket does not answer \(away\)\); nothing was written"):
        written(site, tmp_path / "out", "mvtec")
    assert list(tmp_path.iterdir()) == []
    web = program(site)
    taken = b""
    with pytest.raises(httpx.RemoteProtocolError), web.stream("GET", "/api/v1/export/dataset") as answer:
        for piece in answer.iter_bytes():
            taken += piece
    assert len(taken) > 10_000
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(taken))
    monkeypatch.setattr(site.app.state.host.blobs, "read", read)
    assert web.get("/api/v1/export/dataset").status_code == 200
    monkeypatch.setattr(archive, "LONGEST_S", -1.0)  # no reader is as quick as that
    with pytest.raises(httpx.RemoteProtocolError):
        web.get("/api/v1/export/dataset")


def test_a_command_that_is_killed_leaves_nothing_that_looks_whole(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number, (path, data) in enumerate(whole := list(_files(site))):
        with pytest.raises(KeyboardInterrupt):
            datasets.write_folder(_interrupted(whole[:number]), out)
        assert list(tmp_path.iterdir()) == [], (path, len(data))
    seen: list[list[str]] = []
    datasets.write_folder(_watched(whole, tmp_path, seen), out)
    assert all(len(names) <= 1 and all(name.startswith(".out.") for name in names) for names in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _files(site: Site) -> Iterator[tuple[str, bytes]]:
    return datasets.files(site.service.reader, site.app.state.host.blobs.read, Wanted("mvtec", test_share=0.4))


def _interrupted(found: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    yield from found
    raise KeyboardInterrupt


def _watched(found: list[tuple[str, bytes]], folder: Path, seen: list[list[str]]) -> Iterator[tuple[str, bytes]]:
    for each in found:
        seen.append([path.name for path in folder.iterdir()])
        yield each


def test_what_cannot_be_written_is_a_sentence(site: Site, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()
    for out, said in (
        ("full", "is there already and not empty; nothing was written"),
        ("full/mine", "is there already and not empty; nothing was written"),
        ("full/mine/below", r"cannot be exported \(Not a directory\); nothing was written"),
    ):
        with pytest.raises(ConfigError, match=said):
            written(site, tmp_path / out, "coco")
    for words, told in (
        (("full", "--as", "coco"), "is there already and not empty; nothing was written"),
        (("new", "--as", "yolo"), "there are: verdicts, mvtec, coco, fiftyone"),
        (("new.jsonl", "--recipe", "washer"), "verdicts are exported whole"),
    ):
        done = command(site, tmp_path / words[0], *words[1:])
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"full", "full/mine", "empty"}
    assert written(site, tmp_path / "empty", "mvtec")["files"], "an empty folder is as good as none"


def test_nothing_settled_is_no_mistake(site: Site, tmp_path: Path) -> None:
    done = command(site, tmp_path / "out", "--as", "mvtec", "--until", "2001-01-01")
    assert done.returncode == 0 and "no part that an inspector settled" in done.stdout
    assert read_json(tmp_path / "out" / "manifest.json")["files"] == []


def test_either_database_says_what_is_settled(tmp_path: Path, where: Place) -> None:
    kept = Kept(tmp_path, where)
    for name, recipe in (("a", "nut"), ("b", "nut"), ("c", "nut"), ("d", "washer"), ("e", "nut")):
        kept.part(name, Verdict.REJECT, 1, name.encode() * 10, recipe=recipe)
    for part, decision in ((1, "good"), (2, "unsure"), (4, "defect"), (5, "defect"), (5, "undo")):
        kept.store.review(part, decision, "eve")
    with closing(Finder(where)) as finder:
        for wanted, settled, left_out in (
            (Filter(), ["a", "d"], {"unsure": 1, "nobody decided": 2}),
            (Filter(recipe="nut", edges=["edge-1"]), ["a"], {"unsure": 1, "nobody decided": 2}),
            (Filter(recipe="washer"), ["d"], {}),
            (Filter(edges=[]), [], {}),
        ):
            assert [each["part_id"] for each in finder.settled_parts(wanted, 0, 10)] == settled
            assert finder.unsettled(wanted) == left_out
            assert finder.settled_size(wanted) == (len(settled), 10 * len(settled))
            assert finder.settled_views(wanted) == ["main"] * bool(settled)
    kept.reader.close()
    kept.store.close()


def test_parts_that_several_cameras_saw_are_folders(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    dealer = Dealer(site.service.endpoint)
    top, side, _, region = s.washer(1)
    parts = {"both-1": ("top", "a/b"), "both-2": ("top", "a/b"), "one": ("top",), "none": ()}
    for n, (name, views) in enumerate(parts.items()):
        there = zip(views, (top, side), strict=False)
        pictures = tuple(part_ref("image", data, view=view, codec="png", shape=(256, 256, 3)) for view, data in there)
        dealer.send(s.frames(s.result(2 * n + 1, name, Verdict.REJECT, regions=(region,))))
        dealer.send(s.frames(s.attachment(2 * n + 2, name, 2 * n + 1, pictures), [top, side][: len(views)]))
    dealer.wait_acked(*range(1, 2 * len(parts) + 1))
    dealer.close()
    try:
        web = program(site, "review")
        for part in web.get("/api/v1/parts").json()["items"]:
            decision = {"decision": "defect" if part["part_id"] == "both-2" else "good"}
            assert web.post(f"/api/v1/parts/{part['id']}/verdicts", json=decision).status_code == 201
        manifest = written(site, tmp_path / "out", "mvtec", share=0.0, masks=True)
        dataset = load_dataset(tmp_path / "out")
        assert [sorted(path.name for path in each.path.iterdir()) for each in dataset.train] == [["a_b.png", "top.png"]]
        assert [sample.label for sample in dataset.test] == ["defect"]
        assert manifest["left_out"] == {"not seen by every camera": 1, "without a picture": 1}
        assert len(written(site, tmp_path / "coco", "coco")["files"]) == 5
    finally:
        site.stop()


@pytest.mark.parametrize(
    ("box", "to_part", "expected"),
    [
        ((1.0, 2.0, 3.0, 4.0), None, (1.0, 2.0, 3.0, 4.0)),
        ((40.0, 20.0, 20.0, 10.0), (2.0, 0.0, 0.0, 0.0, 2.0, 0.0), (20.0, 10.0, 10.0, 5.0)),
        ((110.0, 10.0, 20.0, 10.0), (1.0, 0.0, 100.0, 0.0, 1.0, 0.0), (10.0, 10.0, 20.0, 10.0)),
        ((10.0, 30.0, 5.0, 20.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0), (30.0, 10.0, 20.0, 5.0)),
        ((90.0, 90.0, 50.0, 50.0), None, (90.0, 90.0, 10.0, 10.0)),
        ((-50.0, 0.0, 20.0, 20.0), None, None),
        ((0.0, 0.0, 5.0, 5.0), (0.0, 0.0, 0.0, 0.0, 0.0, 0.0), None),
    ],
)
def test_a_box_of_the_part_in_its_picture(box: Any, to_part: Any, expected: Any) -> None:
    assert in_picture(box, to_part, (100, 100)) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [(None, "defect"), ("Good", "defect"), ("../x", "x"), ("..", "defect"), ("a b/c", "a_b_c"), ("划痕", "划痕")],
)
def test_a_class_as_a_folder(text: str | None, name: str) -> None:
    assert label_of(text) == name
    assert len(as_name("划" * 200, "x").encode()) <= 60
