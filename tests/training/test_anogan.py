"""AnoGAN against the paper: its score computed by hand, what the search finds, and that no graph is made of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.stepping import noise, weights
from training.build import train
from training.data import scale
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


def test_statistics_are_those_of_drawings_of_normal_noise_and_of_tiles_and_nothing_is_searched(
    model: Anogan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the weights at hand: the loop averages them, and no statistics gathered on the way fit an average."""
    monkeypatch.setattr(Search, "find", lambda *asked: pytest.fail("a search"))
    judge = search(model, 500)
    tiles = torch.randint(0, 256, (40, 64, 64, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    measure_statistics(judge, tiles, model.shown)
    torch.manual_seed(0)  # as it is measured
    for network, shown in ((judge.generator, torch.randn(40, 8, 1, 1)), (judge.discriminator, scale(tiles))):
        expected = copy.deepcopy(network).apply(_afresh)
        with torch.no_grad():
            expected(shown)
        torch.testing.assert_close(network.state_dict(), expected.state_dict())


def _afresh(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        module.reset_running_stats()
        module.momentum = None
        module.train()


def test_export_says_that_there_is_no_graph_and_points_to_f_anogan(model: Anogan, tmp_path: Path) -> None:
    golden = torch.zeros(2, 64, 64, 1, dtype=torch.uint8)
    with pytest.raises(ExportError, match=POINTS_TO):
        export(Inspector(search(model, 1), 64, "features"), tmp_path / "graph.onnx", golden)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_so_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=POINTS_TO):
        train(TrainSettings(data=tmp_path / "absent", out=tmp_path / "bundle", model="anogan"))
    assert list(tmp_path.iterdir()) == []
