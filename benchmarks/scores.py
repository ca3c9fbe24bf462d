"""What every score of a model has to go by: image AUROC of each, of cells that ``benchmarks.models`` has finished.

A training has one score, but its networks can be asked for all that the table of models gives for it. Nothing is
trained here; each look at test images is put on record. The engine is PyTorch.

    python -m benchmarks.models --data synthetic:// --models ae,vae --settings steps=1200 --work runs/models --json FILE
    python -m benchmarks.scores --work runs/models --json benchmarks/results/scores.json --page docs/models/scores.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.cells import data_sets, sources_of
from benchmarks.common import half_interval, machine, parser, write
from benchmarks.finished import RECORD, Finished, open_cell
from benchmarks.model_page import replaced, table
from benchmarks.models import RESULTS
from benchmarks.searched import evaluated, look
from calibration.evaluate import log_look
from contract.dataset import load_dataset
from contract.errors import ConfigError, FlawlineError
from training.models import MODELS

BEGIN = "<!-- figures: written by benchmarks.scores -->"
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    made = parser(__doc__)
    made.add_argument("--data", action="append", metavar="DIR", help="as it was trained on; default: synthetic://")
    made.add_argument("--models", metavar="A,B", help="default: all that are finished")
    made.add_argument("--work", type=Path, help="folder of the cells; without it only --page is written")
    made.add_argument("--looks", type=Path, default=RESULTS / "test_looks.csv", help="record of looks at test images")
    made.add_argument("--page", type=Path, help="page in docs whose tables are written anew from --json")
    options = made.parse_args(arguments)
    try:
        if options.work:
            here = machine()
            write(options.json, document(options.json, measure(options)), here)
        if options.page:
            found = json.loads(options.json.read_text())
            options.page.write_text(replaced(options.page.read_text(), section(found), str(options.page), BEGIN))
    except FlawlineError as error:
        sys.stderr.write(f"benchmarks.scores: {error}\n")
        return error.exit_code
    return 0


def measure(options: argparse.Namespace) -> list[Row]:
    """A row for each data set and model of which cells are finished."""
    found: dict[tuple[str, str], tuple[list[Path], Path]] = {}
    for name, data in data_sets(options.data or ["synthetic://"], options.work)[0].items():
        for folder in sorted((options.work / name).glob("*-*")):
            cells = sorted(cell.parent for cell in folder.glob(f"seed*/{RECORD}"))
            model = folder.name.rpartition("-")[0]
            if not cells or (options.models and model not in options.models.split(",")):
                continue
            if (name, model) in found:
                raise ConfigError(
                    f"{folder}: {model} was trained on {name} with other settings too; give another --work"
                )
            found[name, model] = cells, data
    if not found:
        raise ConfigError(f"{options.work}: no finished cells of these data sets and models")
    return [make_row(cells, data, options.looks) for cells, data in found.values()]


def make_row(cells: list[Path], data: Path, looks: Path) -> Row:
    """Every score of the seeds of one data set and model."""
    found = [open_cell(cell, data) for cell in cells]
    first = found[0]
    names = MODELS[first.settings.model].scores
    aurocs = {name: [auroc(one, name, looks) for one in found] for name in names}
    return {
        "dataset": first.dataset,
        "model": first.settings.model,
        "asked": {name: getattr(first.settings, name) for name in ("size", "steps", "minutes")},
        "score": first.settings.score,
        "seeds": [one.settings.seed for one in found],
        "image_auroc": aurocs,
        "source": sorted({source for cell in cells for source in sources_of(cell)}),
    }


def auroc(cell: Finished, score: str, looks: Path) -> float:
    """Image AUROC of the cell's test images by ``score``; the look is recorded."""
    samples = load_dataset(cell.settings.data, cell.settings.group_pattern).test
    seen = look(cell.inspector(score), cell.recipe, samples)
    figures = evaluated(seen, cell.settings, cell.dataset)
    figures["calibration"] = f"score {score}"
    looks.parent.mkdir(parents=True, exist_ok=True)
    log_look(looks, figures)
    return float(figures["image_auroc"])


def document(path: Path, rows: list[Row]) -> dict[str, Any]:
    """The file's content: new rows in the place of old ones of the same data set and model, all sorted."""
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    known = {(row["dataset"], row["model"]): row for row in [*kept, *rows]}
    return {"question": "what has each of a model's scores to go by?", "rows": [known[key] for key in sorted(known)]}


def section(found: dict[str, Any]) -> str:
    """Markdown of the file: a table for each data set, a column a score."""
    rows: list[Row] = found["rows"]
    if not rows:
        return "Nothing has been measured yet.\n"
    parts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        scores = list(dict.fromkeys(score for row in own for score in row["image_auroc"]))
        body = [
            [f"`{row['model']}`", _budget(row), str(len(row["seeds"])), *(_cell(row, score) for score in scores)]
            for row in own
        ]
        header = ["model", "budget", "seeds", *(f"`{score}`" for score in scores)]
        parts.append(f"`{dataset}`, image AUROC:\n\n{table(header, body)}")
    origins = [f"- `{row['model']}` on `{row['dataset']}`: trained at {', '.join(row['source'])}\n" for row in rows]
    return "\n".join([*parts, "".join(origins)])


def _budget(row: Row) -> str:
    asked = row["asked"]
    return f"{asked['steps']} steps" if asked["steps"] else f"{asked['minutes']:g} min"


def _cell(row: Row, score: str) -> str:
    values = row["image_auroc"].get(score)
    if values is None:
        return "—"
    half = half_interval(values)
    text = f"{statistics.fmean(values):.3f}" + ("" if half is None else f" ± {half:.3f}")
    return f"**{text}**" if score == row["score"] else text


if __name__ == "__main__":
    sys.exit(main())
