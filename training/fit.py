"""The training loop: one straight line around any model of the table (before hop 1).

    batch -> one step of every network -> average the weights -> sometimes: check, validate, keep the best, checkpoint

The weights that are deployed are the average that draws the *good validation* tiles best. No test image is read.
"""

from __future__ import annotations

import copy
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.augment import Augmentation
from training.board import open_board
from training.checkpoint import checkpoint_path, save_checkpoint
from training.data import Batches, scale
from training.errors import StoppedError, TrainingError, memory_named
from training.labelled import Labelled
from training.models import model_class
from training.models.base import EVAL_BATCH, Deployed, Trainable
from training.models.conditional import choose, folded, used
from training.precision import choose_precision, pass_in_bf16
from training.report import Progress, Quiet, Reporter
from training.settings import TrainSettings
from training.world import World, join

MILESTONES = 20  # validations and checkpoints in one budget, at most
VALIDATING_SHARE = 0.1  # of a budget in minutes, at most: a slow validation comes less often
CHECKPOINT_EVERY_S = 300.0
CHECK_EVERY = 10  # reading a loss waits for the GPU, so not every step
AVERAGE_DECAY = 0.998
MAX_MENDS = 20
REFERENCE_TILES = 192  # good tiles that the normalisation statistics are measured on
MAX_VALIDATION_TILES = 512
COARSE = 8  # pixels
ALIKE_BELOW = 0.02
FAR_ABOVE = 3.0
FAR_AT_LEAST = 0.1  # 5 % of the range of grey levels


class Tiles(NamedTuple):
    """uint8 [M, H, W, C]: what is learnt from, and what selects the weights; how the first may be changed.

    ``labelled``: defective ones to learn from as well.
    """

    fit: Tensor
    validation: Tensor
    augmentation: Augmentation = Augmentation()
    labelled: Labelled | None = None


class _Product(NamedTuple):
    """What is learnt of one product type: its batches, and its tiles that are measured and judged, on the device."""

    batches: Batches
    reference: Tensor
    validation: Tensor
    variety: float
    labelled: Labelled | None


class Fitted(NamedTuple):
    """The selected network in evaluation mode on the CPU, and the figures of its training."""

    judge: nn.Module
    steps: int
    best_step: int
    seconds: float
    images_per_s: float
    validation_loss: float
    losses: dict[str, float]
    mends: int
    device: str
    precision: str
    processes: int
    history: list[dict[str, float]]


def new_model(settings: TrainSettings, channels: int, types: int = 1) -> Trainable:
    """The model that the settings name, for so many product types, initialised from their seed."""
    torch.manual_seed(settings.seed)
    build = model_class(settings.model).build
    model = build(size=settings.size, channels=channels, width=settings.width, latent=settings.latent)
    model.loss = settings.loss or model.loss
    model.condition(types)
    return model


def fit(
    model: Trainable,
    tiles: Tiles,
    settings: TrainSettings,
    data_sha256: str,
    reporter: Reporter | None = None,
    resumed: dict[str, Any] | None = None,
    world: World | None = None,
) -> Fitted:
    """Train on one product type: ``fit_types`` for one."""
    return fit_types(model, [tiles], settings, data_sha256, reporter, resumed, world)[0]


