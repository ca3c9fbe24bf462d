"""f-AnoGAN (Schlegl and others 2019, doi 10.1016/j.media.2019.01.010): a WGAN-GP, then an encoder (before hop 1).

In the first part of the budget a generator learns to draw good tiles from noise, against a critic with a gradient
penalty. Then both are frozen in inference mode, and an encoder learns to find the noise from which the generator
draws the tile at hand ("izi_f": image to code to image, with the critic's features). What no code can draw deviates.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer, RMSprop

from training.models.adversarial import Late, critic_loss, criticised, frozen, gradient_penalty, noise, update
from training.models.base import Backward, Deployed, Judgement
from training.models.losses import deviation, mean_square

MAX_CHANNELS = 256  # the paper has 512 in its deepest stages at 64 px
N_CRITIC = 5  # updates of the critic for one of the generator
KAPPA = 1.0  # weight of the feature residual, in the encoder's loss and in the score
BETAS = (0.0, 0.9)
ENCODER_RATE = 0.5  # of the learning rate: 5e-5 where the others have the paper's 1e-4
ENCODER_FROM = 0.6  # share of the budget after which generator and critic are frozen; averages catch up by 0.8
Normalise = Callable[[int], nn.Module]


class Criticism(NamedTuple):
    """One pass of the critic: features [N, K, h, w] of the last stage and unbounded verdicts [N], high = real."""

    features: Tensor
    verdicts: Tensor


class Residuals(NamedTuple):
    """Mean square differences between a tile and its drawing, [N]: of the pixels and of the critic's features."""

    image: Tensor
    features: Tensor

    def total(self) -> Tensor:
        """A(x) of the paper, one number an image whatever else is in the batch."""
        return self.image + KAPPA * self.features


class FrozenNorm(nn.Module):
    """Batch normalisation whose statistics are gathered while the generator learns, and then stay.

    The loop measures the statistics of every BatchNorm2d anew on good tiles before it judges; the encoder has learnt
    to steer the generator as it was frozen, so here that must not happen.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        return F.batch_norm(features, self.mean, self.variance, self.weight, self.bias, self.training)


class Block(nn.Module):
    """Two 3x3 convolutions, each after normalisation and rectifier, that halve or double the side beside a shortcut."""

    def __init__(self, before: int, after: int, resample: Literal["down", "up"], normalise: Normalise) -> None:
        super().__init__()
        down = resample == "down"
        between = before if down else after
        # A 1x1 convolution gives the same before and after resampling; at the smaller side it costs a quarter.
        match = nn.Conv2d(before, after, 1)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), match) if down else nn.Sequential(match, _twice())
        layers = [normalise(before), nn.ReLU(), *([] if down else [_twice()])]
        layers += [nn.Conv2d(before, between, 3, 1, 1, bias=False), normalise(between), nn.ReLU()]
        layers += [nn.Conv2d(between, after, 3, 1, 1), *([nn.AvgPool2d(2)] if down else [])]
        self.main = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return cast("Tensor", self.shortcut(features) + self.main(features))


def _twice() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="nearest")


def stages(size: int, width: int) -> tuple[list[int], int]:
    """Channels after each halving block and the side that remains: 64 px, 64 wide -> [128, 256, 256, 256] and 4 px."""
    channels: list[int] = []
    side = size
    while side > 7 and side % 2 == 0:
        channels.append(min(width * 2 ** min(len(channels) + 1, 3), MAX_CHANNELS))
        side //= 2
    return channels, side


class Trunk(nn.Sequential):
    """Tile [N, C, H, W] -> features [N, K, h, w]: the critic's and, with other weights, the encoder's."""

    def __init__(self, size: int, channels: int, width: int, normalise: Normalise) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1)]
        before = width
        for after in stages(size, width)[0]:
            layers.append(Block(before, after, "down", normalise))
            before = after
        super().__init__(*layers)


class Critic(nn.Module):
    """Scores tiles higher than drawings. Layer normalisation: one image's gradient must not depend on another's."""

    updates: Tensor

    def __init__(self, size: int, channels: int, width: int) -> None:
        super().__init__()
        deepest, side = stages(size, width)
        self.trunk = Trunk(size, channels, width, layer_norm)
        self.head = nn.Linear(deepest[-1] * side * side, 1)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # saved, so that a resumed run goes on

    def forward(self, tile: Tensor) -> Criticism:
        return self.criticise(tile)

    def is_ahead(self) -> bool:
        """Whether it has had its updates since the generator's latest."""
        return int(self.updates) % N_CRITIC == 0

    def criticise(self, tile: Tensor) -> Criticism:
        """What ``forward`` gives, past whatever the loop has put around the network."""
        features = self.trunk(tile)
        return Criticism(features, self.head(features.flatten(1)).squeeze(1))


