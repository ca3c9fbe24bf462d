"""k-means (Lloyd 1982) from seeds by k-means++ (Arthur and Vassilvitskii 2007), on tensors (before hop 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

STARTS = 20  # the best of them counts: one alone often ends with two groups under one centre
ROUNDS = 100


def kmeans(codes: Tensor, count: int) -> Tensor:
    """Centres [count, L] of codes [M, L], the same again for the same codes.

    Where there are fewer different codes than centres, some lie on each other; of codes that are no numbers the centres
    are none either.
    """
    random = torch.Generator(codes.device).manual_seed(0)
    found = [lloyd(codes, seeds(codes, count, random)) for _ in range(STARTS)]
    return min(found, key=lambda centres: float(squares(codes, centres).amin(dim=1).sum()))


def squares(codes: Tensor, centres: Tensor) -> Tensor:
    """Square distances [M, K] of codes [M, L] from centres [K, L]."""
    return torch.cdist(codes, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def seeds(codes: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Some of the codes, [count, L]: each the likelier, the farther it is from those that were drawn before."""
    likely = torch.ones(len(codes), device=codes.device)
    chosen = codes[:0]
    for _ in range(count):
        chosen = torch.cat([chosen, codes[torch.multinomial(likely, 1, generator=random)]])
        away = squares(codes, chosen).amin(dim=1)
        if 0.0 < float(away.sum()) < math.inf:  # else all codes are chosen already, or no numbers
            likely = away
    return chosen


def lloyd(codes: Tensor, centres: Tensor) -> Tensor:
    """Centres [K, L] after rounds of: each code to its nearest centre, each centre to the middle of its codes.

    A centre that is the nearest of no code stays where it is.
    """
    for _ in range(ROUNDS):
        given = F.one_hot(squares(codes, centres).argmin(dim=1), len(centres)).to(codes.dtype)
        sizes = given.sum(dim=0)[:, None]
        moved = torch.where(sizes > 0, given.T @ codes / sizes.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
