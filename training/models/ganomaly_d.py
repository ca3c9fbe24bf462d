"""GANomaly with a dense discriminator, a per-pixel judge of (x, x_hat, |x - x_hat|) (before hop 1).

The generator (encoder, decoder, second encoder: arXiv 1805.06725) draws what the tile should look like. The
discriminator sees the tile, the drawing and their difference, and marks each pixel that does not belong. It learns
that from defects drawn on good tiles, and plays the adversarial game per pixel: drawings put in the tile's place are
to be told from tiles, which the generator tries to prevent. Discriminative reconstruction: DRAEM, arXiv 2108.07610.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from training.data import scale
from training.defects import Drawn, draw
from training.errors import TrainingError
from training.heldout import Exam, set_exam
from training.models.adversarial import as_real, cross_entropy, frozen, update
from training.models.base import EVAL_BATCH, Backward, Deployed, Judgement, Pooling, Trainable
from training.models.conditional import used
from training.variation import vary

WEIGHT_CONTEXTUAL, WEIGHT_GRADIENT, WEIGHT_ENCODER, WEIGHT_ADVERSARIAL = 5.0, 2.0, 0.5, 0.1
WEIGHT_MARKS, WEIGHT_TILE, WEIGHT_REAL = 1.0, 0.15, 0.1
LABELLED_SHARE = 0.125  # of a batch, at most: so few would else be learnt by heart
SWAPPED_SHARE = 0.125  # of a batch is drawn once more with drawing and tile exchanged
WEIGHT_GROUND = 4.0
HARD_SHARE = 0.02  # of the ground: its pixels that look most like defects
DICE_SMOOTH = 20.0
RARE = -3.0  # first logit: defects are rare, and a discriminator that has to learn that first learns nothing else
TOP_SHARE = 0.0025  # of the map's pixels: what makes a tile's logit
WARM_UP = 0.03
CODE_SIDE = 8
PLACES = 32  # a side, at most
CELLS = 16  # a side: how wide "around" is in local contrast
LEAST_SPREAD = 0.02  # of local contrast, in [-1, 1]: quieter places are not made louder than that
GROWTH = (2, 4, 8, 8)  # widths of the discriminator's halvings
MAX_CHANNELS = 8  # times the width
EXAM_SEED = 20_231
MARKED_SHARE = 0.15  # of the good tiles, the highest, do not count in an exam


class Passage(NamedTuple):
    """One pass of the generator: drawn tile [N, C, H, W] in [-1, 1], code and code of the drawing [N, K, 8, 8]."""

    image: Tensor
    code: Tensor
    recode: Tensor


class Marks(NamedTuple):
    """Logits of one pass of the discriminator, [N, 1, H/2, W/2]: ``defect`` high = does not belong, ``real``."""

    defect: Tensor
    real: Tensor


def unit(before: int, after: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, normalisation, rectifier."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = unit(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.second(self.first(features)))


class Places(nn.Module):
    """Adds what is learnt of each place to features [N, C, S, S]: where on a part this is, so that a hole is missed.

    ``share``: how much of it counts, 0 where good parts share no layout: there it would learn the parts by heart.
    """

    share: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(1, channels, side, side))
        self.register_buffer("share", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.share * self.embedding


def halvings(size: int) -> list[int]:
    """Sides after each halving, down to the code's: 256 -> [64, 32, 16, 8]; the generator works at half the tile's."""
    sides, side = [], size // 2
    while side // 2 >= CODE_SIDE and side % 2 == 0:
        side //= 2
        sides.append(side)
    return sides


class Encoder(nn.Sequential):
    """Half-size tile [N, C, H/2, W/2] -> code [N, latent, h, w]."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        widths = [min(width * 2**level, MAX_CHANNELS * width) for level in range(len(halvings(size)))]
        layers: list[nn.Module] = [unit(channels, widths[0], 2, 5)]
        layers += [unit(before, after, 2) for before, after in pairwise(widths)]
        layers += [Places(widths[-1], halvings(size)[-1]), unit(widths[-1], widths[-1])]
        super().__init__(*layers, nn.Conv2d(widths[-1], latent, 1))


