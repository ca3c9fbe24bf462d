"""Data folder -> trained model -> verified bundle: the whole of ``flawline train`` as one function (before hop 1)."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from datetime import UTC, datetime
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
from contract.dataset import Dataset, Sample, load_dataset
from contract.errors import ConfigError, DatasetError
from contract.fixture import Placer, fixture_of_data
from contract.images import encode_png
from contract.part_pictures import AS_CUT, Line
from contract.recipe import Recipe
from contract.versions import installed
from training.augment import Augmentation, learn_augmentation
from training.checkpoint import FOLDER, checkpoint_path, load_checkpoint
from training.data import Split, fingerprint, groups_in, line_asked, load_tiles, make_recipe, split_by_group
from training.data_check import summary
from training.defect_files import defects_of_types, described, find_defects, refuse_known, rows_of
from training.errors import ExportError, TrainingError
from training.export import export, export_half
from training.fit import Fitted, Tiles, fit_types, new_model
from training.graph import Inspection, Inspector
from training.heldout import set_exam
from training.labelled import load_labelled
from training.models import model_class, model_entry
from training.product_types import type_folders
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
# Settings of the machine and the moment.
UNTOLD = {"data", "out", "resume", "overwrite", "tensorboard", "few_shot", "defects", "preprocess"}
GOLDEN_TILES, GOLDEN_DEFECTS, GOLDEN_SEED = 4, 4, 20_232
TYPICAL_TILES = 2000
LIBRARIES = ("flawline", "torch", "lightning", "onnx", "onnxscript", "onnxruntime", "numpy", "opencv-python-headless")


class Product(NamedTuple):
    """One product type: ``settings`` as asked for, but with its own folders; ``defects`` are labelled ones, if any, and
    ``line`` is what ``--preprocess`` does to pictures."""

    settings: TrainSettings
    dataset: Dataset
    split: Split
    defects: list[Sample]
    line: Line

    def document(self) -> dict[str, list[dict[str, str]]]:
        """Every image that is learnt from or kept for calibration, as the bundle lists it."""
        return self.split.document(self.settings.data) | ({"defects": rows_of(self.defects)} if self.defects else {})


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
    provenance: dict[str, Any]
    correction: Correction | None = None


def train(settings: TrainSettings, reporter: Reporter | None = None) -> Path:
    """Train on ``settings.data`` and write a verified bundle to ``settings.out``; returns that folder.

    Of several product types, a folder of data each, each gets a bundle, in a folder of the type's name. Raises a
    FlawlineError of ``contract.errors`` or ``training.errors``; a bundle is there whole or not at all. Of several
    processes that torchrun started, the first one writes and reports.
    """
    model_class(settings.model)
    if model_entry(settings.model).not_exported:
        raise ExportError(model_entry(settings.model).not_exported)  # now, and not after the time that training takes
    choose_device(settings)
    products = products_of(settings)
    world = join(settings.device, settings.batch)
    try:
        return _train(settings, products, world, (reporter or Quiet()) if world.first else Quiet())
    finally:
        world.leave()


def products_of(settings: TrainSettings) -> list[Product]:
    """What is learnt: the data's one product type or, where asked for, each of several."""
    if not settings.conditional:
        return [_product(settings)]
    folders = type_folders(settings.data)
    known = {} if settings.defects is None else defects_of_types(settings.defects, [folder.name for folder in folders])
    return [
        _product(
            settings.model_copy(
                update={"data": folder, "out": settings.out / folder.name, "defects": known.get(folder.name)}
            )
        )
        for folder in folders
    ]


def _product(settings: TrainSettings) -> Product:
    dataset = load_dataset(settings.data, settings.group_pattern)
    split = split_by_group(dataset, settings.holdout, settings.validation, settings.seed)
    if settings.defects is not None and dataset.train[0].path.is_dir():
        raise DatasetError(
            f"--defects: the parts of {settings.data} were seen by several cameras, and a mask is of one picture; "
            "train a bundle for each camera's pictures, or without --defects"
        )
    defects = [] if settings.defects is None else find_defects(settings.defects)
    return Product(settings, dataset, split, defects, line_asked(settings))


