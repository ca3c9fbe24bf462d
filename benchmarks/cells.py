"""One cell of the table of models: a data set, a model and a seed, trained, calibrated and evaluated once.

A cell has a folder of its own, named after everything that decides its figures: data, model, settings, budget, seed.
What is finished there is read, never made again; a stopped training goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks.common import machine
from benchmarks.searched import measure, tiles_of
from calibration.calibrate import Rates, propose, write
from calibration.errors import CalibrationError
from calibration.evaluate import FIXED_FALSE_REJECTS, evaluate, log_look
from contract.bundle import MANIFEST, Bundle, open_bundle, write_atomic
from contract.config import validate
from contract.dataset import load_dataset
from contract.errors import ConfigError, FlawlineError
from edge_runtime.draw import draw_dataset
from training.build import train
from training.checkpoint import checkpoint_path
from training.errors import InterruptedBeforeTrainingError, StoppedError
from training.models import MODELS
from training.report import Reporter
from training.settings import TrainSettings

SYNTHETIC = "synthetic://line?seed=11"
"""What ``synthetic://`` stands for: a drawn line that neither demo nor tests use, so nothing was chosen by it."""
ROOT = Path(__file__).resolve().parents[1]


class Skipped(NamedTuple):
    """A data set or a cell without figures, and why."""

    what: str
    reason: str


class Cell(NamedTuple):
    """What to train on what; ``folder`` holds its bundle and, once finished, ``cell.json``."""

    dataset: str
    folder: Path
    settings: TrainSettings
    asked: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.settings.model}, seed {self.settings.seed}"


def data_sets(asked: list[str], work: Path) -> tuple[dict[str, Path], list[Skipped]]:
    """Name -> folder of each data set, and what is absent. A folder of data sets stands for all of them.

    ``synthetic://...`` is drawn below ``work``. Raises ConfigError where two have the same name.
    """
    found: dict[str, Path] = {}
    skipped: list[Skipped] = []
    for text in asked:
        folders = [drawn_line(text, work)] if text.startswith("synthetic://") else _folders(Path(text))
        if not folders:
            skipped.append(Skipped(Path(text).name, "absent: no train/good in it, nor in a folder below it"))
        for folder in folders:
            name = folder.resolve().name
            if name in found and found[name].resolve() != folder.resolve():
                raise ConfigError(f"--data {folder}: another data set is called {name!r} as well; rename one of them")
            if any((folder / "test").glob("*/*")):
                found[name] = folder
            else:
                skipped.append(Skipped(name, "no images in test/good and test/<defect>"))
    return found, skipped


def _folders(path: Path) -> list[Path]:
    candidates = [path, *sorted(path.iterdir())] if path.is_dir() else []
    found = [folder for folder in candidates if (folder / "train" / "good").is_dir()]
    return found[:1] if found and found[0] == path else found


def drawn_line(url: str, work: Path) -> Path:
    """The folder of parts that ``flawline edge draw`` makes of ``url``, drawn where it is not there yet."""
    whole = SYNTHETIC if url == "synthetic://" else url
    folder = work / "data" / f"synthetic_{urlsplit(whole).query.replace('=', '_').replace('&', '_')}"
    done = folder.with_suffix(".drawn")
    if not done.exists():
        if folder.exists():
            raise ConfigError(f"{folder}: was left half drawn; remove it and start again")
        draw_dataset(whole, folder)
        done.touch()
    return folder


