"""The table of models, each imported when it is asked for (before hop 1)."""

from __future__ import annotations

import importlib
from typing import cast

from contract.errors import ConfigError
from training.models.base import Trainable

MODELS = {"ganomaly": "training.models.ganomaly:Ganomaly"}


def model_class(name: str) -> type[Trainable]:
    """The class that the table gives for ``name``; raises ConfigError naming those that there are."""
    target = MODELS.get(name)
    if target is None:
        raise ConfigError(f"--model {name!r}: no such model; there are: {', '.join(sorted(MODELS))}")
    module, _, attribute = target.partition(":")
    return cast("type[Trainable]", getattr(importlib.import_module(module), attribute))
