"""Limits from an export of inspectors' verdicts: what counts, what is left out, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import verdicts
from calibration.conformal import threshold
from calibration.errors import CalibrationError
from calibration.exports import Source
from calibration.methods import Rates
from contract.bundle import open_bundle
from contract.event import Verdict
from contract.verdicts import SampledPart, Unsampled, VerdictPage
from flawline import main
from tests.bundles import calibrated

MODEL = "ab" * 32
ENGINE = "onnxruntime-1.23 fp32 cpu"


def part(
    row: int, score: float, verdict: Verdict = Verdict.PASS, said: str | None = "good", **more: Any
) -> SampledPart:
    share = more.pop("audit_share", 0.05)
    fields = {
        "row": row,
        "edge_id": "edge-1",
        "part_id": f"part-{row:05d}",
        "t_wall_ns": row,
        "verdict": verdict,
        "score": score,
        "flags_above": 1.0,
        "model_sha256": MODEL,
        "bundle_id": "bundle",
        "engine": ENGINE,
        "audit_share": share,
        "inclusion": share if verdict is Verdict.PASS and share else 1.0,
        "judged": said,
    }
    return SampledPart(**{**fields, **more})


def passed(count: int, **more: Any) -> Unsampled:
    fields = {"edge_id": "edge-1", "model_sha256": MODEL, "engine": ENGINE, "audit_share": 0.05, "flags_above": 1.0}
    return Unsampled(**{**fields, "parts": count, **more})


def collected(parts: list[SampledPart], unsampled: int = 0, engine: str = "auto", with_: str = ENGINE) -> Any:
    return verdicts.collect([VerdictPage(parts=tuple(parts), passed=(passed(unsampled),))], MODEL, engine, with_)


def line(seed: int, produced: int = 4000, defects: int = 0) -> tuple[list[SampledPart], int, list[float]]:
    """A line's parts as exported, how many passed unseen, and all good scores: a tenth flagged, one in 20 audited."""
    rng = np.random.default_rng(seed)
    scores = rng.lognormal(size=produced)
    old = float(np.quantile(scores, 0.9))
    found, unseen = [], 0
    for row, score in enumerate(scores.tolist()):
        if score > old:
            found.append(part(row, score, Verdict.REJECT, flags_above=old))
        elif rng.random() < 0.05:
            found.append(part(row, score, flags_above=old))
        else:
            unseen += 1
    found += [
        part(produced + n, old * (1 + n), Verdict.REJECT, "defect", flags_above=old) for n in range(1, 1 + defects)
    ]
    return found, unseen, scores.tolist()


def test_the_limit_is_that_of_all_parts_not_of_those_shown(fresh: Path, drawn: Path) -> None:
    before = calibrated(fresh, drawn, Rates(0.05), "onnxruntime").thresholds
    parts, unseen, scores = line(5, defects=8)
    found = collected(parts, unseen)
    limits = verdicts.limits_from(found, Rates(0.05, 0.15), before)
    assert limits.review is not None and limits.expected_low is not None and limits.expected_high is not None
    for limit, rate in ((limits.reject, 0.05), (limits.review, 0.15)):
        assert np.mean(np.array(scores) > limit) == pytest.approx(rate, rel=0.25)
    assert limits.expected_low <= np.mean(np.array(scores) > limits.reject) <= limits.expected_high
    shown = np.array([each.score for each in parts if each.judged == "good"])
    assert np.mean(np.array(scores) > np.quantile(shown, 0.95)) < 0.01  # what a biased sample would have given
    assert (limits.map, limits.engine, limits.groups) == (before.map, ENGINE, len(shown))
    assert limits.promise is not None and limits.promise.startswith("approximate")
    _, escaped = found.escapes()
    assert escaped is not None and escaped[0] == 0 and escaped[1] == 0 and escaped[2] > 0.5


@pytest.fixture
def export(fresh: Path, drawn: Path, tmp_path: Path) -> Callable[..., Source]:
    """Writes a file of verdicts on a calibrated bundle's own model."""
    calibrated(fresh, drawn, Rates(0.05), "onnxruntime")
    bundle = open_bundle(fresh)

    def write(parts: list[SampledPart], unseen: int = 900) -> Source:
        assert bundle.manifest.thresholds is not None
        own = {"model_sha256": bundle.model_sha256, "engine": bundle.manifest.thresholds.engine}
        named = [each.model_copy(update=own) if each.model_sha256 == MODEL else each for each in parts]
        half = len(named) // 2
        pages = [
            VerdictPage(parts=tuple(named[:half]), passed=(passed(unseen, **own),), next=half or 1),
            VerdictPage(parts=tuple(named[half:])),
        ]
        file = tmp_path / "verdicts.jsonl"
        file.write_text("".join(page.model_dump_json(exclude_none=True) + "\n" for page in pages))
        return Source(f"file:{file}")

    return write


