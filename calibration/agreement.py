"""Whether two precisions of one model sort and judge the same held-out parts alike (before hop 5).

Each precision has a limit of its own, set by the same rule from the same good parts, as on the line. A flip is a part
that one rejects and the other does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.metrics import ranking
from contract.stats import beta_quantile

LEAST_RANK = 0.99
MOST_FLIPS = 0.001
MOST_AUROC = 0.005
CONFIDENCE = 0.95
Scores = NDArray[np.float64]


class Scored(NamedTuple):
    """Scores of one precision, in the same order for both: good and defective parts, and its limit."""

    good: Scores
    defective: Scores
    limit: float

    def rejected(self) -> NDArray[np.bool_]:
        """For each part, good ones first."""
        return np.concatenate([self.good, self.defective]) > self.limit


class Agreement(NamedTuple):
    """``rank`` is Spearman's over the good parts; ``flips_bound``: with 95 % confidence no larger share flips.

    ``auroc`` and ``auroc_reference`` are None without defective parts.
    """

    good: int
    defective: int
    rank: float
    flips: int
    flips_bound: float
    auroc: float | None
    auroc_reference: float | None

    @property
    def images(self) -> int:
        return self.good + self.defective

    def faults(self) -> list[str]:
        """Why the precision is not admitted, a part of a sentence each; empty where it is."""
        found = []
        if not self.rank >= LEAST_RANK:
            found.append(f"good parts are sorted otherwise (rank correlation {self.rank:.4f}, at least {LEAST_RANK:g})")
        if self.flips > MOST_FLIPS * self.images:
            found.append(f"{self.flips} of {self.images} verdicts flip at the limit, at most {MOST_FLIPS:.1%} may")
        if self.auroc is not None and self.auroc_reference is not None:
            apart = abs(self.auroc - self.auroc_reference)
            if not apart <= MOST_AUROC:
                found.append(
                    f"AUROC is {self.auroc:.4f} and {self.auroc_reference:.4f} in FP32, at most {MOST_AUROC:g} apart"
                )
        return found

    def fields(self) -> dict[str, Any]:
        """The figures as JSON."""
        difference = None if self.auroc is None or self.auroc_reference is None else self.auroc - self.auroc_reference
        return {
            "images": self.images,
            "good": self.good,
            "defective": self.defective,
            "rank_correlation": round(self.rank, 6),
            "flips": self.flips,
            "flips_bound_95": round(self.flips_bound, 6),
            "auroc": self.auroc,
            "auroc_difference": difference,
            "faults": self.faults(),
        }

    def text(self) -> str:
        """What was found, and what the number of images allows to say of flips."""
        shown = f"{self.flips} of {self.images} verdicts flip (with 95 % confidence at most {self.flips_bound:.2%})"
        ranked = f"rank correlation {self.rank:.4f}"
        if self.auroc is None or self.auroc_reference is None:
            return f"{ranked}; {shown}; AUROC not compared: no defective parts given"
        return f"{ranked}; {shown}; AUROC {self.auroc:.4f}, in FP32 {self.auroc_reference:.4f}"


def agreement(found: Scored, reference: Scored) -> Agreement:
    """Hold ``found`` against ``reference``."""
    flips = int(np.count_nonzero(found.rejected() != reference.rejected()))
    images = len(found.good) + len(found.defective)
    return Agreement(
        len(found.good),
        len(found.defective),
        rank_correlation(found.good, reference.good),
        flips,
        1.0 if flips == images else beta_quantile(CONFIDENCE, flips + 1, images - flips),
        ranking(found.good, found.defective).auroc,
        ranking(reference.good, reference.defective).auroc,
    )


def images_to_show(share: float = MOST_FLIPS) -> int:
    """How many images without a flip show, with 95 % confidence, that no more than ``share`` flips."""
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log(1 - share)))


def rank_correlation(first: Scores, second: Scores) -> float:
    """Spearman's; ties share their mean rank. 0 where one of the two is constant or not all are numbers."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return 0.0
    ranks = [_ranks(first), _ranks(second)]
    if min(float(values.std()) for values in ranks) == 0.0:
        return 0.0
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _ranks(values: Scores) -> Scores:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
