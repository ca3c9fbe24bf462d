"""The survey's models: the product's own, watched while they train, and dense ones for tables (no hop: a benchmark).

The losses, the steps, the judges and the loop are the product's; a dense model is the same class around other
networks. A row of a table is a tile of one pixel with a channel a column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.models import egbad, ganomaly
from training.models.base import Backward, Trainable
from training.models.egbad import Egbad
from training.models.ganomaly import Ganomaly

Watch = Callable[[nn.Module, int, float], None]
HIDDEN, WIDE, DROPOUT, LEAK = 64, 128, 0.2, 0.1  # of the network for KDD-99 in EGBAD's code


class Watched(Trainable):
    """Tells ``watch`` of every validation: judge, step and what selects the weights; training hears nothing of it."""

    watch: Watch
    steps = 0

    def training_step(self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float) -> Any:
        """The model's own step, counted."""
        self.steps += 1
        return super().training_step(batch, optimizers, backward, share)  # type: ignore[safe-super]

    def selection_loss(self, judge: nn.Module, tiles: Tensor) -> float:
        """The model's own, of good tiles alone."""
        loss = super().selection_loss(judge, tiles)
        self.watch(judge, self.steps, loss)
        return loss


class WatchedEgbad(Watched, Egbad):
    """EGBAD on images."""


class WatchedGanomaly(Watched, Ganomaly):
    """GANomaly on images."""


class DenseEncoder(ganomaly.Encoder):
    """Row [N, K, 1, 1] -> code [N, latent, 1, 1]."""

    def __init__(self, columns: int, latent: int) -> None:
        last = nn.Linear(HIDDEN, latent)
        nn.Sequential.__init__(
            self, nn.Flatten(), nn.Linear(columns, HIDDEN), nn.LeakyReLU(LEAK), last, _as_tile(latent)
        )


class DenseDecoder(ganomaly.Decoder):
    """Code [N, latent, 1, 1] -> row [N, K, 1, 1], unbounded."""

    def __init__(self, columns: int, latent: int) -> None:
        first = (nn.Flatten(), nn.Linear(latent, HIDDEN), nn.ReLU())
        then = (nn.Linear(HIDDEN, WIDE), nn.ReLU(), nn.Linear(WIDE, columns), _as_tile(columns))
        nn.Sequential.__init__(self, *first, *then)


def _as_tile(channels: int) -> nn.Unflatten:
    return nn.Unflatten(1, (channels, 1, 1))


def _branch(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(before, after), nn.LeakyReLU(LEAK), nn.Dropout(DROPOUT))


class DensePairs(egbad.Discriminator):
    """EGBAD's discriminator of a row with its code."""

    def __init__(self, columns: int, latent: int) -> None:
        nn.Module.__init__(self)
        self.of_tile = _branch(columns, WIDE)
        self.of_code = _branch(latent, WIDE)
        self.of_both = _branch(2 * WIDE, WIDE)
        self.head = nn.Linear(WIDE, 1)


class DenseEgbad(WatchedEgbad):
    """EGBAD on a table, with the network of its code for KDD-99."""

    def __init__(self, columns: int, latent: int) -> None:
        nn.Module.__init__(self)
        self.encoder = DenseEncoder(columns, latent)
        self.generator = DenseDecoder(columns, latent)
        self.discriminator = DensePairs(columns, latent)
        self._latent = latent
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> DenseEgbad:
        """``size`` and ``width`` are those of images."""
        return cls(channels, latent)


class DenseGenerator(ganomaly.Generator):
    """Encoder, decoder, encoder of rows."""

    def __init__(self, columns: int, latent: int) -> None:
        nn.Module.__init__(self)
        self.encoder = DenseEncoder(columns, latent)
        self.decoder = DenseDecoder(columns, latent)
        self.second_encoder = DenseEncoder(columns, latent)


class DenseCritic(ganomaly.Discriminator):
    """GANomaly's discriminator of a row: EGBAD's without the code."""

    def __init__(self, columns: int) -> None:
        nn.Module.__init__(self)
        self.stem = nn.Sequential(_branch(columns, WIDE), _branch(WIDE, WIDE))  # type: ignore[assignment]
        self.head = nn.Linear(WIDE, 1)  # type: ignore[assignment]


class DenseGanomaly(WatchedGanomaly):
    """GANomaly on a table: its article has images alone, so the networks are EGBAD's for KDD-99."""

    def __init__(self, columns: int, latent: int) -> None:
        nn.Module.__init__(self)
        self.generator = DenseGenerator(columns, latent)
        self.discriminator = DenseCritic(columns)
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> DenseGanomaly:
        """``size`` and ``width`` are those of images."""
        return cls(channels, latent)


def initialise(module: nn.Module) -> None:
    """EGBAD's weights of dense layers: Glorot's, shifts 0. DCGAN's are made for layers that are normalised."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def new_model(name: str, loss: str, of_images: bool, seed: int, **shape: int) -> Watched:
    """A freshly initialised ``egbad`` or ``ganomaly``."""
    kinds: dict[tuple[str, bool], type[Watched]] = {
        ("egbad", True): WatchedEgbad,
        ("egbad", False): DenseEgbad,
        ("ganomaly", True): WatchedGanomaly,
        ("ganomaly", False): DenseGanomaly,
    }
    torch.manual_seed(seed)
    model = kinds[name, of_images].build(**shape)
    model.loss = loss or model.loss
    return model  # type: ignore[return-value]
