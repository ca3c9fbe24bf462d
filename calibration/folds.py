"""Networks trained on other deals of the same parts, so that every good part is unseen by one (before hop 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from calibration.holdout import HeldOut, hold_out
from calibration.renewal import preprocess_sha256
from contract.bundle import Bundle, Manifest, open_bundle
from contract.dataset import Dataset

MAY_DIFFER = {"seed", "device", "threads", "fp16"}
"""Settings of training that do not decide how a network scores."""


def open_folds(bundle: Bundle, folders: Sequence[Path], dataset: Dataset) -> list[tuple[Bundle, HeldOut]]:
    """The other networks, each with the parts that it has not seen.

    Raises CalibrationError for one that is trained otherwise, is this one, or knows no part that this one has seen.
    """
    own = {sample.group for sample in hold_out(bundle, dataset).unseen}
    found: list[tuple[Bundle, HeldOut]] = []
    for folder in folders:
        fold = open_bundle(folder)
        for other in (bundle, *(each for each, _ in found)):
            if fold.model_sha256 == other.model_sha256:
                raise CalibrationError(f"--fold-bundle {folder}: is the same network as {other.root}")
        _require_alike(bundle, fold)
        held = hold_out(fold, dataset)
        if not {sample.group for sample in held.unseen} - own:
            raise CalibrationError(
                f"--fold-bundle {folder}: has not seen the same parts as {bundle.root}, so it adds nothing; train it "
                "with another --seed"
            )
        found.append((fold, held))
    return found


def _require_alike(bundle: Bundle, fold: Bundle) -> None:
    ours, theirs = bundle.manifest, fold.manifest
    pairs = {
        "model": (ours.model.name, theirs.model.name),
        "recipe": (ours.recipe.model_dump(), theirs.recipe.model_dump()),
        "preprocess": (preprocess_sha256(bundle), preprocess_sha256(fold)),
        "settings": (_settings(ours), _settings(theirs)),
        "labelled defects": (_learnt(ours), _learnt(theirs)),
        "product types": (_types(ours), _types(theirs)),
    }
    for name, (here, there) in pairs.items():
        if here != there:
            raise CalibrationError(
                f"--fold-bundle {fold.root}: was trained otherwise ({name} {there!r}, here {here!r}), and scores of "
                "different networks do not compare; train it with the same settings and another --seed"
            )


def _settings(manifest: Manifest) -> dict[str, Any]:
    return {name: value for name, value in manifest.training.get("settings", {}).items() if name not in MAY_DIFFER}


def _learnt(manifest: Manifest) -> str:
    """Which labelled defects it has learnt from: how many, and a hash over all of theirs."""
    hashes = sorted(manifest.training.get("defects", {}).get("sha256", []))
    return f"{len(hashes)} images, {hashlib.sha256(''.join(hashes).encode()).hexdigest()[:12]}" if hashes else "none"


def _types(manifest: Manifest) -> list[str]:
    """The product types that one network was trained on together."""
    return sorted(row["name"] for row in manifest.training.get("types", []))
