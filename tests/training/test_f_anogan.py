"""f-AnoGAN against the paper: shapes, losses computed by hand, frozen networks, and the errors of published code."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from benchmarks.precision import half_graph
from contract.bundle import ROLE_GRAPH, open_bundle, write_manifest
from tests.bundles import draw_data, train_small_bundle
from training.cli import make_settings, train
from training.data import scale
from training.export import open_session, prove, write_graph
from training.fit import Loop, Tiles, measure_statistics, new_model
from training.graph import Inspector
from training.models.adversarial import SELECT_FROM, critic_loss, gradient_penalty
from training.models.f_anogan import (
    ENCODER_FROM,
    MAX_CHANNELS,
    N_CRITIC,
    FAnogan,
    residuals,
    stages,
)
from training.settings import TrainSettings


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


@pytest.fixture
def model() -> FAnogan:
    torch.manual_seed(0)
    return FAnogan(64, 1, 4, 8).train()


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _same(before: dict[str, Tensor], network: nn.Module) -> bool:
    return all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("size", "channels", "side"),
    [(64, [128, 256, 256, 256], 4), (128, [128, 256, 256, 256, 256], 4), (80, [128, 256, 256, 256], 5)],
)
def test_the_blocks_halve_to_a_few_pixels_with_capped_channels(size: int, channels: list[int], side: int) -> None:
    assert stages(size, 64) == (channels, side)


@pytest.mark.parametrize("size", range(64, 257, 16))
def test_every_multiple_of_sixteen_comes_back_in_its_size(size: int) -> None:
    judge = FAnogan(size, 3, 4, 8).deployed().eval()
    with torch.no_grad():
        judged = judge(torch.zeros(2, 3, size, size))
    assert judged.image.shape == (2, 3, size, size)
    assert judged.deviation.shape == (2, 1, size, size)
    assert max(weight.shape[0] for name, weight in judge.named_parameters() if "expand" not in name) <= MAX_CHANNELS


def test_the_gradient_penalty_by_hand() -> None:
    slopes = torch.tensor([3.0, 0.5, 1.0])

    def judge(tiles: Tensor) -> Tensor:  # a linear critic: the gradient of image i has the norm slopes[i]
        weight = slopes[:, None] / 2.0  # spread over four pixels
        return (weight * tiles.flatten(1)).sum(dim=1)

    real, fake = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    expected = ((slopes - 1.0) ** 2).mean()
    torch.testing.assert_close(gradient_penalty(judge, real, fake), expected)


def test_each_pair_has_its_own_place_between_and_all_its_pixels_share_it() -> None:
    seen: list[Tensor] = []

    def judge(tiles: Tensor) -> Tensor:
        seen.append(tiles.detach())
        return tiles.square().flatten(1).sum(dim=1)

    torch.manual_seed(3)
    gradient_penalty(judge, torch.zeros(16, 3, 4, 4), torch.ones(16, 3, 4, 4))
    places = seen[0].flatten(1)
    assert torch.equal(places.min(dim=1).values, places.max(dim=1).values)
    assert len(set(places[:, 0].tolist())) == 16
    assert float(places.min()) >= 0 and float(places.max()) <= 1


def test_the_penalty_of_an_image_does_not_depend_on_the_batch(model: FAnogan, batch: Tensor) -> None:
    def gradient(tiles: Tensor) -> Tensor:
        tiles = tiles.clone().requires_grad_(True)
        (found,) = torch.autograd.grad(model.critic(tiles).verdicts.sum(), tiles)
        return found

    torch.testing.assert_close(gradient(batch)[:1], gradient(batch[:1]), rtol=1e-4, atol=1e-6)


def test_the_critic_has_no_batch_normalisation_and_no_dropout(model: FAnogan) -> None:
    forbidden = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    assert not [name for name, module in model.critic.named_modules() if isinstance(module, forbidden)]


def test_critic_loss_by_hand() -> None:
    real, fake = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.5])
    assert float(critic_loss(real, fake, torch.tensor(0.25))) == pytest.approx(-0.5 - 1.5 + 10 * 0.25)


def test_the_optimizers_are_the_papers(model: FAnogan) -> None:
    found = model.optimizers(1e-4)
    for name in ("generator", "critic"):
        assert isinstance(found[name], torch.optim.Adam)
        assert (found[name].param_groups[0]["lr"], found[name].param_groups[0]["betas"]) == (1e-4, (0.0, 0.9))
    assert isinstance(found["encoder"], torch.optim.RMSprop)
    assert found["encoder"].param_groups[0]["lr"] == pytest.approx(5e-5)


def test_the_critic_learns_five_times_as_often_as_the_generator(model: FAnogan, batch: Tensor) -> None:
    optimizers, changed = model.optimizers(1e-4), []
    for _ in range(2 * N_CRITIC):
        weights, critic, encoder = _weights(model.generator), _weights(model.critic), _weights(model.encoder)
        model.training_step(batch, optimizers, backward, 0.0)
        changed.append(not _equal(weights, _weights(model.generator)))
        assert not _equal(critic, _weights(model.critic))
        assert _equal(encoder, _weights(model.encoder))
    assert changed == [False] * 4 + [True] + [False] * 4 + [True]


def _weights(network: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def _equal(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_resumed_critic_counts_on(model: FAnogan, batch: Tensor) -> None:
    optimizers = model.optimizers(1e-4)
    for _ in range(3):
        model.training_step(batch, optimizers, backward, 0.0)
    again = FAnogan(64, 1, 4, 8)
    for name, network in again.networks().items():
        network.load_state_dict(model.networks()[name].state_dict())
    assert int(again.critic.updates) == 3


def test_generator_and_critic_are_frozen_in_inference_mode_while_the_encoder_learns(
    model: FAnogan, batch: Tensor
) -> None:
    optimizers = model.optimizers(1e-4)
    model.training_step(batch, optimizers, backward, 0.0)
    generator, critic, encoder = _state(model.generator), _state(model.critic), _weights(model.encoder)
    losses = model.training_step(batch, optimizers, backward, ENCODER_FROM)
    assert set(losses) == {"image", "features"}
    assert _same(generator, model.generator) and _same(critic, model.critic)  # statistics too
    assert not _equal(encoder, _weights(model.encoder))
    assert not any(module.training for module in model.generator.modules())


def test_a_longer_budget_thaws_them(model: FAnogan, batch: Tensor) -> None:
    optimizers = model.optimizers(1e-4)
    model.training_step(batch, optimizers, backward, 0.9)
    critic = _weights(model.critic)
    model.training_step(batch, optimizers, backward, 0.3)
    assert not _equal(critic, _weights(model.critic))
    assert model.generator.training and all(weight.requires_grad for weight in model.generator.parameters())


def test_the_encoders_loss_is_the_mean_score_of_its_batch(model: FAnogan, batch: Tensor) -> None:
    judge = model.deployed()
    model.generator.eval()
    with torch.no_grad():
        expected = (
            judge(batch).scores["features"].mean()
        )  # the encoder normalises by the batch, as it does while it learns
    losses = model.training_step(batch, model.optimizers(1e-4), backward, 0.7)
    torch.testing.assert_close(losses["image"] + losses["features"], expected)


def test_the_score_by_hand() -> None:
    tile, image = torch.tensor([[[[0.5, -0.5]]]]), torch.tensor([[[[0.0, 0.5]]]])
    found = residuals(tile, image, torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([[[[2.0]], [[3.0]]]]))
    assert float(found.image) == pytest.approx((0.25 + 1.0) / 2)
    assert float(found.features) == pytest.approx(0.5)
    assert float(found.total()) == pytest.approx(0.625 + 0.5)  # kappa 1


def test_score_and_map_of_an_image_do_not_depend_on_the_batch(model: FAnogan, batch: Tensor) -> None:
    judge = model.deployed().eval()
    with torch.no_grad():
        together, alone = judge(batch), judge(batch[2:3])
        beside = judge(torch.cat([torch.ones_like(batch), batch[2:3]]))
    torch.testing.assert_close(together.scores["features"][2:3], alone.scores["features"])
    torch.testing.assert_close(beside.scores["features"][-1:], alone.scores["features"])
    torch.testing.assert_close(together.deviation[2:3], alone.deviation)
    torch.testing.assert_close(together.deviation[:, 0], (batch - together.image).abs().mean(dim=1))


def test_measuring_statistics_leaves_the_frozen_generator_as_it_was(model: FAnogan, batch: Tensor) -> None:
    model.training_step(batch, model.optimizers(1e-4), backward, 0.0)
    judge = copy.deepcopy(model.deployed()).eval()
    code, encoded = torch.randn(3, 8), _state(judge.encoder)
    with torch.no_grad():
        before = judge.generator(code)
        measure_statistics(judge, ((batch + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1), model.shown)
        torch.testing.assert_close(judge.generator(code), before, rtol=0, atol=0)
    assert not _same(encoded, judge.encoder)  # the encoder's are measured


def test_weights_from_before_the_encoder_learnt_are_never_selected(model: FAnogan, batch: Tensor) -> None:
    class Perfect(nn.Module):
        def forward(self, tile: Tensor) -> Any:
            return judged._replace(deviation=torch.zeros(len(tile), 1, 64, 64))

    judged = model.deployed().eval()(batch)
    tiles = torch.zeros(4, 64, 64, 1, dtype=torch.uint8)
    optimizers, losses = model.optimizers(1e-4), []
    for share in (0.0, 0.5, ENCODER_FROM, SELECT_FROM - 0.01):
        model.training_step(batch, optimizers, backward, share)
        losses.append(model.selection_loss(Perfect(), tiles))
    model.training_step(batch, optimizers, backward, SELECT_FROM)
    worst = model.selection_loss(Opposite(), 255 * torch.ones_like(tiles))
    assert losses == sorted(losses, reverse=True) and worst == pytest.approx(2.0)
    assert min(losses) > worst


class Opposite(nn.Module):
    """Draws black for white: the largest deviation that there is."""

    def forward(self, tile: Tensor) -> Any:
        from training.models.base import Judgement

        return Judgement(-tile, (2 * tile).abs().mean(dim=1, keepdim=True), {})


@pytest.mark.parametrize("score", ["features", "residual"])
def test_the_graph_agrees_with_the_network(score: Any, model: FAnogan, tmp_path: Any) -> None:
    golden = torch.randint(0, 256, (3, 64, 64, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    inspector = Inspector(model.deployed(), 64, score)
    inspector.learn_typical(golden)
    expected = inspector.inspect(golden)
    write_graph(inspector, tmp_path / "graph.onnx", golden[:2])
    prove(tmp_path / "graph.onnx", golden, expected)
    names = [weight.name for weight in onnx.load(tmp_path / "graph.onnx").graph.initializer]
    assert any("generator" in name for name in names)
    assert any("judge.trunk" in name for name in names) == (score == "features")  # the residual needs no critic
    if score == "features":
        with torch.no_grad():
            torch.testing.assert_close(expected.score, inspector.judge(scale(golden)).scores["features"])


def test_the_loop_averages_and_selects_late_weights(parts_tiles: Tensor, tmp_path: Any) -> None:
    settings = TrainSettings(
        data=tmp_path, out=tmp_path, model="f_anogan", steps=40, width=4, latent=8, batch=4, device="cpu",
        precision="32-true", learning_rate=1e-3,
    )  # fmt: skip
    assert settings.score == "features"
    loop = Loop(new_model(settings, 1), Tiles(parts_tiles, parts_tiles[:4]), settings, "")
    while loop.share() < ENCODER_FROM:
        loop.train_once()
    drawer = loop._live.generator
    before = apart(loop._averaged.generator, drawer)
    while loop.share() < 1.0:
        loop.train_once()
        if loop.milestone_reached():
            loop.validate()
    # What the encoder has learnt to steer is what is deployed.
    assert apart(loop._averaged.generator, drawer) < 0.05 * before
    assert loop.finish()[0].best_step >= SELECT_FROM * settings.steps


def apart(first: nn.Module, second: nn.Module) -> float:
    """Distance of two networks' weights."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return float(sum((one - other).detach().square().sum() for one, other in pairs)) ** 0.5