def judged_line() -> list[SampledPart]:
    """60 audited good parts with scores under 1, above it 20 good and 10 defective flagged ones; an audited defect."""
    audited = [part(n, n / 60) for n in range(60)]
    flagged = [part(100 + n, 1.01 + n / 20, Verdict.REJECT) for n in range(20)]
    defects = [part(200 + n, 1.5 + n, Verdict.REJECT, "defect") for n in range(10)]
    return [*audited, *flagged, *defects, part(300, 0.5, Verdict.PASS, "defect")]


def test_command_writes_limits_and_a_report(
    fresh: Path, export: Callable[..., Source], capsys: pytest.CaptureFixture[str]
) -> None:
    url = export(judged_line()).url
    before = open_bundle(fresh).manifest
    words = ["calibrate", "thresholds", str(fresh), "--from-verdicts", url, "--false-reject-rate", "0.1"]
    assert main([*words, "--preview"]) == 0
    shown = capsys.readouterr().out
    assert "Nothing was written" in shown and "judged parts would change their verdict:" in shown
    assert before.thresholds is not None
    low, high = sorted((before.thresholds.reject, 55 / 60))
    assert shown.count("part-0") == sum(low < each.score <= high for each in judged_line() if each.score is not None)
    assert "61 of 61, for 961 that passed" in shown
    assert "1 of 61, 1.6 % (0.3 to 8.7 %)" in shown
    assert "80, standing for 1220; effective sample size 62" in shown and "held-out" not in shown
    assert open_bundle(fresh).manifest == before
    assert main(words) == 0
    shown = capsys.readouterr().out
    manifest = open_bundle(fresh).manifest
    assert manifest.thresholds is not None
    # 1220 good parts stand behind the 80; 10 % with one of 20 at infinity are 124, of which 20 were flagged
    assert manifest.thresholds.reject == 55 / 60
    assert manifest.thresholds.method == verdicts.METHOD
    assert manifest.thresholds.map == before.thresholds.map
    assert manifest.quality == before.quality
    assert manifest.metrics["calibration"]["audited_judged"] == 61
    assert manifest.history[-1].state == "draft"
    assert "escape rate until now" in shown and "approximate" in shown and "exchangeable" in shown
    page = open_bundle(fresh).path("report").read_text()
    assert "escape rate until now" in page and "<svg" in page and "approximate" in page and "<script" not in page


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([part(n, 2.0, Verdict.REJECT) for n in range(50)], "no audited pass has an inspector's verdict .*biased"),
        (judged_line()[60:90], "no audited pass"),
        ([part(n, 0.5, said="defect") for n in range(5)], "no audited pass was called good"),
        (
            judged_line() + [part(400 + n, 0.5, said=None) for n in range(16)],
            "only 61 of 77 audited passes were judged",
        ),
        (
            judged_line() + [part(400 + n, 0.5, said=None, picture=False) for n in range(16)],
            "16 of the others have no picture",
        ),
        (
            judged_line() + [part(400 + n, 2.0, Verdict.REVIEW, None) for n in range(9)],
            "only 30 of 39 flagged parts were judged",
        ),
        (judged_line()[:15] + judged_line()[60:64], r"worth at least 19.*Judge about \d+ more audited"),
        ([part(1, 0.5, model_sha256="cd" * 32)], "no part of this bundle's model.*1 shown, of another model"),
        ([part(1, 2.0, Verdict.REJECT, audit_share=0.0)], "1 flagged while no passed part was audited"),
        ([part(1, 0.5), part(1, 0.6)], "part-00001 of edge-1 is in the export twice"),
        ([], "no part of this bundle's model"),
    ],
)
def test_what_would_be_biased_or_too_little_is_refused(
    fresh: Path, export: Callable[..., Source], parts: list[SampledPart], words: str
) -> None:
    source = export(parts)
    before = (fresh / "bundle.json").read_bytes()
    with pytest.raises(CalibrationError, match=words):
        verdicts.recalibrate(fresh, source, Rates(0.05))
    assert (fresh / "bundle.json").read_bytes() == before


def test_parts_of_times_without_an_audit_do_not_count_and_are_counted() -> None:
    old = [part(500 + n, 1.0 + n, Verdict.REJECT, audit_share=0.0) for n in range(7)]
    other = [part(600 + n, 0.1, model_sha256="cd" * 32) for n in range(3)]
    found = collected([*judged_line(), *old, *other, part(700, 0.1).model_copy(update={"score": None})], 900)
    assert found.flagged.shown == 30 and found.audited.shown == 61
    assert found.left_out == {
        "flagged while no passed part was audited": 7,
        "shown, of another model or precision": 3,
        "shown, without score or limit": 1,
    }


