"""The networks of a trained inspector in FP16, everything before and after them in FP32 (before hop 1)."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from training.graph import Inspector


class Half(nn.Module):
    """A network that computes in FP16, takes FP32 and gives FP32: a tensor, or a named tuple of tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, *inputs: Tensor) -> Any:
        return _single(self.network(*(value.half() for value in inputs)))


def _single(output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) else type(output)(*(_single(value) for value in output))


def halve(inspector: Inspector) -> Inspector:
    """A copy with each network of the judge in FP16; residual, smoothing, division and pooling stay FP32.

    What the judge itself does with the networks' outputs is FP32 as well: a difference of two nearly equal pictures
    would be mostly rounding in FP16.
    """
    copied = copy.deepcopy(inspector)
    for name, network in list(copied.judge.named_children()):
        setattr(copied.judge, name, Half(network))
    return copied.eval()