def make_cell(name: str, data: Path, model: str, seed: int, asked: dict[str, Any], work: Path) -> Cell:
    """The cell of these settings; raises ConfigError where they do not fit the model."""
    values = {**asked, "data": data, "model": model, "seed": seed}
    key = {**MODELS[model].preset, **asked} if model in MODELS else asked
    text = json.dumps([key, _listing(data)], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = work / name / f"{model}-{digest}" / f"seed{seed}"
    settings = validate(TrainSettings, {**values, "out": folder / "bundle"}, "--settings")
    return Cell(name, folder, settings, asked)


def _listing(data: Path) -> list[tuple[str, int]]:
    """Relative name and size of every file: figures of other images are other figures."""
    return sorted((p.relative_to(data).as_posix(), p.stat().st_size) for p in data.rglob("*") if p.is_file())


def finish(cell: Cell, engine: str, looks: Path, reporter: Reporter) -> dict[str, Any]:
    """The record of the cell, made now where there is none. Raises a FlawlineError where it cannot be made."""
    record_path = cell.folder / "cell.json"
    searched = bool(MODELS[cell.settings.model].not_exported)
    if record_path.is_file():
        record = dict(json.loads(record_path.read_text()))
        if searched or is_engine(record["figures"]["engine"], engine):
            reporter.say(f"{cell.name}: finished before, read from {record_path}")
            return record
        reporter.say(
            f"{cell.name}: trained before; measured again, since then it was with {record['figures']['engine']}"
        )
    if searched:
        note_source(cell)
        found = {**measure(cell.settings, cell.dataset, looks, reporter), "source": sources(cell)}
    else:
        found = _measure(cell, trained(cell, reporter), engine, looks)
    record = {"when": datetime.now(UTC).isoformat(timespec="seconds"), **found}
    write_atomic(record_path, (json.dumps(record, indent=1) + "\n").encode())
    figures = record["figures"]
    reporter.say(f"{cell.name}: image AUROC {figures['image_auroc']}, AU-PRO {figures['aupro']}")
    return record


def is_engine(description: str, name: str) -> bool:
    """Whether what measured, such as ``openvino-2026.4 fp32 cpu``, is the engine of that name."""
    return name == "auto" or description.startswith(f"{name}-")


def trained(cell: Cell, reporter: Reporter) -> Bundle:
    """The cell's bundle: found, or trained from the start, or from the checkpoint of a stopped run."""
    out = cell.settings.out
    if not (out / MANIFEST).exists():
        resume = checkpoint_path(out).exists()
        reporter.say(f"{cell.name}: {'goes on from its checkpoint' if resume else 'training'}")
        note_source(cell)
        train(cell.settings.model_copy(update={"resume": resume}), reporter)
    return open_bundle(out)


def note_source(cell: Cell) -> None:
    """Put the commit that trains the cell on record; a resumed training may have several."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (cell.folder / "source.txt").open("a") as file:
        file.write(f"{source_version()}\n")


def sources(cell: Cell) -> list[str]:
    """The commits that trained the cell."""
    return sources_of(cell.folder)


def sources_of(folder: Path) -> list[str]:
    """The commits that trained the cell in ``folder``."""
    return sorted(set((folder / "source.txt").read_text().split()))


def source_version() -> str:
    """Commit of this checkout, with a plus sign where files differ from it; ``unknown`` outside a checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def _measure(cell: Cell, bundle: Bundle, engine: str, looks: Path) -> dict[str, Any]:
    """Calibrate, then look at the test images; the look is recorded before anything else is done with it."""
    data, pattern = cell.settings.data, cell.settings.group_pattern
    refused = None
    thresholds = bundle.manifest.thresholds
    if thresholds is None or not is_engine(thresholds.engine, engine):
        try:
            write(propose(bundle.root, data, Rates(FIXED_FALSE_REJECTS), engine, pattern))
        except CalibrationError as error:  # too few parts for the rate: the ranking can still be measured
            refused = str(error)
    figures = evaluate(bundle.root, data, engine, pattern).figures
    figures["dataset"] = cell.dataset
    looks.parent.mkdir(parents=True, exist_ok=True)
    log_look(looks, figures)
    manifest = open_bundle(bundle.root).manifest
    return {
        "figures": figures,
        "not_calibrated": refused and _without_paths(refused, cell),
        "parameters": manifest.model.parameters,
        "training": manifest.metrics,
        "settings": manifest.training["settings"],
        "tiles": tiles_of(manifest.recipe),
        "counts": {**manifest.data.model_dump(mode="json", exclude={"name"}), **figures["counts"]},
        "machine": machine(),
        "source": sources(cell),
    }


def _without_paths(text: str, cell: Cell) -> str:
    """A reason that can be published: this machine's folders go by what they hold."""
    return text.replace(str(cell.folder), cell.name).replace(str(cell.settings.data), cell.dataset)


def run_cells(
    cells: list[Cell], engine: str, looks: Path, reporter: Reporter
) -> tuple[list[tuple[Cell, dict[str, Any]]], list[Skipped]]:
    """Records of the cells; one that fails is named with its reason and does not stop the others."""
    done: list[tuple[Cell, dict[str, Any]]] = []
    failed: list[Skipped] = []
    for cell in cells:
        try:
            load_dataset(cell.settings.data, cell.settings.group_pattern)
            done.append((cell, finish(cell, engine, looks, reporter)))
        except (StoppedError, InterruptedBeforeTrainingError):
            raise
        except FlawlineError as error:
            reporter.say(f"{cell.name}: failed: {error}")
            failed.append(Skipped(cell.name, _without_paths(str(error), cell)))
    return done, failed
