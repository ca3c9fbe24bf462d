"""What the one training loop and the one exporter ask of every model (before hop 1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from training.data import scale
from training.labelled import Labelled
from training.models.conditional import choose, condition

EVAL_BATCH = 64
Backward = Callable[[Tensor], None]


class Judgement(NamedTuple):
    """What a deployed network says of a batch of N tiles.

    ``image``: float32 [N, C, H, W] in [-1, 1], what the tile should look like. ``deviation``: float32 [N, 1, H, W],
    not negative, higher = more deviant. ``scores``: float32 [N] each, higher = more deviant, by the names that the
    table of models gives beside ``residual``: ``latent`` (of codes), ``features`` (of a discriminator), ...
    """

    image: Tensor
    deviation: Tensor
    scores: dict[str, Tensor]


class Deployed(nn.Module):
    """The networks that judge: ``forward`` maps float32 tiles [N, C, H, W] in [-1, 1] to a Judgement."""

    def measured(self, tile: Tensor) -> None:
        """Show every network what training shows it: the pass on which normalisation statistics are measured.

        To be overridden where judging shows a network more than that, or something else.
        """
        self(tile)


class NotExported(Deployed):
    """A judge that no graph can hold; the table says why beside the model's ``name``."""

    name: ClassVar[str]


class Pooling(NamedTuple):
    """How a deviation becomes map and score: Gaussian smoothing, whether each place is divided by what is typical
    there, and the share of the map's pixels, the highest, whose mean is the score."""

    smoothing_px: dict[int, float]  # by side of the tile; side / 85 for others
    by_place: bool
    top_share: float


RESIDUAL = Pooling({64: 1.0, 128: 1.5, 256: 2.5}, by_place=True, top_share=0.005)


class Trainable(nn.Module, ABC):
    """A model as the loop sees it: named networks with an optimizer each, one step, and the part that is deployed."""

    pooling: ClassVar[Pooling] = RESIDUAL
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)  # of Adam: DCGAN's
    typed: ClassVar[tuple[type[nn.Module], ...]] = (nn.BatchNorm2d,)  # layers that each product type has of its own
    product: int = 0  # which of the types the networks are turned to
    variety: float = 1.0
    labelled: Labelled | None = None  # defective tiles to learn from, of a model that the table says learns from them
    loss: str = ""  # one of those that the table gives for the model, where there is a choice

    @classmethod
    @abstractmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> Trainable:
        """A freshly initialised model for tiles [C, size, size]; draws from torch's global generator."""

    def networks(self) -> dict[str, nn.Module]:
        """Attribute name -> network; each has an optimizer of that name."""
        return dict(self.named_children())

    def optimizers(self, learning_rate: float) -> dict[str, Optimizer]:
        """One optimizer a network, under the network's name."""
        return {
            name: Adam(network.parameters(), lr=learning_rate, betas=self.betas)
            for name, network in self.networks().items()
        }

    @abstractmethod
    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        """Update the networks. ``batch``: float32 [N, C, H, W] in [-1, 1]; ``share``: of the budget used, 0 to 1.

        Whatever is random comes from torch's global generators, which the loop seeds anew for every step. Returns
        detached scalar losses.
        """

    @abstractmethod
    def deployed(self) -> Deployed:
        """The module that judges; shares this model's weights."""

    def adapt(self, variety: float) -> None:
        """Told before training: how little good parts share of a layout, 0 to 1 (``training.augment``)."""
        self.variety = variety

    def condition(self, types: int) -> None:
        """Told once, before training: how many product types there are."""
        if types > 1:
            condition(self, self.typed, types)

    def turn_to(self, product: int, variety: float) -> None:
        """Told whenever what follows is of another product type, whose good parts have this ``variety``."""
        self.product = product
        choose(self, product)
        self.adapt(variety)

    def shown(self, tiles: Tensor) -> Tensor:
        """What training shows the networks in place of good ``tiles``, float32 [N, C, H, W]; may draw random numbers.

        Normalisation statistics are measured on that: measured on untouched good tiles they would be others than those
        that the weights were trained with.
        """
        return tiles

    def rate(self, share: float) -> float:
        """Factor on the learning rate once ``share`` of the budget is used."""
        return 1.0

    def selection_loss(self, judge: nn.Module, tiles: Tensor) -> float:
        """What selects the weights, lower = better: here the mean deviation on good uint8 tiles [M, H, W, C].

        ``judge`` is the deployed module in evaluation mode.
        """
        with torch.no_grad():
            totals = [judge(scale(part)).deviation.sum(dtype=torch.float64) for part in torch.split(tiles, EVAL_BATCH)]
        return float(torch.stack(totals).sum()) / (tiles.shape[0] * tiles.shape[1] * tiles.shape[2])

    def mend(self, losses: dict[str, float]) -> bool:
        """Repair a network that has collapsed, judged by recent losses; True where something was re-initialised."""
        return False
