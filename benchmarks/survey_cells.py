"""One cell of the survey: a data set, its anomalous class, a training and a seed, trained and looked at once.

Both protocols come from the same training. The loop validates twenty times and keeps the weights that did best on
held-out *normal* data; the test data are scored at each of these times. The clean figure is that of the weights kept;
the leaky one, the article's, is the best of all twenty, which nobody without labelled test data could have picked.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.cells import source_version
from benchmarks.common import machine
from benchmarks.survey_data import SIDE, Data, deal, scaled, seen_before
from benchmarks.survey_models import new_model
from calibration.looks import append_look
from calibration.metrics import ranking
from contract.bundle import write_atomic
from training.augment import Augmentation
from training.data import scale
from training.errors import StoppedError, TrainingError
from training.fit import Tiles, fit
from training.report import Quiet
from training.settings import TrainSettings

VERSION = 1  # another one where the code makes other figures of the same settings
JUDGED_AT_ONCE = 250


class Training(NamedTuple):
    """A model, what it learns by, and the judge's scores that are looked at: name of the variant -> score."""

    model: str
    loss: str
    scores: dict[str, str]


TRAININGS = {
    "egbad-ce": Training("egbad", "cross_entropy", {"EGBAD ce/ce": "discriminator", "EGBAD ce/fm": "features"}),
    "egbad-fm": Training("egbad", "features", {"EGBAD fm/ce": "discriminator", "EGBAD fm/fm": "features"}),
    "ganomaly": Training("ganomaly", "", {"GANomaly": "latent"}),
}


class Budget(NamedTuple):
    """What a training gets, the same for every model on a data set, and how many test rows are scored."""

    steps: int
    batch: int
    latent: int
    width: int
    learning_rate: float
    test: int


IMAGES = Budget(steps=600, batch=32, latent=100, width=16, learning_rate=2e-4, test=2000)
TABLE = Budget(steps=8000, batch=50, latent=32, width=16, learning_rate=2e-4, test=20_000)
BUDGETS = {"mnist": IMAGES, "fashion-mnist": IMAGES, "cifar10": IMAGES, "kdd99": TABLE}


class Evaluation(NamedTuple):
    """What was seen at one of the periodic validations: step, what selects, and AP and AUROC of each variant."""

    step: int
    selection: float
    ap: dict[str, float]
    auroc: dict[str, float]


class Cell(NamedTuple):
    """What to train on what; ``folder`` holds ``cell.json`` once it is finished."""

    dataset: str
    anomalous: int
    training: str
    seed: int
    budget: Budget
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.dataset}, class {self.anomalous}, {self.training}, seed {self.seed}"

    @property
    def record(self) -> dict[str, Any] | None:
        """What was measured, where it is finished."""
        path = self.folder / "cell.json"
        return json.loads(path.read_text()) if path.is_file() else None


def make_cell(dataset: str, anomalous: int, training: str, seed: int, budget: Budget, work: Path, data: Path) -> Cell:
    """The cell of this budget and these files: with others the figures are others, and the folder as well."""
    files = sorted((path.name, path.stat().st_size) for path in data.iterdir())
    key = json.dumps([VERSION, budget._asdict(), files], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    folder = work / f"{dataset}-{digest}" / f"class{anomalous}" / training / f"seed{seed}"
    return Cell(dataset, anomalous, training, seed, budget, folder)


def finish(cell: Cell, data: Data, looks: Path) -> dict[str, Any]:
    """The record of the cell, made now where there is none; of a training that failed, ``failed`` says why.

    Every look is put on record, of a training that fails or is stopped as well.
    """
    found = cell.record
    if found is not None:
        return found
    seen: list[Evaluation] = []
    split = deal(data.labels, cell.anomalous, cell.seed, cell.budget.test)
    wrong = data.labels[split.test] == cell.anomalous
    refused = failed = ""
    try:
        train(cell, data, seen)
    except StoppedError:
        raise
    except TrainingError as error:
        reason = str(error).partition(";")[0]
        if seen and seen[-1].step == cell.budget.steps:
            refused = reason  # trained to the end, and what came of it would be no product
        else:
            failed = reason
    finally:
        if seen:
            log_look(looks, cell, seen, len(split.test))
    record = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": cell.dataset,
        "class": cell.anomalous,
        "class_name": data.classes[cell.anomalous],
        "training": cell.training,
        "seed": cell.seed,
        "budget": cell.budget._asdict(),
        "counts": {
            "fit": len(split.fit),
            "validation": len(split.validation),
            "test": len(split.test),
            "anomalous": int(wrong.sum()),
        },
        "seen_before": seen_before(data, split),
        "variants": {} if failed else {name: figures(seen, name) for name in TRAININGS[cell.training].scores},
        "evaluations": [evaluation._asdict() for evaluation in seen],
        "refused": refused,
        "failed": failed,
        "source": source_version(),
        "machine": machine(),
    }
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(cell.folder / "cell.json", (json.dumps(record, indent=1) + "\n").encode())
    return record


