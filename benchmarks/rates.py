"""Whether calibrated bundles of the drawn line keep their rate of false rejects on parts that nobody has seen.

Each bundle rejects --parts further good parts of the same product, drawn anew; beside each rate stands the interval in
which nine calibrations in ten with as many held-out parts should lie. `python -m benchmarks.models` leaves bundles:

    python -m benchmarks.rates runs/models/synthetic_seed_11/*/seed*/bundle --line 'synthetic://line?seed=11' \\
        --json benchmarks/results/rates.json
"""

from __future__ import annotations

import statistics
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser, write
from calibration.evaluate import open_inspector
from calibration.progress import steps
from contract.bundle import open_bundle
from contract.images import Pixels
from edge_runtime.draw import further_parts


def main() -> None:
    made = parser(__doc__)
    made.add_argument("bundles", nargs="+", type=Path, help="calibrated bundles")
    made.add_argument("--line", required=True, help="the line that their parts were drawn from")
    made.add_argument("--parts", type=int, default=500)
    options = made.parse_args()
    before = machine()
    parts = list(islice(further_parts(options.line), options.parts))
    rows = [row(folder, parts) for folder in steps(options.bundles, "bundles")]
    rates = [each["rejected"] for each in rows]
    summary = {"mean": statistics.mean(rates), "least": min(rates), "most": max(rates)}
    question = (__doc__ or "").splitlines()[0]
    write(
        options.json, {"question": question, "line": options.line, "parts": len(parts), **summary, "rows": rows}, before
    )


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
