"""A few steps of one run, alone or as one of several processes; leaves losses and weights in files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bundles import draw_part
from training.augment import Augmentation
from training.fit import Loop, Tiles, new_model
from training.settings import TrainSettings
from training.world import join

BATCH = 6


def run(out: Path, model: str, precision: Any, steps: int = 5) -> None:
    """Train ``steps`` steps and write ``MODEL-PRECISION-RANKofSIZE`` as .json (losses) and .pt (weights)."""
    torch.set_num_threads(1)
    drawn = torch.from_numpy(np.stack([draw_part(number, side=64) for number in range(16)])[..., np.newaxis])
    settings = TrainSettings(
        data=out, out=out, model=model, steps=steps, size=64, width=4, latent=8, batch=BATCH, device="cpu", seed=3,
        precision=precision, learning_rate=2e-4,
    )  # fmt: skip
    world = join(settings.device, settings.batch)
    tiles = Tiles(drawn[:12], drawn[12:], Augmentation(horizontal=True))
    loop = Loop(new_model(settings, 1), tiles, settings, "data", world)
    losses = []
    while loop.share() < 1.0:
        loop.check(loop.train_once())
        losses.append(loop.numbers())
    loop.validate()
    name = f"{model}-{precision}-{world.rank}of{world.size}"
    (out / f"{name}.json").write_text(json.dumps({"losses": losses, "validation": loop.numbers().get("validation")}))
    torch.save({name: network.state_dict() for name, network in loop._networks.items()}, out / f"{name}.pt")
    world.leave()


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
