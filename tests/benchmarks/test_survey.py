"""The survey's protocol on hand-made data: what the readers refuse, the split, both protocols, resuming, the page."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import survey_cells, survey_data
from benchmarks.common import half_interval
from benchmarks.model_page import replaced
from benchmarks.survey import RESULTS, averages, main
from benchmarks.survey_cells import TRAININGS, Budget, Cell, Evaluation, evaluated, figures, finish, kept, make_cell
from benchmarks.survey_data import (
    Data,
    deal,
    read_connections,
    read_digits,
    read_idx,
    read_photographs,
    scaled,
    seen_before,
)
from benchmarks.survey_models import new_model
from benchmarks.survey_page import BEGIN, section
from contract.errors import ConfigError, DatasetError
from tests.training.stepping import all_weights, backward, changed
from training.augment import Augmentation
from training.errors import StoppedError, TrainingError
from training.fit import Tiles, fit
from training.models.egbad import Egbad

ROOT = Path(__file__).resolve().parents[2]
SMALL = Budget(steps=4, batch=8, latent=8, width=4, learning_rate=2e-4, test=60)


def idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def digits(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10


def write_digits(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        pictures, labels = digits(count)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def connection(label: str, random: np.random.Generator) -> str:
    """A row of KDD-99: attacks send much and mostly the same, normal connections little."""
    words = {1: "icmp" if label == "smurf." else "tcp", 2: "ecr_i" if label == "smurf." else "http", 3: "SF"}
    flags = {6: "0", 11: "0" if label == "smurf." else "1", 20: "0", 21: "0"}
    sent = 1032 if label == "smurf." else int(random.integers(100, 300))
    columns = [
        words.get(at) or flags.get(at) or (str(sent) if at == 4 else f"{random.random():.2f}") for at in range(41)
    ]
    return ",".join([*columns, label])


def write_connections(folder: Path, rows: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    if rows is None:
        rows = [connection("normal." if number % 5 == 0 else "smurf.", random) for number in range(300)]
    (folder / "kddcup.data_10_percent.gz").write_bytes(gzip.compress("".join(f"{row}\n" for row in rows).encode()))
    return folder


def jpeg(side: int = 32, level: int = 90) -> bytes:
    return cv2.imencode(".jpg", np.full((side, side, 3), level, np.uint8))[1].tobytes()


def write_archive(folder: Path, members: list[tuple[str, bytes]], also: tarfile.TarInfo | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        folder_entry = tarfile.TarInfo("cifar10_jpg/test")
        folder_entry.type = tarfile.DIRTYPE
        archive.addfile(folder_entry)
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        if also is not None:
            archive.addfile(also)
    (folder / "cifar10_jpg.tar.xz").write_bytes(lzma.compress(packed.getvalue()))
    return folder


PICTURES = [
    (f"cifar10_jpg/{part}/{name}/{n:04}.jpg", jpeg(level=40 * n))
    for part in ("train", "test")
    for name in ("ship", "cat")
    for n in range(3)
]


# The readers


def test_digits_are_read_whole_and_brought_to_32_px(tmp_path: Path) -> None:
    found = read_digits(write_digits(tmp_path))
    pictures, labels = digits(40)
    assert found.tiles.shape == (80, 32, 32, 1) and found.tiles.dtype == np.uint8
    assert found.labels.tolist() == [*labels, *labels] and len(found.classes) == 10
    assert abs(float(found.tiles[:40].mean()) - float(pictures.mean())) < 2
    np.testing.assert_array_equal(found.tiles[0], found.tiles[40])


def test_a_file_that_is_not_packed_is_read_as_well(tmp_path: Path) -> None:
    labels = np.arange(7, dtype=np.uint8)
    (tmp_path / "labels").write_bytes(idx(labels))
    np.testing.assert_array_equal(read_idx(tmp_path / "labels", 1), labels)


WHOLE = idx(np.zeros((3, 28, 28), np.uint8))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "no gzip": (b"hello" * 20, "cannot be read"),
    "cut off": (gzip.compress(WHOLE)[:-12], "cannot be read"),
    "damaged": (gzip.compress(WHOLE, 0)[:60] + b"\xff" * 40 + gzip.compress(WHOLE, 0)[100:], "cannot be read"),
    "empty": (gzip.compress(b""), "no idx file"),
    "other type": (gzip.compress(b"\0\0\x0d\x03" + WHOLE[4:]), "no idx file"),
    "labels in place of pictures": (gzip.compress(idx(np.zeros(9, np.uint8))), "no idx file"),
    "four thousand million": (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28)), "declares"),
    "huge pictures": (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 1, 2**31, 2**31)), "declares"),
    "none": (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 0, 28, 28)), "declares"),
    "fewer": (gzip.compress(WHOLE[:-1]), "fewer than"),
    "more": (gzip.compress(WHOLE + b"\0"), "more than"),
    "a bomb": (gzip.compress(WHOLE + bytes(50_000_000)), "more than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_idx_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(HOSTILE[name][0])
    with pytest.raises(DatasetError, match=HOSTILE[name][1]) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_digits(tmp_path)
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.full(40, 11, np.uint8))))
    with pytest.raises(DatasetError, match="a label is 11"):
        read_digits(folder)
    labels.write_bytes(gzip.compress(idx(np.zeros(39, np.uint8))))
    with pytest.raises(DatasetError, match="40 images of t10k and 39 labels"):
        read_digits(folder)
    labels.unlink()
    with pytest.raises(DatasetError, match="absent: t10k-labels"):
        read_digits(folder)


def test_photographs_are_read_with_their_classes(tmp_path: Path) -> None:
    found = read_photographs(write_archive(tmp_path, PICTURES))
    assert found.tiles.shape == (12, 32, 32, 3) and found.classes == {0: "cat", 1: "ship"}
    assert found.labels.tolist() == [1, 1, 1, 0, 0, 0] * 2
    assert [int(tile.mean()) for tile in found.tiles[:3]] == pytest.approx([0, 40, 80], abs=2)


def _link() -> tarfile.TarInfo:
    link = tarfile.TarInfo("cifar10_jpg/train/cat/0009.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return link


ARCHIVES: dict[str, tuple[list[tuple[str, bytes]], tarfile.TarInfo | None, str]] = {
    "a link": (PICTURES, _link(), "no picture"),
    "a way out": ([("../../train/cat/0001.jpg", jpeg())], None, "no picture"),
    "an absolute name": ([("/train/cat/0001.jpg", jpeg())], None, "no picture"),
    "another file": ([("cifar10_jpg/train/cat/run.sh", b"rm")], None, "no picture"),
    "too large a file": ([("c/train/cat/0001.jpg", jpeg() + bytes(70_000))], None, "no picture"),
    "another size": ([("c/train/cat/0001.jpg", jpeg(64))], None, r"is \(64, 64\)"),
    "no picture": ([("c/train/cat/0001.jpg", b"x" * 500)], None, "is None"),
    "nothing": ([("c/train/cat/0001.jpg", b"")], None, "is None"),
    "cut off within": ([("c/train/cat/0001.jpg", jpeg()[:-20])], None, "not a readable image"),
    "one class": (PICTURES[:3], None, "1 class"),
    "many classes": ([(f"c/train/{c}/0.jpg", jpeg()) for c in "abcdefghijk"], None, "11 class"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused(name: str, tmp_path: Path) -> None:
    members, also, reason = ARCHIVES[name]
    with pytest.raises(DatasetError, match=reason):
        read_photographs(write_archive(tmp_path, members, also))


def test_an_archive_that_unpacks_for_ever_or_is_cut_off_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path, PICTURES) / "cifar10_jpg.tar.xz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_photographs(tmp_path)
    path.write_bytes(b"not packed at all")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_photographs(tmp_path)
    path.write_bytes(whole)
    monkeypatch.setattr(survey_data, "MOST_ARCHIVE_BYTES", 4096)
    with pytest.raises(DatasetError, match="unpacks to more"):
        read_photographs(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(survey_data, "MOST_IMAGES", 5)
    with pytest.raises(DatasetError, match="expected 5 of 32 x 32"):
        read_photographs(tmp_path)


def test_connections_are_one_hot_and_normal_ones_are_the_anomaly(tmp_path: Path) -> None:
    found = read_connections(write_connections(tmp_path))
    assert found.tiles.shape == (300, 1, 1, 34 + 2 + 2 + 1 + 1 + 2 + 1 + 1) and found.tiles.dtype == np.float32
    assert found.labels.sum() == 60 and found.labels[:6].tolist() == [1, 0, 0, 0, 0, 1]
    assert found.classes == {1: "normal"}
    words = found.tiles[:, 0, 0, 34:]
    assert set(np.unique(words)) == {0.0, 1.0} and (words.sum(axis=1) == 7).all()
    assert found.tiles[1, 0, 0, 1] == 1032  # bytes sent: the second number, after the duration


RANDOM = np.random.default_rng(1)
ROW = connection("normal.", RANDOM)
ROWS: dict[str, tuple[list[str], str]] = {
    "a column too few": ([ROW, ROW.partition(",")[2]], "row 2 has 41 columns"),
    "a column too many": ([f"0,{ROW}"], "row 1 has 43 columns"),
    "an empty row": ([ROW, "", ROW], "row 2 has 1 columns"),
    "an endless row": (["0," * 5_000_000], "row 1 has"),
    "a word for a number": ([ROW.replace(ROW.split(",")[4], "many", 1)], "row 1: could not convert"),
    "no number": ([ROW.replace(ROW.split(",")[4], "nan", 1)], "no finite number"),
    "no end": ([ROW.replace(ROW.split(",")[4], "1e99", 1)], "no finite number"),
    "not ASCII": ([ROW.replace("http", "hét")], "cannot be read"),
    "a word a row": ([ROW.replace("http", f"s{n}") for n in range(200)], "has 200 of them"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_table_is_refused(name: str, tmp_path: Path) -> None:
    rows, reason = ROWS[name]
    with pytest.raises(DatasetError, match=reason):
        read_connections(write_connections(tmp_path, rows))


def test_a_table_that_is_longer_than_the_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_data, "MOST_ROWS", 299)
    with pytest.raises(DatasetError, match="row 300"):
        read_connections(write_connections(tmp_path))


# The split


def test_the_anomalous_class_is_tested_and_never_learnt_from() -> None:
    labels = np.arange(1000) % 10
    split = deal(labels, 3, 0, 1000)
    every = np.concatenate(split)
    assert len(split.test) == 200 and len(set(every)) == len(every)
    assert 3 not in labels[split.fit] and 3 not in labels[split.validation]
    learnt = len(split.fit) + len(split.validation)
    assert learnt == 800 - (100 - int((labels[split.test] == 3).sum()))
    assert set(labels[split.test]) == set(range(10))
    assert len(split.validation) == learnt // 10


def test_the_seed_decides_the_test_rows_and_the_class_does_not() -> None:
    labels = np.arange(1000) % 10
    one, other, again = deal(labels, 3, 0, 1000), deal(labels, 4, 0, 1000), deal(labels, 3, 1, 1000)
    np.testing.assert_array_equal(one.test, other.test)
    np.testing.assert_array_equal(one.test, deal(labels, 3, 0, 1000).test)
    assert set(one.test) != set(again.test)
    np.testing.assert_array_equal(deal(labels, 3, 0, 50).test, one.test[:50])


def test_many_rows_select_by_512() -> None:
    assert len(deal(np.zeros(10_000, np.int64), 1, 0, 100).validation) == 512


def test_a_table_is_scaled_by_what_is_learnt_from_alone() -> None:
    rows = np.array([[0.0, 5.0], [10.0, 5.0], [20.0, 6.0], [-5.0, 4.0]], np.float32).reshape(4, 1, 1, 2)
    split = survey_data.Split(np.array([0, 1]), np.array([2]), np.array([3]))
    fit, validation, test = (side.reshape(-1, 2).tolist() for side in scaled(rows, split))
    assert fit == [[0, 0], [255, 0]]
    assert validation == [[510, 255]]  # outside the range; of a constant column one unit is the whole range
    assert test == [[-127.5, -255]]


def test_rows_that_were_learnt_from_are_counted_among_those_tested() -> None:
    tiles = np.array([1, 2, 3, 2, 4, 1], np.uint8).reshape(6, 1, 1, 1)
    data = Data(tiles, np.array([0, 0, 0, 0, 0, 1]), {1: "one"})
    split = survey_data.Split(np.array([0, 1]), np.array([2]), np.array([3, 4, 5]))
    assert seen_before(data, split) == 0.5  # of rows 3 and 4; row 5 is anomalous


# Both protocols


def test_average_precision_by_hand() -> None:
    found = {"a": np.array([0.1, 0.4, 0.35, 0.8]), "b": np.array([0.1, 0.9, 0.8, 0.2])}
    anomalous = np.array([False, False, True, True])
    made = evaluated(7, 0.5, found, anomalous)
    # a: 0.8 is right, 0.4 wrong, 0.35 right: (1 + 2/3) / 2; b: wrong, right, right: (1/2 + 2/3) / 2
    assert made.ap == {"a": pytest.approx(5 / 6), "b": pytest.approx(7 / 12)}
    assert made.auroc == {"a": 0.75, "b": 0.5}
    assert (made.step, made.selection) == (7, 0.5)


def test_clean_is_what_normal_data_select_and_leaky_is_the_best() -> None:
    seen = [
        Evaluation(30, 0.5, {"v": 0.9}, {"v": 0.95}),
        Evaluation(60, 0.2, {"v": 0.3}, {"v": 0.6}),
        Evaluation(90, 0.2, {"v": 0.4}, {"v": 0.7}),
    ]
    assert kept(seen).step == 60  # the first of equals, as the loop has it
    assert figures(seen, "v") == {
        "clean": 0.3,
        "leaky": 0.9,
        "clean_step": 60,
        "leaky_step": 30,
        "clean_auroc": 0.6,
    }


def test_half_an_interval_by_hand() -> None:
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5)
    assert half_interval([0.5]) is None


def test_a_mean_of_the_classes_takes_only_seeds_that_have_them_all() -> None:
    def record(anomalous: int, seed: int, clean: float) -> dict[str, Any]:
        named = {"dataset": "mnist", "class": anomalous, "training": "ganomaly", "seed": seed}
        return {**named, "variants": {"v": {"clean": clean, "leaky": 1.0}}}

    whole = [record(number, 0, number / 10) for number in range(10)]
    (row,) = averages([*whole, *(record(number, 1, 0.0) for number in range(9))])
    assert row["seeds"] == [0] and row["clean"] == pytest.approx(0.45) and row["clean_half"] is None


# The models


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_moves_every_network_and_the_judge_has_the_scores(name: str, images: bool) -> None:
    training = TRAININGS[name]
    shape = {"size": 32, "channels": 3 if images else 20, "width": 4, "latent": 8}
    model = new_model(training.model, training.loss, images, 0, **shape)
    side = 32 if images else 1
    batch = torch.rand(8, shape["channels"], side, side) * 2 - 1
    before = all_weights(model.networks())
    model.training_step(batch, model.optimizers(1e-3), backward, 0.0)
    assert changed(before, model.networks()) == set(model.networks()) and model.steps == 1
    judged = model.deployed().eval()(batch)
    assert judged.image.shape == batch.shape and judged.deviation.shape == (8, 1, side, side)
    for score in training.scores.values():
        assert judged.scores[score].shape == (8,) and judged.scores[score].isfinite().all()


def test_watching_changes_nothing_of_what_is_learnt(tmp_path: Path) -> None:
    tiles = torch.randint(0, 256, (40, 32, 32, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = survey_cells.settings(Cell("mnist", 0, "egbad-ce", 0, SMALL, tmp_path), tmp_path)
    shape = {"size": 32, "channels": 1, "width": 4, "latent": 8}
    torch.manual_seed(0)
    plain = Egbad.build(**shape)
    plain.loss = "cross_entropy"
    watched = new_model("egbad", "cross_entropy", True, 0, **shape)
    steps: list[int] = []

    def watch(judge: torch.nn.Module, step: int, selection: float) -> None:
        survey_cells.scores(judge, tiles, {"v": "features"})
        steps.append(step)

    watched.watch = watch
    first, second = (
        fit(model, Tiles(tiles[8:], tiles[:8], Augmentation()), settings, "").judge.state_dict()
        for model in (plain, watched)
    )
    assert steps == [1, 2, 3, 4]
    assert all(torch.equal(first[name], second[name]) for name in first)


# Cells


@pytest.fixture(autouse=True)
def drawing_alike_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("training.fit.refuse_collapse", lambda *given: None)  # four steps draw nothing but grey
    yield


@pytest.fixture(scope="module")
def photographs() -> Data:
    tiles = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8)
    return Data(tiles, np.arange(300) % 10, {number: str(number) for number in range(10)})


def cell_of(folder: Path, training: str = "ganomaly") -> Cell:
    (folder / "data").mkdir(exist_ok=True)
    return make_cell("cifar10", 4, training, 1, SMALL, folder / "work", folder / "data")


@pytest.mark.parametrize("training", TRAININGS)
def test_a_cell_of_images(training: str, photographs: Data, tmp_path: Path) -> None:
    cell = cell_of(tmp_path, training)
    record = finish(cell, photographs, tmp_path / "looks.csv")
    assert record == cell.record
    assert set(record["variants"]) == set(TRAININGS[training].scores)
    assert (
        record["counts"]["test"] == 60 and record["class_name"] == "4" and record["refused"] == record["failed"] == ""
    )
    assert [evaluation["step"] for evaluation in record["evaluations"]] == [1, 2, 3, 4]
    for figure in record["variants"].values():
        assert 0 <= figure["clean"] <= figure["leaky"] <= 1
    (look,) = csv.DictReader((tmp_path / "looks.csv").read_text().splitlines())
    assert (look["dataset"], look["model"], look["seed"]) == ("cifar10, class 4", f"survey {training}", "1")
    assert look["images"] == "60" and "looked 4 times" in look["calibration"]
    assert float(look["image_auroc"]) == next(iter(record["variants"].values()))["clean_auroc"]


def test_what_decides_the_figures_decides_the_folder(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data")

    def folder(anomalous: int = 0, training: str = "ganomaly", seed: int = 0, budget: Budget = SMALL) -> Path:
        return make_cell("mnist", anomalous, training, seed, budget, tmp_path, data).folder

    same = folder()
    assert folder() == same
    others = {folder(1), folder(training="egbad-ce"), folder(seed=1), folder(budget=SMALL._replace(steps=5))}
    (data / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    assert len(others | {same, folder()}) == 6


def fails(error: Exception, step: int) -> Callable[..., None]:
    def train(cell: Cell, data: Data, seen: list[Evaluation]) -> None:
        names = TRAININGS[cell.training].scores
        seen.append(Evaluation(step, 0.1, dict.fromkeys(names, 0.3), dict.fromkeys(names, 0.6)))
        raise error

    return train


def test_a_training_that_fails_has_looked_all_the_same(
    photographs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_cells, "train", fails(TrainingError("step 2: no number any more; kept"), 2))
    cell, looks = cell_of(tmp_path), tmp_path / "looks.csv"
    record = finish(cell, photographs, looks)
    assert record == cell.record == finish(cell, photographs, looks), "it would fail again"
    assert record["failed"] == "step 2: no number any more" and record["variants"] == {}
    assert len(looks.read_text().splitlines()) == 2
    stopped = cell._replace(folder=tmp_path / "stopped")
    monkeypatch.setattr(survey_cells, "train", fails(StoppedError("stopped"), 2))
    with pytest.raises(StoppedError):
        finish(stopped, photographs, looks)
    assert stopped.record is None and len(looks.read_text().splitlines()) == 3


def test_a_network_that_is_refused_at_the_end_keeps_its_figures(
    photographs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_cells, "train", fails(TrainingError("every image is drawn alike; no bundle"), 4))
    record = finish(cell_of(tmp_path), photographs, tmp_path / "looks.csv")
    assert (
        record["failed"] == ""
        and record["refused"] == "every image is drawn alike"
        and record["variants"]["GANomaly"]["clean"] == 0.3
    )


# The command


def words(folder: Path, *more: str) -> list[str]:
    files = ("--work", folder / "work", "--looks", folder / "looks.csv", "--json", folder / "survey.json")
    return ["--data", str(folder / "data"), *map(str, files), "--seeds", "2", "--steps", "20", *more]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survey")
    write_connections(folder / "data" / "kdd99")
    (folder / "data" / "mnist").mkdir()
    assert main(words(folder, "--datasets", "kdd99,mnist,cifar10")) == 0
    return folder


def load(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "survey.json").read_text()))


def test_a_row_is_a_class_and_a_variant_with_both_protocols(measured: Path) -> None:
    found = load(measured)
    assert [row["variant"] for row in found["rows"]] == [
        "EGBAD ce/ce",
        "EGBAD ce/fm",
        "EGBAD fm/ce",
        "EGBAD fm/fm",
        "GANomaly",
    ]
    for row in found["rows"]:
        assert (row["dataset"], row["class_name"], row["seeds"]) == ("kdd99", "normal", [0, 1])
        for protocol in ("clean", "leaky"):
            each = [figure[protocol] for figure in row["per_seed"]]
            assert row[protocol] == pytest.approx(sum(each) / 2)
            assert row[f"{protocol}_half"] == pytest.approx(half_interval(each))
        assert row["clean"] <= row["leaky"]
        assert 0.1 < row["chance"] < 0.3
    assert [row["variant"] for row in found["averages"]] == [row["variant"] for row in found["rows"]]
    assert {entry["what"]: entry["reason"] for entry in found["skipped"]} == {
        "cifar10": "absent: the data folder has no such folder",
        "mnist": "absent: train-images-idx3-ubyte.gz",
    }
    assert found["trainings"] == {
        "kdd99": {"finished": 6, "of": 6},
        "mnist": {"finished": 0, "of": 60},
        "cifar10": {"finished": 0, "of": 60},
    }


def test_every_look_is_recorded_and_no_folder_of_this_machine_is_named(measured: Path) -> None:
    looks = list(csv.DictReader((measured / "looks.csv").read_text().splitlines()))
    assert [(look["model"], look["seed"]) for look in looks] == [
        (f"survey {name}", str(seed)) for seed in range(2) for name in TRAININGS
    ]
    assert all("looked 20 times" in look["calibration"] for look in looks)
    assert str(measured) not in (measured / "survey.json").read_text() + (measured / "looks.csv").read_text()


def test_a_finished_cell_is_read_and_a_missing_one_is_made_again(measured: Path) -> None:
    records = sorted(measured.glob("work/kdd99-*/class1/*/seed*/cell.json"))
    before = {path: (path.stat().st_mtime_ns, json.loads(path.read_text())) for path in records}
    looks, rows = (measured / "looks.csv").read_text(), load(measured)["rows"]
    lost = records[0]
    lost.unlink()
    assert main(words(measured, "--datasets", "kdd99", "--finished")) == 0
    assert [len(row["seeds"]) for row in load(measured)["rows"]] == [1, 1, 2, 2, 2]
    assert (measured / "looks.csv").read_text() == looks
    record = before[lost][1] | {"failed": "the loss is not a number", "variants": {}}
    lost.write_text(json.dumps(record))
    assert main(words(measured, "--datasets", "kdd99", "--finished")) == 0
    assert {"what": "kdd99, class 1, egbad-ce, seed 0", "reason": "the loss is not a number"} in load(measured)[
        "skipped"
    ]
    lost.unlink()
    assert main(words(measured, "--datasets", "kdd99")) == 0
    after = {path: (path.stat().st_mtime_ns, json.loads(path.read_text())) for path in records}
    assert {path for path in records if before[path][0] != after[path][0]} == {lost}
    assert after[lost][1]["evaluations"] == before[lost][1]["evaluations"], "the same seed learns the same"
    assert len((measured / "looks.csv").read_text().splitlines()) == len(looks.splitlines()) + 1
    assert load(measured)["rows"] == rows


def test_rows_of_data_sets_that_were_not_asked_for_stay(measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "survey.json"
    other = load(measured)
    path.write_text(json.dumps(other | {"rows": [row | {"dataset": "mnist"} for row in other["rows"]]}))
    asked = words(measured, "--datasets", "kdd99", "--finished", "--json", str(path))
    assert main(asked) == 0
    found = json.loads(path.read_text())
    assert [row["dataset"] for row in found["rows"]] == ["mnist"] * 5 + ["kdd99"] * 5
    assert {entry["what"] for entry in found["skipped"]} == {"mnist", "cifar10"}


def test_the_page_says_what_the_file_says(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nyesterday\n<!-- end of figures -->\nafter\n")
    assert main(words(measured, "--datasets", "kdd99", "--finished", "--page", str(page))) == 0
    text, row = page.read_text(), load(measured)["rows"][0]
    assert text.startswith("before\n") and text.endswith("after\n") and "yesterday" not in text
    assert f"{row['clean']:.3f} ± {row['clean_half']:.3f} / {row['leaky']:.3f} ± {row['leaky_half']:.3f}" in text
    assert "- cifar10: absent" in text and "JPEG" not in text
    page.write_text("no marks")
    assert main(words(measured, "--datasets", "kdd99", "--finished", "--page", str(page))) == ConfigError.exit_code


def test_one_seed_and_refused_trainings_are_said_on_the_page() -> None:
    row = {
        "dataset": "cifar10",
        "class": 0,
        "class_name": "ship",
        "variant": "GANomaly",
        "seeds": [0],
        **{"clean": 0.25, "clean_half": None, "leaky": 0.5, "leaky_half": None, "chance": 0.1, "seen_before": 0.0},
        "counts": {"fit": 100, "test": 20},
        "budget": {"steps": 600, "batch": 32},
        "refused": [{"seed": 0, "reason": "alike"}],
    }
    notes = {"cifar10": "JPEG copies"}
    trainings = {"cifar10": {"finished": 1, "of": 30}, "mnist": {"finished": 0, "of": 30}}
    text = section({"rows": [row], "averages": [], "skipped": [], "notes": notes, "trainings": trainings})
    assert "**Partial: 1 of 30 trainings are finished.**" in text and "- mnist: not measured yet" in text
    assert "| ship | 0.100 | 0.250 / 0.500 | 1 |" in text and "JPEG copies" in text
    assert "1 of the trainings ended with a network that draws everything alike" in text
    assert "have an equal" not in text and "±" not in text


def test_the_published_page_and_file_agree() -> None:
    page, published = (ROOT / "docs" / "survey.md").read_text(), RESULTS / "survey.json"
    found = json.loads(published.read_text()) if published.is_file() else {"rows": [], "skipped": []}
    assert replaced(page, section(found), "survey.md", BEGIN) == page


def test_an_unknown_data_set_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--datasets", "mnist,svhn"])
    assert "expected some of mnist, fashion-mnist" in capsys.readouterr().err
