"""Configuration errors name the file, the key, what was found and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.config import load_toml
from contract.errors import ConfigError
from edge_runtime.settings import EdgeSettings, load_settings

GOOD = 'edge_id = "a"\nbundle = "b"\n[[cameras]]\nid = "top"\nurl = "usb://0"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "edge.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD))
    assert settings.bundle == tmp_path / "b"
    assert settings.state_dir == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + 'ulr = "x"\n', r"at `cameras.0.ulr`: unknown key; did you mean `url`\?"),
        ("egde_id = 'a'\n" + GOOD, r"at `egde_id`: unknown key; did you mean `edge_id`\?"),
        (GOOD + "[cameras.presence]\ntreshold = 3\n", r"`cameras.0.presence.treshold`.*did you mean `threshold`\?"),
        ('edge_id = "a"\nbundle = "b"\n', r"at `cameras`: required, but missing"),
        (GOOD.replace('"a"', '"a b"'), r"at `edge_id`.*found 'a b'"),
        (GOOD + "slots = 1\n", r"at `cameras.0.slots`.*found 1"),
        (GOOD + '[[cameras]]\nid = "top"\nurl = "usb://1"\n', "two cameras share an id"),
        (GOOD + 'fixture = "region"\n', "needs region"),
        ("edge_id = \n", "not valid TOML"),
        ("\0", "not valid TOML"),
    ],
)
def test_the_error_says_where_and_what_was_meant(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_toml(write(tmp_path, 'edge_id = "a"\nbundle = 3\nthreds = 2\n'), EdgeSettings)
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_toml(tmp_path / "none.toml", EdgeSettings)
    binary = tmp_path / "edge.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(binary, EdgeSettings)
