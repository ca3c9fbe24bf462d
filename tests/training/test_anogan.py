"""AnoGAN against the paper: its score computed by hand, what the search finds, and that no graph is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.stepping import noise, weights
from training.build import train
from training.errors import ExportError
from training.export import export
from training.fit import measure_statistics
from training.graph import Inspector
from training.models.anogan import Anogan, Search, anomaly
from training.models.dcgan import Criticism
from training.settings import TrainSettings

POINTS_TO = r"not exported. f_anogan finds the code in one pass"


@pytest.fixture
def model() -> Anogan:
    torch.manual_seed(0)
    return Anogan(64, 1, 4, 8).train()


def search(model: Anogan, steps: int) -> Search:
    judge = model.deployed()
    judge.steps = steps
    return judge.eval()


def test_the_score_by_hand() -> None:
    tile, image = torch.tensor([[[[0.5, -0.5]]]]), torch.tensor([[[[0.0, 0.5]]]])
    found = anomaly(tile, image, torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([[[[2.0]], [[0.0]]]]))
    assert float(found) == pytest.approx(0.9 * 1.5 + 0.1 * 4.0)


class Shades(nn.Module):
    """Draws a tile of one shade, the first number of its code."""

    def forward(self, code: Tensor) -> Tensor:
        return torch.tanh(code[:, :1]).expand(-1, 1, 64, 64)


class Blind(nn.Module):
    """Sees the mean shade."""

    def forward(self, tile: Tensor) -> Criticism:
        mean = tile.mean(dim=(1, 2, 3), keepdim=True)
        return Criticism(mean, mean)


def test_the_search_finds_the_code_that_draws_the_tile() -> None:
    judge = Search(Shades(), Blind(), 4)  # type: ignore[arg-type]
    tiles = torch.tensor([-0.5, 0.0, 0.7]).view(3, 1, 1, 1).expand(3, 1, 64, 64).contiguous()
    judged = judge(tiles)
    torch.testing.assert_close(judged.image, tiles, atol=0.02, rtol=0)
    judge.steps = 0
    assert float((judge(tiles).image - tiles).abs().amax(dim=(1, 2, 3)).max()) > 0.3


def test_a_search_lowers_its_score_touches_no_weight_and_is_the_same_again(model: Anogan) -> None:
    for weight in model.parameters():
        if weight.dim() == 4:  # the model's own first weights are so small that its drawings are all but constant
            nn.init.kaiming_normal_(weight)
    tiles, before = noise(4), weights(model)
    first = search(model, 0)(tiles).scores["features"]
    with torch.no_grad():  # as the inspector calls it
        found, again = search(model, 30)(tiles).scores["features"], search(model, 30)(tiles).scores["features"]
    assert bool((found < first).all())
    assert torch.equal(found, again)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())


def test_the_score_of_an_image_does_not_depend_on_the_batch(model: Anogan) -> None:
    tiles = noise(4)
    together, alone = search(model, 10)(tiles), search(model, 10)(tiles[2:3])
    torch.testing.assert_close(together.scores["features"][2:3], alone.scores["features"], rtol=1e-4, atol=0)


def test_no_statistics_are_measured_anew_and_so_nothing_is_searched(model: Anogan) -> None:
    judge = search(model, 500)
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    measure_statistics(judge, torch.zeros(100, 64, 64, 1, dtype=torch.uint8), model.shown)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in judge.modules())
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())


def test_export_says_that_there_is_no_graph_and_points_to_f_anogan(model: Anogan, tmp_path: Path) -> None:
    golden = torch.zeros(2, 64, 64, 1, dtype=torch.uint8)
    with pytest.raises(ExportError, match=POINTS_TO):
        export(Inspector(search(model, 1), 64, "features"), tmp_path / "graph.onnx", golden)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_so_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=POINTS_TO):
        train(TrainSettings(data=tmp_path / "absent", out=tmp_path / "bundle", model="anogan"))
    assert list(tmp_path.iterdir()) == []
