"""The page of a training: whole, self-contained, and with advice that follows from the figures."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from contract.bundle import open_bundle
from contract.dataset import Sample
from contract.errors import ConfigError
from tests.bundles import draw_data
from training.advice import advise
from training.augment import Augmentation
from training.data import Split
from training.few_shot import counts_for, few_shot, spread_over_parts, verdict
from training.fit import Fitted
from training.graph import Inspector
from training.models import model_class
from training.page import curve, table
from training.pictures import GAP_PX, png, strip
from training.settings import TrainSettings
from training.summary import report


def _history(losses: list[float]) -> list[dict[str, float]]:
    return [
        {"step": float(10 * at), "share": at / len(losses), "validation": loss}
        for at, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("losses", "best_step", "says"),
    [
        ([1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25], 80, "still getting better at the end (29% in the last quarter)"),
        ([1.0, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.299], 80, "all but stopped getting better"),
        ([1.0, 0.5, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7], 30, "from 38% of the budget; what came later was no better"),
    ],
)
def test_advice_on_time_follows_from_the_curve(losses: list[float], best_step: int, says: str) -> None:
    advice = advise(_history(losses), best_step, fit_parts=100, validation_parts=10, mends=0, minutes=7.0)
    assert says in advice[0]
    assert len(advice) == 2
    assert "calibrate thresholds" in advice[-1]


def test_advice_names_too_few_parts_and_a_discriminator_that_collapsed() -> None:
    advice = " ".join(advise([], 0, fit_parts=12, validation_parts=2, mends=3, minutes=7.0))
    assert "learnt from 12 part(s)" in advice
    assert "selected on 2 part(s)" in advice
    assert "collapsed and was started afresh 3 time(s)" in advice


def test_longer_is_said_in_minutes() -> None:
    losses = [1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25]
    assert "--minutes 15" in advise(_history(losses), 80, 100, 10, 0, minutes=7.4)[0]


LATE = ("f_anogan", "egbad", "dcgan", "anogan", "dec", "dcn")  # their weights are of the last fifth of the budget


@pytest.mark.parametrize("name", [*LATE, "ganomaly"])
def test_weights_that_are_selected_late_are_not_said_to_have_got_better(name: str, tmp_path: Path) -> None:
    """Before the last fifth their validation loss is no measurement: it only falls, from 3 to 2.2."""
    settings = TrainSettings(data=tmp_path, out=tmp_path, model=name, size=64, width=4, latent=8, device="cpu")
    torch.manual_seed(0)
    model = model_class(name).build(size=64, channels=1, width=4, latent=8)
    tiles = torch.randint(0, 256, (4, 64, 64, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    judge, history = model.deployed().eval(), []
    for step in range(1, 21):
        model.used = (step - 1) / 20  # type: ignore[assignment]  # as a step tells it
        loss = model.selection_loss(judge, tiles) if name in LATE else 1.0 - step / 100
        history.append({"step": float(step), "share": step / 20, "seconds": 1.0, "validation": loss})
    fitted = Fitted(judge, 20, 20, 60.0, 1.0, 0.1, {}, 0, "cpu", "32-true", 1, history)
    if name == "anogan":
        judge = model_class("dcgan").build(size=64, channels=1, width=4, latent=8).deployed()  # quicker to draw by
    samples = _samples(parts=60, exposures=1)
    split = Split(samples[:50], samples[50:], [], "by file name")
    inspector = Inspector(judge, 64, "residual")
    html = report(settings, "plate", split, Augmentation(), fitted, inspector, tiles, ["a.png"] * 4)
    assert ("no curve tells whether more time would help" in html) == (name in LATE)
    assert ("still getting better" in html) == (name not in LATE)
    assert ">3<" not in html and ">2.95<" not in html


def test_the_page_of_a_bundle_loads_nothing_and_shows_everything(small_bundle: Path) -> None:
    html = open_bundle(small_bundle).path("training").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!data:image/png;base64,)""", html) == []
    assert "<script" not in html
    assert "url(" not in html
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 4 + 6  # four validation parts, six synthetic defects
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert shown.shape == (64, 3 * 64 + 2 * GAP_PX, 3)
    assert html.count("<polyline") >= 5  # validation, images per second and every loss
    for fact in ("24 images of 24 parts", "train/good/part_", "learning_rate", "validation loss (dashed"):
        assert fact in html