def train(cell: Cell, data: Data, seen: list[Evaluation]) -> None:
    """Train by the product's loop; what the test rows score at each validation is appended to ``seen``."""
    training, budget = TRAININGS[cell.training], cell.budget
    split = deal(data.labels, cell.anomalous, cell.seed, budget.test)
    learn, select, test = (torch.from_numpy(side) for side in scaled(data.tiles, split))
    anomalous = data.labels[split.test] == cell.anomalous
    images, channels = data.tiles.dtype == np.uint8, data.tiles.shape[3]
    shape = {"size": SIDE, "channels": channels, "width": budget.width, "latent": budget.latent}
    model = new_model(training.model, training.loss, images, cell.seed, **shape)

    def watch(judge: nn.Module, step: int, selection: float) -> None:
        seen.append(evaluated(step, selection, scores(judge, test, training.scores), anomalous))

    model.watch = watch
    with tempfile.TemporaryDirectory() as checkpoints:  # a cell of a minute is rather made again than resumed
        plain = Augmentation(brightness=0.0, contrast=0.0)
        fit(model, Tiles(learn, select, plain), settings(cell, Path(checkpoints)), "", Quiet())


def settings(cell: Cell, out: Path) -> TrainSettings:
    """Those of the product's training, at the article's 32 px, which are below the product's least size."""
    training, budget = TRAININGS[cell.training], cell.budget
    asked = TrainSettings.model_validate(
        {
            "data": cell.dataset,
            "out": out,
            "model": training.model,
            "loss": training.loss or None,
            "steps": budget.steps,
            "batch": budget.batch,
            "learning_rate": budget.learning_rate,
            "width": budget.width,
            "latent": budget.latent,
            "seed": cell.seed,
            "device": "cpu",
        }
    )
    return asked.model_copy(update={"size": SIDE})


@torch.no_grad()
def scores(judge: nn.Module, tiles: Tensor, wanted: dict[str, str]) -> dict[str, NDArray[np.float64]]:
    """The judge's scores of tiles as they are trained on, [M] each, higher = more anomalous."""
    parts = [judge(scale(part)).scores for part in torch.split(tiles, JUDGED_AT_ONCE)]
    return {name: torch.cat([part[score] for part in parts]).double().numpy() for name, score in wanted.items()}


def evaluated(
    step: int, selection: float, found: dict[str, NDArray[np.float64]], anomalous: NDArray[np.bool_]
) -> Evaluation:
    """How each variant's scores [M] rank the anomalous test rows above the normal ones."""
    ranked = {name: ranking(values[~anomalous], values[anomalous]) for name, values in found.items()}
    ap = {name: figure.ap or 0.0 for name, figure in ranked.items()}
    return Evaluation(step, selection, ap, {name: figure.auroc or 0.0 for name, figure in ranked.items()})


def kept(seen: list[Evaluation]) -> Evaluation:
    """The evaluation of the weights that the loop keeps: the first that did best on held-out normal data."""
    return min(seen, key=lambda evaluation: evaluation.selection)


def figures(seen: list[Evaluation], variant: str) -> dict[str, Any]:
    """AUPRC (average precision) by both protocols: one of the evaluations, and the best of all of them."""
    clean, leaky = kept(seen), max(seen, key=lambda evaluation: evaluation.ap[variant])
    return {
        "clean": clean.ap[variant],
        "leaky": leaky.ap[variant],
        "clean_step": clean.step,
        "leaky_step": leaky.step,
        "clean_auroc": clean.auroc[variant],
    }


def log_look(path: Path, cell: Cell, seen: list[Evaluation], images: int) -> None:
    """One line a cell; ``calibration`` says how often it looked and what that decided."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_look(
        path,
        {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataset": f"{cell.dataset}, class {cell.anomalous}",
            "model": f"survey {cell.training}",
            "seed": cell.seed,
            "calibration": f"looked {len(seen)} times; the best is reported as leaky",
            "images": images,
            "image_auroc": next(iter(kept(seen).auroc.values())),
        },
    )
