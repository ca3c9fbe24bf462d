"""Which model finds which defects: each model on each data set, trained anew from several seeds.

Every figure is the mean over the seeds, of the weights that training itself selected on good images and synthetic
defects: no test image chooses an epoch, a seed or a setting. Every look at test images is recorded.

image_auroc, image_ap, f1_max   how the images' scores rank; image_auroc_std is the sample deviation over the seeds,
                                of which the page makes half of Student's 95 % interval of the mean
pixel_auroc, pixel_ap           how the maps' pixels rank
aupro, aupro_005                per-region overlap up to false-positive rates of 0.3 and of 0.05, over that limit
escape_rate_at_frr05            share of defective test images that pass at the threshold which rejects 5 % of the good
                                *test* images: a property of the ranking, no promise
false_reject_rate, escape_rate  what the threshold really rejected and let pass that was calibrated at 5 % on held-out
                                good parts
latency_ms                      median of ONNX Runtime FP32 on the bare graph, one tile, 2 threads, all graphs in turns

Finished cells are kept below --work and never trained again; after Ctrl-C or a crash the same command goes on.

    python -m benchmarks.models --data DIR --data synthetic:// --models ganomaly,f_anogan --minutes 45 \\
        --json benchmarks/results/models.json
    python -m benchmarks.models --data DIR --models ganomaly --seeds 1 --settings size=128 width=16 --json FILE
    python -m benchmarks.models --json benchmarks/results/models.json --page docs/models/README.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine, parser, write

if TYPE_CHECKING:
    from benchmarks.cells import Cell, Skipped

RESULTS = Path(__file__).resolve().parent / "results"
MEANS = (
    "image_auroc",
    "image_ap",
    "aupro",
    "aupro_005",
    "pixel_auroc",
    "pixel_ap",
    "f1_max",
    "escape_rate_at_frr05",
    "false_reject_rate",
    "escape_rate",
)
CLASS_MEANS = ("image_auroc", "pixel_ap", "aupro", "escape_rate_at_frr05", "escape_rate")
LATENCY_ROUNDS = 30
LATENCY_CALLS = 3
THREADS = 2
Records = list[tuple["Cell", dict[str, Any]]]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _options(arguments)
    # Spinning threads make a step several times slower on a machine that is also doing something else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from contract.errors import FlawlineError

    try:
        if options.data:
            measure(options)
        if options.page:
            from benchmarks.model_page import write_page

            write_page(options.json, options.page)
    except FlawlineError as error:
        sys.stderr.write(f"benchmarks.models: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks.models: interrupted; the same command goes on where it was\n")
        return 130
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--data", action="append", default=[], metavar="DIR", help="MVTec AD layout, or synthetic://")
    made.add_argument("--models", default="", metavar="A,B", help="names of the model table")
    made.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, 2, ...")
    made.add_argument("--minutes", type=float, help="training time of a cell")
    made.add_argument("--settings", nargs="+", action="extend", default=[], metavar="K=V", help="of flawline train")
    made.add_argument("--engine", default="onnxruntime", help="that measures scores and maps")
    made.add_argument("--work", type=Path, default=Path("runs/models"), help="folder of the cells")
    made.add_argument("--looks", type=Path, default=RESULTS / "test_looks.csv", help="record of looks at test images")
    made.add_argument("--page", type=Path, help="page in docs whose table is written anew from --json")
    options = made.parse_args(arguments)
    if not options.data and not options.page:
        made.error("give --data and --models to measure, or --page to write the page of what was measured")
    if options.data and (not options.models or options.seeds < 1):
        made.error("--data needs --models A,B and at least one seed")
    return options


def settings_of(words: Sequence[str], minutes: float | None) -> dict[str, Any]:
    """``["size=128", "tiles=2x3"]`` as settings of a training; raises ConfigError."""
    from contract.errors import ConfigError
    from training.cli import parse_tiles

    settings: dict[str, Any] = {} if minutes is None else {"minutes": minutes}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name in ("data", "out", "model", "seed", "resume", "overwrite"):
            raise ConfigError(f"--settings {word!r}: expected a setting of flawline train, such as size=128")
        settings[name] = parse_tiles(value) if name == "tiles" else value
    return settings


def measure(options: argparse.Namespace) -> None:
    """Finish every cell and write the rows, beside those that the file has of other data sets and models."""
    from rich.console import Console

    from benchmarks.cells import data_sets, make_cell, run_cells
    from training.report import Terminal

    sets, skipped = data_sets(options.data, options.work)
    asked = settings_of(options.settings, options.minutes)
    cells = [
        make_cell(name, folder, model, seed, asked, options.work)
        for name, folder in sets.items()
        for model in options.models.split(",")
        for seed in range(options.seeds)
    ]
    with Terminal(Console(stderr=True)) as terminal:
        done, failed = run_cells(cells, options.engine, options.looks, terminal)
    here = machine()
    rows = make_rows(done, failed, latencies(first_graphs(done)), here)
    write(options.json, document(options.json, rows, [*skipped, *failed]), here)


def document(path: Path, rows: list[dict[str, Any]], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """The file's content: new rows in the place of old ones of the same data set and model, all sorted."""
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    table = {(row["dataset"], row["model"]): row for row in [*kept, *rows]}
    return {
        "question": "which model finds which defects, trained from scratch on good images alone?",
        "rows": [table[key] for key in sorted(table)],
        "skipped": [entry._asdict() for entry in skipped],
    }


