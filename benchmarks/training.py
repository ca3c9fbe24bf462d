"""Training throughput against its own upper bound, and against another library's, in interleaved runs.

ratio_to_bare        images per second of the product's loop (sampling, augmentation, both optimizers, averaged weights)
                     over those of bare forward and backward passes of the same networks on one constant batch, FP32
ratio_to_peer        images per second of the product's loop in FP32 over those of anomalib's GANomaly with the same
                     widths, batch, size and colour images; the peer runs its own engine on batches in memory
ratio_to_peer_bf16   the same with the product's loop in BF16, which is what it does by itself where the hardware can

The peer lives in an environment of its own; without --peer-python it is left out. On a CPU:

    python3 -m venv peer
    peer/bin/pip install torch==2.13.0
    peer/bin/pip install --no-deps torchvision==0.28.0
    peer/bin/pip install 'anomalib[openvino]==2.7.0' torch==2.13.0 torchvision==0.28.0

On a machine with other work, spinning threads dominate: OMP_WAIT_POLICY=PASSIVE, as `flawline train` sets it.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.training --peer-python peer/bin/python \\
        --json benchmarks/results/training.json
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

from benchmarks.common import Peer, machine, parser, write
from contract.config import validate
from training.fit import Loop, Tiles, new_model
from training.models.ganomaly import Ganomaly, discriminator_loss, generator_losses
from training.settings import TrainSettings

TILES = 512
COLOURS = 3  # the peer knows no grey images


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=64, help="tile side in pixels")
    made.add_argument("--width", type=int, default=32, help="channels of the first convolution; the paper has 64")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--steps", type=int, default=10, help="steps of each measurement")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--peer-python", type=Path, help="a Python that has anomalib")
    options = made.parse_args()
    before = machine()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            precision: validate(
                TrainSettings,
                {
                    "data": folder,
                    "out": folder,
                    "model": "ganomaly",
                    "size": options.size,
                    "width": options.width,
                    "batch": options.batch,
                    "precision": precision,
                    "device": "cpu" if options.peer_python else "auto",
                },
                "benchmarks.training",
            )
            for precision in ("32-true", "bf16-mixed")
        }
        figures = measure(settings["32-true"], options.steps, options.rounds)
        if options.peer_python:
            with peer_of(options.peer_python, settings["32-true"], options.steps, options.threads) as peer:
                peer.ask()  # the first turn holds the start-up
                figures |= compare(settings, peer, options.steps, options.rounds)
    write(options.json, figures | {"threads": options.threads}, before)


def new_loop(settings: TrainSettings, channels: int) -> Loop:
    """The product's loop on random tiles."""
    tiles = torch.randint(0, 256, (TILES, settings.size, settings.size, channels), dtype=torch.uint8)
    return Loop(new_model(settings, channels), Tiles(tiles, tiles[:1]), settings, "")


def measure(settings: TrainSettings, steps: int, rounds: int) -> dict[str, Any]:
    """Medians over ``rounds`` in which the loop and the bare passes take turns."""
    loop, bare = new_loop(settings, 1), bare_passes(settings)
    runs: dict[str, list[float]] = {"loop": [], "bare": []}
    for _ in range(rounds):
        runs["loop"].append(images_per_s(lambda: loop.train_once()["contextual"], steps, settings.batch))
        runs["bare"].append(images_per_s(bare, steps, settings.batch))
    ratios = [ours / bound for ours, bound in zip(runs["loop"], runs["bare"], strict=True)]
    return {
        "question": "what does the training loop cost beside the networks' own passes, and beside another library's?",
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
    device = torch.device("cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu")
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


def compare(settings: dict[str, TrainSettings], peer: Peer, steps: int, rounds: int) -> dict[str, Any]:
    """Medians over ``rounds`` in which the loop in FP32, the loop in BF16 and the peer take turns."""
    loops = {precision: new_loop(asked, COLOURS) for precision, asked in settings.items()}
    batch = settings["32-true"].batch
    runs: dict[str, list[float]] = {"32-true": [], "bf16-mixed": [], "peer": []}
    for _ in range(rounds):
        for precision, loop in loops.items():
            runs[precision].append(images_per_s(_step_of(loop), steps, batch))
        runs["peer"].append(peer.ask()["images_per_s"])
    ratios = {
        precision: [ours / theirs for ours, theirs in zip(runs[precision], runs["peer"], strict=True)]
        for precision in loops
    }
    return {
        "peer": peer.version,
        "peer_images_per_s": statistics.median(runs["peer"]),
        "colour_images_per_s": statistics.median(runs["32-true"]),
        "colour_images_per_s_bf16": statistics.median(runs["bf16-mixed"]),
        "ratio_to_peer": statistics.median(ratios["32-true"]),
        "ratio_to_peer_range": [min(ratios["32-true"]), max(ratios["32-true"])],
        "ratio_to_peer_bf16": statistics.median(ratios["bf16-mixed"]),
        "ratio_to_peer_bf16_range": [min(ratios["bf16-mixed"]), max(ratios["bf16-mixed"])],
    }


def _step_of(loop: Loop) -> Callable[[], Tensor]:
    return lambda: loop.train_once()["contextual"]


def peer_of(python: Path, settings: TrainSettings, steps: int, threads: int) -> Peer:
    """anomalib's GANomaly in a process of its own that trains when it is told to."""
    words = ["--steps", str(steps), "--threads", str(threads)]
    for name in ("size", "width", "latent", "batch"):
        words += [f"--{name}", str(getattr(settings, name))]
    return Peer(python, "benchmarks.peer_anomalib", words)


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