class Decoder(nn.Sequential):
    """Code -> drawing [N, C, H/2, W/2] in [-1, 1]."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        widths = [min(width * 2**level, MAX_CHANNELS * width) for level in range(len(halvings(size)))][::-1]
        layers: list[nn.Module] = [unit(latent, widths[0])]
        for before, after in pairwise(widths):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), unit(before, after)]
        # Four pixels at once instead of one more stage: the drawing is smooth there anyway.
        layers += [unit(widths[-1], widths[-1]), nn.Conv2d(widths[-1], 4 * channels, 3, 1, 1), nn.PixelShuffle(2)]
        super().__init__(*layers, nn.Tanh())


class Generator(nn.Module):
    """Encoder, decoder, encoder at half the tile's side: a drawing needs no more, the discriminator sees the rest."""

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(size, channels, width, latent)
        self.decoder = Decoder(size, channels, width, latent)
        self.second_encoder = Encoder(size, channels, width, latent)

    def forward(self, tile: Tensor) -> Passage:
        code = self.encoder(F.avg_pool2d(tile, 2))
        drawn = self.decoder(code)
        image = F.interpolate(drawn, scale_factor=2.0, mode="bilinear", align_corners=False)
        return Passage(image, code, self.second_encoder(drawn))


def local_contrast(tile: Tensor, cell: int) -> Tensor:
    """How far each pixel of [N, C, H, W] is from the mean around it, in standard deviations there.

    A dark and a bright exposure of a part look the same in it, so that a mark is as plain on the one as on the other.
    """

    def around(values: Tensor) -> Tensor:
        means = F.avg_pool2d(F.avg_pool2d(values, cell), 3, 1, 1, count_include_pad=False)
        return F.interpolate(means, scale_factor=float(cell), mode="bilinear", align_corners=False)

    away = tile - around(tile)
    return away / (around(away.square()) + LEAST_SPREAD**2).sqrt()


