"""The protocol of arXiv 1906.11632 with the product's models: EGBAD's four variants and GANomaly, clean and leaky.

One class is anomalous, the others are normal; 80 % of the data, less that class, are learnt from, and the other 20 %
are scored. The figure is AUPRC, as average precision. EGBAD a/b is trained by a and scored by b: ``ce`` is cross
entropy, ``fm`` feature matching.

clean   of the weights that did best on held-out *normal* data, as ``flawline train`` picks them
leaky   the article's own protocol: the best of the twenty evaluations on the test data, of the very same training

Cells are measured in the order of their seeds, so that what is there after an hour is whole. Finished cells are kept
below --work and never trained again; after Ctrl-C or a crash the same command goes on.

    python -m benchmarks.survey --data DIR --seeds 3 --json benchmarks/results/survey.json --page docs/survey.md
    python -m benchmarks.survey --data DIR --seeds 3 --finished --page docs/survey.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import half_interval, machine, parser, write

if TYPE_CHECKING:
    from benchmarks.cells import Skipped
    from benchmarks.survey_cells import Budget, Cell
    from benchmarks.survey_data import Data

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACK = Path(os.environ.get("FLAWLINE_DATA", ROOT.parent / "shared" / "data")) / "benchmarks"
DATA_SETS = ("mnist", "fashion-mnist", "cifar10", "kdd99")
CLASSES = {"kdd99": (1,)}  # of the others 0 to 9
NOTES = {
    "mnist": "28 px brought to 32 px",
    "fashion-mnist": "28 px brought to 32 px",
    "cifar10": "JPEG copies, lossy (about 30 dB beside the originals): indicative only",
    "kdd99": "10 %; attacks, the majority, are what is normal, and normal connections the anomaly; dense networks",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _options(arguments)
    # Spinning threads make a step several times slower on a machine that is also doing something else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from contract.errors import FlawlineError
    from training.errors import StoppedError

    try:
        measure(options)
        if options.page:
            from benchmarks.survey_page import write_page

            write_page(options.json, options.page)
    except (KeyboardInterrupt, StoppedError):
        sys.stderr.write("benchmarks.survey: interrupted; the same command goes on where it was\n")
        return 130
    except FlawlineError as error:
        sys.stderr.write(f"benchmarks.survey: {error}\n")
        return error.exit_code
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, RESULTS / "survey.json")
    made.add_argument("--data", type=Path, default=PACK, metavar="DIR", help="with a folder for each data set")
    made.add_argument("--datasets", type=_names, default=DATA_SETS, metavar="A,B", help=", ".join(DATA_SETS))
    made.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, 2, ...")
    made.add_argument("--steps", type=int, help="of every training, in place of the data set's own number")
    made.add_argument("--finished", action="store_true", help="train nothing: the figures of the cells that are there")
    made.add_argument("--work", type=Path, default=Path("runs/survey"), help="folder of the cells")
    made.add_argument("--looks", type=Path, default=RESULTS / "test_looks.csv", help="record of looks at test data")
    made.add_argument("--page", type=Path, help="page in docs whose tables are written anew from --json")
    return made.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(DATA_SETS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(DATA_SETS)}")
    return names


def measure(options: argparse.Namespace) -> None:
    """Finish every cell, or none, and write the rows beside those that the file has of other data sets."""
    import torch

    from benchmarks.cells import Skipped
    from benchmarks.survey_cells import make_cell

    torch.set_num_threads(1)
    skipped = absent(options.data, options.datasets)
    names = [name for name in options.datasets if name not in {entry.what for entry in skipped}]
    cells = [
        make_cell(name, anomalous, training, seed, budget(name, options.steps), options.work, options.data / name)
        for seed in range(options.seeds)
        for name in names
        for anomalous, training in asked(name)
    ]
    if not options.finished:
        skipped += run(cells, options.data, options.looks)
    records = [record for cell in cells if (record := cell.record) is not None]
    skipped += [Skipped(cell.name, why) for cell in cells if (why := (cell.record or {}).get("failed"))]
    finished = {
        name: {
            "finished": sum(record["dataset"] == name for record in records),
            "of": options.seeds * len(asked(name)),
        }
        for name in options.datasets
    }
    write(options.json, document(options.json, finished, records, skipped), machine())


def asked(dataset: str) -> list[tuple[int, str]]:
    """Anomalous class and training of each cell of one seed."""
    from benchmarks.survey_cells import TRAININGS

    return [(anomalous, training) for anomalous in CLASSES.get(dataset, range(10)) for training in TRAININGS]


def budget(dataset: str, steps: int | None) -> Budget:
    """The data set's, or with another number of steps."""
    from benchmarks.survey_cells import BUDGETS

    return BUDGETS[dataset] if steps is None else BUDGETS[dataset]._replace(steps=steps)


def absent(folder: Path, names: Sequence[str]) -> list[Skipped]:
    """Data sets that are not below ``folder``."""
    from benchmarks.cells import Skipped

    return [
        Skipped(name, "absent: the data folder has no such folder") for name in names if not (folder / name).is_dir()
    ]