def _train(settings: TrainSettings, products: list[Product], world: World, reporter: Reporter) -> Path:
    if world.first:
        _refuse_other_types(settings, products)
        claim_folder(settings)
        for product in products:
            for sentence in summary(product.dataset):
                reporter.say(_of(product, sentence))
    compared = [_compare(product, reporter) if world.first else "" for product in products]
    world.wait()
    recipes = make_recipes(products)
    tiles = [_load(product, recipe) for product, recipe in zip(products, recipes, strict=True)]
    documents = [product.document() for product in products]
    for product, recipe, own in zip(products, recipes, tiles, strict=True):
        reporter.say(_summary(settings, product.split, recipe))
        reporter.say(_of(product, own.augmentation.sentence()))
    hashes = [_sha256(document, product.line) for product, document in zip(products, documents, strict=True)]
    resumed = None
    if settings.resume:
        resumed = load_checkpoint(checkpoint_path(settings.out), settings.learnt(), _sha256(hashes))
    model = new_model(settings, recipes[0].channels, len(products))
    fitted = fit_types(model, tiles, settings, _sha256(hashes), reporter, resumed, world)
    one, loss = fitted[0], sum(own.validation_loss for own in fitted) / len(fitted)
    reporter.say(
        f"trained {one.steps} steps in {one.seconds:.0f} s ({one.images_per_s:.0f} images/s); the weights of "
        f"step {one.best_step} did best on what selects them ({loss:.4f})"
    )
    if not world.first:
        return settings.out
    together = [
        {"name": recipe.name, "data_sha256": sha256, **fingerprint(document)}
        for recipe, sha256, document in zip(recipes, hashes, documents, strict=True)
    ]
    try:
        # All are proven before any is written.
        learnt = [
            _learn(product, recipes[at], documents[at], tiles[at], fitted[at], together, compared[at], reporter)
            for at, product in enumerate(products)
        ]
        for product, made in zip(products, learnt, strict=True):
            _write(product.settings, made, reporter)
        forget(settings.out)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{settings.out}: the bundle cannot be written ({getattr(error, 'strerror', None) or error}); the training "
            "is kept: make room, then the same command with --resume"
        ) from error
    return settings.out


def _of(product: Product, sentence: str) -> str:
    """``sentence``, with the type that it is about where there are several."""
    return f"{product.settings.data.name}: {sentence}" if product.settings.conditional else sentence


def _compare(product: Product, reporter: Reporter) -> str:
    """What came of looking for the labelled defects among the data's own images; raises DatasetError if found."""
    root = product.settings.defects
    if root is None:
        return ""
    found = refuse_known(root, product.defects, product.dataset)
    reporter.say(_of(product, f"labelled defects to learn from: {described(product.defects)}; compared with {found}"))
    return found


def _load(product: Product, recipe: Recipe) -> Tiles:
    tiles = load(product.split, recipe, product.settings, product.line)
    if not product.defects:
        return tiles
    return tiles._replace(labelled=load_labelled(product.defects, recipe, tiles.augmentation, product.line))


def _sha256(document: Any, line: Line = AS_CUT) -> str:
    """Of what is learnt from: corrected otherwise, the same files are other pictures."""
    found = json.dumps(document, sort_keys=True)
    if line.correction is not None:
        found += line.correction.content.sha256
    return hashlib.sha256(found.encode()).hexdigest()


def make_recipes(products: list[Product]) -> list[Recipe]:
    """A recipe for each product type; all in colour where one of them is, since they share a network."""
    recipes = [make_recipe(product.settings, product.split.fit, product.line) for product in products]
    most = max(recipe.channels for recipe in recipes)
    return [recipe.model_copy(update={"channels": most}) for recipe in recipes]


def load(split: Split, recipe: Recipe, settings: TrainSettings, line: Line = AS_CUT) -> Tiles:
    """Tiles of both sides, and how far those that are learnt from may be changed."""
    learn = load_tiles(split.fit, recipe, line)
    parts = [sample.group for sample in split.fit for _ in range(recipe.tiles)]
    augmentation = learn_augmentation(learn, parts, settings.flips, recipe.tiles)
    return Tiles(learn, load_tiles(split.validation, recipe, line), augmentation)


