"""Every rule for a limit: what it gives, what it promises, what it refuses, and what a preview shows."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.calibrate import propose, write
from calibration.conformal import rate_at
from calibration.costs import Costs
from calibration.errors import CalibrationError
from calibration.holdout import hold_out
from calibration.looks import LOOKS
from calibration.methods import METHODS, Choice, Rates, Scores, check, find_limits, promise, require
from calibration.preview import changes
from calibration.report import promise_of, summary
from contract.bundle import open_bundle, write_manifest
from contract.dataset import load_dataset, sha256_of_image
from contract.images import read_image
from contract.recipe import Recipe, Thresholds
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle

COSTS = Costs(200, 5, 1, 0.02)
PROMISING = {"conformal", "pac"}


def choice_of(name: str, folder: Path = Path("defects")) -> Choice:
    """The rule with all that it needs."""
    return Choice(
        name,
        value=3.0 if name == "value" else None,
        costs=COSTS if name == "cost" else None,
        defects=(folder,) if METHODS[name].needs_defects else (),
        folds=(Path("fold"),) if name == "cross" else (),
    )


def rates_of(name: str) -> Rates:
    return Rates(0.1 if METHODS[name].rated else None)


@pytest.fixture(scope="module")
def scores() -> Scores:
    rng = np.random.default_rng(0)
    good, defects = rng.normal(0, 1, 120).tolist(), rng.normal(3, 1, 40).tolist()
    return Scores(good, [str(i // 2) for i in range(120)], defects)


@pytest.fixture
def own_defects(tmp_path: Path) -> Path:
    """Defective parts that are no test images; of every third the picture shows nothing."""
    import cv2

    folder = tmp_path / "scratched"
    (folder / "deep").mkdir(parents=True)
    for index in range(12):
        place = folder if index % 2 else folder / "deep"
        cv2.imwrite(str(place / f"d{index}.png"), draw_part(70_000 + index, defect=index % 3 > 0))
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_every_rule_finds_a_limit_and_says_what_it_does_not_promise(name: str, scores: Scores) -> None:
    choice, rates = choice_of(name), rates_of(name)
    check(rates, choice)
    require(60, rates, choice)
    found = find_limits(scores, rates, choice)
    assert min(scores.good) < found.reject < 4
    assert METHODS[name].caution
    assert (promise(rates, choice) is not None) == (name in PROMISING)


def test_no_title_begins_like_another() -> None:
    titles = [rule.title for rule in METHODS.values()]
    assert not [(a, b) for a in titles for b in titles if a != b and a.startswith(b)]


@pytest.mark.parametrize("name", [name for name, rule in METHODS.items() if rule.rated and name != "pot"])
def test_review_limit_follows_the_rule(name: str, scores: Scores) -> None:
    found = find_limits(scores, Rates(0.1, 0.3), choice_of(name))
    assert found.review is not None and found.review < found.reject
    assert found.review == find_limits(scores, Rates(0.3), choice_of(name)).reject


def test_mean_and_sigmas_weigh_parts() -> None:
    scores = Scores([0.0, 4.0, 3.0, 3.0], ["a", "b", "c", "c"])
    mean, deviation = 7 / 3, np.std([0, 4, 3])
    found = find_limits(scores, Rates(None), Choice("sigma", sigmas=2.0)).reject
    assert found == pytest.approx(mean + 2 * deviation)


def test_review_limit_above_the_reject_limit_is_refused(scores: Scores) -> None:
    with pytest.raises(CalibrationError, match="above the reject limit of -5"):
        find_limits(scores, Rates(None, 0.1), Choice("value", value=-5.0))


@pytest.mark.parametrize(
    ("rates", "choice", "reason"),
    [
        (Rates(0.1), Choice("best"), "there is no such rule; expected conformal, pac"),
        (Rates(1.5), Choice(), "between 0 and 1"),
        (Rates(0.1), Choice("sigma"), "says nothing to --method sigma"),
        (Rates(None), Choice("f1"), "needs images of defective parts"),
        (Rates(None), Choice("cost", costs=COSTS), "needs images of defective parts"),
        (Rates(0.1), Choice(costs=COSTS), "a review band from costs needs images of defective parts"),
        (Rates(None), Choice("cost", defects=(Path("d"),)), "needs --cost-escape"),
        (Rates(None), Choice("value"), "needs --value"),
        (Rates(None), Choice("value", value=float("nan")), "needs --value"),
        (Rates(0.1), Choice("pac", value=3.0), "leave one out"),
        (Rates(0.1), Choice("cross"), "needs --fold-bundle"),
        (Rates(0.1), Choice(folds=(Path("f"),)), "needs --fold-bundle"),
        (Rates(0.1, 0.2), Choice(costs=COSTS, defects=(Path("d"),)), "either --review-rate or --cost-review-minute"),
        (Rates(0.1), Choice(costs=COSTS._replace(review=None), defects=(Path("d"),)), "set the review band alone"),
    ],
)
def test_what_makes_no_sense_is_refused(rates: Rates, choice: Choice, reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        check(rates, choice)


def test_pac_with_too_few_parts_is_refused_before_work(
    fresh: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "thresholds", str(fresh), "--data", str(drawn), "--method", "pac"]) == 2
    assert "needs at least 59 held-out good parts; there are 30" in capsys.readouterr().err
    assert open_bundle(fresh).manifest.thresholds is None


def test_pac_in_the_bundle_and_its_report(fresh: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--method", "pac", "--false-reject-rate", "0.1", "--confidence", "0.9"]
    assert main(["calibrate", "thresholds", str(fresh), "--data", str(drawn), *asked]) == 0
    shown = capsys.readouterr().out
    bundle = open_bundle(fresh)
    found = bundle.manifest.thresholds
    assert found is not None and found.confidence == 0.9
    assert found.promise == "with 90 % confidence, at most 10 % of good parts have an image that is rejected"
    page = bundle.path("report").read_text()
    for text in (shown, page):
        assert found.promise in text and "nine in ten calibrations" in text and "exchangeable" in text


@pytest.mark.parametrize("name", sorted(set(METHODS) - PROMISING - {"pot", "cross"}))
def test_other_rules_promise_nothing(name: str, fresh: Path, drawn: Path, own_defects: Path) -> None:
    result = propose(fresh, drawn, rates_of(name), "onnxruntime", choice=choice_of(name, own_defects))
    report = write(result)
    found = open_bundle(fresh).manifest.thresholds
    assert found is not None and found.promise is None and found.confidence is None
    scores = result.measured.by_part()
    assert (found.expected_low, found.expected_high) == rate_at(scores.good, scores.groups, found.reject)
    rows = dict(summary(found))
    assert rows["promise"] == "none" and rows["not promised"] == METHODS[name].caution
    assert METHODS[name].caution in report.read_text().replace("&#x27;", "'")
    if METHODS[name].needs_defects:
        assert "12 defective images" in found.method
        assert open_bundle(fresh).manifest.metrics["calibration"]["defects"] == 12


def test_review_band_from_costs_under_a_promised_limit(fresh: Path, drawn: Path, own_defects: Path) -> None:
    costs = "--cost-escape 500 --cost-false-reject 5 --cost-review-minute 0.5 --review-minutes 0.5 --defect-rate 0.05"
    asked = ["--defects", str(own_defects), *costs.split()]
    assert main(["calibrate", "thresholds", str(fresh), "--data", str(drawn), *asked]) == 0
    found = open_bundle(fresh).manifest.thresholds
    assert found is not None and found.promise is not None and "0.25 a look" in found.method
    plain = propose(fresh, drawn, Rates(0.05)).thresholds
    assert found.reject == plain.reject and found.review is not None and found.review < found.reject


def test_preview_shows_changes_and_writes_nothing(fresh: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(propose(fresh, drawn, Rates(0.05), "onnxruntime"))
    before = {path.name: path.read_bytes() for path in fresh.iterdir()}
    asked = ["--data", str(drawn), "--engine", "onnxruntime", "--method", "percentile", "--false-reject-rate", "0.2"]
    assert main(["calibrate", "thresholds", str(fresh), *asked, "--preview"]) == 0
    shown = capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in fresh.iterdir()} == before
    found = changes(propose(fresh, drawn, Rates(0.2), "onnxruntime", choice=Choice("percentile")))
    assert len(found) == 6 and {(change.now, change.then) for change in found} == {("PASS", "REJECT")}
    assert "6 of 30 held-out images would change" in shown and all(change.file in shown for change in found)
    assert "22.6 %" in shown and "Nothing was written" in shown and METHODS["percentile"].caution in shown


def test_preview_of_a_bundle_without_limits(fresh: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "thresholds", str(fresh), "--data", str(drawn), "--value", "2.5", "--preview"]) == 0
    shown = capsys.readouterr().out
    assert "30 of 30 held-out images would change" in shown and "NOT_INSPECTED" in shown
    assert open_bundle(fresh).manifest.thresholds is None


def test_test_images_choose_no_limit_unless_on_record(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(drawn / "test" / "spot", tmp_path / "copied"))
    for folder in (drawn / "test" / "spot", copied):
        with pytest.raises(CalibrationError, match=r"is a test image \(20 of 20 are\)"):
            propose(fresh, drawn, Rates(None), "onnxruntime", choice=Choice("f1", defects=(folder,)))
    with pytest.raises(CalibrationError, match="cannot be put on record"):
        unwritable = Choice("f1", defects=(copied,), looks=tmp_path / "absent" / "looks.csv")
        propose(fresh, drawn, Rates(None), "onnxruntime", choice=unwritable)
    looks = tmp_path / "looks.csv"
    choice = Choice("f1", defects=(copied,), looks=looks)
    found = propose(fresh, drawn, Rates(None), "onnxruntime", choice=choice)
    assert "20 defective images, test images among them" in found.thresholds.method
    rows = list(csv.DictReader(looks.read_text().splitlines()))
    assert len(rows) == 1 and list(rows[0]) == list(LOOKS)
    assert (rows[0]["images"], rows[0]["dataset"]) == ("20", drawn.name)
    assert str(tmp_path) not in looks.read_text()


@pytest.mark.parametrize(("part", "reason"), [(".", "holds good parts"), ("test", "good parts"), ("no", "no such")])
def test_folders_that_are_no_defects(part: str, reason: str, fresh: Path, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=reason):
        propose(fresh, drawn, Rates(None), choice=Choice("f1", defects=(drawn / part,)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="no images in it"):
        propose(fresh, drawn, Rates(None), choice=Choice("f1", defects=(tmp_path / "empty",)))


def fold_of(drawn: Path, folder: Path, unseen: slice) -> Path:
    """A network of the other parts that has not seen those of ``unseen``."""
    good = load_dataset(drawn).train
    kept = {sample.path for sample in good[unseen]}
    fitted = [sample for sample in good if sample.path not in kept]
    pictures = [read_image(sample.path, 1) for sample in fitted]
    write_bundle(folder, pictures, fit=[sha256_of_image(sample.path) for sample in fitted])
    return folder


def test_cross_counts_parts_that_other_networks_have_not_seen(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    fold = fold_of(drawn, tmp_path / "fold", slice(0, 30))
    with pytest.raises(CalibrationError, match="at least 39 held-out good parts; there are 30"):
        propose(fresh, drawn, Rates(0.025), "onnxruntime")
    with pytest.raises(CalibrationError, match="is the same network"):
        propose(fresh, drawn, Rates(0.05), choice=Choice("cross", folds=(fold, fold)))
    choice = Choice("cross", folds=(fold,))
    found = propose(fresh, drawn, Rates(0.025), "onnxruntime", choice=choice)
    assert (found.thresholds.groups, found.thresholds.images) == (60, 60)
    assert found.thresholds.promise is None and found.thresholds.method.endswith("2 networks")
    pooled = np.sort([*found.measured.scores, *found.measured.more])
    assert len(pooled) == 60 and found.thresholds.reject == pooled[int(np.ceil(61 * 0.975)) - 1]
    assert hold_out(open_bundle(fold), load_dataset(drawn)).groups == 30


def test_cross_with_networks_that_do_not_fit_is_refused(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fresh, tmp_path / "copy"))
    same_parts = fold_of(drawn, tmp_path / "same", slice(31, 60))
    other = tmp_path / "other"
    write_bundle(other, [draw_part(1)], Recipe(tile_hw=(32, 32)))
    for folder, reason in ((copy, "same network"), (same_parts, "adds nothing"), (other, "trained otherwise")):
        with pytest.raises(CalibrationError, match=reason):
            propose(fresh, drawn, Rates(0.05), choice=Choice("cross", folds=(folder,)))


@pytest.mark.parametrize(
    ("training", "what"),
    [
        ({"defects": {"sha256": ["b" * 64, "a" * 64]}}, r"labelled defects '2 images, \w{12}', here 'none'"),
        ({"types": [{"name": "plate"}, {"name": "ring"}]}, r"product types \['plate', 'ring'\], here \[\]"),
    ],
)
def test_cross_with_networks_that_learnt_from_other_images_is_refused(
    training: dict[str, Any], what: str, fresh: Path, drawn: Path, tmp_path: Path
) -> None:
    fold = open_bundle(fold_of(drawn, tmp_path / "fold", slice(0, 30)))
    write_manifest(fold.root, fold.manifest.model_copy(update={"training": training}))
    choice = Choice("cross", folds=(fold.root,))
    with pytest.raises(CalibrationError, match=what):
        propose(fresh, drawn, Rates(0.05), choice=choice)
    own = open_bundle(fresh)
    write_manifest(own.root, own.manifest.model_copy(update={"training": training}))
    assert propose(fresh, drawn, Rates(0.05), "onnxruntime", choice=choice).thresholds.groups == 60


def test_limits_of_before_promises_were_written_down() -> None:
    old = Thresholds(
        reject=2, map=1, method=METHODS["conformal"].title, false_reject_rate=0.05, groups=30, images=30, engine="x"
    )
    assert promise_of(old) == promise(Rates(0.05), Choice())
    assert set(old.model_dump()) == {
        "reject", "review", "map", "method", "false_reject_rate", "review_rate", "groups", "images", "engine",
        "expected_low", "expected_high",
    }  # fmt: skip
    assert Thresholds.model_validate(old.model_dump()) == old
