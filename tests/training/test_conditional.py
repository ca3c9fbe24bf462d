"""One model of several product types: what they share, what each has of its own, and a bundle for each."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calibration.evaluate import evaluate
from calibration.methods import Rates
from contract.bundle import ROLE_DATA, ROLE_GRAPH, open_bundle
from contract.dataset import load_dataset
from contract.errors import ConfigError, DatasetError
from contract.images import read_image
from contract.preprocess import prepare
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from tests.bundles import calibrated, draw_data, draw_part, train_small_bundle
from training.augment import Augmentation
from training.build import products_of
from training.checkpoint import checkpoint_path, load_checkpoint
from training.cli import app, make_settings
from training.errors import ExportError, StoppedError
from training.export import open_session, run_graph
from training.fit import Fitted, Loop, Tiles, fit_types, new_model
from training.graph import Inspector
from training.labelled import Labelled
from training.models import MODELS, model_class
from training.models.conditional import OneEach, choose, condition, folded, used
from training.report import Progress, Quiet
from training.settings import TrainSettings

CONDITIONAL = sorted(name for name, model in MODELS.items() if model.conditional)


def _negative(folder: Path, out: Path) -> Path:
    """The same parts as another product: in negative."""
    for path in folder.rglob("*.png"):
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    return out


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two product types, of which one is in colour."""
    root = tmp_path_factory.mktemp("products")
    draw_data(root / "plate", good=16, test_good=6, defective=6)
    _negative(draw_data(root.parent / "tinted", good=16, test_good=6, defective=6, colour=True), root / "tinted")
    (root / ".cache").mkdir()
    return root


