"""Mixed precision: chosen by what the hardware multiplies, and kept out of weights, gradients and validation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from training import precision as precision_module
from training.fit import Loop, Tiles, new_model
from training.models.ganomaly import Ganomaly
from training.precision import choose_precision, pass_in_bf16
from training.settings import TrainSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("facts", "name", "reason"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f amx_tile amx_bf16 amx_int8\n", "bf16-mixed", "AMX"),
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", "32-true", "no AMX"),
        ("Features : asimd bf16\n", "32-true", "no AMX"),
        (None, "32-true", "no AMX"),
    ],
)
def test_auto_takes_bf16_where_the_processor_multiplies_it(
    facts: str | None, name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if facts is not None:
        (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr(precision_module, "CPU_FACTS", tmp_path / "cpuinfo")
    chosen = choose_precision("auto", CPU)
    assert chosen.name == name
    assert reason in chosen.reason


@pytest.mark.parametrize("asked", ["32-true", "bf16-mixed"])
def test_what_is_asked_for_is_not_second_guessed(asked: Any) -> None:
    assert choose_precision(asked, CPU) == (asked, "asked for")


def test_a_pass_in_bf16_gives_fp32_and_leaves_weights_and_gradients_in_fp32() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 1, 3))
    mixed = copy.deepcopy(plain)
    pass_in_bf16(mixed, CPU)
    tile = torch.rand(2, 1, 16, 16)
    inside: list[torch.dtype] = []
    mixed[0].register_forward_hook(lambda module, given, found: inside.append(found.dtype))
    exact, rounded = plain(tile), mixed(tile)
    assert inside == [torch.bfloat16]
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)
    rounded.sum().backward()
    assert {weights.dtype for weights in mixed.parameters()} == {torch.float32}
    assert {weights.grad.dtype for weights in mixed.parameters() if weights.grad is not None} == {torch.float32}


def test_a_copy_passes_through_its_own_weights() -> None:
    network = nn.Conv2d(1, 1, 1, bias=False)
    pass_in_bf16(network, CPU)
    copied = copy.deepcopy(network)
    nn.init.zeros_(copied.weight)
    assert not copied(torch.ones(1, 1, 4, 4)).any()


def _loop(out: Path, precision: str) -> Loop:
    settings = TrainSettings(
        data=out,
        out=out,
        model="ganomaly",
        steps=20,
        width=8,
        latent=8,
        batch=8,
        precision=precision,
        device="cpu",
        learning_rate=2e-3,
    )
    torch.manual_seed(1)
    tiles = torch.randint(90, 110, (16, 64, 64, 1), dtype=torch.uint8)
    return Loop(new_model(settings, 1), Tiles(tiles[:12], tiles[12:]), settings, "data")


def test_a_run_in_bf16_learns_what_a_run_in_fp32_learns_and_keeps_its_state_in_fp32(tmp_path: Path) -> None:
    losses: dict[str, list[dict[str, Tensor]]] = {}
    for precision in ("32-true", "bf16-mixed"):
        loop = _loop(tmp_path, precision)
        losses[precision] = [loop.train_once() for _ in range(20)]
        for optimizer in loop._optimizers.values():
            kept = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
            assert {value.dtype for value in kept} == {torch.float32}
        assert {value.dtype for value in loop._averaged.state_dict().values() if value.is_floating_point()} == {
            torch.float32
        }
    exact, rounded = (float(losses[precision][-1]["contextual"]) for precision in ("32-true", "bf16-mixed"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)
    assert rounded < 0.5 * float(losses["bf16-mixed"][0]["contextual"])


def test_validation_is_never_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = _loop(tmp_path, "bf16-mixed")
    for _ in range(3):
        loop.train_once()
    dtypes: set[torch.dtype] = set()
    for module in loop._averaged.modules():
        module.register_forward_hook(
            lambda module, given, found: dtypes.update(value.dtype for value in tree_leaves(found))
        )
    selection = Ganomaly.selection_loss

    def watched(self: Ganomaly, judge: nn.Module, tiles: Tensor) -> float:
        assert not torch.is_autocast_enabled("cpu")
        return selection(self, judge, tiles)

    monkeypatch.setattr(Ganomaly, "selection_loss", watched)
    loop.validate()
    assert dtypes == {torch.float32}
