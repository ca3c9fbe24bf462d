"""Data folder -> trained model -> verified bundle: the whole of ``flawline train`` as one function (before hop 1)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from contract.bundle import (
    MANIFEST,
    ROLE_DATA,
    ROLE_FIXTURE,
    ROLE_GRAPH,
    ROLE_GRAPH_FP16,
    ROLE_PREPROCESS,
    DataFingerprint,
    Golden,
    Manifest,
    ModelInfo,
    file_entry,
    open_bundle,
    write_atomic,
    write_manifest,
)
from contract.correction import Correction
from contract.dataset import Dataset, load_dataset
from contract.errors import ConfigError
from contract.fixture import Placer, fixture_of_data
from contract.images import encode_png
from contract.part_pictures import AS_CUT, Line
from contract.recipe import Recipe
from training.augment import Augmentation, learn_augmentation
from training.checkpoint import FOLDER, checkpoint_path, load_checkpoint
from training.data import Split, fingerprint, groups_in, line_asked, load_tiles, make_recipe, split_by_group
from training.data_check import summary
from training.errors import ExportError, TrainingError
from training.export import export, export_half
from training.fit import Fitted, Tiles, fit, new_model
from training.graph import Inspection, Inspector
from training.heldout import set_exam
from training.models import model_class, model_entry
from training.report import Quiet, Reporter
from training.settings import TrainSettings
from training.summary import report
from training.world import World, join

ROLE_WEIGHTS = "weights"
ROLE_GOLDEN = "golden"
ROLE_PAGE = "training"  # "report" is the calibration's, which replaces its own
FILES = {
    ROLE_GRAPH: "model.fp32.onnx",
    ROLE_WEIGHTS: "weights.safetensors",
    ROLE_DATA: "data.json",
    ROLE_GOLDEN: "golden.npy",
    ROLE_PAGE: "training.html",
}
FILE_FP16 = "model.fp16.onnx"
FILE_FIXTURE, FILE_PREPROCESS = "fixture.png", "preprocess.json"
UNTOLD = {"data", "out", "resume", "overwrite", "tensorboard", "few_shot", "preprocess"}  # of machine and moment
GOLDEN_TILES, GOLDEN_DEFECTS, GOLDEN_SEED = 4, 4, 20_232
TYPICAL_TILES = 2000
LIBRARIES = ("flawline", "torch", "lightning", "onnx", "onnxscript", "onnxruntime", "numpy", "opencv-python-headless")


class Learnt(NamedTuple):
    """Everything that a bundle is written from."""

    recipe: Recipe
    split: Split
    document: dict[str, list[dict[str, str]]]
    augmentation: Augmentation
    fitted: Fitted
    inspector: Inspector
    golden: Tensor
    expected: Inspection
    tolerance_fp16: float | None
    page: str
    fixture: Placer | None
    correction: Correction | None = None


def train(settings: TrainSettings, reporter: Reporter | None = None) -> Path:
    """Train on ``settings.data`` and write a verified bundle to ``settings.out``; returns that folder.

    Raises a FlawlineError of ``contract.errors`` or ``training.errors``; a bundle is there whole or not at all. Of
    several processes that torchrun started, the first one writes and reports.
    """
    model_class(settings.model)
    if model_entry(settings.model).not_exported:
        raise ExportError(model_entry(settings.model).not_exported)  # now, and not after the time that training takes
    choose_device(settings)
    dataset = load_dataset(settings.data, settings.group_pattern)
    split = split_by_group(dataset, settings.holdout, settings.validation, settings.seed)
    world = join(settings.device, settings.batch)
    try:
        return _train(settings, dataset, split, world, (reporter or Quiet()) if world.first else Quiet())
    finally:
        world.leave()


def _train(settings: TrainSettings, dataset: Dataset, split: Split, world: World, reporter: Reporter) -> Path:
    if world.first:
        claim_folder(settings)
        for sentence in summary(dataset):
            reporter.say(sentence)
    world.wait()
    line = line_asked(settings)
    recipe = make_recipe(settings, split.fit, line)
    tiles = load(split, recipe, settings, line)
    document = split.document(settings.data)
    reporter.say(_summary(settings, split, recipe))
    reporter.say(tiles.augmentation.sentence())
    data_sha256 = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    if line.correction is not None:
        data_sha256 = hashlib.sha256((data_sha256 + line.correction.content.sha256).encode()).hexdigest()
    resumed = None
    if settings.resume:
        resumed = load_checkpoint(checkpoint_path(settings.out), settings.learnt(), data_sha256)
    model = new_model(settings, recipe.channels)
    fitted = fit(model, tiles, settings, data_sha256, reporter, resumed, world)
    reporter.say(
        f"trained {fitted.steps} steps in {fitted.seconds:.0f} s ({fitted.images_per_s:.0f} images/s); the weights of "
        f"step {fitted.best_step} did best on what selects them ({fitted.validation_loss:.4f})"
    )
    if not world.first:
        return settings.out
    try:
        return _write(settings, recipe, split, document, tiles, fitted, reporter, line)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{settings.out}: the bundle cannot be written ({getattr(error, 'strerror', None) or error}); the training "
            "is kept: make room, then the same command with --resume"
        ) from error


def load(split: Split, recipe: Recipe, settings: TrainSettings, line: Line = AS_CUT) -> Tiles:
    """Tiles of both sides, and how far those that are learnt from may be changed."""
    learn = load_tiles(split.fit, recipe, line)
    parts = [sample.group for sample in split.fit for _ in range(recipe.tiles)]
    augmentation = learn_augmentation(learn, parts, settings.flips, recipe.tiles)
    return Tiles(learn, load_tiles(split.validation, recipe, line), augmentation)


def _write(
    settings: TrainSettings,
    recipe: Recipe,
    split: Split,
    document: dict[str, list[dict[str, str]]],
    tiles: Tiles,
    fitted: Fitted,
    reporter: Reporter,
    line: Line,
) -> Path:
    inspector = Inspector(fitted.judge, settings.size, settings.score, model_class(settings.model).pooling)
    inspector.learn_typical(evenly(torch.cat([tiles.fit, tiles.validation]), TYPICAL_TILES))
    golden = choose_golden(torch.cat([tiles.validation, tiles.fit[:GOLDEN_TILES]]))
    work = settings.out / FOLDER
    work.mkdir(parents=True, exist_ok=True)
    expected = export(inspector, work / FILES[ROLE_GRAPH], golden)
    tolerance_fp16 = _export_half(settings, inspector, work / FILE_FP16, golden, expected, reporter)
    files = [row["file"] for row in document["validation"] for _ in range(recipe.tiles)]
    page = report(settings, recipe.name, split, tiles.augmentation, fitted, inspector, tiles.validation, files)
    learnt = Learnt(
        recipe,
        split,
        document,
        tiles.augmentation,
        fitted,
        inspector,
        golden,
        expected,
        tolerance_fp16,
        page,
        fixture_of_data(settings.data) if line.correction is None else line.placer,
        line.correction,
    )
    write_bundle(settings, learnt, work)
    reporter.say(f"report: {settings.out / FILES[ROLE_PAGE]}")
    reporter.say(f"bundle written and verified: {settings.out}; next: flawline calibrate thresholds {settings.out}")
    return settings.out


def _export_half(
    settings: TrainSettings, inspector: Inspector, path: Path, golden: Tensor, expected: Inspection, reporter: Reporter
) -> float | None:
    """Tolerance of the FP16 graph, or None where the bundle goes without one."""
    path.unlink(missing_ok=True)
    if not settings.fp16:
        return None
    try:
        tolerance = export_half(inspector, path, golden, expected)
    except ExportError as error:
        reporter.say(f"the bundle has no FP16 graph, and loses nothing else: {error}")
        return None
    reporter.say(f"FP16 graph exported as well; engines have to agree with FP32 within {tolerance:.1e} relative")
    return tolerance


def claim_folder(settings: TrainSettings) -> None:
    """Refuse an output folder that holds anything which this run would mix with or overwrite unasked."""
    out, checkpoint = settings.out, checkpoint_path(settings.out)
    if settings.resume and settings.overwrite:
        raise ConfigError("--resume and --overwrite contradict each other: go on with the stopped run or start again?")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a folder to write the bundle to")
    if settings.resume:
        return
    if not settings.overwrite:
        if (out / MANIFEST).exists():
            raise ConfigError(f"--out {out}: holds a bundle already; choose another folder, or --overwrite")
        if checkpoint.exists():
            raise ConfigError(f"--out {out}: holds a stopped training; --resume goes on, --overwrite starts again")
        if out.is_dir() and any(path.name != FOLDER for path in out.iterdir()):
            raise ConfigError(f"--out {out}: is not empty and no bundle; choose another folder, or --overwrite")
    try:
        checkpoint.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def choose_device(settings: TrainSettings) -> None:
    """Set torch's threads as asked; raises ConfigError where a graphics card is asked for and there is none."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no NVIDIA GPU here; use --device cpu, or install torch with CUDA")


