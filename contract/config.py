"""Reads TOML into strict models and says which key is wrong and which one was meant (start of every process)."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from contract.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20


class Strict(BaseModel):
    """Base of configuration and bundle models: unknown keys are refused, values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read ``path`` as ``model``; raise ConfigError naming the key and the nearest known name."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: {len(raw)} bytes, expected a TOML file of at most {MAX_CONFIG_BYTES}")
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, or a number of too many digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{path}: not valid TOML: {reason}") from error
    return validate(model, data, str(path))


def validate(model: type[Model], data: Any, source: str) -> Model:
    """Check ``data`` against ``model``; every problem stands in the ConfigError on a line of its own."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error, model, source))) from error


def describe(error: ValidationError, model: type[BaseModel], source: str) -> list[str]:
    """One line a problem: ``source: at `cameras.0.url`: what is wrong``."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(step) for step in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            text = f"unknown key{_nearest(str(problem['loc'][-1]), _fields_at(model, problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            text = "required, but missing"
        else:
            # Of a whole section the message itself says what was found; all its keys would bury that.
            found = "" if isinstance(problem["input"], dict) else f" (found {_shown(problem['input'])})"
            text = f"{problem['msg']}{found}"
        lines.append(f"{source}: at `{path}`: {text}")
    return lines


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no number of so many digits
        return "a number of thousands of digits"


def _nearest(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if match:
        return f"; did you mean `{match[0]}`?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def _fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Names of the fields allowed at ``path``, following lists, dicts and optional or union members."""
    candidates = [model]
    for step in path:
        if isinstance(step, int):
            continue
        candidates = [
            found
            for candidate in candidates
            if step in candidate.model_fields
            for found in _models_in(candidate.model_fields[step].annotation)
        ] or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
