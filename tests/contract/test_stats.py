"""Wilson's interval and Student's quantiles against known values, and that nothing is ever a bare zero."""

from __future__ import annotations

import pytest

from contract.stats import rate, rate_fields, student_quantile


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 50, 0.0035, 0.1050),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_interval_is_wilson_s(hits: int, total: int, low: float, high: float) -> None:
    found = rate(hits, total)
    assert found.rate == hits / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_no_parts_no_rate() -> None:
    assert rate(0, 0).rate is None
    assert rate(0, 0).text() == "0 of 0"


def test_zero_escapes_are_said_with_their_interval() -> None:
    assert rate(0, 12).text() == "0 of 12, 0.0 % (0.0 to 24.2 %)"


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        rate(3, 2)


def test_fields_are_numbers_or_null() -> None:
    found = rate_fields("escape", rate(5, 10))
    assert (found["escape_rate"], found["escape_hits"], found["escape_of"]) == (0.5, 5, 10)
    assert found["escape_interval"] == pytest.approx([0.2366, 0.7634], abs=1e-4)
    nothing = {"escape_rate": None, "escape_interval": None}
    assert rate_fields("escape", rate(0, 0)) == nothing | {"escape_hits": 0, "escape_of": 0}
    assert rate_fields("escape", None) == nothing | {"escape_hits": None, "escape_of": None}


@pytest.mark.parametrize(
    ("q", "degrees", "table"), [(0.975, 5, 2.5706), (0.995, 10, 3.1693), (0.975, 16, 2.1199), (0.95, 120, 1.6577)]
)
def test_student_s_quantiles_are_the_table_s(q: float, degrees: int, table: float) -> None:
    assert student_quantile(q, degrees) == pytest.approx(table, rel=1e-3)
