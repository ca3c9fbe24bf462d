"""The host's configuration: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import ConfigError
from plugin.settings import EXAMPLE, load_settings


def load(tmp_path: Path, text: str) -> object:
    file = tmp_path / "host.toml"
    file.write_text(text)
    return load_settings(file)


def test_the_example_is_valid_and_its_paths_are_the_files(tmp_path: Path) -> None:
    settings = load_settings_of(tmp_path, EXAMPLE)
    assert settings.state_dir == tmp_path / "host-state"
    assert settings.line_of("any").id == "line-1"


def load_settings_of(tmp_path: Path, text: str):  # type: ignore[no-untyped-def]
    return load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('stat_dir = "x"', "did you mean `state_dir`"),
        ('[events]\nbind = "tcp://0.0.0.0:5701"', "neither encrypted nor authenticated"),
        ('[events]\nbind = "tcp://*:5701"', "neither encrypted nor authenticated"),
        ('[events]\nbind = "tcp://192.168.1.4:5701"', "bind to 127.0.0.1"),
        ('[control]\nbind = "tcp://0.0.0.0:5702"', "flawline keys new host"),
        ('[events]\nbind = "tcp://127.0.0.1:99999"', "tcp://ADDRESS:PORT"),
        ('[events]\nbind = "udp://127.0.0.1:1"', "tcp://ADDRESS:PORT"),
        ('[http]\nhost = "0.0.0.0"', "no sign-in yet"),
        ("[http]\nport = 70000", "http.port"),
        ('[[connectors]]\nurl = "loop"', "connectors.0.url"),
        ('[[connectors]]\nurl = "loop://"\nlines = ["nowhere"]', "names lines that do not exist"),
        ('[[lines]]\nid = "a"\n[[lines]]\nid = "a"', "two lines share an id"),
        ('[[lines]]\nid = "a"\nedges = ["e"]\n[[lines]]\nid = "b"\nedges = ["e"]', "belongs to two lines"),
        ("lines = []", "lines"),
        ("x = [", "not valid TOML"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[").replace(".", r"\.")):
        load(tmp_path, text)


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "tcp://localhost:5701", "tcp://[::1]:5701", "ipc:///tmp/x"])
def test_loopback_binds_are_taken(tmp_path: Path, bind: str) -> None:
    assert load_settings_of(tmp_path, f'[events]\nbind = "{bind}"').events.bind == bind


def test_with_keys_other_machines_may_connect(tmp_path: Path) -> None:
    text = 'keys = "keys"\n[events]\nbind = "tcp://0.0.0.0:5701"\n[control]\nbind = "tcp://10.0.0.5:5702"'
    settings = load_settings_of(tmp_path, text)
    assert settings.keys == tmp_path / "keys"
    assert settings.binds() == {"events": "tcp://0.0.0.0:5701", "control": "tcp://10.0.0.5:5702"}


def test_an_edge_belongs_to_the_line_that_names_it(tmp_path: Path) -> None:
    settings = load_settings_of(tmp_path, '[[lines]]\nid = "a"\n[[lines]]\nid = "b"\nedges = ["e2"]')
    assert (settings.line_of("e1").id, settings.line_of("e2").id) == ("a", "b")