def test_a_share_that_changed_keeps_the_weight_of_its_time() -> None:
    parts = [part(n, 0.5, audit_share=0.5) for n in range(10)] + [part(20 + n, 0.6, audit_share=0.1) for n in range(10)]
    good = collected(parts).good()
    assert sorted(set(good.weights.tolist())) == [2.0, 10.0]
    assert good.total == pytest.approx(120)


def test_those_not_judged_are_stood_for_by_those_judged_of_their_group() -> None:
    parts = [part(n, 0.5) for n in range(10)] + [part(20 + n, 2.0, Verdict.REJECT) for n in range(8)]
    parts += [part(40 + n, 2.0, Verdict.REJECT, None) for n in range(2)]
    good = collected(parts).good()
    assert good.total == pytest.approx(10 * 20 + 10)
    assert good.flagged_weight == pytest.approx(1.25)


def test_engines_are_not_mixed() -> None:
    two = [part(n, 0.5) for n in range(5)] + [part(10 + n, 0.5, engine="openvino-2026.4 fp32 cpu") for n in range(3)]
    assert collected(two).engine == ENGINE  # the bundle's own
    assert collected(two).left_out["shown, of another engine"] == 3
    assert collected(two, engine="openvino").audited.shown == 3
    with pytest.raises(CalibrationError, match=r"cannot be mixed, and there are 5 of .*choose by --engine"):
        collected(two, with_="tensorrt-10.3 fp32")
    with pytest.raises(CalibrationError, match="of --engine tensorrt none: there are onnxruntime"):
        collected(two, engine="tensorrt")
    assert collected([part(1, 0.5, engine="tensorrt-rtx-1.4 fp32")], with_="x").engine == "tensorrt-rtx-1.4 fp32"
    with pytest.raises(CalibrationError, match="none"):
        collected([part(1, 0.5, engine="tensorrt-rtx-1.4 fp32")], engine="tensorrt")


def test_escape_rate_has_an_interval_and_is_never_a_bare_zero() -> None:
    audited = [part(n, 0.5) for n in range(98)] + [part(98 + n, 0.9, said="defect") for n in range(2)]
    flagged = [part(200 + n, 2.0, Verdict.REJECT, "defect") for n in range(60)]
    in_passes, escaped = collected([*audited, *flagged], 1900).escapes()
    assert (in_passes.hits, in_passes.total) == (2, 100)
    assert escaped is not None and escaped[0] == pytest.approx(40 / 100)  # 2 % of 2000 passed beside 60 flagged
    assert escaped[1] < 0.2 and escaped[2] > 0.6
    _, none = collected(audited[:98] + flagged, 1902).escapes()
    assert none is not None and none[0] == 0 and none[2] > 0.3
    assert collected(audited[:98], 1902).escapes()[1] is None


def test_an_uncalibrated_bundle_or_an_absent_precision_is_refused(
    fresh: Path, drawn: Path, export: Callable[..., Source]
) -> None:
    source = export(judged_line())
    with pytest.raises(CalibrationError, match="has no int8 graph"):
        verdicts.recalibrate(fresh, source, Rates(0.1), precision="int8")
    with pytest.raises(CalibrationError, match=r"--review-rate 0\.05 must lie between"):
        verdicts.recalibrate(fresh, source, Rates(0.1, 0.05))
    manifest = open_bundle(fresh).manifest
    from contract.bundle import write_manifest

    write_manifest(fresh, manifest.model_copy(update={"thresholds": None}))
    with pytest.raises(CalibrationError, match="was never calibrated"):
        verdicts.recalibrate(fresh, source, Rates(0.1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --data DIR with images of good parts, or --from-verdicts URL"),
        (["--from-verdicts", "file:x", "--data", "y", "--method", "pac"], "--data, --method: not with --from-verdicts"),
        (["--data", "y", "--token-file", "t"], "--token-file: not without --from-verdicts"),
    ],
)
def test_options_that_do_not_go_together(
    fresh: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "thresholds", str(fresh), *words]) == 2
    assert said in capsys.readouterr().err


def test_equal_shares_give_the_conformal_limit_of_all_that_was_shown() -> None:
    rng = np.random.default_rng(2)
    parts = [part(n, float(score), audit_share=1.0) for n, score in enumerate(rng.random(200))]
    good = collected(parts).good()
    assert math.isclose(good.total, 200)
    from calibration.weighted import threshold as weighted_threshold

    wanted = threshold(good.scores.tolist(), [str(n) for n in range(200)], 0.1)
    assert weighted_threshold(good, 0.1) == wanted
