"""Synthetic defects: every shape and fill of the lists, what is labelled, and the seed that repeats them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training import defects
from training.defects import (
    FILLS,
    SHAPES,
    VISIBLE,
    _erase,
    centres,
    crispness,
    draw,
    draw_shapes,
    edge_width,
    features,
    fill_in,
    frame,
    label,
)

CPU = torch.device("cpu")


@pytest.fixture(params=[(1, 64), (3, 64), (1, 128)], ids=["grey64", "colour64", "grey128"])
def tiles(request: pytest.FixtureRequest) -> Tensor:
    channels, size = request.param
    torch.manual_seed(3)
    ground = torch.linspace(-0.5, 0.5, size).view(1, 1, 1, -1).expand(12, channels, size, size)
    return (ground + 0.05 * torch.randn(12, channels, size, size)).clamp(-1, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_covers_some_of_the_tile_and_never_all(name: str) -> None:
    torch.manual_seed(0)
    opacity = SHAPES[name](frame(1.1 * torch.rand(64, 2) - 0.05, 64))
    assert opacity.shape == (64, 1, 64, 64)
    assert torch.isfinite(opacity).all()
    assert float(opacity.min()) >= 0.0
    assert float(opacity.max()) <= 1.0
    covered = (opacity > 0.35).float().mean(dim=(1, 2, 3))
    assert float((covered > 0).float().mean()) > 0.5  # some fall beside the tile
    assert float(covered.mean()) < 0.35


@pytest.mark.parametrize("name", FILLS)
def test_every_fill_changes_the_tile_and_stays_a_number(name: str, tiles: Tensor) -> None:
    torch.manual_seed(1)
    content = FILLS[name](tiles, tiles)
    assert content.shape == tiles.shape
    assert torch.isfinite(content).all()
    assert float((content - tiles).abs().mean()) > 0.005


def test_what_is_labelled_changed_visibly_and_the_rest_did_not(tiles: Tensor) -> None:
    torch.manual_seed(2)
    drawn = draw(tiles)
    assert drawn.image.shape == tiles.shape
    assert float(drawn.image.abs().max()) <= 1.0
    change = (drawn.image - tiles).abs().mean(dim=1, keepdim=True)
    assert set(drawn.defect.unique().tolist()) == {0.0, 1.0}
    assert not (drawn.defect * drawn.unsure).any()
    ground = (drawn.defect == 0) & (drawn.unsure == 0)
    assert float(change[ground].max()) <= 3 * VISIBLE
    assert float(change[ground].mean()) < 0.1 * VISIBLE
    assert float(change[drawn.defect == 1].mean()) > VISIBLE


def test_defects_are_as_crisp_as_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    board = torch.where(torch.rand(64, 1, 16, 16) < 0.5, -1.0, 1.0).repeat_interleave(8, 2).repeat_interleave(8, 3)
    coarse = F.interpolate(torch.randn(64, 1, 16, 16), size=(128, 128), mode="bicubic")
    texture = (0.3 * coarse + 0.05 * torch.randn(64, 1, 128, 128)).clamp(-1, 1)
    assert float(crispness(board).min()) == 1.0
    assert float(crispness(texture).max()) < 0.4
    sharp, soft = (edge_width(frame(torch.rand(4000, 2), 8, torch.full((4000, 1, 1, 1), c))) for c in (1.0, 0.0))
    assert float((sharp == 1 / 8).float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float((soft == 1 / 8).float().mean()) < 0.01
    swapped = FILLS["swapped"](board, board)
    torch.testing.assert_close(swapped, -board)
    monkeypatch.setattr(defects, "FILL_WEIGHTS", torch.eye(len(FILLS))[-1])
    torch.testing.assert_close(fill_in(board, board, torch.ones(64, 1, 1, 1)), -board)


def test_defects_sit_at_borders_and_on_features_too() -> None:
    torch.manual_seed(5)
    tiles = torch.zeros(2000, 1, 64, 64)
    tiles[:, :, 40:48, 16:24] = -0.8  # on a grid of 32 cells: rows 20 to 23, columns 8 to 11
    at = features(tiles)
    on_feature = ((at[:, 0] - 44 / 64).abs() < 0.15) & ((at[:, 1] - 20 / 64).abs() < 0.15)
    assert float(on_feature.float().mean()) > 0.95
    at_border = centres(tiles, border_share=1.0)
    off = torch.minimum(at_border, 1.0 - at_border).amin(dim=1)
    assert float(off.max()) <= 0.05 + 1e-6
    assert float(((at_border - 0.5).abs().argmax(dim=1)).float().mean()) == pytest.approx(0.5, abs=0.05)
    anywhere = centres(tiles, border_share=0.0)
    assert float(anywhere.min()) < 0.0
    assert float(anywhere.max()) > 1.0


def test_a_feature_that_goes_leaves_the_surface_and_marks_of_the_texture_stay() -> None:
    torch.manual_seed(7)
    surface = 0.3 + 0.01 * torch.randn(64, 1, 64, 64)
    holed = surface.clone()
    holed[:, :, 28:34, 40:46] = -0.7
    changed, shape = holed.clone(), torch.zeros_like(holed)
    _erase(changed, shape, torch.arange(64))
    whole = (changed - surface).abs().amax(dim=(1, 2, 3)) < 0.2
    assert float(whole.float().mean()) > 0.2
    defect, _ = label(holed, changed, shape)
    assert float(defect[whole][:, :, 29:33, 41:45].mean()) > 0.95
    untouched, nothing = surface.clone(), torch.zeros_like(surface)
    _erase(untouched, nothing, torch.arange(64))
    assert torch.equal(untouched, surface)
    assert not nothing.any()


def test_what_is_drawn_in_a_window_fades_out_towards_its_border() -> None:
    torch.manual_seed(6)
    tiles = torch.rand(256, 1, 64, 64) - 0.5
    opacity = draw_shapes(tiles, whole=False)
    inside, rim = opacity[:, :, 8:-8, 8:-8], torch.cat([opacity[:, :, 0], opacity[:, :, -1]])
    assert float(rim.max()) <= 0.5 / (0.08 * 64) + 1e-6
    assert float(inside.max()) == 1.0


def test_a_share_of_the_tiles_stays_clean(tiles: Tensor) -> None:
    many = tiles.repeat(20, 1, 1, 1)
    torch.manual_seed(4)
    drawn = draw(many, clean_share=0.5)
    untouched = (drawn.image == many).flatten(1).all(dim=1)
    assert 0.4 < float(untouched.float().mean()) < 0.7
    assert not drawn.defect[untouched].any()
    assert torch.equal(draw(many, clean_share=1.1).image, many)


def test_the_same_seed_draws_the_same_and_another_another(tiles: Tensor) -> None:
    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return draw(tiles).image

    assert torch.equal(once(5), once(5))
    assert not torch.equal(once(5), once(6))


def test_what_is_drawn_over_without_being_seen_is_unsure_and_no_defect() -> None:
    before = torch.zeros(1, 1, 64, 64)
    shape = torch.zeros(1, 1, 64, 64)
    shape[..., 20:40, 20:40] = 1.0
    defect, unsure = label(before, before + 0.2 * VISIBLE * shape, shape)
    assert not defect.any()
    assert unsure[..., 22:38, 22:38].all()
    defect, unsure = label(before, before + 2 * VISIBLE * shape, shape)
    assert defect[..., 22:38, 22:38].all()


def test_content_to_borrow_comes_from_the_pool(tiles: Tensor) -> None:
    torch.manual_seed(7)
    assert fill_in(tiles[:1], tiles).shape == tiles[:1].shape
