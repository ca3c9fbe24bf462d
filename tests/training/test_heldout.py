"""The synthetic defects that select: every kind, reproducible, visible, and shared with training in nothing."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.bundles import draw_part
from training import heldout
from training.heldout import KINDS, LEAST_CHANGE, set_exam


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def tiles(request: pytest.FixtureRequest) -> Tensor:
    parts = np.stack([draw_part(number, side=128) for number in range(6)])[..., np.newaxis]
    return torch.from_numpy(np.repeat(parts, request.param, axis=3))


def test_every_kind_is_drawn_with_a_mask_where_it_can_be_seen(tiles: Tensor) -> None:
    exam = set_exam(tiles, 1, most=4 * len(KINDS))
    assert set(exam.kinds) == {"good", *KINDS}
    assert exam.tiles.dtype == torch.uint8
    assert exam.tiles.shape[1:] == tiles.shape[1:]
    assert len(exam.tiles) == len(exam.masks) == len(exam.kinds)
    assert torch.equal(exam.tiles[: len(tiles)], tiles)
    assert not exam.masks[: len(tiles)].any()
    for number in range(len(tiles), len(exam.tiles)):
        mask = exam.masks[number]
        assert 6 <= int(mask.sum()) < 0.5 * mask.numel()
        # The original is the tile whose ground outside the mask it shares.
        distance = (exam.tiles[number].float() - tiles.float()).abs().mean(dim=3)
        original = int(distance[:, ~mask].mean(dim=1).argmin())
        contrast = heldout.texture(tiles[original].numpy().astype(np.float32))
        assert float(distance[original][mask].mean()) >= LEAST_CHANGE * contrast


@pytest.mark.parametrize("period", [4, 6, 16])
def test_defects_are_drawn_on_crisp_patterns_too(period: int) -> None:
    stripes = np.where(np.arange(128) % period < period // 2, 255, 0).astype(np.uint8)
    exam = set_exam(torch.from_numpy(np.tile(stripes, (8, 128, 1))[..., np.newaxis]), 1, most=40)
    assert len(exam.kinds) - 8 >= 20


def test_a_kind_meets_all_places_of_cut_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = np.repeat(np.arange(32, dtype=np.uint8), 64 * 64).reshape(32, 64, 64, 1)  # 8 parts of 4 tiles
    met: dict[int, set[int]] = {kind: set() for kind in range(8)}

    def remember(kind: int) -> Callable[..., tuple[heldout.Picture, heldout.Region]]:
        def draw(tile: heldout.Picture, *_: object) -> tuple[heldout.Picture, heldout.Region]:
            met[kind].add(int(tile[0, 0, 0]) % 4)
            return tile + 100, np.ones(tile.shape[:2], np.bool_)

        return draw

    monkeypatch.setattr(heldout, "KINDS", {str(kind): remember(kind) for kind in range(8)})
    set_exam(torch.from_numpy(marked), 1, most=160)
    assert all(len(places) > 1 for places in met.values())
    assert set.union(*met.values()) == {0, 1, 2, 3}


def test_the_same_seed_sets_the_same_exam(tiles: Tensor) -> None:
    first, second = set_exam(tiles, 2, most=14), set_exam(tiles, 2, most=14)
    assert torch.equal(first.tiles, second.tiles)
    assert torch.equal(first.masks, second.masks)
    assert not torch.equal(first.tiles, set_exam(tiles, 3, most=14).tiles)


def test_it_shares_no_code_with_what_training_draws() -> None:
    tree = ast.parse(inspect.getsource(heldout))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(module and module.startswith("training") for module in modules)
