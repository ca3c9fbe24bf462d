"""The rules by which a limit is found, by name, and what each of them promises (before hop 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibration import conformal
from calibration.costs import Costs, Limits, Sides, best_f1, cheapest, cheapest_review
from calibration.costs import check as check_costs
from calibration.errors import CalibrationError
from calibration.tails import pot_threshold

METHOD = "split-conformal over parts"
SIGMAS = 3.0
CONFIDENCE = 0.95


class Rates(NamedTuple):
    """What was asked for: shares of good parts to reject, and to flag at all (None: no review band).

    ``reject`` is None for a rule that finds its limit without a rate.
    """

    reject: float | None
    review: float | None = None


class Choice(NamedTuple):
    """The rule and what it needs besides rates: see ``flawline calibrate thresholds --help``."""

    method: str = "conformal"
    confidence: float = CONFIDENCE
    sigmas: float = SIGMAS
    value: float | None = None
    costs: Costs | None = None
    defects: tuple[Path, ...] = ()
    looks: Path | None = None
    folds: tuple[Path, ...] = ()


class Scores(NamedTuple):
    """Scores of held-out good images with their parts, one entry an image, and of defective images.

    ``more`` and ``more_groups`` are scores of good parts by networks that have not seen them, though this one has.
    """

    good: Sequence[float]
    groups: Sequence[str]
    defects: Sequence[float] = ()
    more: Sequence[float] = ()
    more_groups: Sequence[str] = ()

    def sides(self) -> Sides:
        _, part, sizes = np.unique(np.asarray(self.groups), return_inverse=True, return_counts=True)
        weights = 1.0 / (sizes[part] * len(sizes))
        return Sides(conformal.finite(self.good), weights, conformal.finite(self.defects))


Rule = Callable[[Scores, float, Choice], float]


class Method(NamedTuple):
    """One rule.

    ``find`` gives the limit for a rate (which it ignores where ``rated`` is False); ``promise`` is a sentence with
    {reject} and {confidence} in per cent, None where there is none; ``caution`` says what is not promised.
    """

    title: str
    find: Rule
    caution: str
    promise: str | None = None
    rated: bool = True
    needs_defects: bool = False


def _conformal(scores: Scores, rate: float, choice: Choice) -> float:
    return conformal.threshold(scores.good, scores.groups, rate)


def _pac(scores: Scores, rate: float, choice: Choice) -> float:
    return conformal.pac_threshold(scores.good, scores.groups, rate, 1 - choice.confidence)


def _cross(scores: Scores, rate: float, choice: Choice) -> float:
    return conformal.threshold([*scores.good, *scores.more], [*scores.groups, *scores.more_groups], rate)


def _percentile(scores: Scores, rate: float, choice: Choice) -> float:
    return conformal.level(scores.good, scores.groups, 1 - rate)


def _sigma(scores: Scores, rate: float, choice: Choice) -> float:
    sides = scores.sides()
    mean = float((sides.weights * sides.good).sum())
    return mean + choice.sigmas * float(np.sqrt((sides.weights * (sides.good - mean) ** 2).sum()))


def _pot(scores: Scores, rate: float, choice: Choice) -> float:
    return pot_threshold(conformal.highest(scores.good, scores.groups), rate)


def _f1(scores: Scores, rate: float, choice: Choice) -> float:
    return best_f1(scores.sides())


def _cost(scores: Scores, rate: float, choice: Choice) -> float:
    if choice.costs is None:
        raise CalibrationError("--method cost needs --cost-escape, --cost-false-reject and --defect-rate")
    return cheapest(scores.sides(), choice.costs).reject


def _value(scores: Scores, rate: float, choice: Choice) -> float:
    if choice.value is None:
        raise CalibrationError("--method value needs --value: the score above which parts are to be rejected")
    return choice.value


METHODS: dict[str, Method] = {
    "conformal": Method(
        METHOD,
        _conformal,
        "the rate of this one calibration, which may lie above; it promises the average (--method pac: this one)",
        promise="on average over calibrations at most {reject} % of good parts are rejected"
        " (of several images a part, at most that share)",
    ),
    "pac": Method(
        "PAC over parts: exact binomial order statistic of each part's highest score",
        _pac,
        "anything with certainty: in the remaining share of calibrations the rate lies above",
        promise="with {confidence} % confidence, at most {reject} % of good parts have an image that is rejected",
    ),
    "cross": Method(
        "cross-conformal over networks: each part scored by those that have not seen it",
        _cross,
        "the rate: it holds as far as the networks score alike, and only this one runs on the line",
    ),
    "percentile": Method(
        "percentile of the held-out parts",
        _percentile,
        "the rate: parts to come lie above a percentile of n parts more often than asked for, most so with few parts",
    ),
    "sigma": Method(
        "mean plus k standard deviations of the held-out parts",
        _sigma,
        "any rate: 3 sigma are 0.135 % only of a normal distribution, which scores hardly ever have",
        rated=False,
    ),
    "pot": Method(
        "peaks over threshold: generalised Pareto tail of each part's highest score",
        _pot,
        "the rate: it holds if the tail has this shape beyond the parts that were seen",
    ),
    "f1": Method(
        "highest F1 among the held-out good and the given defective images",
        _f1,
        "any rate: it moves with the number and the kind of the defects given",
        rated=False,
        needs_defects=True,
    ),
    "cost": Method(
        "lowest cost a part, by the held-out good and the given defective images",
        _cost,
        "any rate or cost: it rests on the share of defects stated, and on defects to come being like those given",
        rated=False,
        needs_defects=True,
    ),
    "value": Method(
        "an expert's own value",
        _value,
        "any rate: the limit does not follow the scores when model, engine or camera change",
        rated=False,
    ),
}


def check(rates: Rates, choice: Choice) -> Method:
    """The rule chosen; raises CalibrationError where something it needs is missing, unknown or makes no sense."""
    method = METHODS.get(choice.method)
    if method is None:
        raise CalibrationError(f"--method {choice.method}: there is no such rule; expected {', '.join(METHODS)}")
    if method.rated and (rates.reject is None or not 0 < rates.reject < 1):
        raise CalibrationError(f"a rate must lie between 0 and 1, found {rates.reject}")
    if not method.rated and rates.reject is not None:
        raise CalibrationError(
            f"--false-reject-rate says nothing to --method {choice.method}, which finds its limit without a rate: "
            "leave one of them out"
        )
    if rates.review is not None and not (rates.reject or 0) < rates.review < 1:
        above = "0" if rates.reject is None else f"the false-reject rate of {rates.reject:g}"
        raise CalibrationError(
            f"--review-rate {rates.review:g} is the share of good parts flagged in all, REVIEW or REJECT: "
            f"it must lie above {above} and below 1"
        )
    _check_needs(rates, choice, method)
    return method


def _check_needs(rates: Rates, choice: Choice, method: Method) -> None:
    if (method.needs_defects or choice.costs is not None) and not choice.defects:
        what = f"--method {choice.method}" if method.needs_defects else "a review band from costs"
        raise CalibrationError(
            f"{what} needs images of defective parts, since good ones do not tell what escapes: give --defects DIR, "
            "a folder of them (of its own: not the test images). Without defects: --method conformal, --review-rate"
        )
    if choice.value is not None and choice.method != "value":
        raise CalibrationError(f"--value is a limit of its own and --method {choice.method} another: leave one out")
    if choice.method == "value" and (choice.value is None or not np.isfinite(choice.value)):
        raise CalibrationError("--method value needs --value: the score above which parts are to be rejected")
    if choice.method == "cost" and choice.costs is None:
        raise CalibrationError("--method cost needs --cost-escape, --cost-false-reject and --defect-rate")
    if choice.costs is not None:
        check_costs(choice.costs)
        if choice.costs.review is not None and rates.review is not None:
            raise CalibrationError("the review band is either --review-rate or --cost-review-minute: leave one out")
        if choice.costs.review is None and choice.method != "cost":
            raise CalibrationError(
                f"beside --method {choice.method} costs set the review band alone: give --cost-review-minute as well"
            )
    if (choice.method == "cross") != bool(choice.folds):
        raise CalibrationError(
            "--method cross needs --fold-bundle, and only it: bundles trained like this one with other --seed, "
            "so that each part is unseen by one of them"
        )


def require(parts: int, rates: Rates, choice: Choice) -> None:
    """Raise CalibrationError where ``parts`` held-out parts are too few for the rates by this rule."""
    for rate in (rates.reject, rates.review):
        if rate is not None and choice.method == "pac":
            conformal.pac_require(parts, rate, 1 - choice.confidence)
        elif rate is not None and choice.method in ("conformal", "cross"):
            conformal.require(parts, rate)
    if rates.review is not None and not METHODS[choice.method].rated:
        conformal.require(parts, rates.review)


def find_limits(scores: Scores, rates: Rates, choice: Choice) -> Limits:
    """The limits. The review limit follows the rule where it has a rate, costs where they are given, else conformal.

    Raises CalibrationError where the review limit would lie above the reject limit.
    """
    method = METHODS[choice.method]
    if choice.method == "cost" and choice.costs is not None and rates.review is None:
        return cheapest(scores.sides(), choice.costs)
    reject = method.find(scores, rates.reject or 0.0, choice)
    if choice.costs is not None and choice.costs.review is not None:
        return Limits(reject, cheapest_review(scores.sides(), choice.costs, reject))
    if rates.review is None:
        return Limits(reject, None)
    review = (method.find if method.rated else _conformal)(scores, rates.review, choice)
    if review > reject:
        raise CalibrationError(
            f"the review limit for a rate of {rates.review:g} would be {review:.6g}, above the reject limit of "
            f"{reject:.6g} by --method {choice.method}: ask for a higher --review-rate, or for none"
        )
    return Limits(reject, review)


def promise(rates: Rates, choice: Choice) -> str | None:
    """What is promised of parts exchangeable with the held-out ones, in a sentence; None where nothing is."""
    sentence = METHODS[choice.method].promise
    if sentence is None or rates.reject is None:
        return None
    told = sentence.format(reject=f"{100 * rates.reject:g}", confidence=f"{100 * choice.confidence:g}")
    return told if rates.review is None else f"{told}; for being flagged at all the same with {100 * rates.review:g} %"


def rate_to_expect(scores: Scores, rates: Rates, choice: Choice, limit: float) -> tuple[float, float]:
    """90 % interval of the rate of false rejects that ``limit`` realises, by the held-out parts of this network."""
    parts = len(set(scores.groups))
    if choice.method == "conformal" and rates.reject is not None:
        return conformal.expected_rate(parts, rates.reject)
    if choice.method == "pac" and rates.reject is not None:
        return conformal.pac_expected_rate(parts, rates.reject, 1 - choice.confidence)
    return conformal.rate_at(scores.good, scores.groups, limit)


def describe(scores: Scores, choice: Choice, looked: bool) -> str:
    """The rule with the numbers that went into it, as bundle and report name it."""
    method, costs = METHODS[choice.method], choice.costs
    said = [method.title]
    if choice.method == "sigma":
        said.append(f"k = {choice.sigmas:g}")
    if choice.method == "pac":
        said.append(f"confidence {100 * choice.confidence:g} %")
    if choice.folds:
        said.append(f"{1 + len(choice.folds)} networks")
    if costs is not None:
        review = "no review" if costs.review is None else f"{costs.review:g} a look"
        said.append(
            f"{costs.escape:g} an escape, {costs.false_reject:g} a false reject, {review}, "
            f"{100 * costs.defective:g} % of parts defective"
        )
    if len(scores.defects):
        said.append(f"{len(scores.defects)} defective images{', test images among them' if looked else ''}")
    return "; ".join(said)
