"""Kappa, control charts and Pareto against figures computed by hand."""

from __future__ import annotations

import math

import pytest

from plugin.agreement import Kappa, cohen, fleiss, table_of
from plugin.control_chart import Cause, in_runs, p_chart, pareto, scatter


def test_cohen_s_kappa_of_a_table_that_was_worked_out_by_hand() -> None:
    # rows 25 and 25, columns 30 and 20: observed 35/50, by chance (25*30 + 25*20) / 2500 = 0.5
    found = cohen([[20, 5], [10, 15]])
    assert found.n == 50
    assert (found.observed, found.expected) == (0.7, 0.5)
    assert found.kappa == pytest.approx(0.4)
    # Wilson of 35 of 50 is 0.5625 to 0.8090; (x - 0.5) / 0.5
    assert found.low == pytest.approx(2 * 0.56248 - 1, abs=1e-4)
    assert found.high == pytest.approx(2 * 0.80898 - 1, abs=1e-4)


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ([[5, 0], [0, 5]], 1.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[10, 0], [0, 0]], None),  # both only ever said good: chance explains all of it
        ([[0, 0], [0, 7]], None),
        ([[0, 10], [0, 0]], 0.0),  # one said only good, the other only defect
        ([[8, 2], [0, 0]], 0.0),  # one said only good: never beyond chance
    ],
)
def test_degenerate_tables(table: list[list[int]], kappa: float | None) -> None:
    found = cohen(table)
    assert found.kappa == (None if kappa is None else pytest.approx(kappa))
    if found.kappa is None:
        assert (found.low, found.high) == (None, None)
    else:
        assert found.low is not None and found.high is not None
        assert found.low <= found.kappa <= found.high and found.low < found.high


def test_perfect_agreement_on_few_parts_is_not_certain() -> None:
    found = cohen([[5, 0], [0, 5]])
    # Wilson of 10 of 10 begins at 10 / (10 + 3.8415) = 0.72247; (0.72247 - 0.5) / 0.5
    assert found.low == pytest.approx(0.44493, abs=1e-4)
    assert found.high == 1.0


def test_nothing_compared_is_no_kappa() -> None:
    assert cohen([[0, 0], [0, 0]]) == fleiss([]) == Kappa(0, None, None, None, None, None)


def test_fleiss_kappa_by_hand() -> None:
    pairs = [("good", "good")] * 3 + [("defect", "defect")] * 4 + [("good", "defect")] * 3
    # of 20 opinions 9 good and 11 defect: expected 0.45^2 + 0.55^2 = 0.505, observed 0.7
    found = fleiss(pairs)
    assert (found.n, found.observed) == (10, 0.7)
    assert found.expected == pytest.approx(0.505)
    assert found.kappa == pytest.approx(0.195 / 0.495)
    assert fleiss([("good", "good")] * 4).kappa is None
    assert table_of(pairs) == [[3, 3], [0, 4]]


def test_sigma_z_is_the_mean_moving_range() -> None:
    assert scatter([1.0, -1.0, 2.0]) == pytest.approx((2 + 3) / 2 / 1.128)
    assert scatter([3.0]) is None
    assert scatter([]) is None


def test_limits_of_a_p_chart_and_never_below_nothing() -> None:
    chart = p_chart([(2, 100), (6, 100), (10, 400)])
    assert chart.kind == "p" and chart.needed is None
    assert chart.centre == pytest.approx(0.03)
    small, _, large = chart.points
    assert (small.low, small.high) == (0.0, pytest.approx(0.03 + 3 * math.sqrt(0.03 * 0.97 / 100)))
    assert (large.low, large.high) == (
        pytest.approx(0.03 - 3 * math.sqrt(0.03 * 0.97 / 400)),
        pytest.approx(0.03 + 3 * math.sqrt(0.03 * 0.97 / 400)),
    )
    assert not any(point.outside for point in chart.points)


def test_overdispersed_subgroups_get_laney_s_limits() -> None:
    counts = [(100, 10_000), (400, 10_000)] * 6
    chart = p_chart(counts)
    sigma = math.sqrt(0.025 * 0.975 / 10_000)
    # each moving range is 0.03 / sigma
    assert chart.sigma_z == pytest.approx(0.03 / sigma / 1.128)
    assert chart.needed == pytest.approx(1 + 1.645 * math.sqrt(0.826 / 11))
    assert chart.kind == "laney"
    assert all(point.low == 0.0 and not point.outside for point in chart.points)
    assert chart.points[0].high == pytest.approx(0.025 + 3 * 0.03 / 1.128)
    few = p_chart(counts[:8])
    assert few.kind == "p" and all(point.outside for point in few.points)


def test_what_scatters_as_chance_does_keeps_the_plain_limits_and_an_outlier_is_marked() -> None:
    usual = [(10, 1000), (12, 1000), (9, 1000), (11, 1000), (10, 1000), (8, 1000), (11, 1000), (9, 1000), (12, 1000)]
    chart = p_chart([*usual, (28, 1000)])
    assert chart.kind == "p"
    assert [point.outside for point in chart.points] == [False] * 9 + [True]


def test_a_chart_of_nothing_and_of_one_and_without_a_hit() -> None:
    assert p_chart([]).centre is None
    (one,) = p_chart([(0, 50)]).points
    assert (one.share, one.low, one.high, one.outside) == (0.0, 0.0, 0.0, False)
    assert p_chart([(0, 50)] * 12).sigma_z is None
    assert p_chart([(50, 50)] * 12).points[0].high == 1.0


def test_eight_in_a_row_on_one_side_are_a_run_and_seven_are_not() -> None:
    up = [2.0] * 8
    assert in_runs([0.0, *up, 0.0], 1.0) == [False, *[True] * 8, False]
    assert in_runs([0.0, *up[1:], 0.0], 1.0) == [False] * 9
    assert in_runs([2.0] * 4 + [1.0] + [2.0] * 4, 1.0) == [False] * 9  # one on the centre ends it
    assert in_runs([0.5] * 9, 1.0) == [True] * 9
    assert in_runs([1.0] * 9, 1.0) == [False] * 9


def test_the_most_frequent_class_comes_first_and_shares_add_up() -> None:
    assert pareto({"dent": 3, "scratch": 10, "burr": 3, "stain": 0}) == [
        Cause("scratch", 10, 10 / 16),
        Cause("burr", 3, 13 / 16),
        Cause("dent", 3, 1.0),
    ]
    assert pareto({}) == []
