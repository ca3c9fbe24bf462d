"""What a finished cell of ``benchmarks.models`` has learnt, for looks beyond its figures (no hop: a benchmark).

A bundle keeps the weights; of a model that is not exported the checkpoint does, and what is usual on good tiles is
learnt again as it was after the training.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.searched import learn_typical
from contract.bundle import open_bundle
from contract.config import validate
from contract.dataset import load_dataset
from contract.errors import ConfigError
from contract.recipe import Recipe
from training.build import ROLE_WEIGHTS, load
from training.checkpoint import checkpoint_path, load_checkpoint
from training.data import make_recipe, split_by_group
from training.fit import new_model
from training.graph import Inspector
from training.models import MODELS, model_class, score_of
from training.models.base import Deployed, Judgement
from training.settings import TrainSettings

RECORD = "cell.json"


class Finished(NamedTuple):
    """The networks of one cell with what its inspector knows of good tiles, and the recipe that cuts its parts."""

    dataset: str
    settings: TrainSettings
    recipe: Recipe
    judge: nn.Module
    state: dict[str, Tensor]

    def inspector(self, score: str) -> Inspector:
        """The inspector that gives this one of the model's scores."""
        made = Inspector(self.judge, self.settings.size, score, model_class(self.settings.model).pooling)
        made.load_state_dict(self.state)
        return made


class Remembered(Deployed):
    """A judge that searches for no tiles twice: each further score of them costs nothing."""

    def __init__(self, judge: Deployed) -> None:
        super().__init__()
        self.judge = judge
        self._known: dict[bytes, Judgement] = {}

    def forward(self, tile: Tensor) -> Judgement:
        key = hashlib.sha256(tile.contiguous().numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = self.judge(tile)
        return self._known[key]


def work_of(cell: Path) -> Path:
    """The folder of the cells that ``cell``, WORK/DATA/MODEL-HASH/seedN, is one of."""
    return cell.resolve().parents[2]


def open_cell(cell: Path, data: Path) -> Finished:
    """The finished cell in that folder, trained on ``data``; raises a FlawlineError where it is none."""
    try:
        record = json.loads((cell / RECORD).read_text())
    except OSError as error:
        raise ConfigError(f"{cell}: no finished cell of benchmarks.models; expected {RECORD} in it") from error
    kept = record["settings"]
    values = {**kept, "data": data, "out": cell / "bundle", "score": score_of(kept["model"], kept["score"])}
    settings = validate(TrainSettings, values, str(cell / RECORD))
    opened = _searched if MODELS[settings.model].not_exported else _exported
    try:
        return opened(cell.resolve().parents[1].name, settings)
    except RuntimeError as error:  # what torch says of weights that fit no network
        raise ConfigError(f"{cell}: learnt by another version of {settings.model}; train it anew") from error


def _exported(dataset: str, settings: TrainSettings) -> Finished:
    bundle = open_bundle(settings.out)
    recipe = bundle.manifest.recipe
    judge = new_model(settings, recipe.channels).deployed().eval()
    return Finished(dataset, settings, recipe, judge, load_file(bundle.path(ROLE_WEIGHTS)))


def _searched(dataset: str, settings: TrainSettings) -> Finished:
    found = load_dataset(settings.data, settings.group_pattern)
    split = split_by_group(found, settings.holdout, settings.validation, settings.seed)
    recipe = make_recipe(settings, split.fit)
    judge = new_model(settings, recipe.channels).deployed().eval()
    judge.load_state_dict(load_checkpoint(checkpoint_path(settings.out), settings.learnt(), "")["best"])
    once = Remembered(judge)
    inspector = Inspector(once, settings.size, settings.score, model_class(settings.model).pooling)
    learn_typical(inspector, load(split, recipe, settings))
    return Finished(dataset, settings, recipe, once, inspector.state_dict())