def _learn(
    product: Product,
    recipe: Recipe,
    document: dict[str, list[dict[str, str]]],
    tiles: Tiles,
    fitted: Fitted,
    together: list[dict[str, Any]],
    compared: str,
    reporter: Reporter,
) -> Learnt:
    """Typical deviation, golden images and proven graphs, which wait in the folder's work folder."""
    settings = product.settings
    inspector = Inspector(fitted.judge, settings.size, settings.score, model_class(settings.model).pooling)
    inspector.learn_typical(evenly(torch.cat([tiles.fit, tiles.validation]), TYPICAL_TILES))
    golden = choose_golden(torch.cat([tiles.validation, tiles.fit[:GOLDEN_TILES]]))
    work = settings.out / FOLDER
    work.mkdir(parents=True, exist_ok=True)
    expected = export(inspector, work / FILES[ROLE_GRAPH], golden)
    tolerance_fp16 = _export_half(settings, inspector, work / FILE_FP16, golden, expected, reporter)
    files = [row["file"] for row in document["validation"] for _ in range(recipe.tiles)]
    provenance, facts = _provenance(product, recipe, together, compared)
    page = report(
        settings, recipe.name, product.split, tiles.augmentation, fitted, inspector, tiles.validation, files, facts
    )
    return Learnt(
        recipe,
        product.split,
        document,
        tiles.augmentation,
        fitted,
        inspector,
        golden,
        expected,
        tolerance_fp16,
        page,
        fixture_of_data(settings.data) if product.line.correction is None else product.line.placer,
        provenance,
        product.line.correction,
    )


def _provenance(
    product: Product, recipe: Recipe, together: list[dict[str, Any]], compared: str
) -> tuple[dict[str, Any], list[tuple[str, object]]]:
    """What else than good images of this type the model has seen: for the manifest, and for the page."""
    found: dict[str, Any] = {}
    facts: list[tuple[str, object]] = []
    if product.settings.conditional:
        found["types"] = together
        others = (row["name"] for row in together if row["name"] != recipe.name)
        facts.append(("one model with", ", ".join(others)))
    if product.defects:
        found["defects"] = {
            "images": len(product.defects),
            "classes": dict(Counter(sample.label for sample in product.defects)),
            "sha256": [row["sha256"] for row in rows_of(product.defects)],
            "compared": compared,
        }
        facts.append(("labelled defects", f"{described(product.defects)}; compared with {compared}"))
    return found, facts


def _write(settings: TrainSettings, learnt: Learnt, reporter: Reporter) -> None:
    write_bundle(settings, learnt, settings.out / FOLDER)
    reporter.say(f"report: {settings.out / FILES[ROLE_PAGE]}")
    reporter.say(f"bundle written and verified: {settings.out}; next: flawline calibrate thresholds {settings.out}")


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
    if settings.conditional and (out / MANIFEST).exists():
        raise ConfigError(f"--out {out}: is the bundle of one product type; choose a folder to hold one for each")
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


def _refuse_other_types(settings: TrainSettings, products: list[Product]) -> None:
    """Raise ConfigError where a bundle of a type that is not learnt now would stay beside the new ones."""
    learnt = {product.settings.out.name for product in products}
    others = sorted(path.parent.name for path in settings.out.glob(f"*/{MANIFEST}") if path.parent.name not in learnt)
    if settings.conditional and others:
        raise ConfigError(
            f"--out {settings.out}: holds bundles of {', '.join(others)}, and {settings.data} has no folder of that "
            "name: they would stay beside the new ones, of another model; move them away, or choose another folder"
        )


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
    if not any(work.iterdir()):
        work.rmdir()


def forget(out: Path) -> None:
    """Remove the checkpoint, now that nothing needs it; curves that lie beside it stay."""
    checkpoint = checkpoint_path(out)
    checkpoint.unlink(missing_ok=True)
    if checkpoint.parent.is_dir() and not any(checkpoint.parent.iterdir()):
        checkpoint.parent.rmdir()


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
            **learnt.provenance,
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
    return {name: installed(name) or "not installed as a package" for name in LIBRARIES}