def fit_types(
    model: Trainable,
    products: Sequence[Tiles],
    settings: TrainSettings,
    data_sha256: str,
    reporter: Reporter | None = None,
    resumed: dict[str, Any] | None = None,
    world: World | None = None,
) -> list[Fitted]:
    """Train until the budget is spent and return the selected weights, once for each of the product types.

    The types take turns, a step each. ``resumed`` is a state of ``load_checkpoint``; ``world`` the processes that
    share the work. Raises StoppedError on Ctrl-C, after a checkpoint, and TrainingError where the numbers say that
    going on is pointless; the last good checkpoint stays. Where several processes train, only the first one's result
    is complete.
    """
    reporter = reporter or Quiet()
    with memory_named("the images and the networks", settings):
        loop = Loop(model, products, settings, data_sha256, world)
    reporter.say(loop.sentence())
    if resumed is not None:
        loop.restore(resumed)
        reporter.say(f"resumed at step {loop.step} ({loop.seconds():.0f} s of training behind it)")
    with (
        open_board(settings, products[0].validation, loop.first, reporter.say) as board,
        _stop_request(loop.stop, loop.alone),
    ):
        loop.start_clock()
        while loop.share() < 1.0:
            losses = loop.train_once()
            if loop.to_check():
                loop.check(losses)
                reporter.step(loop.progress())
            if loop.milestone_reached():
                loop.check(losses)
                loop.validate()
                loop.save()
                reporter.milestone(loop.progress())
                board.write(loop.progress(), loop.averaged)
            elif time.monotonic() - loop.saved_at > CHECKPOINT_EVERY_S:
                loop.save()
            if loop.to_stop():
                loop.save()
                raise StoppedError(
                    f"stopped at step {loop.step}; nothing is lost: the same command with --resume goes on from "
                    f"{loop.checkpoint}"
                )
        return loop.finish()


