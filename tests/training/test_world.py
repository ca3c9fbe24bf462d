"""Several processes learn what one learns: real processes over gloo, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.bundle import open_bundle
from contract.errors import ConfigError
from tests.bundles import draw_data
from tests.training.world_run import run
from training.augment import Augmentation
from training.data import Batches
from training.world import join

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _launch(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*LAUNCH, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def _of(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text()), torch.load(folder / f"{name}.pt", weights_only=True)


# dec and dcn place their centres among the codes of all processes.
@pytest.mark.parametrize(
    "model", ["ganomaly", *(pytest.param(name, marks=pytest.mark.long) for name in ("dec", "dcn"))]
)
def test_two_processes_have_the_losses_of_one_and_the_same_weights(model: str, tmp_path: Path) -> None:
    run(tmp_path, model, "32-true")
    done = _launch("-m", "tests.training.world_run", str(tmp_path), model, "32-true")
    assert done.returncode == 0, done.stderr
    alone, weights_alone = _of(tmp_path, f"{model}-32-true-0of1")
    first, weights_first = _of(tmp_path, f"{model}-32-true-0of2")
    second, weights_second = _of(tmp_path, f"{model}-32-true-1of2")
    assert first["losses"] == second["losses"]
    torch.testing.assert_close(weights_second, weights_first, rtol=0, atol=0)
    # The networks normalise over the batch: shares that did not know of each other would differ by some percent.
    for step, (one, two) in enumerate(zip(alone["losses"], first["losses"], strict=True)):
        assert two == pytest.approx(one, rel=1e-3), f"step {step}"
    assert first["losses"][0] == pytest.approx(alone["losses"][0], rel=1e-5)
    for weights in (weights_first, weights_alone):
        if memory := weights.get("clusters"):  # in the order in which processes brought them
            memory["memory"] = memory["memory"][memory["memory"][:, 0].argsort()]
    torch.testing.assert_close(weights_first, weights_alone, rtol=1e-2, atol=1e-3)
    assert first["validation"] == pytest.approx(alone["validation"], rel=1e-3)
    assert second["validation"] is None


def test_the_command_trains_in_two_processes_and_only_one_writes_and_speaks(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "data", good=16, test_good=0, defective=0)
    words = {
        "--data": data, "--out": tmp_path / "bundle", "--model": "ganomaly", "--steps": 30, "--size": 64,
        "--width": 4, "--latent": 16, "--batch": 8, "--learning-rate": 0.004, "--device": "cpu", "--holdout": 0.2,
    }  # fmt: skip
    done = _launch("-m", "flawline", "train", "--no-fp16", *(str(word) for option in words.items() for word in option))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("in 2 processes") == 1
    assert done.stdout.count("bundle written and verified") == 1
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.metrics["steps"] == 30
    assert manifest.training["processes"] == 2
    assert not (tmp_path / "bundle" / ".training").exists()


def test_the_shares_of_a_batch_are_the_batch() -> None:
    tiles = torch.randint(0, 256, (10, 64, 64, 1), dtype=torch.uint8)
    whole = Batches(tiles, 6, 1, Augmentation(True, True))(3)
    shares = [Batches(tiles, 6, 1, Augmentation(True, True), rank, 3)(3) for rank in range(3)]
    assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), whole)


@pytest.mark.parametrize(
    ("device", "batch", "message"),
    [
        ("cpu", 2, "--batch 2 leaves 1 tile to each of 2 processes; expected 4 or more"),
        ("cpu", 7, "--batch 7 cannot be shared evenly by 2 processes; expected a multiple of 2"),
        pytest.param(
            "cuda", 8, r"2 processes and 0 NVIDIA GPU\(s\).*--device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_said(device: str, batch: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=message):
        join(device, batch)