@pytest.fixture(scope="module")
def bundles(products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for each of ``products``; the first attempt to write them failed, the second resumed."""
    out = tmp_path_factory.mktemp("trained") / "bundles"
    asked: dict[str, Any] = {"model": "ae", "conditional": True, "steps": 80, "width": 4, "learning_rate": 4e-3}

    def fails(*given: object) -> None:
        raise ExportError("the graph disagrees")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.build.export", fails)
        with pytest.raises(ExportError, match="disagrees"):
            train_small_bundle(out, products, **asked)
    assert checkpoint_path(out).is_file() and not list(out.rglob("bundle.json"))
    return train_small_bundle(out, products, **asked, resume=True)


@pytest.fixture(scope="module")
def types() -> list[Tiles]:
    drawn = torch.from_numpy(np.stack([draw_part(number, side=64) for number in range(12)]))[..., None]
    return [Tiles(kind[:9], kind[9:], Augmentation(variety=variety)) for kind, variety in ((drawn, 0.0), (~drawn, 0.5))]


def _settings(out: Path, **changes: object) -> TrainSettings:
    small = {"model": "ae", "steps": 8, "size": 64, "width": 4, "latent": 8, "batch": 4, "device": "cpu"}
    return TrainSettings(data=out, out=out, precision="32-true", **{**small, **changes})


# Layers --------------------------------------------------------------------------------------------------------------


def test_a_folded_network_is_the_one_that_was_chosen() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)))
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)))
    condition(network, (nn.BatchNorm2d,), 3)
    for number, layer in enumerate(module for module in network.modules() if isinstance(module, OneEach)):
        for kind, own in enumerate(layer.each):
            nn.init.constant_(own.weight, 1.0 + kind + number)
    seen, network = torch.rand(2, 1, 5, 5), network.eval()
    found = []
    for kind in range(3):
        choose(network, kind)
        alone = folded(network, kind)
        assert not any(isinstance(module, OneEach) for module in alone.modules())
        plain.load_state_dict(alone.state_dict())
        assert torch.equal(network(seen), plain.eval()(seen))
        found.append(network(seen))
        assert sum(isinstance(module, nn.BatchNorm2d) for module in used(network)) == 2
    assert not torch.allclose(found[0], found[1])


def test_a_step_on_one_type_leaves_the_layers_of_the_other_alone(types: list[Tiles], tmp_path: Path) -> None:
    loop = Loop(new_model(_settings(tmp_path, model="ganomaly_d"), 1, 2), types, _settings(tmp_path), "")
    networks = loop._networks.values()
    layers = [module for network in networks for module in network.modules() if isinstance(module, OneEach)]

    def own(kind: int) -> list[Tensor]:
        return [value.detach().clone() for layer in layers for value in layer.each[kind].parameters()]

    assert {type(layer.each[0]).__name__ for layer in layers} == {"BatchNorm2d", "Places"}
    for stepped, other in ((0, 1), (1, 0), (0, 1)):
        before = own(stepped), own(other)
        loop.train_once()
        assert not all(map(torch.equal, before[0], own(stepped)))
        assert all(map(torch.equal, before[1], own(other)))
    shares = [layer.each for layer in layers if type(layer.each[0]).__name__ == "Places"]
    assert all([float(place.share) for place in each] == [1.0, 0.5] for each in shares), "each type's own variety"


@pytest.mark.parametrize("name", CONDITIONAL)
def test_each_type_has_a_judge_of_its_own_that_reloads_into_a_plain_one(
    name: str, types: list[Tiles], tmp_path: Path
) -> None:
    settings = _settings(tmp_path, model=name, steps=4)
    loop = Loop(new_model(settings, 1, 2), types, settings, "")
    while loop.share() < 1.0:
        loop.check(loop.train_once())
    loop.validate()
    tiles, scores = types[0].fit, []
    for number in range(2):
        judge = folded(loop.averaged, number).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        save_file(judge.state_dict(), tmp_path / f"{number}")
        plain = new_model(settings.model_copy(update={"seed": 9}), 1).deployed()
        plain.load_state_dict(load_file(tmp_path / f"{number}"))
        ours, theirs = (
            Inspector(one, 64, settings.score, model_class(name).pooling).inspect(tiles) for one in (judge, plain)
        )
        assert torch.equal(ours.score, theirs.score) and torch.equal(ours.map, theirs.map)
        scores.append(ours.score)
    assert not torch.allclose(scores[0], scores[1], rtol=1e-3), "the same tiles, judged as another product"


# The loop ------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one(
    types: list[Tiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fit.refuse_collapse", lambda *given: None)  # sixteen steps may draw nothing but grey

    def fit(out: Path, reporter: Quiet, resume: bool = False) -> list[Fitted]:
        settings = _settings(out, learning_rate=4e-3, steps=16)
        state = load_checkpoint(checkpoint_path(out), settings.learnt(), "data") if resume else None
        return fit_types(new_model(settings, 1, 2), types, settings, "data", reporter, state)

    straight = fit(tmp_path / "straight", Quiet())
    with pytest.raises(StoppedError, match="stopped at step"):
        fit(tmp_path / "stopped", _StopsEarly())
    resumed = fit(tmp_path / "stopped", Quiet(), resume=True)
    assert len(straight) == len(resumed) == 2
    for one, other in zip(straight, resumed, strict=True):
        assert (one.best_step, one.validation_loss, one.losses) == (
            other.best_step,
            other.validation_loss,
            other.losses,
        )
        torch.testing.assert_close(one.judge.state_dict(), other.judge.state_dict(), rtol=0, atol=0)
    losses = [fitted.validation_loss for fitted in straight]
    kept = next(row for row in straight[0].history if row["step"] == straight[0].best_step)
    assert losses[0] != losses[1]
    assert kept["validation"] == pytest.approx(sum(losses) / 2), "the mean over the types selects"


class _StopsEarly(Quiet):
    """Sends this process what Ctrl-C sends, at a milestone after an odd number of steps."""

    def milestone(self, progress: Progress) -> None:
        if progress.step >= 7:
            os.kill(os.getpid(), signal.SIGINT)


# Bundles -------------------------------------------------------------------------------------------------------------


def test_each_type_gets_a_bundle_that_is_whole_and_its_own(bundles: Path, products: Path) -> None:
    assert sorted(path.name for path in bundles.iterdir()) == ["plate", "tinted"], "no checkpoint is left"
    opened = {name: open_bundle(bundles / name) for name in ("plate", "tinted")}
    for name, bundle in opened.items():
        manifest = bundle.manifest
        assert (manifest.name, manifest.recipe.name, manifest.recipe.channels) == (name, name, 3)
        sides = bundle.json(ROLE_DATA)
        files = sorted(row["file"] for side in sides.values() for row in side)
        assert files == [f"train/good/part_{number:03d}.png" for number in range(16)]
        together = {row["name"]: row for row in manifest.training["types"]}
        assert set(together) == {"plate", "tinted"} and together[name]["fit_images"] == manifest.data.fit_images
        assert manifest.training["settings"]["conditional"] is True
        check_golden(open_engine("onnxruntime", bundle), bundle)
        assert "one model with" in bundle.path("training").read_text()
        assert not any(str(products).encode() in path.read_bytes() for path in bundle.root.iterdir())
    one, other = opened.values()
    assert one.manifest.training["types"] == other.manifest.training["types"]
    assert one.manifest.training["types"][0]["data_sha256"] != one.manifest.training["types"][1]["data_sha256"]
    assert one.manifest.golden.scores != other.manifest.golden.scores


def test_the_type_is_a_constant_of_the_graph(bundles: Path, products: Path) -> None:
    found = []
    tiles = _tiles(bundles / "plate", products / "plate", "train/good")
    for name in ("plate", "tinted"):
        path = open_bundle(bundles / name).path(ROLE_GRAPH)
        assert [value.name for value in onnx.load(path).graph.input] == ["image"]
        found.append(run_graph(open_session(path), tiles))
    assert float(np.median(found[0].score)) < 0.7 * float(np.median(found[1].score)), "no plate is a good tinted one"
    assert not np.array_equal(found[0].reconstruction, found[1].reconstruction)


def _tiles(bundle: Path, data: Path, folder: str) -> np.ndarray:
    recipe = open_bundle(bundle).manifest.recipe
    return np.concatenate([prepare(read_image(path, 3), recipe).tiles for path in sorted((data / folder).iterdir())])


@pytest.mark.parametrize("name", ["plate", "tinted"])
def test_each_bundle_is_calibrated_and_evaluated_like_any_other(name: str, bundles: Path, products: Path) -> None:
    bundle = bundles / name
    calibrated(bundle, products / name, Rates(reject=0.2), engine="onnxruntime")
    figures = evaluate(bundle, products / name, "onnxruntime").figures
    assert figures["counts"]["without_score"] == 0
    assert figures["image_auroc"] > 0.9
    assert figures["learnt_defects"] is None
    assert sum(figures["verdicts"]["good"].values()) == 6 and figures["not_inspected_good"] == 0


# Labelled defects -----------------------------------------------------------------------------------------------------


def test_labelled_defects_are_those_of_their_type(types: list[Tiles], products: Path, tmp_path: Path) -> None:
    for path in ("plate/spot/a.png", "plate/ground_truth/spot/a.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / path), draw_part(77_000, defect=True) if "truth" not in path else _marked())
    asked = {"data": products, "out": tmp_path / "out", "conditional": True, "defects": tmp_path}
    found = {product.settings.data.name: product.defects for product in products_of(make_settings(asked))}
    assert [sample.label for sample in found["plate"]] == ["spot"] and found["tinted"] == []

    labelled = Labelled(types[1].fit[:1], torch.full((1, 64, 64), 255, dtype=torch.uint8), Augmentation())
    settings = _settings(tmp_path, model="ganomaly_d")
    loop = Loop(new_model(settings, 1, 2), [types[0], types[1]._replace(labelled=labelled)], settings, "")
    known = []
    for _ in range(3):
        loop.train_once()
        known.append(loop._model.labelled is not None)
    assert known == [False, True, False]


def _marked() -> np.ndarray:
    mask = np.zeros((80, 80), np.uint8)
    mask[20:30, 20:30] = 255
    return mask


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(CONDITIONAL)))
def test_a_model_without_conditioning_names_those_that_have_it(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} learns one product type; .* by {', '.join(CONDITIONAL)}$"):
        make_settings({"data": "d", "out": "o", "model": name, "conditional": True})


@pytest.mark.parametrize(("option", "value"), [("few_shot", True), ("name", "plate")])
def test_options_of_one_product_type_are_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match="--conditional"):
        make_settings({"data": "d", "out": "o", "conditional": True, option: value})


def test_a_folder_of_another_layout_is_refused(products: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "plate" / "train" / "good").mkdir(parents=True)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "b").mkdir()
    for data, message in (
        (tmp_path / "none", "no such folder; expected a folder for each product type"),
        (products / "plate", r"holds the images of one product type.*TYPE/train/good"),
        (products / "plate" / "test" / "good", "holds the images of one product type"),
        (one, "holds plate alone"),
        (tmp_path / "empty", r"empty/a: no images found"),
    ):
        with pytest.raises(DatasetError, match=message):
            train_small_bundle(tmp_path / "out", data, model="ae", conditional=True)
        assert not (tmp_path / "out").exists()


def test_a_type_with_too_few_images_is_named(products: Path, tmp_path: Path) -> None:
    draw_data(tmp_path / "data" / "few", good=3, test_good=0, defective=0)
    draw_data(tmp_path / "data" / "more", good=16, test_good=0, defective=0)
    with pytest.raises(DatasetError, match=r"data/few: found 3 good image"):
        train_small_bundle(tmp_path / "out", tmp_path / "data", model="ae", conditional=True)


def test_a_folder_of_other_bundles_is_no_place_for_several(products: Path, bundles: Path, tmp_path: Path) -> None:
    before = json.loads((bundles / "plate" / "bundle.json").read_text())
    with pytest.raises(ConfigError, match="is the bundle of one product type"):
        train_small_bundle(bundles / "plate", products, model="ae", conditional=True, overwrite=True)
    with pytest.raises(ConfigError, match="is not empty and no bundle"):
        train_small_bundle(bundles, products, model="ae", conditional=True)
    shutil.copytree(products, tmp_path / "data")
    (tmp_path / "data" / "plate").rename(tmp_path / "data" / "panel")
    with pytest.raises(ConfigError, match=r"holds bundles of plate, and .*data has no folder of that name"):
        train_small_bundle(bundles, tmp_path / "data", model="ae", conditional=True, overwrite=True)
    assert json.loads((bundles / "plate" / "bundle.json").read_text()) == before


def test_the_command_meets_a_mistaken_folder_before_it_loads_anything(products: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds the images of one product type"):
        app(["--data", str(products / "plate"), "--out", str(tmp_path / "b"), "--conditional"])


def test_the_data_folders_of_types_are_data_folders_of_their_own(products: Path) -> None:
    assert len(load_dataset(products / "plate").train) == 16


@pytest.mark.parametrize("types", [1, 2, 3, 10])
def test_the_losses_of_every_type_are_read(types: int) -> None:
    """One step in ten: every tenth alone would always be of the same type where they are two, five or ten."""
    read = [
        step
        for step in range(1, 200 * types + 1)
        if Loop.to_check(cast("Loop", SimpleNamespace(step=step, _products=[None] * types)))
    ]
    assert len(read) == 20 * types
    assert Counter((step - 1) % types for step in read) == dict.fromkeys(range(types), 20)