class Discriminator(nn.Module):
    """U-shaped: (x, x_hat, |x - x_hat|) -> logits at half the tile's side, from sharp lines to the whole tile.

    The tile is shown twice, as it is and in local contrast.
    """

    def __init__(self, size: int, channels: int, width: int) -> None:
        super().__init__()
        widths, side = [width], size // 2
        while side % 2 == 0 and side > 8 and len(widths) <= len(GROWTH):
            widths.append(width * GROWTH[len(widths) - 1])
            side //= 2
        self._cell = max(4, size // CELLS)
        self.stem = nn.Sequential(unit(4 * channels, width, 2), unit(width, width))
        sides = [size // 4 // 2**level for level in range(len(widths) - 1)]
        self.downs = nn.ModuleList(
            nn.Sequential(
                unit(before, after, 2), Places(after, side) if side <= PLACES else nn.Identity(), Residual(after)
            )
            for (before, after), side in zip(pairwise(widths), sides, strict=True)
        )
        self.ups = nn.ModuleList(
            nn.Sequential(unit(above + below, below, kernel=1), unit(below, below)) for below, above in pairwise(widths)
        )
        self.head = nn.Conv2d(width, 2, 1)
        with torch.no_grad():
            cast("Tensor", self.head.bias).copy_(torch.tensor([RARE, 0.0]))

    def forward(self, tile: Tensor, drawn: Tensor) -> Marks:
        seen = [tile, drawn, (tile - drawn).abs(), local_contrast(tile, self._cell)]
        features = [self.stem(torch.cat(seen, dim=1))]
        for down in self.downs:
            features.append(down(features[-1]))
        merged = features.pop()
        for up in reversed(self.ups):
            wider = F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = up(torch.cat([wider, features.pop()], dim=1))
        marks = self.head(merged)
        return Marks(marks[:, :1], marks[:, 1:])


class Judge(Deployed):
    """The deployed half: how far each pixel is from belonging, log(1 + e^logit), at the tile's own size."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, tile: Tensor) -> Judgement:
        drawn: Passage = self.generator(tile)
        marks: Marks = self.discriminator(tile, drawn.image)
        deviation = F.interpolate(F.softplus(marks.defect), scale_factor=2.0, mode="bilinear", align_corners=False)
        return Judgement(drawn.image, deviation, {"latent": (drawn.code - drawn.recode).abs().mean(dim=(1, 2, 3))})


def marks_loss(logits: Tensor, drawn: Drawn) -> Tensor:
    """Cross entropy of ground, of the hardest ground and of defects, and Dice; ``logits`` [N, 1, H/2, W/2].

    Each is a mean within its tile, so that a thin crack weighs as much as a large stain; unsure pixels do not count.
    """
    defect, sure = F.max_pool2d(drawn.defect, 2), 1.0 - F.max_pool2d(drawn.unsure, 2)
    sure = torch.maximum(sure, defect)
    entropy = F.binary_cross_entropy_with_logits(logits, defect, reduction="none") * sure
    ground = (entropy * (1.0 - defect)).flatten(1)
    hardest = ground.topk(max(1, round(HARD_SHARE * ground.shape[1])), dim=1).values
    area = defect.sum(dim=(1, 2, 3))
    missed = (entropy * defect).sum(dim=(1, 2, 3)) / (area + 10.0)
    marked = torch.sigmoid(logits) * sure
    overlap = 2.0 * (marked * defect).sum(dim=(1, 2, 3)) + DICE_SMOOTH
    dice = 1.0 - overlap / (marked.square().sum(dim=(1, 2, 3)) + area + DICE_SMOOTH)
    return (WEIGHT_GROUND * ground.mean(dim=1) + 0.5 * hardest.mean(dim=1) + 0.5 * missed + dice).mean()


def as_good(batch: Tensor, shown: Drawn, image: Tensor) -> Tensor:
    """What is to be drawn, [N, C, H, W], of a ``batch`` whose last tiles were replaced by labelled ones in ``shown``.

    Nobody knows what a good part would have in the defect's place: there, what was drawn is right as it is.
    """
    count = max(1, int(LABELLED_SHARE * len(batch)))
    hidden = torch.maximum(shown.defect, shown.unsure)[-count:] > 0
    return torch.cat([batch[:-count], torch.where(hidden, image[-count:].detach(), shown.image[-count:])])


def tile_logits(logits: Tensor) -> Tensor:
    """[N]: the mean of a tile's highest logits, as the score is made."""
    smooth = F.avg_pool2d(logits, 3, 1, 1).flatten(1)
    return smooth.topk(max(8, round(TOP_SHARE * smooth.shape[1])), dim=1).values.mean(dim=1)


def tile_loss(logits: Tensor, drawn: Drawn) -> Tensor:
    """Binary cross entropy of whole tiles; those with nothing but unsure pixels do not count."""
    defective = drawn.defect.amax(dim=(1, 2, 3))
    counts = torch.maximum(defective, 1.0 - drawn.unsure.amax(dim=(1, 2, 3)))
    entropy = F.binary_cross_entropy_with_logits(tile_logits(logits), defective, reduction="none")
    return (entropy * counts).sum() / counts.sum().clamp(min=1.0)


def real_loss(tiles: Tensor, drawings: Tensor) -> Tensor:
    """Binary cross entropy per pixel, half each: ``tiles`` are real, ``drawings`` are not."""
    return 0.5 * cross_entropy(tiles, drawings)


def gradient_loss(image: Tensor, tile: Tensor) -> Tensor:
    """Absolute difference of the finite differences on two scales: edges where they belong."""
    total = image.new_zeros(())
    for _ in range(2):
        image, tile = F.avg_pool2d(image, 2), F.avg_pool2d(tile, 2)
        for dim in (2, 3):
            total = total + F.l1_loss(image.diff(dim=dim), tile.diff(dim=dim))
    return total


class GanomalyD(Trainable):
    """Generator and dense discriminator, trained together on tiles with synthetic defects."""

    typed: ClassVar[tuple[type[nn.Module], ...]] = (nn.BatchNorm2d, Places)
    pooling: ClassVar[Pooling] = Pooling({64: 0.6, 128: 0.8, 256: 1.5}, by_place=False, top_share=TOP_SHARE)

    def __init__(self, size: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.generator = Generator(size, channels, width, latent)
        self.discriminator = Discriminator(size, channels, width)
        self._exams: dict[int, Exam] = {}  # by product type

    @classmethod
    def build(cls, *, size: int, channels: int, width: int, latent: int) -> GanomalyD:
        return cls(size, channels, width, latent)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def optimizers(self, learning_rate: float) -> dict[str, Optimizer]:
        return {
            name: AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
            for name, network in self.networks().items()
        }

    def adapt(self, variety: float) -> None:
        super().adapt(variety)
        for module in used(self):
            if isinstance(module, Places):
                module.share.fill_(1.0 - variety)

    def shown(self, tiles: Tensor) -> Tensor:
        return self.with_labelled(draw(vary(tiles, self.variety))).image

    def with_labelled(self, drawn: Drawn) -> Drawn:
        """The same with labelled defects in the last tiles' place, where there are any."""
        if self.labelled is None:
            return drawn
        count = max(1, int(LABELLED_SHARE * len(drawn.image)))
        real = self.labelled.draw(count)
        return Drawn(*(torch.cat([ours[:-count], theirs]) for ours, theirs in zip(drawn, real, strict=True)))

    def rate(self, share: float) -> float:
        """A short warm-up, then half a cosine down to a hundredth."""
        if share < WARM_UP:
            return max(0.02, share / WARM_UP)
        return 0.01 + 0.99 * 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * share))))

    def training_step(
        self, batch: Tensor, optimizers: dict[str, Optimizer], backward: Backward, share: float
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            batch = vary(batch, self.variety)
            shown = self.with_labelled(draw(batch))
        drawn: Passage = self.generator(shown.image)
        if self.labelled is not None:
            batch = as_good(batch, shown, drawn.image)
        swapped = max(1, round(SWAPPED_SHARE * len(batch)))
        fakes = drawn.image[:swapped]
        # A drawing in the tile's place and the tile in the drawing's: told apart per pixel, in the same pass.
        judged: Marks = self.discriminator(
            torch.cat([shown.image, fakes.detach()]), torch.cat([drawn.image, batch[:swapped]])
        )
        marks = Marks(judged.defect[: len(batch)], judged.real[: len(batch)])
        losses = {
            "marks": marks_loss(marks.defect, shown),
            "tile": tile_loss(marks.defect, shown),
            "real": real_loss(marks.real[swapped:], judged.real[len(batch) :]),
            "adversarial": self.adversarial(fakes, batch[:swapped]),
            "contextual": F.l1_loss(drawn.image, batch),
            "gradient": gradient_loss(drawn.image, batch),
            "encoder": F.mse_loss(drawn.recode, drawn.code.detach()),
        }
        total = (
            WEIGHT_MARKS * losses["marks"]
            + WEIGHT_TILE * losses["tile"]
            + WEIGHT_CONTEXTUAL * losses["contextual"]
            + WEIGHT_GRADIENT * losses["gradient"]
            + WEIGHT_ENCODER * losses["encoder"]
            + WEIGHT_REAL * losses["real"]
            + WEIGHT_ADVERSARIAL * losses["adversarial"]
        )
        update(total, backward, *optimizers.values())
        return {name: value.detach() for name, value in losses.items()}

    def adversarial(self, fakes: Tensor, tiles: Tensor) -> Tensor:
        """How surely drawings in the tile's place are known; only the generator takes this gradient."""
        with frozen(self.discriminator):
            marks: Marks = self.discriminator(fakes, tiles)
        return as_real(marks.real)

    def deployed(self) -> Judge:
        return Judge(self.generator, self.discriminator)

    def selection_loss(self, judge: nn.Module, tiles: Tensor) -> float:
        """1 minus the mean of ranking and marking on defects that training never draws; raises TrainingError."""
        exam = self._exams.get(self.product)
        if exam is None:
            exam = set_exam(tiles, EXAM_SEED)
            if set(exam.kinds) == {"good"}:
                raise TrainingError(
                    f"no synthetic defect can be seen on the {len(tiles)} good tiles that select the weights: they are "
                    "nothing but strong noise, or out of range. Look at the images, or train --model ganomaly"
                )
            self._exams[self.product] = exam
        figures = examine(judge, exam)
        return 1.0 - 0.5 * (figures["ranking"] + figures["marking"])


def examine(judge: nn.Module, exam: Exam) -> dict[str, float]:
    """How a judge in evaluation mode does on an exam.

    ``ranking``: AUROC of defective against good tiles, those good ones left out that score highest: on many products
    a few good parts bear marks that nobody could tell from a defect, and they would decide alone. ``ranking_KIND``:
    the same for one kind. ``marking``: mean over the defective tiles of the pixels' average precision within the tile.
    """
    device = next(judge.parameters()).device
    good = torch.tensor([kind == "good" for kind in exam.kinds])
    scores: list[Tensor] = []
    marking: list[float] = []
    with torch.no_grad():
        for part, masks in zip(torch.split(exam.tiles, EVAL_BATCH), torch.split(exam.masks, EVAL_BATCH), strict=True):
            deviation = F.avg_pool2d(judge(scale(part.to(device))).deviation, 5, 1, 2)[:, 0].cpu()
            top = max(8, round(TOP_SHARE * deviation[0].numel()))
            scores.append(deviation.flatten(1).topk(top, dim=1).values.mean(dim=1))
            marking += [
                average_precision(marks[::2, ::2].flatten(), mask[::2, ::2].flatten())
                for marks, mask in zip(deviation, masks, strict=True)
                if mask.any()
            ]
    score = torch.cat(scores)
    usual = torch.sort(score[good]).values[: max(1, round((1.0 - MARKED_SHARE) * int(good.sum())))]
    figures = {"ranking": auroc(usual, score[~good]), "marking": sum(marking) / max(1, len(marking))}
    for kind in sorted(set(exam.kinds) - {"good"}):
        figures[f"ranking_{kind}"] = auroc(usual, score[torch.tensor([k == kind for k in exam.kinds])])
    return figures


def auroc(low: Tensor, high: Tensor) -> float:
    """Share of pairs in the right order, ties half."""
    order = torch.sort(low).values
    wins = torch.searchsorted(order, high) + torch.searchsorted(order, high, right=True)
    return float(wins.double().mean()) / (2 * len(low))


def average_precision(values: Tensor, positive: Tensor) -> float:
    """Area under precision and recall, as a sum over the positives."""
    hits = positive[torch.argsort(values, descending=True, stable=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum().clamp(min=1.0))
