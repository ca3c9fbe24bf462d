"""Which arithmetic a run learns in: BF16 where the hardware multiplies it, FP32 elsewhere (before hop 1).

Only the networks' forward and backward passes while training are ever in BF16: weights, gradients, optimizer states,
losses, the averaged weights, validation and the exported graph are FP32.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.plugins import MixedPrecision
from torch import nn

CPU_FACTS = Path("/proc/cpuinfo")


class Precision(NamedTuple):
    """The arithmetic of a run, and in words why."""

    name: Literal["32-true", "bf16-mixed"]
    reason: str


def choose_precision(asked: Literal["auto", "32-true", "bf16-mixed"], device: torch.device) -> Precision:
    """What ``asked`` means on ``device``: ``auto`` is BF16 on graphics cards and CPUs that multiply it in hardware."""
    if asked != "auto":
        return Precision(asked, "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16-mixed", "the graphics card multiplies BF16")
        return Precision("32-true", "the graphics card does not multiply BF16")
    # Without AMX a CPU emulates BF16 or gains little from it.
    if "amx_bf16" in _cpu_flags():
        return Precision("bf16-mixed", "the processor multiplies BF16 (AMX)")
    return Precision("32-true", "the processor has no AMX to multiply BF16")


def _cpu_flags() -> set[str]:
    """Features of the first processor; empty where the system does not tell."""
    try:
        lines = CPU_FACTS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def pass_in_bf16(network: nn.Module, device: torch.device) -> None:
    """Let every call of ``network`` compute in BF16 and give FP32; its weights, and so their gradients, stay FP32.

    The network as a whole: a part of it that is called by itself still computes in FP32, as does everything between
    networks. A loss such as SSIM, a difference of nearly equal means, would be rounding noise in BF16.
    """
    mixed = MixedPrecision("bf16-mixed", device.type)

    def forward(self: nn.Module, *inputs: Any) -> Any:
        with mixed.forward_context():
            return mixed.convert_output(type(self).forward(self, *inputs))

    # Bound, so that a copy of the network passes through its own weights.
    network.forward = MethodType(forward, network)