@pytest.fixture
def parts_tiles() -> Tensor:
    import numpy as np

    from tests.bundles import draw_part

    drawn = [draw_part(number, side=64) for number in range(12)]
    return torch.from_numpy(np.stack(drawn))[..., None]


def test_a_bundle_from_when_the_score_was_called_latent_still_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fit.refuse_collapse", lambda *given: None)  # four steps draw nothing but grey
    data = draw_data(tmp_path / "parts", good=70, side=64)
    sizes = {"width": 4, "latent": 8, "batch": 4}
    out = train_small_bundle(tmp_path / "bundle", data, model="f_anogan", score=None, steps=4, tiles=(1, 1), **sizes)
    manifest = open_bundle(out).manifest
    assert manifest.model.score == "features"
    settings = manifest.training["settings"] | {"score": "latent"}
    model = manifest.model.model_copy(update={"score": "latent"})
    write_manifest(out, manifest.model_copy(update={"model": model, "training": {"settings": settings}}))
    bundle = open_bundle(out)
    tiles = np.load(bundle.path(bundle.manifest.golden.role))
    (single,) = open_session(bundle.path(ROLE_GRAPH), 1).run(["score"], {"image": tiles})
    assert single.tolist() == pytest.approx(bundle.manifest.golden.scores, rel=1e-4)
    graph = half_graph(bundle)  # made from the weights and the score's name
    assert any("trunk" in weight.name for weight in onnx.load_from_string(graph).graph.initializer)


def test_the_command_leaves_the_score_to_the_model_unless_asked() -> None:
    asked = {"data": "parts", "out": "bundle", "model": "f_anogan"}
    assert make_settings({**asked, "score": None}).score == "features"
    assert make_settings({**asked, "score": "residual"}).score == "residual"
    assert inspect.signature(train).parameters["score"].default is None