def _summary(settings: TrainSettings, split: Split, recipe: Recipe) -> str:
    counts = ", ".join(
        f"{name} {len(side)} images of {groups_in(side)} parts"
        for name, side in (
            ("fit", split.fit),
            ("validation", split.validation),
            ("kept for calibration", split.holdout),
        )
    )
    colour = "grey" if recipe.channels == 1 else "RGB"
    tiles = f"{recipe.tiles} tile(s) of {settings.size} px, {colour}"
    return f"{recipe.name}: {counts}; parts told apart {split.grouping}; {tiles}"


def choose_golden(tiles: Tensor) -> Tensor:
    """Tiles that every engine has to score as training did, uint8 [N, H, W, C]: good ones, and some with defects.

    On good tiles alone a score is all but zero, and agreement there would say nothing about what is rejected.
    """
    good = evenly(tiles, GOLDEN_TILES)
    return set_exam(good, GOLDEN_SEED, GOLDEN_DEFECTS).tiles


def evenly(tiles: Tensor, count: int) -> Tensor:
    """At most ``count`` tiles spread over all."""
    return tiles[torch.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().long()]


def write_bundle(settings: TrainSettings, learnt: Learnt, work: Path) -> None:
    """Move the graph from ``work``, write the other files, the manifest last, and open the result as a reader would."""
    out = settings.out
    (out / MANIFEST).unlink(missing_ok=True)  # from here to the new manifest the folder is no bundle
    (work / FILES[ROLE_GRAPH]).replace(out / FILES[ROLE_GRAPH])
    if learnt.tolerance_fp16 is None:
        (out / FILE_FP16).unlink(missing_ok=True)
    else:
        (work / FILE_FP16).replace(out / FILE_FP16)
    state = {name: value.contiguous() for name, value in learnt.inspector.state_dict().items()}
    save_file(state, out / FILES[ROLE_WEIGHTS])
    write_atomic(out / FILES[ROLE_DATA], (json.dumps(learnt.document, indent=1) + "\n").encode())
    write_atomic(out / FILES[ROLE_PAGE], learnt.page.encode())
    np.save(out / FILES[ROLE_GOLDEN], learnt.golden.numpy(), allow_pickle=False)
    (out / FILE_FIXTURE).unlink(missing_ok=True)
    if learnt.fixture is not None:
        write_atomic(out / FILE_FIXTURE, encode_png(learnt.fixture.mark))
    (out / FILE_PREPROCESS).unlink(missing_ok=True)
    if learnt.correction is not None:
        write_atomic(out / FILE_PREPROCESS, learnt.correction.content.signed())
    for name in _files(learnt).values():
        _sync(out / name)
    write_manifest(out, manifest_of(settings, learnt))
    open_bundle(out)
    checkpoint_path(out).unlink(missing_ok=True)
    if not any(work.iterdir()):
        shutil.rmtree(work)


