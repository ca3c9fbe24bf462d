"""From a folder of images to a bundle: whole, verified, free of this machine's paths, or not there at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from contract.bundle import ROLE_DATA, ROLE_GRAPH, open_bundle
from contract.dataset import load_dataset, sha256_of_image
from contract.errors import ConfigError, DatasetError
from contract.images import read_image
from contract.preprocess import prepare
from tests.bundles import draw_data, train_small_bundle
from training import build as build_module
from training.build import claim_folder
from training.errors import ExportError
from training.export import open_session, run_graph
from training.settings import TrainSettings


def test_the_bundle_opens_and_holds_what_its_readers_need(small_bundle: Path) -> None:
    manifest = open_bundle(small_bundle).manifest
    assert set(manifest.files) == {ROLE_GRAPH, ROLE_DATA, "weights", "golden", "training"}
    assert sorted(path.name for path in small_bundle.iterdir()) == sorted(
        ["bundle.json", *(entry.path for entry in manifest.files.values())]
    )
    assert manifest.model.name == "ganomaly"
    assert manifest.model.score == "residual"
    assert manifest.model.map_hw == (64, 64)
    assert manifest.recipe.channels == 1
    assert manifest.metrics["steps"] == 120
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.training["libraries"])
    assert manifest.training["settings"]["seed"] == 0


def test_thresholds_are_left_to_calibration(small_bundle: Path) -> None:
    manifest = open_bundle(small_bundle).manifest
    assert manifest.thresholds is None
    assert manifest.quality is None
    assert "threshold" not in (small_bundle / "bundle.json").read_text().replace('"thresholds": null', "")


def test_the_bundle_names_no_folder_of_this_machine(small_bundle: Path, parts: Path) -> None:
    for path in small_bundle.iterdir():
        content = path.read_bytes()
        for place in (str(parts), str(small_bundle), str(Path.cwd()), str(Path.home())):
            if place != "/":
                assert place.encode() not in content, f"{path.name} names {place}"


def test_the_images_of_each_side_are_recorded(small_bundle: Path, parts: Path) -> None:
    bundle = open_bundle(small_bundle)
    sides = bundle.json(ROLE_DATA)
    files = [row["file"] for side in ("fit", "validation", "holdout") for row in sides[side]]
    assert sorted(files) == sorted(f"train/good/{path.name}" for path in (parts / "train" / "good").iterdir())
    row = sides["holdout"][0]
    assert row["sha256"] == sha256_of_image(parts / row["file"])
    counted = bundle.manifest.data
    assert (counted.fit_images, counted.validation_images, counted.holdout_images) == (24, 4, 12)
    assert (counted.fit_groups, counted.validation_groups, counted.holdout_groups) == (24, 4, 12)


def test_the_golden_images_score_as_recorded(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    golden = bundle.manifest.golden
    images = np.load(bundle.path(golden.role), allow_pickle=False)
    found = run_graph(open_session(bundle.path(ROLE_GRAPH)), images)
    np.testing.assert_allclose(found.score, golden.scores, rtol=golden.tolerance)
    half = len(golden.scores) // 2
    assert max(golden.scores[half:]) > max(golden.scores[:half]), "defects are among them, good tiles come first"
    np.testing.assert_allclose(found.map.mean(axis=(1, 2)), golden.map_means, rtol=golden.tolerance)


def test_the_weights_are_safetensors_with_every_value_of_the_graph(small_bundle: Path) -> None:
    with safe_open(open_bundle(small_bundle).path("weights"), "pt") as weights:
        names = set(weights.keys())
        assert {"typical", "kernel", "mask"} <= names
        assert bool(torch.isfinite(weights.get_tensor("typical")).all())
    assert any(name.startswith("judge.generator.second_encoder") for name in names)


def test_defective_parts_score_higher_than_good_ones(small_bundle: Path, parts: Path) -> None:
    bundle = open_bundle(small_bundle)
    recipe = bundle.manifest.recipe
    test = load_dataset(parts).test
    tiles = np.concatenate([prepare(read_image(sample.path, 1), recipe).tiles for sample in test])
    scores = run_graph(open_session(bundle.path(ROLE_GRAPH)), tiles).score
    good = np.array([sample.label == "good" for sample in test])
    beaten = (scores[~good][:, None] > scores[good][None, :]).mean()
    assert beaten > 0.9


def test_test_images_are_never_read(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "data", good=16, test_good=2, defective=2)
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"not an image")
    out = train_small_bundle(tmp_path / "bundle", data, steps=40, width=4, holdout=0.2, learning_rate=4e-3)
    sides = json.loads((out / "data.json").read_text())
    assert not [row for rows in sides.values() for row in rows if row["file"].startswith("test")]


def test_colour_parts_in_tiles_make_a_colour_bundle_with_a_latent_score(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "data", good=14, test_good=0, defective=0, colour=True)
    out = train_small_bundle(
        tmp_path / "b", data, steps=40, width=4, tiles=(1, 2), overlap=8, score="latent", learning_rate=4e-3
    )
    manifest = open_bundle(out).manifest
    assert manifest.recipe.channels == 3
    assert manifest.recipe.tiles == 2
    assert manifest.model.score == "latent"


def test_a_failed_export_leaves_no_bundle_and_can_be_resumed(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> None:
        raise ExportError("the graph disagrees")

    out = tmp_path / "bundle"
    with monkeypatch.context() as patched:
        patched.setattr(build_module, "export", fails)
        with pytest.raises(ExportError):
            train_small_bundle(out, parts, steps=60, width=4, learning_rate=4e-3)
    assert [path.name for path in out.iterdir()] == [".training"]
    train_small_bundle(out, parts, steps=60, width=4, learning_rate=4e-3, resume=True)
    assert not (out / ".training").exists()
    assert open_bundle(out).manifest.metrics["steps"] == 60


def test_too_few_images_leave_no_folder_behind(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "data", good=3, test_good=0, defective=0)
    with pytest.raises(DatasetError):
        train_small_bundle(tmp_path / "bundle", data)
    assert not (tmp_path / "bundle").exists()


def test_a_folder_in_use_is_not_overwritten_unasked(tmp_path: Path, small_bundle: Path) -> None:
    def settings(out: Path, **changes: bool) -> TrainSettings:
        return TrainSettings(data=tmp_path, out=out, **changes)

    with pytest.raises(ConfigError, match="holds a bundle already"):
        claim_folder(settings(small_bundle))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty and no bundle"):
        claim_folder(settings(tmp_path / "photos"))
    stopped = tmp_path / "stopped" / ".training"
    stopped.mkdir(parents=True)
    (stopped / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="--resume goes on"):
        claim_folder(settings(tmp_path / "stopped"))
    with pytest.raises(ConfigError, match="is a file"):
        claim_folder(settings(tmp_path / "photos" / "holiday.txt"))
    with pytest.raises(ConfigError, match="contradict"):
        claim_folder(settings(tmp_path, resume=True, overwrite=True))
    claim_folder(settings(tmp_path / "stopped", overwrite=True))
    assert not (stopped / "checkpoint.pt").exists()
