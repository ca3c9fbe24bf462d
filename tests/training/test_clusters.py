"""k-means by hand, and what dec and dcn share: codes gathered at rest, centres that travel, a score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.stepping import all_weights, backward, changed, noise
from training.checkpoint import checkpoint_path, load_checkpoint
from training.fit import Loop, Tiles, new_model
from training.graph import Inspector
from training.models import model_class
from training.models.clusters import (
    CLUSTER_FROM,
    CLUSTERS,
    GATHER_FROM,
    REMEMBERED,
    Centres,
    Clustered,
    ClusterJudge,
    Clusters,
)
from training.models.kmeans import kmeans, lloyd, seeds, squares
from training.settings import TrainSettings

BOTH = ("dec", "dcn")


@pytest.fixture(params=BOTH)
def model(request: pytest.FixtureRequest) -> Clustered:
    torch.manual_seed(0)
    made = model_class(request.param).build(size=64, channels=1, width=4, latent=8).train()
    assert isinstance(made, Clustered)
    return made


def random() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def rows(*points: tuple[float, ...]) -> Tensor:
    return torch.tensor(points)


# k-means


def test_square_distances_by_hand() -> None:
    found = squares(rows((0.0, 0.0), (3.0, 4.0)), rows((0.0, 0.0), (3.0, 0.0), (6.0, 8.0)))
    assert found.tolist() == [[0.0, 9.0, 100.0], [25.0, 16.0, 25.0]]


def test_rounds_by_hand() -> None:
    """Of 0, 2, 10, 14 and first centres 0 and 2: 2 takes 10 and 14 along at first, then gives 2 back to 0."""
    centres = lloyd(rows((0.0,), (2.0,), (10.0,), (14.0,)), rows((0.0,), (2.0,)))
    assert centres.tolist() == [[1.0], [12.0]]


def test_a_centre_without_codes_stays_where_it_is() -> None:
    centres = lloyd(rows((0.0, 0.0), (0.0, 2.0)), rows((1.0, 1.0), (50.0, 50.0)))
    assert centres.tolist() == [[0.0, 1.0], [50.0, 50.0]]


def test_seeds_are_codes_that_lie_apart() -> None:
    """Nine codes at one place and one far away: drawn evenly, two seeds would nearly always be at the one place."""
    codes = torch.cat([torch.zeros(9, 2), rows((7.0, 7.0))])
    for start in range(20):
        found = seeds(codes, 2, torch.Generator().manual_seed(start))
        assert sorted(found.tolist()) == [[0.0, 0.0], [7.0, 7.0]]


def test_the_best_of_many_starts_finds_every_group() -> None:
    middles = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0], [30.0, 30.0], [31.0, 40.0]])
    codes = (middles[:, None] + 0.1 * torch.randn(6, 20, 2, generator=random())).flatten(0, 1)
    centres = kmeans(codes, 6)
    nearest = squares(middles, centres).min(dim=1)
    assert sorted(nearest.indices.tolist()) == list(range(6))
    torch.testing.assert_close(centres[nearest.indices], codes.view(6, 20, 2).mean(dim=1))
    assert torch.equal(kmeans(codes, 6), centres)


def test_more_centres_than_codes_lie_on_each_other() -> None:
    codes = rows((1.0, 1.0), (2.0, 2.0), (2.0, 2.0))
    centres = kmeans(codes, 5)
    assert centres.shape == (5, 2)
    assert {tuple(centre) for centre in centres.tolist()} == {(1.0, 1.0), (2.0, 2.0)}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_codes_that_are_no_numbers_are_left_to_the_loop_to_complain_of(broken: float) -> None:
    codes = torch.randn(20, 3, generator=random())
    codes[4, 1] = broken
    assert not bool(torch.isfinite(kmeans(codes, 4)).all())


# The centres


def test_a_distance_is_the_mean_square_in_the_spread_about_the_centres() -> None:
    centres = Centres(2)
    with torch.no_grad():
        centres.placed[:] = 100.0
        centres.placed[3], centres.moved[3] = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])
        centres.spread.fill_(0.5)
        found = centres(rows((1.0, 4.0)).view(1, 2, 1, 1))
    assert found.shape == (1, CLUSTERS)
    # From (1, 2): mean of 0 and 4, over a quarter.
    assert float(found[0, 3]) == 8.0 and int(found.argmin()) == 3


def test_placed_among_codes_the_usual_distance_is_one() -> None:
    centres = Centres(3)
    with torch.no_grad():
        centres.moved.fill_(9.0)  # from before: forgotten
        codes = 1e-3 * torch.randn(200, 3, generator=random())
        sizes = centres.place(codes)
        torch.testing.assert_close(centres(codes).amin(dim=1).mean(), torch.ones(()))
    assert int(sizes.sum()) == 200 and int(sizes.min()) > 0
    torch.testing.assert_close(centres.now(), kmeans(codes, CLUSTERS))


def test_codes_that_all_lie_on_centres_have_finite_distances() -> None:
    centres = Centres(3)
    with torch.no_grad():
        sizes = centres.place(torch.ones(4, 3))
        assert float(centres.spread) == 1.0
        assert centres(torch.ones(1, 3)).tolist() == [[0.0] * CLUSTERS]
    assert sorted(sizes.tolist()) == [0] * (CLUSTERS - 1) + [4]


def test_codes_are_remembered_while_there_is_room() -> None:
    clusters = Clusters(2)
    first, second = torch.randn(300, 2, 1, 1), torch.randn(300, 2, 1, 1)
    clusters.remember(first)
    assert not clusters.full
    clusters.remember(second)
    assert clusters.full and int(clusters.seen) == REMEMBERED
    assert torch.equal(clusters.memory, torch.cat([first, second]).flatten(1)[:REMEMBERED])
    clusters.remember(first)
    assert torch.equal(clusters.memory[-2:], second.flatten(1)[REMEMBERED - 302 : REMEMBERED - 300])


# The training


def test_at_first_it_draws_and_there_are_no_centres(model: Clustered) -> None:
    batch, before = noise(4), all_weights(model.networks())
    with torch.no_grad():
        image = model.decoder(model.encoder(batch).code)
    found = model.training_step(batch, model.optimizers(2e-4), backward, GATHER_FROM - 0.01)
    torch.testing.assert_close(found["likeness"], (image - batch).square().sum(dim=(1, 2, 3)).mean())
    assert changed(before, model.networks()) == {"encoder", "decoder"}
    assert not model.clusters.placed and int(model.clusters.seen) == 0


def test_codes_are_gathered_while_the_encoder_rests(model: Clustered) -> None:
    optimizers, before = model.optimizers(2e-4), all_weights(model.networks())
    with torch.no_grad():
        code = model.encoder(noise(4)).code.flatten(1)
    for _ in range(2):
        model.training_step(noise(4), optimizers, backward, GATHER_FROM)
    assert changed(before, model.networks()) == {"decoder"}
    assert int(model.clusters.seen) == 8 and not model.clusters.placed
    assert torch.equal(model.clusters.memory[:8], torch.cat([code, code]))


@pytest.mark.parametrize("share", [CLUSTER_FROM, 0.99])
def test_when_it_is_time_centres_are_placed_among_whatever_codes_there_are(model: Clustered, share: float) -> None:
    """Three tiles for ten centres."""
    model.training_step(noise(3), model.optimizers(2e-4), backward, share)
    assert model.clusters.placed
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_enough_codes_are_not_waited_with(model: Clustered) -> None:
    model.clusters.remember(torch.randn(REMEMBERED - 4, 8, 1, 1))
    model.training_step(noise(4), model.optimizers(2e-4), backward, GATHER_FROM)
    assert model.clusters.placed


def test_centres_stay_though_a_larger_budget_makes_the_share_small_again(model: Clustered) -> None:
    optimizers = model.optimizers(2e-4)
    model.training_step(noise(4), optimizers, backward, 0.6)
    placed = model.clusters.centres.placed.clone()
    found = model.training_step(noise(4), optimizers, backward, 0.1)
    assert len(found) == 2
    assert torch.equal(model.clusters.centres.placed, placed)


def test_a_centre_with_nothing_near_it_does_no_harm(model: Clustered) -> None:
    optimizers = model.optimizers(2e-4)
    model.training_step(noise(4), optimizers, backward, 0.6)
    with torch.no_grad():
        model.clusters.centres.placed[0] = 1e3
        model.clusters.given[0] = 0.0
    far = model.clusters.centres.now()[0].detach().clone()
    for _ in range(3):
        found = model.training_step(noise(4), optimizers, backward, 0.6)
    assert all(bool(torch.isfinite(value)) for value in found.values())
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    torch.testing.assert_close(model.clusters.centres.now()[0].detach(), far, rtol=1e-4, atol=0)


def test_two_kinds_of_tiles_have_centres_of_their_own(model: Clustered) -> None:
    dark, light = 0.3 * noise(8) - 0.5, 0.3 * noise(8).flip(3) + 0.5
    optimizers = model.optimizers(2e-3)
    for step in range(30):
        model.training_step(torch.cat([dark, light]), optimizers, backward, min(step / 20, GATHER_FROM + 0.1))
    with torch.no_grad():
        nearest = model.clusters(model.encoder(torch.cat([dark, light])).code).argmin(dim=1).tolist()
    assert set(nearest[:8]).isdisjoint(nearest[8:])


def test_the_score_is_the_distance_from_the_nearest_centre(model: Clustered) -> None:
    model.training_step(noise(4), model.optimizers(2e-4), backward, 0.6)
    judge, batch = model.deployed().eval(), noise(3)
    with torch.no_grad():
        judged = judge(batch)
        code = model.encoder(batch).code.flatten(1)
    where, spread = model.clusters.centres.now().detach(), float(model.clusters.centres.spread)
    for index in range(3):
        apart = ((code[index] - where) ** 2).mean(dim=1) / spread**2
        torch.testing.assert_close(judged.scores["cluster"][index], apart.min())
    assert set(judged.scores) == {"hidden", "latent", "cluster"}


# The loop


def settings(name: str, out: Path) -> TrainSettings:
    return TrainSettings(
        data=out, out=out, model=name, steps=20, size=64, width=4, latent=8, batch=4, device="cpu",
        precision="32-true",
    )  # fmt: skip


def loop(name: str, out: Path) -> Loop:
    tiles = ((noise(12) + 1) * 127).to(torch.uint8).permute(0, 2, 3, 1)
    return Loop(new_model(settings(name, out), 1), Tiles(tiles, tiles[:4]), settings(name, out), "")


def run(training: Loop, steps: int) -> None:
    while training.step < steps:
        training.check(training.train_once())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("stopped", [5, 11, 15])  # before, while codes are gathered, after
def test_a_resumed_run_has_the_same_centres(name: str, stopped: int, tmp_path: Path) -> None:
    straight = loop(name, tmp_path)
    run(straight, 20)
    before = loop(name, tmp_path)
    run(before, stopped)
    before.save()
    after = loop(name, tmp_path)
    after.restore(load_checkpoint(checkpoint_path(tmp_path), settings(name, tmp_path).learnt(), ""))
    after.start_clock()
    run(after, 20)
    torch.testing.assert_close(after.averaged.state_dict(), straight.averaged.state_dict(), rtol=0, atol=0)
    assert bool(after.averaged.centres.placed.any())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("name", BOTH)
def test_the_deployed_centres_are_those_that_training_had_whatever_the_average_lags(name: str, tmp_path: Path) -> None:
    training = loop(name, tmp_path)
    run(training, 12)
    live, averaged = training._live, training.averaged
    assert isinstance(live, ClusterJudge) and isinstance(averaged, ClusterJudge)
    assert torch.equal(averaged.centres.placed, live.centres.placed)
    assert float(live.centres.placed.norm()) > 0.0
    torch.testing.assert_close(averaged.centres.now(), live.centres.now(), rtol=0.2, atol=1e-3)


@pytest.mark.parametrize("name", BOTH)
def test_weights_without_centres_are_not_selected(name: str, tmp_path: Path) -> None:
    training = loop(name, tmp_path)
    run(training, 8)
    training.validate()
    run(training, 20)
    training.validate()
    (fitted,) = training.finish()
    assert fitted.best_step == 20
    score = Inspector(fitted.judge, 64, "cluster").inspect(((noise(3) + 1) * 127).to(torch.uint8).permute(0, 2, 3, 1))
    assert bool(torch.isfinite(score.score).all())