class Loop:
    """Networks, optimizers, averaged weights and the clock of one run."""

    def __init__(
        self,
        model: Trainable,
        tiles: Tiles | Sequence[Tiles],
        settings: TrainSettings,
        data_sha256: str,
        world: World | None = None,
    ) -> None:
        every = [tiles] if isinstance(tiles, Tiles) else tiles
        self._settings = settings
        self._data_sha256 = data_sha256
        self.checkpoint = checkpoint_path(settings.out)
        self._world = world or join(settings.device, settings.batch)
        self.first, self.alone = self._world.first, self._world.size == 1
        device = self.device = self._world.device
        self.precision = choose_precision(settings.precision, device)
        self._networks = model.networks()
        self._model = model.to(device).train()
        for number, product in reversed(list(enumerate(every))):  # the first last: it is turned to from here on
            model.turn_to(number, product.augmentation.variety)
        for network in self._networks.values():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._live = model.deployed()  # shares the live weights
        self._averaged = copy.deepcopy(self._live).eval().requires_grad_(False)  # before the live ones pass in BF16
        self._optimizers = model.optimizers(settings.learning_rate)
        if self.precision.name == "bf16-mixed":
            for network in self._networks.values():
                pass_in_bf16(network, device)
        self._world.share_networks(self._networks, self._optimizers)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self._best = _clone(self._averaged.state_dict())
        self._products = [self._product(product) for product in every]
        self.step = 0
        self._best_step = 0
        self._best_loss = math.inf  # mean of those of the types
        self._best_losses = [math.inf] * len(every)
        self._validation_loss = math.inf
        self._losses: dict[str, float] = {}
        self._losses_of: dict[int, dict[str, float]] = {}  # the latest of each product type
        self._mends = 0
        self._milestone = 1  # the next one, in twentieths of the budget
        self._seconds_before = 0.0
        self._images_at_start = 0
        self._validating_s = 0.0
        self._share = 0.0
        self._history: list[dict[str, float]] = []
        self.stop = threading.Event()
        self._stopped = False
        self.saved_at = self._started = time.monotonic()

    def _product(self, tiles: Tiles) -> _Product:
        settings, world = self._settings, self._world
        learn = tiles.fit.to(self.device)
        # In no order: every n-th tile of cut parts would be the same place of each.
        some = torch.randperm(len(tiles.validation), generator=torch.Generator().manual_seed(0))
        some = some[:MAX_VALIDATION_TILES].sort().values
        even = torch.linspace(0, len(tiles.fit) - 1, min(REFERENCE_TILES, len(tiles.fit))).round().long()
        return _Product(
            Batches(learn, settings.batch, settings.seed, tiles.augmentation, world.rank, world.size),
            tiles.fit[even].to(self.device),
            tiles.validation[some].to(self.device),
            tiles.augmentation.variety,
            None if tiles.labelled is None else tiles.labelled.to(self.device),
        )

    def _turn_to(self, number: int) -> _Product:
        """What follows is of that product type."""
        product = self._products[number]
        if self._model.product != number:
            self._model.turn_to(number, product.variety)
        self._model.labelled = product.labelled
        return product

    @property
    def averaged(self) -> Deployed:
        """The network that is validated and deployed, in evaluation mode; its weights move with every step."""
        return self._averaged

    def sentence(self) -> str:
        """Where and in which arithmetic it learns."""
        processes = "" if self.alone else f" in {self._world.size} processes"
        return f"learning on {self.device.type}{processes} in {self.precision.name}: {self.precision.reason}"

    def start_clock(self) -> None:
        """Time counts from here; the first step's set-up belongs to it, loading the images does not."""
        self.saved_at = self._started = time.monotonic()
        self._images_at_start = self.step * self._settings.batch
        self._tick()

    def seconds(self) -> float:
        """Training time so far, over all resumptions."""
        return self._seconds_before + time.monotonic() - self._started

    def share(self) -> float:
        """Part of the budget used after the latest step, 0 to 1; the first process's clock counts for all."""
        return self._share

    def to_stop(self) -> bool:
        """Whether someone asked to stop, and every process knows it."""
        return self._stopped or (self.alone and self.stop.is_set())

    def _tick(self) -> None:
        """Agree with the other processes on the share of the budget used, and on whether to stop."""
        self._share, self._stopped = self._world.agree(self._used(), self.stop.is_set())

    def _used(self) -> float:
        """By steps or by time, whichever is nearer its end."""
        by_steps = self.step / self._settings.steps if self._settings.steps else 0.0
        by_time = self.seconds() / (60 * self._settings.minutes) if self._settings.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def left_s(self) -> float:
        """Estimate of the time left."""
        share = self.share()
        return self.seconds() * (1 - share) / share if share > 0 else 0.0

    def images_per_s(self) -> float:
        """Since the start or the resumption, without the time for validations."""
        trained_s = max(1e-9, time.monotonic() - self._started - self._validating_s)
        return (self.step * self._settings.batch - self._images_at_start) / trained_s

    def progress(self) -> Progress:
        """Where the run is."""
        return Progress(self.step, self.share(), self.left_s(), self.images_per_s(), self.numbers())

    def train_once(self) -> dict[str, Tensor]:
        """One step of every network on the next batch, then a step of the average."""
        share, settings = self.share(), self._settings
        turn, number = divmod(self.step, len(self._products))
        product = self._turn_to(number)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._model.rate(share)
        torch.manual_seed(step_seed(settings.seed, self.step, self._world.rank))  # a resumed run draws the same
        with memory_named(f"step {self.step}: a batch of {settings.batch} tiles", settings, self._kept()):
            batch = product.batches(turn)
            losses = self._model.training_step(batch, self._optimizers, self._world.fabric.backward, share)
        self.step += 1
        _average(self._averaged, self._live, min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step)))
        self._tick()
        return losses

    def to_check(self) -> bool:
        """Whether the losses of this step are read: one in CHECK_EVERY, of each product type in its turn."""
        types = len(self._products)
        return (self.step - 1) % (CHECK_EVERY * types) >= (CHECK_EVERY - 1) * types

    def check(self, losses: dict[str, Tensor]) -> None:
        """Read the losses; raise TrainingError where they are no numbers or a network cannot be mended."""
        means = self._world.mean(torch.stack([value.float() for value in losses.values()])).tolist()
        self._losses = dict(zip(losses, means, strict=True))
        self._losses_of[(self.step - 1) % len(self._products)] = self._losses
        broken = [f"{name} = {value}" for name, value in self._losses.items() if not math.isfinite(value)]
        if broken:
            raise TrainingError(
                f"step {self.step}: the loss is not a number any more ({', '.join(broken)}); {self._kept()}. "
                f"Train again with a --learning-rate below {self._settings.learning_rate:g}, or another --seed"
            )
        # What is drawn afresh is the same in all processes, and in a resumed run.
        torch.manual_seed(step_seed(self._settings.seed, -self.step))
        if self._model.mend(self._losses):
            self._mends += 1
        if self._mends >= MAX_MENDS:
            raise TrainingError(
                f"step {self.step}: the discriminator collapsed {self._mends} times (its loss vanished although it was "
                f"started afresh each time); {self._kept()}. The good images may be too few or nearly identical: add "
                "images, or try a --learning-rate below "
                f"{self._settings.learning_rate:g}"
            )

    def _kept(self) -> str:
        return (
            f"the last good checkpoint stays in {self.checkpoint}" if self.checkpoint.is_file() else "no checkpoint yet"
        )

    def milestone_reached(self) -> bool:
        """True once in each twentieth of the budget, less often where validations are slow, and at its end."""
        reached = int(MILESTONES * self.share())
        if reached < self._milestone:
            return False
        self._milestone = reached + 1
        return True

    def validate(self) -> None:
        """Judge the averaged network by what the model selects by, and keep the best weights; the others wait."""
        began = time.monotonic()
        if self.first:
            with memory_named(f"step {self.step}: the validation", self._settings, self._kept()):
                self._judge()
        self._world.wait()
        took_s, _ = self._world.agree(time.monotonic() - began, False)
        self._validating_s += took_s
        if self._settings.minutes and self._milestone <= MILESTONES:
            twentieths = math.ceil(MILESTONES * took_s / (VALIDATING_SHARE * 60 * self._settings.minutes))
            self._milestone = min(MILESTONES, self._milestone + max(0, twentieths - 1))
        self._history.append(
            {"step": self.step, "share": self.share(), "seconds": self.seconds(), "images_per_s": self.images_per_s()}
            | self.numbers()
        )

    def _judge(self) -> None:
        losses = [self._judged(number) for number in range(len(self._products))]
        choose(self._averaged, 0)  # which the board shows
        self._validation_loss = sum(losses) / len(losses)
        if not math.isfinite(self._validation_loss):
            raise TrainingError(
                f"step {self.step}: the validation images are drawn as no numbers; {self._kept()}. "
                f"Train again with a --learning-rate below {self._settings.learning_rate:g}"
            )
        if self._validation_loss < self._best_loss:
            self._best_loss, self._best_losses, self._best_step = self._validation_loss, losses, self.step
            self._best = _clone(self._averaged.state_dict())

    def _judged(self, number: int) -> float:
        product = self._turn_to(number)
        choose(self._averaged, number)
        measure_statistics(self._averaged, product.reference, self._model.shown)
        return self._model.selection_loss(self._averaged, product.validation)

    def numbers(self) -> dict[str, float]:
        """The latest losses, and the validation loss where there is one."""
        known = {"validation": self._validation_loss} if math.isfinite(self._validation_loss) else {}
        return {**self._losses, **known}

    def save(self) -> None:
        """Write the checkpoint of this very step; the first process does it for all."""
        self.saved_at = time.monotonic()
        if not self.first:
            return
        state = {
            "learnt": self._settings.learnt(),
            "data_sha256": self._data_sha256,
            "step": self.step,
            "seconds": self.seconds(),
            "milestone": self._milestone,
            "mends": self._mends,
            "best_step": self._best_step,
            "best_loss": self._best_loss,
            "best_losses": self._best_losses,
            "validation_loss": self._validation_loss,
            "history": self._history,
            "networks": {name: network.state_dict() for name, network in self._networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "averaged": self._averaged.state_dict(),
            "best": self._best,
        }
        save_checkpoint(self.checkpoint, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that ``save`` wrote."""
        for name, network in self._networks.items():
            network.load_state_dict(state["networks"][name])
            self._optimizers[name].load_state_dict(state["optimizers"][name])
        self._averaged.load_state_dict(state["averaged"])
        self._best = {key: value.to(self.device) for key, value in state["best"].items()}
        self._best_step, self._best_loss = state["best_step"], state["best_loss"]
        self._best_losses = list(state["best_losses"])
        self._validation_loss = state["validation_loss"]
        self.step, self._seconds_before = state["step"], state["seconds"]
        self._mends = state["mends"]
        self._milestone = min(state["milestone"], int(MILESTONES * self._used()) + 1)  # the budget may be larger now
        self._history = list(state["history"])

    def finish(self) -> list[Fitted]:
        """Load the selected weights, refuse a network that draws everything alike, and hand it over, for each type."""
        if self.first and not math.isfinite(self._best_loss):  # a resumed run whose budget was already spent
            self._judge()
        images_per_s = self.images_per_s()
        judge = self._averaged
        judge.load_state_dict(self._best)
        judge = judge.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        judges = [folded(judge, number) for number in range(len(self._products))]
        if self.first:
            for own, product in zip(judges, self._products, strict=True):
                refuse_collapse(own, product.batches.tiles[:EVAL_BATCH].cpu(), self.step, self.checkpoint)
        return [
            Fitted(
                judge=own,
                steps=self.step,
                best_step=self._best_step,
                seconds=self.seconds(),
                images_per_s=images_per_s,
                validation_loss=loss,
                losses=self._losses_of.get(number, self._losses),
                mends=self._mends,
                device=self.device.type,
                precision=self.precision.name,
                processes=self._world.size,
                history=self._history,
            )
            for number, (own, loss) in enumerate(zip(judges, self._best_losses, strict=True))
        ]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of torch's generators for one step of one process: no state to save, nothing in common with the next."""
    return int.from_bytes(hashlib.sha256(f"step:{seed}:{step}:{rank}".encode()).digest()[:7])


def refuse_collapse(judge: nn.Module, tiles: Tensor, steps: int, checkpoint: Path) -> None:
    """Raise TrainingError where every tile is drawn alike *and* far from the average tile (all white, all grey).

    Drawing alike is not wrong by itself: aligned parts that differ by noise alone should all be drawn as their mean.
    Nor is drawing coarsely: detail of a few pixels does not count.
    """
    coarse = min(COARSE, tiles.shape[1], tiles.shape[2])
    with torch.no_grad():
        shown = scale(tiles)
        drawn = F.avg_pool2d(judge(shown).image, coarse)
        shown = F.avg_pool2d(shown, coarse)
    spread = float(drawn.std(dim=0, correction=0).mean() / (shown.std(dim=0, correction=0).mean() + 1e-6))
    distance = float((drawn - shown).abs().mean())
    mean_distance = float((shown - shown.mean(dim=0)).abs().mean())
    if spread < ALIKE_BELOW and distance > max(FAR_ABOVE * mean_distance, FAR_AT_LEAST):
        level = float((drawn.mean() + 1) * 127.5)
        raise TrainingError(
            f"after {steps} steps every image is drawn alike (mean grey level {level:.0f}), {distance:.3f} away from "
            f"the images where their plain average is {mean_distance:.3f} away: the generator collapsed or has hardly "
            f"learnt; no bundle is written, the checkpoint stays in {checkpoint}. Train longer, or with another "
            "--seed or a smaller --learning-rate"
        )


def _clone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@torch.no_grad()
def _average(averaged: nn.Module, live: nn.Module, decay: float) -> None:
    """Move averaged weights towards the live ones; normalisation statistics are copied until they are measured."""
    torch._foreach_lerp_(list(averaged.parameters()), list(live.parameters()), 1 - decay)
    for target, source in zip(averaged.buffers(), live.buffers(), strict=True):
        target.copy_(source)


@torch.no_grad()
def measure_statistics(judge: Deployed, tiles: Tensor, shown: Callable[[Tensor], Tensor]) -> None:
    """Set every BatchNorm's mean and variance to those of ``tiles`` as they are ``shown`` in training; evaluation mode.

    ``tiles``: good, uint8 [M, H, W, C]. They pass as ``judge.measured`` has it, not as they are judged. Averaged
    weights fit no statistics that training gathered on the way; with stale ones a network that trains well draws badly
    once ``eval()`` is called. The same tiles and weights give the same statistics.
    """
    layers = [module for module in used(judge) if isinstance(module, nn.BatchNorm2d)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches that follow
        layer.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Of one size, since each counts alike.
        for part in torch.tensor_split(tiles, math.ceil(len(tiles) / EVAL_BATCH)):
            judge.measured(shown(scale(part)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


@contextmanager
def _stop_request(event: threading.Event, impatient: bool) -> Iterator[None]:
    """Ctrl-C or a termination signal sets the event; a second one ends at once where the run is ``impatient``.

    Several processes get the terminal's Ctrl-C and then their launcher's: there the second is no sign of impatience.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return

    def request(number: int, frame: FrameType | None) -> None:
        if event.is_set() and impatient:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
