"""The record of a cell whose model no graph can hold: trained and evaluated by PyTorch, never calibrated.

The test images are prepared and their tiles fused as on the line, and the figures are those of every cell, less what
needs a bundle: there is no threshold, so no rate of rejects and of escapes, and no latency of a graph.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine
from calibration.evaluate import GOOD, Seen, figures_of, labels_of, log_look, with_truth
from contract.dataset import Sample, load_dataset
from contract.decision import fuse
from contract.event import Verdict
from contract.part_pictures import read_part
from contract.preprocess import prepare, size_of
from contract.recipe import Recipe
from training.build import TYPICAL_TILES, evenly, load, metrics
from training.data import fingerprint, make_recipe, split_by_group
from training.fit import Fitted, Tiles, fit, new_model
from training.graph import Inspector
from training.models import model_class
from training.report import Reporter
from training.settings import TrainSettings

SEARCHED_TILES = 64  # that the map's usual deviation is learnt from, at most: each is searched for like a test image


def measure(settings: TrainSettings, dataset_name: str, looks: Path, reporter: Reporter) -> dict[str, Any]:
    """Train, look at the test images, put the look on record; everything of a record but where its code came from."""
    dataset = load_dataset(settings.data, settings.group_pattern)
    split = split_by_group(dataset, settings.holdout, settings.validation, settings.seed)
    recipe = make_recipe(settings, split.fit)
    tiles = load(split, recipe, settings)
    fitted = fit(new_model(settings, recipe.channels), tiles, settings, "", reporter)
    inspector = Inspector(fitted.judge, settings.size, settings.score, model_class(settings.model).pooling)
    learn_typical(inspector, tiles)
    reporter.say(f"{dataset_name}: searching {len(dataset.test)} test images")
    figures = evaluated(look(inspector, recipe, dataset.test), settings, dataset_name)
    looks.parent.mkdir(parents=True, exist_ok=True)
    log_look(looks, figures)
    document = split.document(settings.data)
    return {
        "figures": figures,
        "not_calibrated": "the model is not exported, so there is no bundle to calibrate",
        "parameters": parameters(fitted),
        "training": metrics(fitted),
        "settings": settings.model_dump(mode="json", exclude={"data", "out", "resume", "overwrite"}),
        "counts": {**fingerprint(document), **figures["counts"]},
        "tiles": tiles_of(recipe),
        "machine": machine(),
    }


def learn_typical(inspector: Inspector, tiles: Tiles) -> None:
    """Learn what deviation is usual, from some of the good tiles."""
    inspector.learn_typical(evenly(torch.cat([tiles.fit, tiles.validation]), min(SEARCHED_TILES, TYPICAL_TILES)))


def tiles_of(recipe: Recipe) -> list[int]:
    """Rows and columns that a picture of a part is cut into."""
    return [recipe.views[0].tiling.rows, recipe.views[0].tiling.columns]


def parameters(fitted: Fitted) -> int:
    """Of the networks that judge."""
    return sum(weights.numel() for weights in fitted.judge.parameters())


def look(inspector: Inspector, recipe: Recipe, samples: list[Sample]) -> list[Seen]:
    """Scores and maps of test images, searched for together; with no threshold none of them has a verdict."""
    parts = [read_part(sample.path, recipe) for sample in samples]
    prepared = [torch.from_numpy(prepare(part, recipe).tiles) for part in parts]
    found = inspector.inspect(torch.cat(prepared))
    scores, maps = found.score.split(recipe.tiles), found.map.split(recipe.tiles)
    seen = []
    for sample, part, score, deviation in zip(samples, parts, scores, maps, strict=True):
        scored = fuse(score.numpy(), deviation.numpy(), recipe, size_of(part))
        seen.append(with_truth(Seen(sample, Verdict.NOT_INSPECTED, scored.score), part, scored))
    return seen


def evaluated(seen: list[Seen], settings: TrainSettings, dataset_name: str) -> dict[str, Any]:
    """The figures in the shape of ``calibration.evaluate``'s."""
    good, bad = ([image for image in seen if (image.label == GOOD) is wanted] for wanted in (True, False))
    classes = {label: [image for image in bad if image.label == label] for label in labels_of(bad)}
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": dataset_name,
        "model": settings.model,
        "seed": settings.seed,
        "bundle": "",
        "calibration": None,
        "engine": f"pytorch-{torch.__version__} fp32 cpu",
        "counts": {
            "images": len(seen),
            "good": len(good),
            "defective": len(bad),
            "with_mask": sum(image.mask is not None for image in bad),
        },
        **figures_of(good, bad),
        "classes": {label: figures_of(good, images) for label, images in classes.items()},
    }
