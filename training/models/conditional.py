"""Layers that each product type has of its own, in networks whose other layers the types share (before hop 1).

Trained, the networks are turned to one type at a time. What is deployed is folded: the type's own layers stand where
the choice was, so that the graph is a model's of one type, and asks for nothing but the image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn


class OneEach(nn.Module):
    """A layer for each type, of which one is ``chosen``."""

    def __init__(self, layer: nn.Module, types: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(copy.deepcopy(layer) for _ in range(types))
        self.chosen = 0

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.each[self.chosen](features)
        return out


def condition(network: nn.Module, layers: tuple[type[nn.Module], ...], types: int) -> None:
    """Give each of ``types`` its own of every layer that is one of ``layers``, all of them as they are now."""
    for name, child in list(network.named_children()):
        if isinstance(child, layers):
            setattr(network, name, OneEach(child, types))
        else:
            condition(child, layers, types)


def choose(network: nn.Module, number: int) -> None:
    """Turn ``network`` to a type."""
    for module in network.modules():
        if isinstance(module, OneEach):
            module.chosen = number


def used(network: nn.Module) -> Iterator[nn.Module]:
    """The modules of ``network`` less those of the types that are not chosen."""
    yield network
    for child in network.children():
        yield from used(child.each[child.chosen] if isinstance(child, OneEach) else child)


def folded(network: nn.Module, number: int) -> nn.Module:
    """A copy that is of one type alone."""
    copied = copy.deepcopy(network)
    choose(copied, number)
    _fold(copied)
    return copied


def _fold(network: nn.Module) -> None:
    for name, child in list(network.named_children()):
        if isinstance(child, OneEach):
            setattr(network, name, child.each[child.chosen])
        else:
            _fold(child)
