"""Configuration and manifests, senseless, damaged and huge: read, or refused in a sentence, nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from contract.bundle import Manifest, open_bundle
from contract.config import load_toml, validate
from contract.errors import BundleError, ConfigError
from edge_runtime.settings import EdgeSettings, load_settings
from plugin.settings import HostSettings
from tests.bundles import draw_part
from tests.graphs import write_bundle
from tests.hostile.fuzz import EXAMPLES, QUICK, bent, bounded, damaged, trees

EDGE = """edge_id = "line-1"
bundle = "bundle"
state_dir = "state"
engine = "auto"
[host]
endpoint = "tcp://127.0.0.1:5701"
window = 64
[spool]
max_mb = 100.0
[metrics]
listen = "127.0.0.1:9108"
[log]
format = "json"
[[cameras]]
id = "top"
url = "usb://0"
region = [1, 2, 3, 4]
fixture = "region"
[cameras.presence]
threshold = 128
[[recipes]]
number = 2
bundle = "other"
"""
HOST = """state_dir = "host"
[events]
bind = "tcp://127.0.0.1:5701"
[http]
port = 8765
[[connectors]]
url = "loop://out.jsonl"
"""


def names_in(model: type[BaseModel], seen: set[type] | None = None) -> set[str]:
    """Every key that a configuration knows, at whatever depth."""
    seen = seen if seen is not None else set()
    if model in seen:
        return set()
    seen.add(model)
    found = set(model.model_fields)
    for field in model.model_fields.values():
        stack: list[Any] = [field.annotation]
        while stack:
            each = stack.pop()
            if isinstance(each, type) and issubclass(each, BaseModel):
                found |= names_in(each, seen)
            stack += get_args(each)
    return found


SIDES = {"edge": (EdgeSettings, EDGE), "host": (HostSettings, HOST)}


def tree_of(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


def checked(model: type[BaseModel], tree: Any) -> None:
    try:
        validate(model, tree, "a.toml")
    except ConfigError as error:
        assert "a.toml: at `" in str(error)


@pytest.mark.parametrize("side", SIDES)
@bounded(QUICK)
@given(drawn=st.data())
def test_settings_with_senseless_values(side: str, drawn: st.DataObject) -> None:
    model, text = SIDES[side]
    names = sorted(names_in(model))
    checked(model, drawn.draw(bent(tree_of(text), names)))
    checked(model, drawn.draw(trees(names)))


@pytest.mark.parametrize("side", SIDES)
@bounded(QUICK)
@given(drawn=st.data())
def test_files_with_damaged_bytes(side: str, drawn: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, text = SIDES[side]
    path = tmp_path_factory.getbasetemp() / f"damaged-{side}.toml"
    path.write_bytes(drawn.draw(damaged(text.encode())))
    try:
        load_settings(path) if side == "edge" else load_toml(path, model)
    except ConfigError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 50_000,
        "a = " + "{b=" * 50_000,
        "a." * 2_000 + "b = 1",
        "edge_id = 1" + "0" * 5_000,
        "edge_id = 0x" + "f" * 5_000,
        "deadline_ms = 0x" + "f" * 5_000,
        "heartbeat_ms = 1e999999",
        "edge_id = 2026-02-31",
        "edge_id = 99999-01-01",
        "edge_id = '''" + "a" * 900_000 + "'''",
        '"\\ud800" = 1',
        "[" + "a." * 2_000 + "a]",
    ],
    ids=lambda text: text[:16],
)
def test_toml_without_an_end_and_numbers_without_a_limit(text: str, tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"edge\.toml") as refused:
        load_settings(path)
    assert len(str(refused.value)) < 20_000, "a sentence, not the file"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzzed") / "bundle"
    write_bundle(made, [draw_part(number) for number in range(3)])
    return made


def opened_or_refused(folder: Path, data: bytes) -> None:
    (folder / "bundle.json").write_bytes(data)
    try:
        open_bundle(folder)
    except BundleError as error:
        assert str(folder) in str(error)


@bounded(QUICK)
@given(drawn=st.data())
def test_manifests_with_senseless_values(folder: Path, drawn: st.DataObject) -> None:
    whole = json.loads(_whole(folder))
    names = sorted(names_in(Manifest))
    tree = drawn.draw(bent(whole, names))
    if isinstance(tree, dict):
        from contract.bundle import digest_of

        try:  # as somebody would who may write the file: the digest fits
            tree["digest"] = digest_of({name: value for name, value in tree.items() if name != "digest"})
        except ValueError:
            tree["digest"] = "0" * 64
    opened_or_refused(folder, _json(tree))


@bounded(QUICK)
@given(drawn=st.data())
def test_manifests_with_damaged_bytes(folder: Path, drawn: st.DataObject) -> None:
    opened_or_refused(folder, drawn.draw(damaged(_whole(folder))))


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"format":' * 50_000, b'{"format": 1' + b"0" * 5_000 + b"}"])
def test_manifests_without_an_end(folder: Path, data: bytes) -> None:
    _whole(folder)
    opened_or_refused(folder, data)


def _whole(folder: Path) -> bytes:
    """The manifest as it was written, kept beside the bundle."""
    kept = folder.parent / "whole.json"
    if not kept.exists():
        kept.write_bytes((folder / "bundle.json").read_bytes())
    return kept.read_bytes()


def _json(tree: Any) -> bytes:
    try:
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    except ValueError:
        return b'{"format": 1' + b"0" * 5000 + b"}"


@pytest.mark.long
@pytest.mark.timeout(3700)
@pytest.mark.parametrize("module", ["test_fuzz_messages.py", "test_fuzz_configuration.py"])
def test_a_long_campaign(module: str) -> None:
    """The same tests with many more examples, in a process of its own."""
    path, root = Path(__file__).with_name(module), Path(__file__).parents[2]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "--timeout", "3600", str(path)]
    environment = os.environ | {EXAMPLES: "1000"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout[-5000:]
