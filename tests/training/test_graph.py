"""The module around the network: its score and map by hand, one image at a time, nothing over a set of images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.graph import MAX_TOP_K, Inspector, gaussian, top_k
from training.models.base import Judgement
from training.models.ganomaly import Ganomaly


class Darkness(nn.Module):
    """Deviation = how dark a pixel is, reconstruction = the image itself."""

    def forward(self, tile: Tensor) -> Judgement:
        return Judgement(tile, (1.0 - tile[:, :1]) / 2, {"latent": tile.abs().sum(dim=(1, 2, 3))})


def _white() -> Tensor:
    return torch.full((1, 64, 64, 1), 255, dtype=torch.uint8)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Ganomaly(64, 1, 4, 8).deployed().eval()


def test_the_smoothing_weights_sum_to_one_and_are_symmetric() -> None:
    for sigma in (0.8, 1.0, 2.5):
        weights = gaussian(sigma)
        assert float(weights.sum()) == pytest.approx(1.0)
        assert len(weights) % 2 == 1
        torch.testing.assert_close(weights, weights.flip(0))


def test_top_k_stays_within_what_tensorrt_takes() -> None:
    assert [top_k(size, 0.005) for size in (64, 128, 256)] == [20, 82, 328]
    assert top_k(4096, 0.005) == MAX_TOP_K


def test_the_score_is_the_mean_of_the_highest_map_values() -> None:
    image = _white()
    image[0, 20:40, 20:40] = 0
    inspector = Inspector(Darkness(), 64, "residual")
    score, deviation, _ = inspector(image)
    highest = deviation.flatten().sort(descending=True).values[: top_k(64, 0.005)]
    assert float(score) == pytest.approx(float(highest.mean()))
    assert float(score) == pytest.approx(1.0, abs=1e-5)  # a black field larger than the kernel stays black inside
    assert deviation.shape == (1, 64, 64)


def test_the_map_points_at_the_place() -> None:
    image = _white()
    image[0, 10:13, 47:50] = 0
    deviation = Inspector(Darkness(), 64, "residual")(image)[1][0]
    assert divmod(int(deviation.argmax()), 64) == (11, 48)


def test_smoothing_mirrors_at_the_edge_and_keeps_a_flat_field() -> None:
    inspector = Inspector(Darkness(), 64, "residual")
    deviation = inspector(torch.zeros(1, 64, 64, 1, dtype=torch.uint8))[1][0]
    inner = deviation[1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.ones_like(inner))
    assert float(deviation[0].abs().max()) == float(deviation[:, -1].abs().max()) == 0.0  # the border mask


def test_a_single_image_has_a_score_of_its_own(network: nn.Module) -> None:
    inspector = Inspector(network, 64, "residual")
    images = torch.randint(0, 256, (5, 64, 64, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([inspector(images[index : index + 1])[0] for index in range(5)])
        together = inspector(images)[0]
        doubled = inspector(images.repeat(2, 1, 1, 1))[0]
    assert bool(torch.isfinite(alone).all())
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=0)
    torch.testing.assert_close(doubled[:5], together, rtol=1e-5, atol=0)
    # Raw scores: nothing maps the least of a set to 0 and the highest to 1.
    assert float(together.min()) > 0.0


def test_the_latent_score_leaves_the_map_alone(network: nn.Module) -> None:
    images = torch.randint(0, 256, (3, 64, 64, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        residual, latent = (Inspector(network, 64, kind)(images) for kind in ("residual", "latent"))
        expected = network(images.permute(0, 3, 1, 2).float() / 127.5 - 1).scores["latent"]
    torch.testing.assert_close(latent[0], expected)
    torch.testing.assert_close(latent[1], residual[1])
    assert not torch.equal(latent[0], residual[0])


def test_the_reconstruction_is_the_image_where_it_is_drawn_perfectly() -> None:
    image = torch.arange(256, dtype=torch.uint8).repeat(16).reshape(1, 64, 64, 1)
    assert torch.equal(Inspector(Darkness(), 64, "residual")(image)[2], image)


def test_places_that_always_deviate_count_less() -> None:
    random = torch.Generator().manual_seed(0)
    good = torch.randint(245, 256, (40, 64, 64, 1), dtype=torch.uint8, generator=random)
    good[:, :, 30:34] = torch.randint(0, 120, (40, 64, 4, 1), dtype=torch.uint8, generator=random)
    inspector = Inspector(Darkness(), 64, "residual")
    inspector.learn_typical(good)
    assert float(inspector.typical[32, 32]) > 5 * float(inspector.typical[32, 10])
    assert float(inspector.typical.min()) > 0
    defective = good[:1].clone()
    defective[0, 20:26, 5:11] = 180  # faint beside the band, but nothing of the kind is typical here
    _, deviation, _ = inspector(torch.cat([good[:1], defective]))
    assert deviation[1].argmax() % 64 < 16
    assert float(deviation[1].max()) > 2 * float(deviation[0].max())
