"""Whether calibrated bundles keep their rate of false rejects on parts that nobody has seen, and what they let pass.

With --line each bundle rejects --parts further good parts of the same drawn product; beside each rate stands the
interval in which nine calibrations in ten with as many held-out parts should lie. With --data it inspects the test
images of a folder: rejects and escapes in all and by class, each with the interval that its parts allow. A look at
test images is put on record. `python -m benchmarks.models` leaves bundles:

    python -m benchmarks.rates runs/models/synthetic_seed_11/*/seed*/bundle --line 'synthetic://line?seed=11' \\
        --json benchmarks/results/rates.json
    python -m benchmarks.rates runs/models/magnetic_tile/ganomaly_d-*/seed*/bundle --data DIR/magnetic_tile \\
        --json benchmarks/results/rates_magnetic_tile.json
"""

from __future__ import annotations

import argparse
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser, write
from calibration.evaluate import evaluate, log_look, open_inspector
from calibration.progress import steps
from contract.bundle import open_bundle
from contract.images import Pixels
from edge_runtime.draw import further_parts

LOOKS = Path(__file__).resolve().parent / "results" / "test_looks.csv"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("bundles", nargs="+", type=Path, help="calibrated bundles")
    kind = made.add_mutually_exclusive_group(required=True)
    kind.add_argument("--line", help="the line that their parts were drawn from")
    kind.add_argument("--data", type=Path, metavar="DIR", help="folder of images, MVTec AD layout")
    made.add_argument("--parts", type=int, default=500, help="with --line: how many further parts")
    made.add_argument("--engine", default="auto", help="with --data: the engine that the limits were measured with")
    made.add_argument("--looks", type=Path, default=LOOKS, help="with --data: record of looks at test images")
    options = made.parse_args()
    before = machine()
    found = of_line(options) if options.line else of_images(options)
    write(options.json, {"question": (__doc__ or "").splitlines()[0], **found}, before)


def of_line(options: argparse.Namespace) -> dict[str, Any]:
    """Every bundle on the same further good parts of a drawn line."""
    parts = list(islice(further_parts(options.line), options.parts))
    rows = [row(folder, parts) for folder in steps(options.bundles, "bundles")]
    rates = [each["rejected"] for each in rows]
    summary = {"mean": statistics.mean(rates), "least": min(rates), "most": max(rates)}
    return {"line": options.line, "parts": len(parts), **summary, "rows": rows}


def of_images(options: argparse.Namespace) -> dict[str, Any]:
    """Every bundle on the test images of one folder."""
    rows = []
    for folder in steps(options.bundles, "bundles"):
        figures = evaluate(folder, options.data, options.engine).figures
        log_look(options.looks, figures)
        rows.append(row_of_images(figures))
    return {"data": options.data.resolve().name, "rows": rows}


def row_of_images(figures: dict[str, Any]) -> dict[str, Any]:
    """One bundle's rates, in all and by class of defects."""
    thresholds = figures["thresholds"]
    return {
        **{name: figures[name] for name in ("model", "seed", "engine", "counts", "image_auroc", "kept")},
        "method": thresholds["method"],
        "held_out_parts": thresholds["groups"],
        **{name: value for name, value in figures.items() if name.startswith(("false_reject_", "escape_"))},
        "classes": {
            label: {name: value for name, value in found.items() if name.startswith("escape_") or name == "images"}
            for label, found in figures["classes"].items()
        },
    }


def row(folder: Path, parts: list[Pixels]) -> dict[str, Any]:
    """One bundle: the share of ``parts`` that score above its limit, and what was to be expected."""
    inspector = open_inspector(open_bundle(folder), "auto", "fp32")
    manifest = inspector.bundle.manifest
    limits = manifest.thresholds
    if limits is None:
        raise SystemExit(f"{folder}: is not calibrated")
    above = sum(inspector.score(part)[0].score > limits.reject for part in parts)
    return {
        "model": manifest.model.name,
        "seed": manifest.training.get("settings", {}).get("seed"),
        "asked": limits.false_reject_rate,
        "held_out_parts": limits.groups,
        "expected": [limits.expected_low, limits.expected_high],
        "rejected": above / len(parts),
    }


if __name__ == "__main__":
    main()
