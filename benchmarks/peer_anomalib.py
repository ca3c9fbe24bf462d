"""Trains anomalib's GANomaly in turns with another program: run by benchmarks.training with a Python that has anomalib.

Its own engine and training step, on colour images that are in memory already, so that no file is waited for. A line on
standard input starts a turn of --steps steps; the answer is a line of JSON with the images per second. It imports
nothing of this project, and nothing of this project imports it.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from typing import Any

warnings.simplefilter("ignore")


def declare_operators() -> Any:
    """torchvision built for CUDA cannot be imported beside a CPU's torch until two operators are known."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library  # forgets its operators once it is collected
    return None


def main() -> None:
    made = argparse.ArgumentParser()
    for name in ("size", "width", "latent", "batch", "steps", "threads"):
        made.add_argument(f"--{name}", type=int, required=True)
    options = made.parse_args()
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        kept = declare_operators()
        train(options, answers)
        del kept


def train(options: argparse.Namespace, answers: Any) -> None:
    """Train until standard input ends."""
    import torch
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from anomalib.models import Ganomaly
    from lightning.pytorch.callbacks import Callback
    from torch.utils.data import DataLoader

    torch.set_num_threads(options.threads)
    images = torch.rand(16, options.batch, 3, options.size, options.size)
    batches = [ImageBatch(image=image) for image in images]

    class Turns(Callback):
        """Waits for a line, then lets --steps batches through and answers."""

        def __init__(self) -> None:
            self.left = 0
            self.began = 0.0

        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            if self.left == 0:
                if not sys.stdin.readline():
                    trainer.should_stop = True
                self.left, self.began = options.steps, time.perf_counter()

        def on_train_batch_end(self, *rest: Any) -> None:
            self.left -= 1
            if self.left == 0:
                rate = options.steps * options.batch / (time.perf_counter() - self.began)
                answers.write(json.dumps({"images_per_s": rate}) + "\n")
                answers.flush()

    model = Ganomaly(
        batch_size=options.batch,
        n_features=options.width,
        latent_vec_size=options.latent,
        pre_processor=Ganomaly.configure_pre_processor((options.size, options.size)),
        evaluator=False,
        visualizer=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder,
            accelerator="cpu",
            devices=1,
            logger=False,
            max_epochs=-1,
            max_steps=-1,
            limit_val_batches=0,
            enable_progress_bar=False,
            callbacks=[Turns()],
        )
        loader = DataLoader(Repeated(batches), batch_size=None)
        engine.fit(model, train_dataloaders=loader)


class Repeated:
    """The same batches over and over."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> Any:
        return self.batches[index % len(self.batches)]


if __name__ == "__main__":
    main()