def _files(learnt: Learnt) -> dict[str, str]:
    """Role -> file name of what this bundle holds."""
    half = {} if learnt.tolerance_fp16 is None else {ROLE_GRAPH_FP16: FILE_FP16}
    half |= {} if learnt.correction is None else {ROLE_PREPROCESS: FILE_PREPROCESS}
    return FILES | half | ({} if learnt.fixture is None else {ROLE_FIXTURE: FILE_FIXTURE})


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o644)


def manifest_of(settings: TrainSettings, learnt: Learnt) -> Manifest:
    """The manifest; it names no folder of this machine."""
    fitted, recipe = learnt.fitted, learnt.recipe
    files = {role: file_entry(settings.out, name) for role, name in _files(learnt).items()}
    return Manifest(
        id=uuid.uuid4().hex,
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelInfo(
            name=settings.model,
            parameters=sum(weights.numel() for weights in learnt.inspector.judge.parameters()),
            score=settings.score,
            map_hw=(settings.size, settings.size),
            settings={"size": settings.size, "width": settings.width, "latent": settings.latent},
        ),
        recipe=recipe,
        fixture=None if learnt.fixture is None else learnt.fixture.fixture,
        files=files,
        golden=Golden(
            role=ROLE_GOLDEN,
            scores=[float(value) for value in learnt.expected.score],
            map_means=[float(value) for value in learnt.expected.map.mean(dim=(1, 2))],
            tolerance=1e-4,
            tolerance_fp16=learnt.tolerance_fp16,
            preprocess=None if learnt.correction is None else files[ROLE_PREPROCESS].sha256,
        ),
        data=DataFingerprint(name=recipe.name, grouping=learnt.split.grouping, **fingerprint(learnt.document)),
        training={
            "settings": settings.model_dump(mode="json", exclude=UNTOLD),
            "libraries": _versions(),
            "device": fitted.device,
            "precision": fitted.precision,
            "processes": fitted.processes,
            "augmentation": learnt.augmentation._asdict(),
        },
        metrics=metrics(fitted),
    )


def metrics(fitted: Fitted) -> dict[str, Any]:
    """What a bundle and a benchmark keep of a training."""
    return {
        "steps": fitted.steps,
        "selected_step": fitted.best_step,
        "minutes": round(fitted.seconds / 60, 3),
        "images_per_s": round(fitted.images_per_s, 1),
        "validation_loss": fitted.validation_loss,
        "final_losses": fitted.losses,
        "discriminator_restarts": fitted.mends,
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
