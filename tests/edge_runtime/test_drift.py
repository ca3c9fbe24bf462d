"""The watch over drift: what its promise rests on, that it finds what changes, and what it keeps over a restart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.baseline import WATCHED, Baseline
from contract.errors import ConfigError
from contract.event import Drift, Result, Timing, Verdict
from contract.stats import beta_quantile, log_binomial
from edge_runtime.drift import DELTA, MARK_EVERY, TESTS, Crossed, Reference, Watch, suspect
from edge_runtime.drift_desk import MAX_STATE_BYTES, MONTH_S, MOST_KEPT, STATE_FOLDER, DriftDesk, Held
from edge_runtime.settings import CameraSettings, DriftSettings, EdgeSettings, load_settings

SHARE = 0.05
MONTH = 1_000_000  # parts
LINE = float(len(TESTS))  # of one false alarm a month
N = 200


def draw(random: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Good parts: six measures and a score, [count, 7]."""
    measures = random.normal([110, 40, 0.3, 0.3, 0.97, 1.3], [4, 2, 0.02, 0.02, 0.01, 0.02], (count, 6))
    return np.column_stack([measures, random.gamma(4.0, 1.0, count)])


def reference(seed: int = 1, parts: int = N, share: float = SHARE) -> tuple[Reference, float]:
    """What parts are held against, and the limit above which a score is flagged."""
    values = np.sort(draw(np.random.default_rng(seed), parts), axis=0)
    measures = {name: values[:, at].tolist() for at, name in enumerate(WATCHED)}
    baseline = Baseline(engine="onnxruntime fp32", score=values[:, -1].tolist(), measures={"main": measures})
    limit = float(values[-max(1, parts // 20), -1])
    return Reference(baseline, {"main": "top"}, limit, share, "key"), limit


REFERENCE, LIMIT = reference()


def feed(watch: Watch, parts: np.ndarray[Any, Any]) -> list[tuple[int, Crossed]]:
    """The crossings with the number of parts until then."""
    found = []
    for part in parts.tolist():
        crossed = watch.see(f"part-{watch.inspected}", part, part[-1] > LIMIT, 1 / MONTH)
        found += [(watch.inspected, each) for each in crossed]
    return found


def with_defects(parts: np.ndarray[Any, Any], share: float, seed: int = 9) -> np.ndarray[Any, Any]:
    """A share of them measures whatever is worst: each far out, and the score as well."""
    bad = np.random.default_rng(seed).random(len(parts)) < share
    return np.where(bad[:, np.newaxis], parts + 1000.0, parts)


def test_no_bet_can_win_while_at_most_the_share_lies_beyond() -> None:
    share = (1 - REFERENCE.down) / (REFERENCE.up - REFERENCE.down)  # at which a bet neither wins nor loses
    good = (share - SHARE) / (1 - SHARE)
    assert np.allclose(share, share[:, :1]), "each bet on one value is fair for the same share"
    for actual in (0.0, 0.5, 1.0):
        beyond = SHARE + (1 - SHARE) * actual * good  # every defective part lies beyond
        assert (beyond * REFERENCE.up + (1 - beyond) * REFERENCE.down <= 1 + 1e-12).all()
    assert (REFERENCE.up > 1).all() and (REFERENCE.down < 1).all() and (REFERENCE.down > 0).all()


def test_the_shares_hold_together_for_all_but_one_calibration_in_twenty() -> None:
    """Exactly, by the distribution of the outermost values: what is left to each adds up to what is promised."""
    good = ((1 - REFERENCE.down) / (REFERENCE.up - REFERENCE.down))[:, 0]
    good = (good - SHARE) / (1 - SHARE)
    ranks = [round(share * N) for share in (0.02, 0.1, 0.5)] * (2 * len(REFERENCE.columns))
    flagged = sum(score > LIMIT for score in sorted(draw(np.random.default_rng(1), N)[:, -1]))
    left = 0.0
    for rank, share in zip([*ranks, flagged + 1], good.tolist(), strict=True):
        # P(more than `share` of all good parts lie beyond the rank-th outermost of N) = P(Binomial(N, share) < rank)
        left += math.fsum(math.exp(log_binomial(hits, N, share)) for hits in range(rank))
    assert left == pytest.approx(DELTA, rel=1e-6)


def test_the_quantile_is_that_of_the_beta_distribution() -> None:
    random = np.random.default_rng(3)
    outermost = np.sort(random.random((20_000, 40)), axis=1)[:, -4]  # above it: Beta(4, 37)
    assert np.quantile(1 - outermost, 0.9) == pytest.approx(beta_quantile(0.9, 4, 37), abs=0.003)


def test_false_alarms_are_no_more_than_chosen_whatever_the_defective_parts_measure() -> None:
    """Alarms of N months are N at most on average; of 24 months under the worst allowed stream, far fewer than 24."""
    months, of_a_month = 24, 1000
    alarms = 0
    for seed in range(4):
        parts = with_defects(draw(np.random.default_rng(100 + seed), of_a_month * months // 4), SHARE, seed)
        watch = Watch(REFERENCE, LINE)
        for part in parts.tolist():
            alarms += len(watch.see("part", part, part[-1] > LIMIT, 1 / of_a_month))
    # P(more than 60) is below 24 / 60 by Markov's inequality whatever the bets do; these seeds are fixed.
    assert alarms <= months


def test_what_the_sums_grow_by_is_the_time_that_passed_at_most() -> None:
    """Exactly, for one bet at its worst share: the mean over all ways of three parts, not one way."""
    row, bet, pace = 5, 1, 0.25
    up, down = REFERENCE.up[row, bet], REFERENCE.down[row, bet]
    share = (1 - down) / (up - down)
    mean = 0.0
    for way in range(8):
        hits = [bool(way >> n & 1) for n in range(3)]
        total = 0.0
        for hit in hits:
            total = (total + pace) * (up if hit else down)
        mean += math.prod(share if hit else 1 - share for hit in hits) * total
    assert mean == pytest.approx(3 * pace)


@pytest.mark.parametrize(
    ("column", "shift", "test", "what"),
    [
        (0, -3.0, "picture", "lamp"),
        (2, -3.0, "picture", "lens"),
        (2, 3.0, "picture", "product"),
        (4, -4.0, "picture", "fixture"),
        (6, 2.5, "score", "product"),
    ],
)
def test_a_measure_that_moves_is_found_and_named(column: int, shift: float, test: str, what: str) -> None:
    before, after = draw(np.random.default_rng(5), 700), draw(np.random.default_rng(6), 300)
    after[:, column] += shift * REFERENCE.columns[column].spread
    watch = Watch(REFERENCE, LINE)
    assert feed(watch, with_defects(before, SHARE)) == []
    found = feed(watch, after)
    assert found and found[0][0] - 700 <= 120 and found[0][1].test == test
    assert 600 <= found[0][1].since <= found[0][0]
    measures = {each.name: each for each in watch.measures()}
    moved = max(measures.values(), key=lambda each: abs(each.shift))
    assert moved.name == REFERENCE.columns[column].name
    assert moved.shift == pytest.approx(shift, abs=1.0)
    assert suspect(watch.measures(), watch.tests()) == what
    assert watch.part_before(found[0][1].since) == f"part-{found[0][1].since // MARK_EVERY * MARK_EVERY}"


def test_an_epidemic_is_an_alarm_of_its_own_and_is_not_learnt() -> None:
    watch = Watch(REFERENCE, LINE)
    good = draw(np.random.default_rng(7), 6000)
    sick = good.copy()
    sick[np.random.default_rng(8).random(len(good)) < 0.3, -1] += 30.0
    first = feed(watch, sick[:3000])
    later = feed(watch, sick[3000:])
    assert {each.test for _, each in first} == {"score", "rejects"}, "the pictures are what they were"
    rejects = [sum(each.test == "rejects" for _, each in found) for found in (first, later)]
    assert min(rejects) >= 0.6 * max(rejects) > 5, "it goes on as often as it began"
    assert suspect(watch.measures(), watch.tests()) == "product"
    reported_again = Watch(REFERENCE, LINE)
    assert feed(reported_again, with_defects(good[:500], SHARE)) == []


def test_a_tenth_of_defective_parts_is_seen_in_the_scores_though_not_in_their_median() -> None:
    watch = Watch(REFERENCE, LINE)
    parts = draw(np.random.default_rng(21), 200)
    parts[::8, -1] += 30.0
    feed(watch, parts)
    score = next(each for each in watch.measures() if each.name == "score")
    assert abs(score.shift) < 1 and [each.share for each in score.quantiles] == [0.1, 0.5, 0.9]
    low, middle, high = score.quantiles
    assert middle.now == score.now and middle.usual == pytest.approx(score.usual)
    assert abs(low.shift) < 1 and high.shift > 3 and high.now > high.usual
    assert high.shift == pytest.approx((high.now - high.usual) / score.spread)
    assert all(not each.quantiles for each in watch.measures() if each.name != "score")


def test_a_fixture_that_finds_its_mark_less_surely_is_position() -> None:
    """Also where it refuses most parts: those are not scored, and what was found of them counts."""
    random = np.random.default_rng(22)
    placed = {"score": sorted(random.normal(0.9, 0.02, N).tolist()), "scale": [1.0] * N, "angle_deg": [0.0] * N}
    drawn = np.sort(draw(random, N), axis=0)
    measures = {name: drawn[:, at].tolist() for at, name in enumerate(WATCHED)}
    baseline = Baseline(
        engine="onnxruntime fp32", score=drawn[:, -1].tolist(), measures={"main": measures, "fixture": placed}
    )
    watch = Watch(Reference(baseline, {"main": "top"}, LIMIT, SHARE, "key"), LINE)
    names = [column.name for column in watch.reference.columns]
    assert {column.what for column in watch.reference.columns if column.name.startswith("fixture.")} == {"position"}
    assert next(column for column in watch.reference.columns if column.name == "score").what == "score"
    lost = [0.4 if name == "fixture.score" else math.nan for name in names]
    crossed = [each for n in range(40) for each in watch.see(f"part-{n}", lost, None, 1 / MONTH)]
    assert {each.test for each in crossed} == {"picture"}
    assert suspect(watch.measures(), watch.tests()) == "fixture"
    with pytest.raises(ValueError, match="unknown measure"):
        Baseline(engine="x", score=[1.0], measures={"main": {"scale": [1.0]}})


def test_a_part_that_was_not_judged_counts_for_what_was_measured_of_it() -> None:
    watch, nothing = Watch(REFERENCE, LINE), [math.nan] * len(REFERENCE.columns)
    dark = [REFERENCE.columns[0].usual - 60.0, *nothing[1:]]
    for _ in range(40):
        watch.see("unseen", nothing, None, 1 / MONTH)
    assert watch._sums.max() == 0.0
    crossed = [each for _ in range(40) for each in watch.see("dark", dark, None, 1 / MONTH)]
    assert {each.test for each in crossed} == {"picture"}
    assert [each.name for each in watch.measures()] == ["main.mean"]


def test_zones_that_send_to_review_count_for_rejects_as_the_calibration_saw_them() -> None:
    """A third is flagged by a zone alone: no alarm where the baseline knows it, and no test where it does not."""
    values = np.sort(draw(np.random.default_rng(1), N), axis=0)
    measures = {"main": {name: values[:, at].tolist() for at, name in enumerate(WATCHED)}}
    score = values[:, -1].tolist()
    lifted = sorted(LIMIT + 1 if n % 3 == 0 else value for n, value in enumerate(score))
    engine = "onnxruntime fp32"
    of = [
        Reference(
            Baseline(engine=engine, score=score, review=review, measures=measures),
            {"main": "top"},
            LIMIT,
            SHARE,
            "k",
            zones,
        )
        for review, zones in ((None, False), (lifted, True), (None, True))
    ]
    flagged = np.random.default_rng(2).random(1500) < 1 / 3
    alarms = []
    for reference in of:
        watch = Watch(reference, LINE)
        for number, part in enumerate(draw(np.random.default_rng(3), len(flagged)).tolist()):
            watch.see(f"part-{number}", part, bool(flagged[number]), 1 / MONTH)
        alarms.append(watch.alarms["rejects"])
    assert alarms[0] > 0 and alarms[1:] == [0, 0]
    assert 1 / 3 < of[1].rejects_at_most < 0.6 and of[2].rejects_at_most == 1.0
    for _ in range(200):
        watch.see("part", values[N // 2].tolist(), True, 1.0)
    assert next(test for test in watch.tests() if test.name == "rejects").evidence == -12.0


def test_few_parts_promise_less_and_nothing_false() -> None:
    few, limit = reference(parts=3)
    watch = Watch(few, LINE)
    assert few.rejects_at_most > 0.7
    for part in draw(np.random.default_rng(11), 2000).tolist():
        assert watch.see("part", part, part[-1] > limit, 1 / MONTH) == []


def test_a_watch_goes_on_where_it_was() -> None:
    parts = draw(np.random.default_rng(12), 300)
    parts[200:, 0] -= 8.0
    whole, first = Watch(REFERENCE, LINE), Watch(REFERENCE, LINE)
    expected = feed(whole, parts)
    found = feed(first, parts[:215])
    second = Watch(REFERENCE, LINE)
    assert second.go_on(json.loads(json.dumps(first.kept())))
    assert found + feed(second, parts[215:]) == expected and expected
    assert second.kept() == whole.kept()


HOSTILE: list[Any] = [
    None,
    [],
    "key",
    {},
    {"key": "key"},
    {"key": "another"},
    {"inspected": -1},
    {"inspected": True},
    {"sums": []},
    {"sums": [[1e300]]},
    {"row": "x"},
    {"since": [[10**30]]},
    {"recent": [[math.inf]]},
    {"marks": [[1]]},
    {"marks": 3},
    {"crossed": [["nothing", 1]]},
    {"alarms": {}},
    {"peaks": [math.nan] * 3},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_a_strange_state_is_not_taken_up(changes: Any) -> None:
    watch, fresh = Watch(REFERENCE, LINE), Watch(REFERENCE, LINE)
    feed(watch, draw(np.random.default_rng(13), 5))
    kept = {**watch.kept(), **changes} if isinstance(changes, dict) and changes not in ({}, {"key": "key"}) else changes
    assert not fresh.go_on(kept)
    assert fresh.kept() == Watch(REFERENCE, LINE).kept()


# The desk: results in, reports out.


def settings(folder: Path, **drift: Any) -> EdgeSettings:
    drift = {"parts_per_month": MONTH, "report_parts": 50} | drift
    camera = CameraSettings(id="top", url="synthetic://line")
    return EdgeSettings(
        edge_id="edge", bundle=folder / "bundle", state_dir=folder, cameras=[camera], drift=DriftSettings(**drift)
    )


def result(number: int, part: list[float], t_s: float = 0.0) -> Result:
    names = [column.name for column in REFERENCE.columns]
    return Result(
        edge_id="edge",
        spool_id="spool",
        seq=number + 1,
        run_id="run",
        t_wall_ns=10**18 + number,
        part_id=f"part-{number}",
        camera_id="top",
        trigger_id=number,
        frame_no=number,
        timing=Timing(t_capture_ns=int(1e9 * t_s)),
        verdict=Verdict.REJECT if part[-1] > LIMIT else Verdict.PASS,
        score=part[-1],
        quality=dict(zip(names[:-1], part[:-1], strict=True)),
        recipe="part",
        bundle_id="bundle-1",
        model_sha256="0" * 64,
        engine="onnxruntime fp32",
    )


HELD = Held("watching", {"top": REFERENCE})


def told(desk: DriftDesk, parts: np.ndarray[Any, Any], first: int = 0) -> list[Drift]:
    for number, part in enumerate(parts.tolist(), first):
        desk.note(HELD, result(number, part))
    found = list(desk.waiting)
    desk.waiting.clear()
    return found


def test_reports_come_regularly_and_the_first_alarm_at_once(tmp_path: Path) -> None:
    parts = draw(np.random.default_rng(14), 300)
    parts[100:, 0] -= 20.0
    reports = told(DriftDesk(settings(tmp_path)), parts)
    alarms = [each for each in reports if each.alarm]
    assert [each.inspected for each in reports[:2]] == [50, 100]
    assert 100 < alarms[0].inspected < 150 and alarms[0].of_parts == alarms[0].inspected - 100
    # It goes on, and is said again with the reports, no oftener.
    assert [each.of_parts for each in reports[3:]] == [50] * len(reports[3:]) and all(
        each.alarm for each in reports[3:]
    )
    first = alarms[0]
    assert first.suspect == "lamp" and first.last_part_id == f"part-{first.inspected - 1}"
    assert first.since_part_id == "part-64" and first.baseline_parts == N
    brightness = next(each for each in first.measures if each.what == "brightness")
    assert brightness.shift < -4 and brightness.camera_id == "top"
    assert sum(each.of_parts for each in reports) == reports[-1].inspected


def test_the_pace_is_the_line_s_own_where_none_is_said(tmp_path: Path) -> None:
    """With ten times as long between parts, evidence for the same parts is ten times as strong, and pauses end."""

    def sums(seconds: float) -> float:
        desk = DriftDesk(settings(tmp_path, parts_per_month=None))
        for number in range(20):
            desk.note(HELD, result(number, [column.usual for column in REFERENCE.columns], 5 + number * seconds))
        return float(desk._cameras[REFERENCE.key].watch._sums.sum())

    assert sums(10.0) == pytest.approx(10 * sums(1.0))
    assert sums(3600.0) == sums(60.0)


def test_no_time_counts_for_two_recipes(tmp_path: Path) -> None:
    """Four recipes in turn on one camera: what each may say in error is of its own share of the time."""
    others = [Held("watching", {"top": of_another(f"recipe-{n}")}) for n in range(4)]
    desk = DriftDesk(settings(tmp_path, parts_per_month=None))
    counted: list[float] = []
    usual = [column.usual for column in REFERENCE.columns]
    for number in range(40):
        counted.append(desk._months(result(number, usual, 2.0 * number)))
        desk.note(others[number % 4], result(number, usual, 2.0 * number))
    assert sum(counted) * MONTH_S == pytest.approx(2.0 * 39)


def kept_file(folder: Path, key: str = REFERENCE.key) -> Path:
    return folder / STATE_FOLDER / f"{key}.json"


def of_another(key: str) -> Reference:
    other = Reference.__new__(Reference)
    other.__dict__.update(REFERENCE.__dict__, key=key)
    return other


def test_state_outlives_a_restart(tmp_path: Path) -> None:
    parts = draw(np.random.default_rng(15), 90)
    desk = DriftDesk(settings(tmp_path))
    told(desk, parts)
    desk.keep(last=True)
    again = DriftDesk(settings(tmp_path))
    assert told(again, parts[:1], 90) == [] and again._cameras[REFERENCE.key].watch.inspected == 91


def test_a_recipe_that_comes_back_is_watched_on_and_another_begins_anew(tmp_path: Path) -> None:
    """Ten changes of the recipe: what both have seen adds up, with a restart in the middle as well."""
    parts = draw(np.random.default_rng(15), 10)
    other = Held("watching", {"top": of_another("another-top")})
    desk = DriftDesk(settings(tmp_path))
    for number in range(10):
        desk.note(other if number % 2 else HELD, result(number, parts[number].tolist()))
        if number == 4:
            desk.keep(last=True)
            desk = DriftDesk(settings(tmp_path))
    assert {name: camera.watch.inspected for name, camera in desk._cameras.items()} == {
        REFERENCE.key: 5,
        "another-top": 5,
    }


def test_watches_are_kept_one_at_a_time_and_an_alarm_at_once(tmp_path: Path) -> None:
    desk = DriftDesk(settings(tmp_path), clock=lambda: 100.0)
    held = [HELD, Held("watching", {"top": of_another("another-top")})]
    usual = [column.usual for column in REFERENCE.columns]
    for each in held:
        desk.note(each, result(0, usual))
    desk.keep()
    assert len(list((tmp_path / STATE_FOLDER).iterdir())) == 1
    desk.keep()
    assert len(list((tmp_path / STATE_FOLDER).iterdir())) == 2
    odd = [usual[0] + 60, *usual[1:]]
    reports = []
    for number in range(1, 40):
        desk.note(HELD, result(number, odd))
        desk.keep()  # not due yet, but after an alarm
        reports, desk.waiting = [*reports, *desk.waiting], []
        if reports:
            break
    kept = json.loads(kept_file(tmp_path).read_bytes())
    assert reports[0].tests[0].alarm and kept["alarms"]["picture"] == 1
    assert kept["inspected"] == reports[0].inspected > 1


def test_only_the_watches_used_last_are_kept(tmp_path: Path) -> None:
    desk = DriftDesk(settings(tmp_path))
    part = [column.usual for column in REFERENCE.columns]
    for number in range(MOST_KEPT + 5):
        desk.note(Held("watching", {"top": of_another(f"{number}-top")}), result(number, part))
    desk.keep(last=True)
    names = {path.stem for path in (tmp_path / STATE_FOLDER).iterdir()}
    assert len(desk._cameras) == len(names) == MOST_KEPT and "4-top" not in names and "68-top" in names


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": "flawline.drift/2", "key": "key"}'],
    ids=["empty", "cut", "list", "no-text", "deep", "half"],
)
def test_a_hostile_state_file_begins_anew(tmp_path: Path, content: bytes) -> None:
    kept_file(tmp_path).parent.mkdir()
    kept_file(tmp_path).write_bytes(content)
    desk = DriftDesk(settings(tmp_path))
    reports = told(desk, draw(np.random.default_rng(16), 50))
    assert [each.inspected for each in reports] == [50]
    desk.keep(last=True)
    assert json.loads(kept_file(tmp_path).read_bytes())["inspected"] == 50


def test_a_huge_state_file_is_not_read(tmp_path: Path) -> None:
    kept_file(tmp_path).parent.mkdir()
    with kept_file(tmp_path).open("wb") as file:
        file.truncate(10 * MAX_STATE_BYTES)
    desk = DriftDesk(settings(tmp_path))
    told(desk, draw(np.random.default_rng(16), 1))
    assert desk._cameras[REFERENCE.key].watch.inspected == 1


def test_what_goes_wrong_in_the_watch_ends_it_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = DriftDesk(settings(tmp_path))
    broken = Reference.__new__(Reference)
    assert desk.state(HELD) == "watching"
    desk.note(Held("watching", {"top": broken}), result(0, [1.0] * 7))
    desk.note(HELD, result(1, [1.0] * 7))
    assert desk.waiting == [] and "inspection goes on" in caplog.text
    assert desk.state(HELD) == "failed" and desk.state(Held("no_baseline", {})) == "no_baseline"


def test_a_late_part_counts_for_what_it_measures_and_as_neither_flagged_nor_good(tmp_path: Path) -> None:
    """It was scored, and nobody knows its verdict."""
    part = [column.usual for column in REFERENCE.columns]

    def bets(verdict: Verdict) -> tuple[bool, bool]:
        """Whether it was bet on: its score, its being flagged."""
        desk = DriftDesk(settings(tmp_path))
        desk.note(HELD, result(0, part).model_copy(update={"verdict": verdict}))
        sums = desk._cameras[REFERENCE.key].watch._sums
        return bool(sums[REFERENCE.of["score"]].any()), bool(sums[REFERENCE.of["rejects"]].any())

    assert bets(Verdict.NOT_INSPECTED) == (True, False)
    assert bets(Verdict.PASS) == bets(Verdict.REJECT) == (True, True)


def test_off_is_off(tmp_path: Path) -> None:
    desk = DriftDesk(settings(tmp_path, on=False))
    desk.note(Held("off", {}), result(0, [1.0] * 7))
    desk.keep(last=True)
    assert desk.waiting == [] and not (tmp_path / STATE_FOLDER).exists()


def test_settings_are_checked(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    head = 'edge_id = "e"\nbundle = "b"\n[[cameras]]\nid = "top"\nurl = "synthetic://line"\n[drift]\n'
    for line in ("false_alarms_per_month = 0", "defect_share = 0.5", "report_parts = 0", "rate = 1"):
        config.write_text(head + line)
        with pytest.raises(ConfigError, match=line.partition(" ")[0]):
            load_settings(config)
    config.write_text(head + "on = false\nfalse_alarms_per_month = 0.5\nparts_per_month = 100000")
    assert not load_settings(config).drift.on
