"""What a finished training leaves for people: the page of ``training.page``, filled (before hop 1)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from training.advice import advise
from training.augment import Augmentation
from training.data import Split, groups_in
from training.fit import Fitted
from training.graph import Inspection, Inspector
from training.heldout import set_exam
from training.models import model_class
from training.models.adversarial import Late
from training.page import Shown, training_page
from training.pictures import strip
from training.settings import TrainSettings

WORST = 6
DEFECTIVE = 6
LOOKED_AT = 512
PICTURE_PX = 160  # side of a tile on the page: it is carried to the box with the bundle
EXAM_SEED = 7


def report(
    settings: TrainSettings,
    name: str,
    split: Split,
    augmentation: Augmentation,
    fitted: Fitted,
    inspector: Inspector,
    validation: Tensor,
    files: Sequence[str],
    also: Sequence[tuple[str, object]] = (),
) -> str:
    """The page as HTML; ``validation`` uint8 [M, H, W, C] are good tiles, ``files`` the image that each is of.

    ``also``: what else there is to say, as rows of the page's figures.
    """
    worst, defective = _pictures(inspector, validation, files)
    late = issubclass(model_class(settings.model), Late)
    history = [Late.judged(row) for row in fitted.history] if late else fitted.history
    advice = advise(
        history,
        fitted.best_step,
        groups_in(split.fit),
        groups_in(split.validation),
        fitted.mends,
        fitted.seconds / 60,
        late,
    )
    facts = [*_facts(split, augmentation, fitted), *also, *sorted(_asked(settings).items())]
    return training_page(name, facts, history, fitted.best_step, worst, defective, advice)


def _facts(split: Split, augmentation: Augmentation, fitted: Fitted) -> list[tuple[str, object]]:
    sides = {"learnt from": split.fit, "selected on": split.validation, "kept unseen for calibration": split.holdout}
    return [
        *((side, f"{len(samples)} images of {groups_in(samples)} parts") for side, samples in sides.items()),
        ("parts told apart", split.grouping),
        ("augmentation", augmentation.sentence().partition(": ")[2]),
        ("trained", f"{fitted.steps} steps in {fitted.seconds / 60:.1f} minutes, {fitted.images_per_s:.0f} images/s"),
        ("on", f"{fitted.device}, {fitted.processes} process(es), {fitted.precision}"),
        ("weights of step", fitted.best_step),
        ("validation loss", fitted.validation_loss),
    ]


def _asked(settings: TrainSettings) -> dict[str, object]:
    """Settings that decide what is learnt, none that names a folder."""
    return {key: value for key, value in settings.learnt().items() if value is not None}


def _pictures(inspector: Inspector, validation: Tensor, files: Sequence[str]) -> tuple[list[Shown], list[Shown]]:
    looked_at = torch.linspace(0, len(validation) - 1, min(LOOKED_AT, len(validation))).round().long()
    good = inspector.inspect(validation[looked_at])
    order = torch.argsort(good.score, descending=True)[:WORST]
    exam = set_exam(validation[looked_at[order]], EXAM_SEED, DEFECTIVE)
    changed = exam.tiles[len(order) :]
    judged = inspector.inspect(changed) if len(changed) else None
    # One scale for all: what is bright on a good tile is as bright as it would be on a defect.
    top = max(float(seen.map.max()) for seen in (good, judged) if seen is not None)
    worst = [
        _shown(
            validation[looked_at[at]], good, at, top, f"{files[int(looked_at[at])]}: score {float(good.score[at]):.4g}"
        )
        for at in order.tolist()
    ]
    if judged is None:
        return worst, []
    kinds = exam.kinds[len(order) :]
    return worst, [
        _shown(tile, judged, at, top, f"{kinds[at]}: score {float(judged.score[at]):.4g}")
        for at, tile in enumerate(changed)
    ]


def _shown(tile: Tensor, seen: Inspection, at: int, top: float, caption: str) -> Shown:
    picture = strip(tile, seen.reconstruction[at], seen.map[at], top)
    factor = min(1.0, PICTURE_PX / len(picture))
    if factor < 1.0:
        small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        picture = np.asarray(small, np.uint8)
    return Shown(picture, caption)
