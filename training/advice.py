"""What the figures of a training suggest to do next, in sentences (before hop 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FEW_PARTS = 50
FEW_VALIDATION_PARTS = 5
LATE = 0.85  # of the budget: weights kept from there on were still getting better
EARLY = 0.5
GAIN = 0.02  # less over the last quarter of the budget is nothing to wait for
UNTOLD = "The weights were selected in the last fifth of the budget alone: no curve tells whether more time would help."


def advise(
    history: Sequence[Mapping[str, float]],
    best_step: int,
    fit_parts: int,
    validation_parts: int,
    mends: int,
    minutes: float,
    late: bool = False,
) -> list[str]:
    """Sentences, the most useful first; ``history`` has a row a validation, with share, step and validation.

    ``late``: the model selects among its last weights alone, whatever those before were worth.
    """
    about_time = [UNTOLD] if late else _about_time(history, best_step, minutes)
    lines = [*about_time, *_about_parts(fit_parts, validation_parts)]
    if mends:
        lines.append(
            f"The discriminator collapsed and was started afresh {mends} time(s): try half the --learning-rate, or add "
            "images that differ more."
        )
    return [*lines, "Set the thresholds on the parts that were kept unseen: flawline calibrate thresholds BUNDLE."]


def _about_time(history: Sequence[Mapping[str, float]], best_step: int, minutes: float) -> list[str]:
    judged = [row for row in history if "validation" in row]
    best = next((row for row in judged if row["step"] == best_step), None)
    if best is None or len(judged) < 4:
        return []
    before = [row["validation"] for row in judged if row["share"] <= 0.75] or [judged[0]["validation"]]
    gain = (min(before) - best["validation"]) / max(1e-12, abs(min(before)))
    if best["share"] >= LATE and gain >= GAIN:
        longer = max(2.0, 2 * minutes)
        return [
            f"It was still getting better at the end ({gain:.0%} in the last quarter): train longer, "
            f"--minutes {longer:.0f}."
        ]
    if best["share"] <= EARLY:
        return [
            f"The kept weights are from {best['share']:.0%} of the budget; what came later was no better. More time "
            "does not help: more good images of more parts may."
        ]
    return ["It had all but stopped getting better: more time gains little."]


def _about_parts(fit_parts: int, validation_parts: int) -> list[str]:
    lines = []
    if fit_parts < FEW_PARTS:
        lines.append(
            f"It learnt from {fit_parts} part(s): variation that they do not show will be flagged. Add good images of "
            "other parts, shifts and batches: 100 to 300 parts is a good number."
        )
    if validation_parts < FEW_VALIDATION_PARTS:
        lines.append(
            f"The weights were selected on {validation_parts} part(s), which is little: add images, or give a larger "
            "--validation."
        )
    return lines