def test_numbers_and_names_are_escaped() -> None:
    assert "<td>&lt;b&gt;</td>" in table(("a",), [["<b>"], [None]])
    assert "—" in table((), [[None]])
    assert "&lt;i&gt;" in curve("<i>", [(0, 1.0), (1, 2.0)], "steps")
    assert "too few points" in curve("loss", [(0, 1.0), (1, float("nan"))], "steps")


def test_a_strip_shows_tile_drawing_and_map_on_a_scale_of_its_own() -> None:
    tile = torch.full((8, 8, 1), 100, dtype=torch.uint8)
    deviation = torch.zeros(8, 8)
    deviation[2, 3] = 2.0
    shown = strip(tile, tile + 20, deviation, top=4.0)
    assert shown.shape == (8, 24 + 2 * GAP_PX, 3)
    assert (shown[:, :8] == 100).all()
    assert (shown[:, 8 + GAP_PX : 16 + GAP_PX] == 120).all()
    heat = shown[:, 16 + 2 * GAP_PX :].sum(axis=2, dtype=int)
    assert heat.argmax() == 2 * 8 + 3
    assert 0 < heat.max() < 3 * 200  # half of the scale is not its end
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png(shown), np.uint8), 1)[..., ::-1], shown)


def test_colours_are_those_of_the_part() -> None:
    tile = torch.tensor([10, 20, 200], dtype=torch.uint8).repeat(8, 8, 1)  # red, green, blue, as images are read
    assert strip(tile, tile, torch.zeros(8, 8), 1.0)[0, 0].tolist() == [10, 20, 200]


def _samples(parts: int, exposures: int) -> list[Sample]:
    return [
        Sample(Path(f"{part}_{number}.png"), "good", None, f"part {part}")
        for part in range(parts)
        for number in range(exposures)
    ]


def test_few_images_are_of_as_many_parts_as_possible() -> None:
    samples = _samples(parts=8, exposures=5)
    ten = spread_over_parts(samples, 10)
    assert len({sample.group for sample in ten}) == 8
    assert set(ten) < set(spread_over_parts(samples, 30))


@pytest.mark.parametrize(("available", "counts"), [(465, [10, 30, 100]), (54, [10, 30, 54]), (30, [10, 30])])
def test_the_numbers_of_images_fit_what_there_is(available: int, counts: list[int]) -> None:
    assert counts_for(available) == counts


def test_too_few_images_for_a_curve_are_said() -> None:
    with pytest.raises(ConfigError, match="10 images to learn from make no curve; expected at least 11"):
        counts_for(10)


@pytest.mark.parametrize(
    ("losses", "says"),
    [((0.5, 0.3), "40% better than 10: more good images are worth taking"), ((0.3, 0.29), "hardly better"),
     ((0.3, 0.4), "worse than 10 in the same time")],
)  # fmt: skip
def test_the_curve_is_put_into_words(losses: tuple[float, float], says: str) -> None:
    rows: list[dict[str, Any]] = [
        {"images": images, "validation_loss": loss} for images, loss in zip((10, 30), losses, strict=True)
    ]
    assert says in verdict(rows)


def test_a_few_shot_curve_is_not_for_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without torchrun"):
        few_shot(TrainSettings(data=tmp_path, out=tmp_path, few_shot=True))


def test_a_few_shot_curve_is_a_table_a_picture_and_no_bundle(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "data", good=20, test_good=1, defective=1)
    (data / "test" / "good" / "part_000.png").write_bytes(b"never opened")
    settings = TrainSettings(
        data=data, out=tmp_path / "few", model="ganomaly", steps=24, size=64, width=4, latent=8, batch=4,
        device="cpu", learning_rate=4e-3, holdout=0.2, few_shot=True,
    )  # fmt: skip
    rows = few_shot(settings)
    assert [(row["images"], row["steps"]) for row in rows] == [(10, 12), (14, 12)]
    assert sorted(path.name for path in (tmp_path / "few").iterdir()) == ["few_shot.html", "few_shot.json"]
    html = (tmp_path / "few" / "few_shot.html").read_text()
    assert "<polyline" in html
    assert f"{rows[0]['validation_loss']:.4g}" in html
