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
        ('[http]\nhost = "0.0.0.0"', "passwords would travel in clear"),
        ('[http]\nhost = "192.168.1.4"\nsign_in = true', 'tls = "none-passwords-in-clear"'),
        ('[http]\ncertificate = "a.pem"', "belong together"),
        ('[http]\ntls = "off"', "http.tls"),
        ('[http]\nnames = ["https://host"]', "http.names.0"),
        ('[http]\nnames = ["*"]', "http.names.0"),
        ('[http]\nproxies = ["proxy.plant.local"]', "http.proxies.0"),
        ("[http]\nidle_minutes = 0", "http.idle_minutes"),
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


@pytest.mark.parametrize(
    ("http", "asked", "secure"),
    [
        ("", False, False),
        ("sign_in = true", True, False),
        ('names = ["host.plant.local"]', True, False),
        ('tls = "proxy"', True, True),
        ('host = "0.0.0.0"\ntls = "proxy"', True, True),
        ('host = "192.168.1.4"\ncertificate = "c.pem"\nkey = "k.pem"', True, True),
        ('host = "192.168.1.4"\ntls = "none-passwords-in-clear"', True, False),
        ('certificate = "c.pem"\nkey = "k.pem"', False, True),
    ],
)
def test_whoever_could_come_from_elsewhere_signs_in(tmp_path: Path, http: str, asked: bool, secure: bool) -> None:
    settings = load_settings_of(tmp_path, f"[http]\n{http}").http
    assert (settings.needs_sign_in, settings.secure) == (asked, secure)
    assert settings.certificate in (None, tmp_path / "c.pem")


def test_every_setting_of_the_example_that_is_commented_out_is_valid(tmp_path: Path) -> None:
    text = EXAMPLE.replace("# sign_in", "sign_in").replace("# names", "names").replace("# idle", "idle")
    text = text.replace("# certificate", "certificate").replace("# key", "key").replace("# session", "session")
    settings = load_settings_of(tmp_path, text.replace("# tls", "tls"))
    assert (settings.http.names, settings.http.session_hours) == (["host.plant.local"], 12)