class Generator(nn.Module):
    """Code [N, latent] -> tile [N, C, H, W] in [-1, 1]."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        widths, self._side = stages(size, width)
        widths = [width, *widths][::-1]
        self._deepest = widths[0]
        self.expand = nn.Linear(latent, self._deepest * self._side * self._side)
        blocks = [Block(before, after, "up", FrozenNorm) for before, after in pairwise(widths)]
        self.draw = nn.Sequential(*blocks, FrozenNorm(width), nn.ReLU(), nn.Conv2d(width, channels, 3, 1, 1), nn.Tanh())

    def forward(self, code: Tensor) -> Tensor:
        seeds = self.expand(code).view(-1, self._deepest, self._side, self._side)
        return cast("Tensor", self.draw(seeds))


class Encoder(nn.Module):
    """Tile [N, C, H, W] -> code [N, latent] in [-1, 1]."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        deepest, side = stages(size, width)
        self.trunk = Trunk(size, channels, width, nn.BatchNorm2d)
        self.head = nn.Linear(deepest[-1] * side * side, latent)

    def forward(self, tile: Tensor) -> Tensor:
        return torch.tanh(self.head(self.trunk(tile).flatten(1)))


def layer_norm(channels: int) -> nn.Module:
    """Layer normalisation over channels, rows and columns, with a gain and a shift for each channel."""
    return nn.GroupNorm(1, channels)


def initialise(module: nn.Module) -> None:
    """He's weights for the 3x3 convolutions, which follow rectifiers, Glorot's for the rest; shifts 0."""
    if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def residuals(tile: Tensor, image: Tensor, tile_features: Tensor, image_features: Tensor) -> Residuals:
    """Mean square differences of each image by itself."""
    return Residuals(mean_square(tile, image), mean_square(tile_features, image_features))


def critic_step(
    critic: Critic, real: Tensor, fake: Tensor, optimizer: Optimizer, backward: Backward
) -> dict[str, Tensor]:
    """Update the critic on tiles and on drawings, which must be detached from the generator; counts the update."""
    on_real, on_fake = critic(torch.cat([real, fake])).verdicts.chunk(2)
    # The gradient of a gradient is taken in full precision: not through the network's own call.
    penalty = gradient_penalty(lambda tiles: critic.criticise(tiles).verdicts, real, fake)
    update(critic_loss(on_real, on_fake, penalty), backward, optimizer)
    critic.updates += 1
    distance = on_real.mean() - on_fake.mean()
    return {"wasserstein": distance.detach(), "penalty": penalty.detach()}


class Judge(Deployed):
    """The deployed half: encoder, generator and the critic's trunk; A(x) is the score of features."""

    def __init__(self, encoder: Encoder, generator: Generator, trunk: Trunk) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator
        self.trunk = trunk

    def forward(self, tile: Tensor) -> Judgement:
        image = self.generator(self.encoder(tile))
        anomaly = residuals(tile, image, self.trunk(tile), self.trunk(image)).total()
        return Judgement(image, deviation(tile, image), {"features": anomaly})


class FAnogan(Late):
    """Generator, critic and encoder with the paper's losses, optimizers and order."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.generator = Generator(size, channels, width, latent)
        self.critic = Critic(size, channels, width)
        self.encoder = Encoder(size, channels, width, latent)
        self._latent = latent
        self.apply(initialise)

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> FAnogan:
        return cls(size, channels, width, latent)

    def optimizers(self, learning_rate: float) -> dict[str, Optimizer]:
        return {
            "generator": Adam(self.generator.parameters(), lr=learning_rate, betas=BETAS),
            "critic": Adam(self.critic.parameters(), lr=learning_rate, betas=BETAS),
            "encoder": RMSprop(self.encoder.parameters(), lr=ENCODER_RATE * learning_rate, alpha=0.9),
        }

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        self.used = share
        adversarial = share < ENCODER_FROM
        self.generator.train(adversarial)  # frozen in inference mode: its statistics stay as they are
        for network in (self.generator, self.critic):
            network.requires_grad_(adversarial)
        if not adversarial:
            return self.encoder_step(batch, optimizers["encoder"], backward)
        losses = self.critic_step(batch, optimizers["critic"], backward)
        if self.critic.is_ahead():
            self.generator_step(batch, optimizers["generator"], backward)
        return losses

    def critic_step(self, real: Tensor, optimizer: Optimizer, backward: Backward) -> dict[str, Tensor]:
        """Update the critic on tiles and on as many drawings of new codes."""
        with torch.no_grad():
            fake = self.generator(noise(real, self._latent))
        return critic_step(self.critic, real, fake, optimizer, backward)

    def generator_step(self, like: Tensor, optimizer: Optimizer, backward: Backward) -> None:
        """Update the generator on drawings of new codes, as many as ``like`` has tiles; the critic is frozen."""
        with frozen(self.critic):
            drawn = self.generator(noise(like, self._latent))
            update(criticised(self.critic(drawn).verdicts), backward, optimizer)

    def encoder_step(self, batch: Tensor, optimizer: Optimizer, backward: Backward) -> dict[str, Tensor]:
        """Update the encoder on the residuals that the score is made of."""
        image = self.generator(self.encoder(batch))
        with torch.no_grad():
            features = self.critic(batch).features
        found = residuals(batch, image, features, self.critic(image).features)
        update(found.total().mean(), backward, optimizer)
        return {"image": found.image.mean().detach(), "features": found.features.mean().detach()}

    def deployed(self) -> Judge:
        return Judge(self.encoder, self.generator, self.critic.trunk)
