"""What cutting regions over the map's normal level gains: defects drawn into held-out good parts, against the raw map.

    python -m benchmarks.levels --json FILE --pair BUNDLE DATA [--pair ...]

No test image is looked at. A spot and a scratch of 4 to 15 % of the picture's shorter side, 25 grey levels off, are
drawn into each of up to 120 held-out good parts. A part is measured over levels that rest on other parts (five folds).
Both ways let 5 % of the good parts show a region.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import machine, parser, write
from calibration import conformal
from calibration.holdout import hold_out, pattern_of
from calibration.implant import KINDS, implant
from calibration.levels import CONTRAST, FOLDS, REGION, SHOWN, SIZES, find_levels, grids_of
from calibration.metrics import localization
from calibration.places import without_places
from contract.bundle import open_bundle
from contract.dataset import load_dataset
from contract.images import read_image
from contract.places import Floats, Located
from contract.recipe import Places
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector

MOST = 120


def measure(folder: Path, data: Path) -> list[dict[str, Any]]:
    """Two rows: from the raw map, and over the normal level. For bundles of one view."""
    bundle = without_places(open_bundle(folder))
    held = hold_out(bundle, load_dataset(data, pattern_of(bundle, None))).unseen[:MOST]
    inspector = Inspector(bundle, open_engine("auto", bundle, 1))
    random = np.random.default_rng(5)
    good, defective = [], []
    for at, sample in enumerate(held):
        picture = read_image(sample.path, bundle.manifest.recipe.channels)
        good.append(inspector.score(picture)[0])
        for kind in KINDS:
            size = min(picture.shape[:2]) * float(np.exp(random.uniform(*np.log(SIZES))))
            made = implant(picture, kind, size, CONTRAST, random, REGION)
            values = inspector.score(made.picture)[0].maps[0].values
            share = cv2.resize(made.mask.astype(np.float32), values.shape[::-1], interpolation=cv2.INTER_AREA)
            defective.append((at, values, np.asarray(share) > 0.25))
    groups = [sample.group for sample in held]
    fold_of = {name: index % FOLDS for index, name in enumerate(sorted(set(groups)))}
    levels = {}
    for fold in range(FOLDS):
        rest = [at for at, group in enumerate(groups) if fold_of[group] != fold]
        found = find_levels([grids_of(good[at]) for at in rest], [groups[at] for at in rest])
        if found is None:
            raise SystemExit(f"{data}: too few held-out parts for a normal level")
        levels[fold] = Located(bundle.manifest.recipe, bundle.manifest.model.map_hw, Places(), {}, found.views)
    view = bundle.manifest.recipe.views[0].name

    def levelled(at: int, values: Floats) -> Floats:
        over = levels[fold_of[groups[at]]].levelled(view, values)
        return values if over is None else over

    rows = []
    for way, cut_from in (("raw map", lambda at, values: values), ("normal level", levelled)):
        goods = [cut_from(at, part.maps[0].values) for at, part in enumerate(good)]
        bads = [(cut_from(at, values), mask) for at, values, mask in defective if mask.any()]
        limit = conformal.level([float(values.max()) for values in goods], groups, 1 - SHOWN)
        placed = localization(
            [*goods, *(values for values, _ in bads)],
            [*(np.zeros(values.shape, np.bool_) for values in goods), *(mask for _, mask in bads)],
        )
        cut = sum(bool((values > limit)[mask].any()) for values, mask in bads)
        rows.append(
            {
                "model": bundle.manifest.model.name,
                "data": bundle.manifest.data.name,
                "cut_from": way,
                "good": len(goods),
                "drawn": len(bads),
                "defects_cut": cut / len(bads),
                **placed._asdict(),
            }
        )
    return rows


def main(argv: list[str]) -> int:
    made = parser(__doc__)
    made.add_argument("--pair", nargs=2, action="append", required=True, metavar=("BUNDLE", "DATA"))
    asked = made.parse_args(argv)
    before = machine()
    rows = [row for bundle, data in asked.pair for row in measure(Path(bundle), Path(data))]
    write(asked.json, {"rows": rows}, before)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
