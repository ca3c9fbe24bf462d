"""How many good images are enough: the same training on 10, 30 and 100 of them (before hop 1).

Each has an equal share of the budget, the same seed and the same validation parts, and is judged by what the model
itself selects by. Test images are not read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.bundle import write_atomic
from contract.dataset import Sample, load_dataset
from contract.errors import ConfigError
from contract.recipe import Recipe
from training.augment import learn_augmentation
from training.build import choose_device, claim_folder
from training.checkpoint import FOLDER
from training.data import Split, groups_in, line_asked, load_tiles, make_recipe, split_by_group
from training.errors import StoppedError
from training.fit import Fitted, Tiles, fit, new_model
from training.page import few_shot_page
from training.report import Quiet, Reporter
from training.settings import TrainSettings
from training.world import alone

COUNTS = (10, 30, 100)
PAGE, FIGURES = "few_shot.html", "few_shot.json"


def few_shot(settings: TrainSettings, reporter: Reporter | None = None) -> list[dict[str, Any]]:
    """Train on growing numbers of good images and leave a page and its figures in ``settings.out``.

    Returns a row a number of images: images, parts, validation_loss, steps, minutes. Raises a FlawlineError.
    """
    reporter = reporter or Quiet()
    if not alone():
        raise ConfigError("--few-shot trains in one process; start it without torchrun")
    choose_device(settings)
    dataset = load_dataset(settings.data, settings.group_pattern)
    split = split_by_group(dataset, settings.holdout, settings.validation, settings.seed)
    counts = counts_for(len(split.fit))
    claim_folder(settings)
    # The same for all, so that the curve shows the images' number alone.
    recipe = make_recipe(settings, split.fit, line_asked(settings))
    rows: list[dict[str, Any]] = []
    for count in counts:
        chosen = spread_over_parts(split.fit, count)
        try:
            folder = settings.out / FOLDER / f"few_{count}"
            fitted = _train(settings, recipe, split._replace(fit=chosen), len(counts), folder)
        except StoppedError as stop:
            raise StoppedError(
                f"stopped after {len(rows)} of {len(counts)} trainings; the curve was not written: the same command "
                "with --overwrite starts again"
            ) from stop
        rows.append(
            {
                "images": len(chosen),
                "parts": groups_in(chosen),
                "validation_loss": fitted.validation_loss,
                "steps": fitted.steps,
                "minutes": round(fitted.seconds / 60, 3),
            }
        )
        reporter.say(
            f"{len(chosen)} good images of {groups_in(chosen)} parts: validation loss {fitted.validation_loss:.4f} "
            f"after {fitted.steps} steps"
        )
    sentence = verdict(rows)
    reporter.say(sentence)
    _write(settings, rows, sentence)
    reporter.say(f"report: {settings.out / PAGE}")
    return rows


def counts_for(available: int) -> list[int]:
    """10, 30, 100 as far as there are images, and all that there are where that is fewer than 100."""
    counts = [count for count in COUNTS if count <= available]
    if available < COUNTS[-1] and available not in counts:
        counts.append(available)
    if len(counts) < 2:
        raise ConfigError(
            f"--few-shot: {available} images to learn from make no curve; expected at least {COUNTS[0] + 1}. Add "
            "images, or train without --few-shot"
        )
    return counts


def spread_over_parts(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` samples, one of each part before a second of any; a smaller choice is part of every larger one."""
    seen: dict[str, int] = {}
    ranked = []
    for place, sample in enumerate(samples):
        turn = seen[sample.group] = seen.get(sample.group, 0) + 1
        ranked.append((turn, place, sample))
    return [sample for _, _, sample in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def _train(settings: TrainSettings, recipe: Recipe, split: Split, shares: int, out: Path) -> Fitted:
    budget = {
        "minutes": settings.minutes / shares if settings.minutes else None,
        "steps": max(1, settings.steps // shares) if settings.steps else None,
    }
    own = settings.model_copy(update={"out": out, "tensorboard": False, **budget})
    line = line_asked(settings)
    learn = load_tiles(split.fit, recipe, line)
    parts = [sample.group for sample in split.fit for _ in range(recipe.tiles)]
    augmentation = learn_augmentation(learn, parts, own.flips, recipe.tiles)
    tiles = Tiles(learn, load_tiles(split.validation, recipe, line), augmentation)
    return fit(new_model(own, recipe.channels), tiles, own, f"few shot {len(split.fit)}")


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """What the curve says, in a sentence."""
    before, last = rows[-2], rows[-1]
    gain = (before["validation_loss"] - last["validation_loss"]) / max(1e-12, abs(before["validation_loss"]))
    if gain > 0.05:
        return (
            f"{last['images']} images are {gain:.0%} better than {before['images']}: more good images are worth taking"
        )
    if gain < -0.05:
        return (
            f"{last['images']} images do worse than {before['images']} in the same time: they vary more than the "
            "budget allows to learn; train longer before you take more images"
        )
    return f"{last['images']} images are hardly better than {before['images']}: more of the same kind gain little"


def _write(settings: TrainSettings, rows: list[dict[str, Any]], sentence: str) -> None:
    name = settings.name or settings.data.resolve().name
    figures = {"name": name, "model": settings.model, "seed": settings.seed, "rows": rows, "verdict": sentence}
    write_atomic(settings.out / FIGURES, (json.dumps(figures, indent=1) + "\n").encode())
    write_atomic(settings.out / PAGE, few_shot_page(name, rows, sentence).encode())
    shutil.rmtree(settings.out / FOLDER, ignore_errors=True)
