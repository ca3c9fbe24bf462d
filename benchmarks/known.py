"""What one model of two product types costs against two models, and what a few labelled defects gain, on a drawn line.

    python -m benchmarks.known --work DIR --json FILE --steps 400 --seeds 2

Two types: the drawn plates, and the same mirrored and in negative. Alone each has ``--steps``, together they have twice
as many, so that each type is learnt from as often. The labelled defects are five plates with chatter, faint waves in a
patch, which the synthetic defects do not draw; others with chatter are in the test. Nothing is chosen by test images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import machine, parser, write
from calibration.evaluate import evaluate, log_look
from contract.images import Pixels, read_image
from edge_runtime.draw import draw_dataset, further_parts
from training.build import train
from training.settings import TrainSettings

LINE = "synthetic://line?seed=11"
GOOD, TEST_GOOD, DEFECTIVE = 100, 40, 42
KNOWN, CHATTERED = 5, 20
CLASS = "chatter"
WAVE_PX, WAVE_LEVELS = 14.0, 3.0


def draw(work: Path) -> tuple[Path, Path]:
    """The folder of both types and that of the labelled defects."""
    data, known = work / "data", work / "known"
    if not data.exists():
        plates = data / "plate"
        draw_dataset(LINE, plates, GOOD, TEST_GOOD, DEFECTIVE)
        for path in sorted(plates.rglob("*.png")):
            picture = read_image(path, 1)[:, ::-1]
            mask = "ground_truth" in path.parts
            _save(data / "negative" / path.relative_to(plates), picture if mask else 255 - picture)
        random = np.random.default_rng(7)
        for number, part in enumerate(islice(further_parts(LINE), KNOWN + CHATTERED)):
            picture, mask = chatter(part, random)
            root = known if number < KNOWN else plates
            images = known / CLASS if number < KNOWN else plates / "test" / CLASS
            _save(images / f"{number:03d}.png", picture)
            _save(root / "ground_truth" / CLASS / f"{number:03d}_mask.png", mask)
    return data, known


def chatter(part: Pixels, random: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Waves that a vibrating tool leaves in a patch of the surface, and the mask of the patch."""
    height, width = part.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    across, down = random.uniform(0.3, 0.7) * width, random.uniform(0.3, 0.7) * height
    patch = np.hypot((x - across) / random.uniform(26, 36), (y - down) / random.uniform(20, 28))
    wave = WAVE_LEVELS * np.sin(2 * np.pi * (x + 0.3 * y) / WAVE_PX + random.uniform(0, 6))
    faded = np.clip((1.15 - patch) / 0.3, 0, 1)
    made = np.clip(np.rint(part + wave * faded), 0, 255).astype(np.uint8)
    return made, np.where(patch < 1, 255, 0).astype(np.uint8)


def _save(path: Path, picture: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)


def measure(work: Path, steps: int, seed: int, looks: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each bundle of one seed."""
    data, known = draw(work)
    rows = []

    def learn(how: str, source: Path, many: int, **asked: Any) -> None:
        out = work / f"{how}-{seed}"
        settings = {"size": 64, "width": 8, "latent": 32, "batch": 16, "fp16": False, "threads": 1, "device": "cpu"}
        if not out.exists():
            train(TrainSettings(data=source, out=out, steps=many, seed=seed, precision="32-true", **settings, **asked))
        for folder in sorted(data.iterdir()) if asked.get("conditional") else [source]:
            bundle = out / folder.name if asked.get("conditional") else out
            figures = evaluate(bundle, folder).figures
            log_look(looks, figures)
            row = {"how": how, "type": folder.name, "seed": seed, "steps": many}
            classes = {name: found["image_auroc"] for name, found in figures["classes"].items()}
            rows.append({**row, "image_auroc": figures["image_auroc"], "pixel_ap": figures["pixel_ap"], **classes})
            say(str(rows[-1]))

    learn("plate alone", data / "plate", steps)
    learn("negative alone", data / "negative", steps)
    learn("together", data, 2 * steps, conditional=True)
    learn("plate with defects", data / "plate", steps, defects=known)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, write."""
    made = parser(__doc__)
    made.add_argument("--work", type=Path, required=True, help="folder for data and bundles; what is there is kept")
    made.add_argument("--looks", type=Path, required=True, help="record of looks at test images")
    made.add_argument("--steps", type=int, default=400)
    made.add_argument("--seeds", type=int, default=2)
    options = made.parse_args(arguments)
    before = machine()
    rows = [
        row for seed in range(options.seeds) for row in measure(options.work, options.steps, seed, options.looks, print)
    ]
    write(options.json, {"rows": rows}, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
