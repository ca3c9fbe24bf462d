"""Two people with keys, and a small calibrated bundle that they sign with the product's own commands."""

from __future__ import annotations

from pathlib import Path

from calibration.quality import bounds_from, see
from contract.preprocess import prepare
from contract.recipe import Recipe, Thresholds
from contract.signing import Role, new_signing_pair, trust
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle

LIMITS = Thresholds(reject=2, map=1, method="test", false_reject_rate=0.1, groups=1, images=1, engine="openvino fp32")


def write_calibrated(folder: Path, name: str = "part", seed: int = 0) -> Path:
    """A draft with limits and picture bounds, trained on drawn parts."""
    good = [draw_part(seed + number) for number in range(12)]
    recipe = Recipe(name=name)
    quality = bounds_from([see(prepare(part, recipe), part.shape[:2]) for part in good])
    write_bundle(folder, good, recipe, thresholds=LIMITS, quality=quality)
    return folder


class People:
    """Ada validates, Grace releases; ``trusted`` is an edge's folder that knows both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trusted = folder / "signers"
        self.keys = folder / "keys"
        roles: dict[str, Role] = {"ada": "validate", "grace": "release"}
        for name, role in roles.items():
            new_signing_pair(self.keys, name)
            trust(self.trusted, self.keys / f"{name}.sign", role)

    def key(self, name: str) -> Path:
        return self.keys / f"{name}.sign_secret"

    def validate(self, bundle: Path, name: str = "ada") -> int:
        words = ["--key", str(self.key(name)), "--why", "report 17", "--engine", "onnxruntime"]
        return main(["bundle", "validate", str(bundle), *words])

    def release(self, bundle: Path, name: str = "grace") -> int:
        return main(["bundle", "release", str(bundle), "--key", str(self.key(name)), "--why", "line 3"])

    def retire(self, bundle: Path, name: str = "grace") -> int:
        return main(["bundle", "retire", str(bundle), "--key", str(self.key(name)), "--why", "escapes"])

    def sign(self, bundle: Path) -> Path:
        """Validate and release."""
        assert self.validate(bundle) == 0
        assert self.release(bundle) == 0
        return bundle
