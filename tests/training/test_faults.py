"""What goes wrong on real machines, in processes of their own: a full disk, too little memory; nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.bundle import open_bundle
from tests.bundles import draw_data

ROOT = Path(__file__).resolve().parents[2]
# The limits of the process are those of a disk that is full, or of a machine without the memory.
CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from training.build import train
from training.report import Quiet
from training.settings import TrainSettings

torch.set_num_threads(1)
kind, low, at, settings = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])


class Fills(Quiet):
    seen = 0

    def fill(self):
        which = getattr(resource, kind)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(which, (low + (used if kind == "RLIMIT_AS" else 0), resource.getrlimit(which)[1]))

    def say(self, sentence):
        if at and sentence.startswith(at):
            self.fill()

    def milestone(self, progress):
        Fills.seen += 1
        if at == "milestone" and Fills.seen == 2:
            self.fill()


try:
    train(TrainSettings(**settings), Fills())
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("data"), good=12, test_good=0, defective=0)


def _train(data: Path, out: Path, limit: tuple[str, int, str] = ("", 0, ""), **changes: Any) -> str:
    settings = {
        "data": str(data), "out": str(out), "model": "ganomaly", "steps": 10, "size": 64, "width": 4, "latent": 8,
        "batch": 4, "device": "cpu", "learning_rate": 1e-2, "holdout": 0.1, "precision": "32-true", "fp16": False,
        **changes,
    }  # fmt: skip
    # -B: a module compiled under the limit would stay behind, cut off, in the environment of every later run.
    words = [sys.executable, "-B", "-c", CHILD, limit[0], str(limit[1]), limit[2], json.dumps(settings)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == (3 if limit[0] else 0), done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    return done.stdout


def test_a_disk_that_fills_up_keeps_the_checkpoint_before_and_leaves_no_scraps(data: Path, tmp_path: Path) -> None:
    said = _train(data, tmp_path / "b", ("RLIMIT_FSIZE", 5000, "milestone"))
    assert "TrainingError" in said
    assert "the checkpoint cannot be written" in said and "Make room, then go on with --resume" in said
    kept = tmp_path / "b" / ".training"
    assert [path.name for path in kept.iterdir()] == ["checkpoint.pt"]
    assert torch.load(kept / "checkpoint.pt", weights_only=True)["step"] == 2
    _train(data, tmp_path / "b", resume=True)
    assert open_bundle(tmp_path / "b").manifest.metrics["steps"] == 10


def test_a_disk_that_is_full_at_the_end_keeps_the_training(data: Path, tmp_path: Path) -> None:
    said = _train(data, tmp_path / "b", ("RLIMIT_FSIZE", 5000, "trained"))
    assert "the bundle cannot be written" in said and "the same command with --resume" in said
    assert not (tmp_path / "b" / "bundle.json").exists()
    _train(data, tmp_path / "b", resume=True)
    assert open_bundle(tmp_path / "b").manifest.metrics["steps"] == 10
    assert not (tmp_path / "b" / ".training").exists()


def test_a_full_disk_costs_the_board_and_not_the_training(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys, resource\n"
        "from training.board import TensorBoard\n"
        "from training.report import Progress\n"
        "import torch\n"
        "from torch import nn\n"
        "from training.models.base import Judgement\n"
        "class Judge(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, tile):\n"
        "        return Judgement(tile, tile[:, :1].abs(), {})\n"
        "tiles = torch.randint(0, 256, (4, 64, 64, 1), dtype=torch.uint8)\n"
        "board = TensorBoard(sys.argv[1], tiles, print)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "for step in range(30):\n"
        "    board.write(Progress(step, 0.1, 1.0, 1.0, {'loss': 1.0}), Judge())\n"
        "board.close()\n"
        "print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stderr
    assert "TensorBoard's file cannot be written (File too large); training goes on" in said[0]
    assert said[1] == "went on"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux bounds a process's memory")
def test_too_little_memory_names_the_way_out(data: Path, tmp_path: Path) -> None:
    said = _train(data, tmp_path / "b", ("RLIMIT_AS", 300 << 20, "learning"), batch=2048, width=64)
    assert "TrainingError" in said
    assert "a batch of 2048 tiles: the memory does not suffice (--batch 2048, --size 64, --width 64)" in said
    assert "Train with a smaller --batch" in said
