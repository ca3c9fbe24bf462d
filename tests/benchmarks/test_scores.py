"""Every score of finished cells, exported or not, and the pictures of what they draw."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from torch import Tensor

from benchmarks import model_pictures, models
from benchmarks.finished import open_cell
from benchmarks.scores import BEGIN, document, main
from contract.errors import ConfigError
from tests.bundles import draw_data
from training.models import MODELS
from training.models.anogan import Anogan, Search

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder and a model without a graph on parts of a drawn line, as ``benchmarks.models`` leaves them."""
    folder = tmp_path_factory.mktemp("cells")
    data = draw_data(folder / "work" / "data" / "plates", 40, 6, 6)
    data.with_suffix(".drawn").touch()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.models.anogan.SEARCH_STEPS", 4)
        patched.setattr("training.fit.refuse_collapse", lambda *given: None)  # six steps draw nothing but grey
        for model in ("ae", "anogan"):
            asked = ["--data", str(data), "--models", model, "--seeds", "1", "--work", str(folder / "work")]
            small = ["steps=6", "width=4", "latent=8", "batch=8", "device=cpu", "threads=1"]
            to = ["--json", str(folder / "models.json"), "--looks", str(folder / "looks.csv")]
            assert models.main([*asked, *to, "--settings", *small]) == 0
    return folder / "work"


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.models.anogan.SEARCH_STEPS", 4)


def cell_of(work: Path, model: str) -> Path:
    (found,) = work.glob(f"plates/{model}-*/seed0")
    return found


def scored(work: Path, to: Path, *more: str) -> dict[tuple[str, str], Any]:
    words = ["--work", str(work), "--data", str(work / "data" / "plates"), "--looks", str(to / "looks.csv"), *more]
    assert main([*words, "--json", str(to / "scores.json")]) == 0
    rows = json.loads((to / "scores.json").read_text())["rows"]
    return {(row["dataset"], row["model"]): row for row in rows}


def test_every_score_of_every_finished_cell(work: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nyesterday\n<!-- end of figures -->\nafter\n")
    rows = scored(work, tmp_path, "--page", str(page))
    assert list(rows) == [("plates", "ae"), ("plates", "anogan")]
    for (_, model), row in rows.items():
        assert list(row["image_auroc"]) == list(MODELS[model].scores) and row["seeds"] == [0]
        # The training's own score gives what its cell has, so weights and what is usual are those of the training.
        figures = json.loads((cell_of(work, model) / "cell.json").read_text())["figures"]
        assert row["image_auroc"][row["score"]] == [pytest.approx(figures["image_auroc"], abs=0.03)]
        assert len({tuple(values) for values in row["image_auroc"].values()}) > 1, "one and the same for every score"
    looks = list(csv.DictReader((tmp_path / "looks.csv").read_text().splitlines()))
    assert [(look["model"], look["calibration"]) for look in looks] == [
        (model, f"score {score}") for model in ("ae", "anogan") for score in MODELS[model].scores
    ]
    text = page.read_text()
    assert (
        "yesterday" not in text and "| model | budget | seeds | `residual` | `hidden` | `latent` | `features` |" in text
    )
    (residual,) = rows["plates", "ae"]["image_auroc"]["residual"]
    assert f"| `ae` | 6 steps | 1 | **{residual:.3f}** |" in text
    (features,) = rows["plates", "anogan"]["image_auroc"]["features"]
    assert f"| — | — | **{features:.3f}** |" in text


def test_tiles_are_searched_for_once_whatever_the_scores(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def find(self: Search, tile: Tensor, features: Tensor) -> Tensor:
        searched.append(len(tile))
        return self.start.repeat(len(tile), 1, 1, 1)

    monkeypatch.setattr(Search, "find", find)
    scored(work, tmp_path, "--models", "anogan")
    learnt_from = 28  # of 40 parts 70 % are learnt from or select weights: what is usual is learnt of those
    assert sum(searched) == learnt_from + 12


def test_rows_of_other_models_stay(work: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"rows": [{"dataset": "plates", "model": "dae"}]}))
    assert list(scored(work, tmp_path, "--models", "ae")) == [("plates", "ae"), ("plates", "dae")]
    assert document(tmp_path / "none.json", [])["rows"] == []


def test_a_folder_without_finished_cells_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_data(tmp_path / "plates", 4, 2, 2)
    words = ["--work", str(tmp_path / "work"), "--data", str(data), "--json", str(tmp_path / "scores.json")]
    assert main(words) == 2
    assert "no finished cells" in capsys.readouterr().err


def test_a_model_without_a_graph_is_pictured_from_its_checkpoint(work: Path, tmp_path: Path) -> None:
    cells = [str(cell_of(work, model)) for model in ("ae", "anogan")]
    assert model_pictures.main(["--out", str(tmp_path), *cells]) == 0
    for model in ("ae", "anogan"):
        found = cv2.imread(str(tmp_path / f"{model}.png"))
        assert found.shape == (2 * (2 * 64 + 4), 2 * (3 * 64 + 8), 3), model
        assert found[:, 136:264].std() > 0, "something is drawn"


def test_weights_that_fit_no_network_are_said_to_be_anothers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Anogan, "deployed", lambda self: self.generator)
    with pytest.raises(ConfigError, match="another version of anogan; train it anew"):
        open_cell(cell_of(work, "anogan"), work / "data" / "plates")


def test_the_published_page_and_file_agree() -> None:
    published = ROOT / "benchmarks" / "results" / "scores.json"
    page = (ROOT / "docs" / "models" / "scores.md").read_text()
    if not published.is_file():
        assert "Nothing has been measured yet." in page
        return
    from benchmarks.model_page import replaced
    from benchmarks.scores import section

    assert replaced(page, section(json.loads(published.read_text())), "scores.md", BEGIN) == page


def test_two_trainings_of_a_model_are_not_mixed(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(work, tmp_path / "work"))
    cell = cell_of(copy, "ae").parent
    shutil.copytree(cell, cell.with_name("ae-other"))
    words = ["--work", str(copy), "--data", str(copy / "data" / "plates"), "--looks", str(tmp_path / "looks.csv")]
    assert main([*words, "--json", str(tmp_path / "scores.json")]) == 2
    assert "with other settings too" in capsys.readouterr().err
    assert not (tmp_path / "looks.csv").exists()
