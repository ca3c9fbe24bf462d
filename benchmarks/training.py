"""Training throughput against its own upper bound, in one interleaved run.

ratio_to_bare   images per second of the product's loop (sampling, augmentation, both optimizers, averaged weights)
                over those of bare forward and backward passes of the same networks on one constant batch

On a machine with other work, spinning threads dominate: OMP_WAIT_POLICY=PASSIVE, as `flawline train` sets it.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.training --json benchmarks/results/training.json
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import machine, parser, write
from training.fit import Loop, Tiles, new_model
from training.models.ganomaly import Ganomaly, discriminator_loss, generator_losses
from training.settings import TrainSettings

TILES = 512


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=64, help="tile side in pixels")
    made.add_argument("--width", type=int, default=32, help="channels of the first convolution; the paper has 64")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--steps", type=int, default=10, help="steps of each measurement")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2)
    options = made.parse_args()
    before = machine()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            data=Path(folder), out=Path(folder), size=options.size, width=options.width, batch=options.batch
        )
        figures = measure(settings, options.steps, options.rounds)
    write(options.json, figures | {"threads": options.threads}, before)


def measure(settings: TrainSettings, steps: int, rounds: int) -> dict[str, Any]:
    """Medians over ``rounds`` in which the loop and the bare passes take turns."""
    tiles = torch.randint(0, 256, (TILES, settings.size, settings.size, 1), dtype=torch.uint8)
    loop = Loop(new_model(settings, 1), Tiles(tiles, tiles[:1]), settings, "")
    bare = bare_passes(settings)
    runs: dict[str, list[float]] = {"loop": [], "bare": []}
    for _ in range(rounds):
        runs["loop"].append(images_per_s(lambda: loop.train_once()["contextual"], steps, settings.batch))
        runs["bare"].append(images_per_s(bare, steps, settings.batch))
    ratios = [ours / bound for ours, bound in zip(runs["loop"], runs["bare"], strict=True)]
    return {
        "question": "what does the training loop cost beside the networks' own passes?",
        "model": settings.model,
        "size": settings.size,
        "width": settings.width,
        "batch": settings.batch,
        "rounds": rounds,
        "steps": steps,
        "images_per_s": statistics.median(runs["loop"]),
        "bare_images_per_s": statistics.median(runs["bare"]),
        "ratio_to_bare": statistics.median(ratios),
        "ratio_to_bare_range": [min(ratios), max(ratios)],
    }


def bare_passes(settings: TrainSettings) -> Callable[[], Tensor]:
    """One forward and backward pass of generator and discriminator losses on a batch that never changes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Ganomaly(settings.size, 1, settings.width, settings.latent).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = torch.rand(settings.batch, 1, settings.size, settings.size, device=device) * 2 - 1

    def passes() -> Tensor:
        model.zero_grad(set_to_none=True)
        model.discriminator.requires_grad_(False)
        drawn = model.generator(batch)
        with torch.no_grad():
            real = model.discriminator(batch).features
        losses = generator_losses(batch, drawn, real, model.discriminator(drawn.image).features)
        torch.autograd.backward(losses.total())
        model.discriminator.requires_grad_(True)
        fake = drawn.image.detach()
        torch.autograd.backward(discriminator_loss(model.discriminator(batch).logits, model.discriminator(fake).logits))
        return losses.contextual.detach()

    return passes


def images_per_s(step: Callable[[], Tensor], steps: int, batch: int) -> float:
    """Images per second over ``steps`` calls, after one that does not count."""
    step().item()
    began = time.perf_counter()
    for _ in range(steps):
        last = step()
    last.item()  # waits for the device
    return steps * batch / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
