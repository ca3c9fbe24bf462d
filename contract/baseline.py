"""What good parts measured at calibration: what the edge's watch over drift holds every part against (hops 3 to 6)."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from contract.bundle import ROLE_BASELINE, Bundle
from contract.config import Strict
from contract.errors import BundleError

WATCHED = {
    "mean": "brightness",
    "contrast": "contrast",
    "focus_x": "focus",
    "focus_y": "focus",
    "likeness": "position",
    "aspect": "position",
}
"""The quality gate's measures that are watched, and what each is to a person."""

FIXTURE = "fixture"
PLACED = ("score", "scale", "angle_deg")
"""What a fixture says of each part that it brings to place: watched as a view of this name, to a person position."""

MOST_PARTS = 4096
Values = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=MOST_PARTS)]


class Baseline(Strict):
    """One value of each good part, in ascending order: the score of the held-out ones, the measures of all.

    ``measures``: by view and name, of those in WATCHED, and of ``fixture`` those in PLACED. ``engine``: what the scores
    were measured with. ``review``: what of the held-out ones is held against the review limit, where zones send parts
    to review.
    """

    engine: str = Field(max_length=200)
    score: Values
    review: Values | None = None
    measures: dict[str, Annotated[dict[str, Values], Field(min_length=1)]] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _in_order(self) -> Baseline:
        if self.review is not None and len(self.review) != len(self.score):
            raise ValueError("not as many values for the review limit as scores")
        for values in (
            self.score,
            self.review or [],
            *(each for view in self.measures.values() for each in view.values()),
        ):
            if values != sorted(values):
                raise ValueError("values are not in ascending order")
        for view, of in self.measures.items():
            if strange := set(of) - set(WATCHED) - set(PLACED if view == FIXTURE else ()):
                raise ValueError(f"unknown measure(s) {sorted(strange)}")
        return self


def read_baseline(bundle: Bundle) -> Baseline | None:
    """The bundle's baseline; None in one that was calibrated before there was any. Raises BundleError."""
    if ROLE_BASELINE not in bundle.manifest.files:
        return None
    try:
        return Baseline.model_validate_json(bundle.path(ROLE_BASELINE).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{bundle.path(ROLE_BASELINE)}: no baseline ({str(error).splitlines()[0]})") from error


def baseline_file(baseline: Baseline) -> tuple[str, bytes]:
    """Its name in a bundle, and its bytes."""
    return "baseline.json", (json.dumps(baseline.model_dump(exclude_none=True), allow_nan=False) + "\n").encode()