def run(cells: Sequence[Cell], folder: Path, looks: Path) -> list[Skipped]:
    """Measure what is not finished yet; data sets that cannot be read are named and do not stop the others."""
    from benchmarks.cells import Skipped
    from benchmarks.survey_cells import finish
    from benchmarks.survey_data import READERS
    from contract.errors import DatasetError

    failed: dict[str, Skipped] = {}
    loaded: tuple[str, Data] | None = None
    for number, cell in enumerate(cells, 1):
        if cell.record is not None or cell.dataset in failed:
            continue
        try:
            if loaded is None or loaded[0] != cell.dataset:
                loaded = None  # before the next one takes its place in memory
                loaded = (cell.dataset, READERS[cell.dataset](folder / cell.dataset))
        except DatasetError as error:
            failed[cell.dataset] = Skipped(cell.dataset, str(error).replace(str(folder), "DIR"))
            continue
        finish(cell, loaded[1], looks)
        sys.stderr.write(f"{number} of {len(cells)}: {cell.name}\n")
        sys.stderr.flush()
    return list(failed.values())


def document(
    path: Path, finished: dict[str, dict[str, int]], records: list[dict[str, Any]], skipped: Sequence[Skipped]
) -> dict[str, Any]:
    """The file's content: rows of these data sets anew, those of others as they are."""
    from benchmarks.survey_cells import BUDGETS

    kept = (
        json.loads(path.read_text()) if path.is_file() else {"rows": [], "averages": [], "trainings": {}, "skipped": []}
    )
    others = {part: [row for row in kept[part] if row["dataset"] not in finished] for part in ("rows", "averages")}
    rows = [*others["rows"], *rows_of(records)]
    return {
        "question": "EGBAD's four variants and GANomaly by the protocol of arXiv 1906.11632, clean and leaky",
        "figure": "AUPRC, as average precision",
        "budgets": {name: found._asdict() for name, found in BUDGETS.items()},
        "notes": NOTES,
        "trainings": kept["trainings"] | finished,
        "rows": sorted(rows, key=lambda row: DATA_SETS.index(row["dataset"])),
        "averages": sorted([*others["averages"], *averages(records)], key=lambda row: DATA_SETS.index(row["dataset"])),
        "skipped": [
            *(entry for entry in kept["skipped"] if entry["what"].partition(",")[0] not in finished),
            *(entry._asdict() for entry in skipped),
        ],
    }


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a data set, class and variant: means over the seeds."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for record in in_order(records):
        for variant in record["variants"]:
            groups.setdefault((record["dataset"], record["class"], variant), []).append(record)
    return [
        {
            "dataset": dataset,
            "class": anomalous,
            "class_name": found[0]["class_name"],
            "variant": variant,
            "seeds": [record["seed"] for record in found],
            **protocols([record["variants"][variant] for record in found]),
            "clean_auroc": statistics.fmean(record["variants"][variant]["clean_auroc"] for record in found),
            "chance": statistics.fmean(record["counts"]["anomalous"] / record["counts"]["test"] for record in found),
            "seen_before": statistics.fmean(record["seen_before"] for record in found),
            "counts": found[0]["counts"],
            "budget": found[0]["budget"],
            "per_seed": [{"seed": record["seed"], **record["variants"][variant]} for record in found],
            "refused": [{"seed": record["seed"], "reason": record["refused"]} for record in found if record["refused"]],
            "source": sorted({record["source"] for record in found}),
        }
        for (dataset, anomalous, variant), found in groups.items()
    ]


def in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By data set, class, training and seed, whichever was measured first."""
    from benchmarks.survey_cells import TRAININGS

    trainings = list(TRAININGS)
    return sorted(
        records,
        key=lambda record: (
            DATA_SETS.index(record["dataset"]),
            record["class"],
            trainings.index(record["training"]),
            record["seed"],
        ),
    )


def protocols(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, and half the 95 % interval of it, by either protocol."""
    found: dict[str, Any] = {}
    for name in ("clean", "leaky"):
        values = [figure[name] for figure in figures]
        found |= {name: statistics.fmean(values), f"{name}_half": half_interval(values)}
    return found


def averages(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over the classes of each data set and variant, of the seeds that have every class."""
    groups: dict[tuple[str, str], dict[int, list[dict[str, float]]]] = {}
    for record in in_order(records):
        for variant, figures in record["variants"].items():
            groups.setdefault((record["dataset"], variant), {}).setdefault(record["seed"], []).append(figures)
    rows = []
    for (dataset, variant), seeds in groups.items():
        whole = {seed: found for seed, found in seeds.items() if len(found) == len(CLASSES.get(dataset, range(10)))}
        if whole:
            means = [
                {name: statistics.fmean(figure[name] for figure in found) for name in ("clean", "leaky")}
                for found in whole.values()
            ]
            rows.append({"dataset": dataset, "variant": variant, "seeds": sorted(whole), **protocols(means)})
    return rows


if __name__ == "__main__":
    sys.exit(main())
