"""Promises over hundreds of calibrations, by the benchmark's own code on fewer trials, and that it notices a breach."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coverage import CASES, DELTA, PARTS, main, measure, row, targets
from calibration.methods import METHODS

TRIALS = 400
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "coverage.json"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [30, 100])
def test_conformal_keeps_the_rate_on_average(case: str, parts: int) -> None:
    found = measure("conformal", case, parts, 0.1, TRIALS)
    assert found["kept"] and found["false_reject_mean"] > 0.05
    if case == "continuous":
        above = parts - math.ceil((parts + 1) * 0.9) + 1
        assert found["false_reject_mean"] == pytest.approx(above / (parts + 1), abs=4 * found["standard_error"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [30, 100])
def test_pac_breaks_its_rate_no_more_often_than_said(case: str, parts: int) -> None:
    found = measure("pac", case, parts, 0.1, TRIALS)
    assert found["kept"] and found["violation_rate"] <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / TRIALS)


def test_a_percentile_would_not_keep_it() -> None:
    found = measure("percentile", "continuous", 30, 0.05, TRIALS)
    assert found["kept"] is None
    assert found["false_reject_mean"] > 0.05 + 3 * found["standard_error"]


@pytest.mark.parametrize(
    ("method", "rates"), [("conformal", [0.06] * 50 + [0.07] * 50), ("pac", [0.01] * 80 + [0.06] * 20)]
)
def test_a_breach_is_noticed(method: str, rates: list[float]) -> None:
    assert row(method, "ties", 30, 0.05, np.array(rates), np.zeros((len(rates), 2)))["kept"] is False


@pytest.mark.parametrize("case", CASES)
def test_rate_of_a_limit_is_that_of_many_draws(case: str) -> None:
    scores, groups = CASES[case].draw(np.random.default_rng(1), 40_000)
    limits = np.quantile(scores, [0.5, 0.9, 0.99])
    part = np.unique(groups, return_inverse=True)[1]
    for of_parts in (False, True):
        above = scores[:, None] > limits
        shares = np.stack([np.bincount(part, above[:, at]) / np.bincount(part) for at in range(3)], 1)
        drawn = (shares > 0 if of_parts else shares).mean(0)
        assert CASES[case].rate(limits, of_parts) == pytest.approx(drawn, abs=0.01)


def test_the_command_writes_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "coverage.json"
    monkeypatch.setattr(sys, "argv", ["coverage", "--json", str(file), "--trials", "5"])
    main()  # five trials may break a promise; that the rows are there is what counts here
    found = json.loads(file.read_text())["rows"]
    fields = ("method", "n", "target", "trials", "false_reject_mean", "violation_rate")
    assert all(set(fields) <= set(entry) for entry in found)
    for method in ("conformal", "pac"):
        asked = {(case, parts, rate) for case in CASES for parts in PARTS for rate in targets(method, case, parts)}
        assert {(e["case"], e["n"], e["target"]) for e in found if e["method"] == method} == asked


def test_published_figures_keep_every_promise() -> None:
    figures = json.loads(RESULTS.read_text())
    assert figures["date"] and figures["machine"]["processor"]
    promised = [entry for entry in figures["rows"] if METHODS.get(entry["method"]) and entry["kept"] is not None]
    assert {entry["n"] for entry in promised} == set(PARTS) and {entry["trials"] for entry in promised} == {5000}
    assert all(entry["kept"] for entry in promised)
    assert all(entry["violation_rate"] <= DELTA for entry in promised if entry["method"] == "pac")