def make_rows(
    done: Records, failed: Sequence[Skipped], latency: dict[tuple[str, str], float], here: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row a data set and model; a seed that failed is named in it, since leaving it out would flatter."""
    groups: dict[tuple[str, str], Records] = {}
    for cell, record in done:
        groups.setdefault((cell.dataset, cell.settings.model), []).append((cell, record))
    return [
        {
            **make_row(key, records, latency.get(key), here),
            "failed": [entry._asdict() for entry in failed if entry.what.startswith(f"{key[0]}, {key[1]}, ")],
        }
        for key, records in groups.items()
    ]


def make_row(key: tuple[str, str], records: Records, latency_ms: float | None, here: dict[str, Any]) -> dict[str, Any]:
    """Means over the seeds of one data set and model, and what a reader needs to make them again."""
    figures = [record["figures"] for _, record in records]
    first = records[0][1]
    means = {name: mean([found[name] for found in figures]) for name in MEANS}
    classes = {label: class_row([found["classes"][label] for found in figures]) for label in figures[0]["classes"]}
    return {
        "dataset": key[0],
        "model": key[1],
        "seeds": len(records),
        "image_auroc": means.pop("image_auroc"),
        "image_auroc_std": deviation([found["image_auroc"] for found in figures]),
        **means,
        "per_class": {label: found["image_auroc"] for label, found in classes.items()},
        "train_minutes": mean([record["training"]["minutes"] for _, record in records]),
        "latency_ms": latency_ms,
        "parameters": first["parameters"],
        "machine": machine_line(here),
        "classes": classes,
        "per_seed": [
            {"seed": cell.settings.seed, "steps": record["training"]["steps"]}
            | {name: record["figures"][name] for name in MEANS}
            for cell, record in records
        ],
        "trained_on": sorted({machine_line(record["machine"]) for _, record in records}),
        "tiles": first.get("tiles"),
        "source": sorted({source for _, record in records for source in record["source"]}),
        "settings": first["settings"] | {"seed": [cell.settings.seed for cell, _ in records]},
        "asked": records[0][0].asked,
        "counts": first["counts"],
        "engine": first["figures"]["engine"],
        "latency": {"engine": "ONNX Runtime FP32", "threads": THREADS, "batch": 1, "load_1min": here["load_1min"]},
        "not_calibrated": [record["not_calibrated"] for _, record in records if record["not_calibrated"]],
        "date": datetime.now(UTC).date().isoformat(),
    }


def class_row(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds for one class of defects against all good test images."""
    auroc = [figures["image_auroc"] for figures in found]
    return {
        "images": found[0]["images"],
        **{name: mean([figures[name] for figures in found]) for name in CLASS_MEANS},
        "image_auroc_std": deviation(auroc),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing, since a mean over the others would be of something else."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def deviation(values: Sequence[float | None]) -> float | None:
    """The sample standard deviation; None below two values or where one is missing."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) and len(known) > 1 else None


def machine_line(found: dict[str, Any]) -> str:
    """``PROCESSOR, 2 cores`` and the graphics card where there is one."""
    return ", ".join(filter(None, [found["processor"], f"{found['cores']} cores", found["gpu"]]))


def first_graphs(done: Records) -> dict[tuple[str, str], Path]:
    """Bundle folder of the first seed of each data set and model that has one: seeds share their graph's shape."""
    from training.models import model_entry

    found: dict[tuple[str, str], Path] = {}
    for cell, _ in done:
        if model_entry(cell.settings.model).not_exported:
            continue
        found.setdefault((cell.dataset, cell.settings.model), cell.settings.out)
    return found


def latencies(bundles: dict[tuple[str, str], Path]) -> dict[tuple[str, str], float]:
    """Median milliseconds of one tile through each bundle's bare graph; the graphs take turns."""
    import numpy as np

    from contract.bundle import ROLE_GRAPH, open_bundle
    from training.export import open_session

    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for key, folder in bundles.items():
        bundle = open_bundle(folder)
        session = open_session(bundle.path(ROLE_GRAPH), THREADS)
        tile = np.load(bundle.path(bundle.manifest.golden.role))[:1]
        calls[key] = lambda session=session, tile=tile: session.run(None, {"image": tile})  # type: ignore[misc]
    took: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(LATENCY_ROUNDS):
        for key, call in calls.items():
            call()  # brings the weights back into the cache
            for _ in range(LATENCY_CALLS):
                began = time.perf_counter()
                call()
                took[key].append(1e3 * (time.perf_counter() - began))
    return {key: statistics.median(values) for key, values in took.items()}


if __name__ == "__main__":
    sys.exit(main())
