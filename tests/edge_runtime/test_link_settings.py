"""The edge's way to the host in its configuration: no other machine without keys, and the key's name is the edge's."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import ConfigError
from edge_runtime.cli import EXAMPLE
from edge_runtime.settings import EdgeSettings, load_settings

HEAD = 'edge_id = "edge-1"\nbundle = "bundle"\n'
TAIL = '\n[[cameras]]\nid = "top"\nurl = "synthetic://line"\n'
KEYS = 'key = "keys/edge-1.key_secret"\nserver_key = "keys/host.key"\n'


def load(folder: Path, text: str) -> EdgeSettings:
    file = folder / "edge.toml"
    file.write_text(text)
    return load_settings(file)


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ('endpoint = "tcp://10.0.0.5:5701"', "flawline keys new EDGE_ID"),
        ('control = "tcp://host.plant:5702"', "flawline keys new EDGE_ID"),
        ('key = "keys/edge-1.key_secret"', "belong together"),
        (KEYS.replace("edge-1", "edge-2"), "edge-1.key_secret"),
        (KEYS.replace(".key_secret", ".key"), "edge-1.key_secret"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, link: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, f"{HEAD}[host]\n{link}{TAIL}")


def test_paths_are_the_file_s_and_a_link_in_a_key_s_place_stays_visible(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "edge-1.key_secret").symlink_to(tmp_path / "elsewhere")
    link = f'{KEYS}endpoint = "tcp://10.0.0.5:5701"\ncontrol = "tcp://10.0.0.5:5702"'
    host = load(tmp_path, f"{HEAD}[host]\n{link}{TAIL}").host
    assert host.key == tmp_path / "keys" / "edge-1.key_secret"
    assert host.server_key == tmp_path / "keys" / "host.key"


def test_recipes_have_numbers_of_their_own(tmp_path: Path) -> None:
    recipes = '\n[[recipes]]\nnumber = 2\nbundle = "other"\n'
    settings = load(tmp_path, f"{HEAD}{TAIL}{recipes}")
    assert settings.bundle_folders() == {1: tmp_path / "bundle", 2: tmp_path / "other"}
    with pytest.raises(ConfigError, match="share a number"):
        load(tmp_path, f"{HEAD}{TAIL}{recipes}{recipes}")
    with pytest.raises(ConfigError, match="greater than or equal to 2"):
        load(tmp_path, f"{HEAD}{TAIL}{recipes.replace('2', '1')}")


def test_the_example_is_valid(tmp_path: Path) -> None:
    assert load(tmp_path, EXAMPLE).host.control == "tcp://127.0.0.1:5702"
