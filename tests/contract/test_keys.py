"""Key files: secret from the first byte, in ZeroMQ's own format, and refused with the way out where not ours alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq.auth

from contract import keys
from contract.errors import KeyFileError
from contract.keys import authorise, leaves_machine, load_pair, load_public, new_pair, read_authorised, revoke
from flawline import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_a_pair_is_zeromq_s_own_format_and_secret_from_the_first_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_chmod(*_: object, **__: object) -> None:
        raise AssertionError("a mode that is mended afterwards was wrong before")

    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, no_chmod)
    before = os.umask(0)
    try:
        pair = new_pair(folder, "edge-1")
    finally:
        os.umask(before)
    secret_file = folder / "edge-1.key_secret"
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert zmq.auth.load_certificate(secret_file) == (pair.public.encode(), pair.secret)
    assert zmq.auth.load_certificate(folder / "edge-1.key") == (pair.public.encode(), None)
    assert load_pair(secret_file) == pair
    assert load_public(folder / "edge-1.key") == pair.public


def test_no_secret_is_shown_by_any_command_error_or_repr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--dir", str(folder)]
    assert main(["keys", "new", "host", *words]) == 0
    pair = load_pair(folder / "host.key_secret")
    assert main(["keys", "new", "host", *words]) == 2
    assert main(["keys", "show", "host", *words]) == 0
    assert main(["keys", "list", *words]) == 0
    (folder / "host.key_secret").chmod(0o640)
    assert main(["keys", "list", *words]) == 2
    shown = "".join(capfd.readouterr()) + repr(pair)
    assert pair.public in shown
    assert pair.secret.decode() not in shown


def loosen(path: Path) -> None:
    path.chmod(0o640)


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def swap_secret(path: Path) -> None:
    _, other = zmq.curve_keypair()
    path.write_text(path.read_text().rpartition("=")[0] + f'= "{other.decode()}"\n')


def open_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to somebody else")
    os.chown(path, 12345, -1)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "readable by the group": (loosen, "chmod 600"),
    "a symbolic link": (link_elsewhere, "symbolic link"),
    "somebody else's": (give_away, "chown"),
    "another's secret": (swap_secret, "flawline keys new edge-1"),
    "half": (lambda path: path.write_text(path.read_text()[:150]), "flawline keys new edge-1"),
    "empty": (lambda path: path.write_bytes(b""), "flawline keys new edge-1"),
    "binary": (lambda path: path.write_bytes(b"\xff\x00" * 40), "not a key file"),
    "huge": (lambda path: path.write_bytes(b"#" * 10_000), "at most 4096"),
    "a pipe that nobody writes": (fifo, "expected a key file"),
    "missing": (lambda path: path.unlink(), "flawline keys new edge-1"),
    "two secrets": (lambda path: path.write_text(path.read_text() * 2), "stands twice"),
    "in a folder open to all": (open_folder, "chmod 700"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_secret_that_is_not_ours_alone_is_refused_with_the_way_out(folder: Path, damage: str) -> None:
    new_pair(folder, "edge-1")
    file = folder / "edge-1.key_secret"
    DAMAGE[damage][0](file)
    with pytest.raises(KeyFileError) as refused:
        load_pair(file)
    assert DAMAGE[damage][1] in str(refused.value)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("name", ["", "../edge", "a/b", ".hidden", "edge 1", "e" * 64, "edge\n"])
def test_a_name_that_is_no_edge_id_makes_no_file(folder: Path, name: str) -> None:
    with pytest.raises(KeyFileError):
        new_pair(folder, name)
    assert not folder.exists()


def test_an_edge_is_authorised_by_its_public_file_and_revoked_for_good(folder: Path, tmp_path: Path) -> None:
    new_pair(folder, "host")
    pair = new_pair(tmp_path / "edge", "edge-1")
    carried = tmp_path / "edge" / "edge-1.key"
    carried.chmod(0o777)  # as a memory stick has it
    assert authorise(folder, carried) == authorise(folder, carried) == "edge-1"
    assert read_authorised(folder) == ({pair.public: "edge-1"}, [])
    assert revoke(folder, "edge-1") == pair.public
    assert read_authorised(folder) == ({}, [])
    with pytest.raises(KeyFileError, match="was revoked"):
        authorise(folder, carried)
    with pytest.raises(KeyFileError, match="authorised are: nobody"):
        revoke(folder, "edge-1")


def test_what_must_not_be_authorised_is_refused(folder: Path, tmp_path: Path) -> None:
    new_pair(folder, "host")
    new_pair(tmp_path / "a", "edge-1")
    new_pair(tmp_path / "b", "edge-1")
    authorise(folder, tmp_path / "a" / "edge-1.key")
    with pytest.raises(KeyFileError, match="flawline keys revoke edge-1"):
        authorise(folder, tmp_path / "b" / "edge-1.key")
    (tmp_path / "a" / "edge-2.key").write_bytes((tmp_path / "a" / "edge-1.key").read_bytes())
    with pytest.raises(KeyFileError, match="under another name"):
        authorise(folder, tmp_path / "a" / "edge-2.key")
    (tmp_path / "edge-3.key").write_bytes((tmp_path / "b" / "edge-1.key_secret").read_bytes())
    with pytest.raises(KeyFileError, match="holds a secret key"):
        authorise(folder, tmp_path / "edge-3.key")
    with pytest.raises(KeyFileError, match="under another name"):
        authorise(folder, folder / "host.key")
    assert list(read_authorised(folder).names.values()) == ["edge-1"]


def test_a_file_that_is_not_trusted_authorises_nobody_and_keeps_no_other_out(folder: Path, tmp_path: Path) -> None:
    good = new_pair(tmp_path / "good", "good")
    authorise(folder, tmp_path / "good" / "good.key")
    edges = folder / keys.EDGES
    new_pair(tmp_path / "twin", "twin-1")
    for name in ("twin-1", "twin-2"):
        (edges / f"{name}.key").write_bytes((tmp_path / "twin" / "twin-1.key").read_bytes())
    (edges / "damaged.key").write_text("public-key = 'short'")
    (edges / "linked.key").symlink_to(tmp_path / "good" / "good.key")
    new_pair(tmp_path / "open", "open")
    (edges / "open.key").write_bytes((tmp_path / "open" / "open.key").read_bytes())
    (edges / "open.key").chmod(0o666)
    found = read_authorised(folder)
    assert found.names == {good.public: "good"}
    assert len(found.problems) == 4
    edges.chmod(0o777)
    with pytest.raises(KeyFileError, match="chmod 700"):
        read_authorised(folder)


@pytest.mark.parametrize(
    ("endpoint", "leaves"),
    [
        ("tcp://127.0.0.1:5701", False),
        ("tcp://localhost:*", False),
        ("tcp://[::1]:5701", False),
        ("ipc:///run/flawline", False),
        ("tcp://0.0.0.0:5701", True),
        ("tcp://*:5701", True),
        ("tcp://[::]:5701", True),
        ("tcp://10.0.0.7:5701", True),
        ("tcp://host.plant:5701", True),
    ],
)
def test_what_another_machine_can_reach(endpoint: str, leaves: bool) -> None:
    assert leaves_machine(endpoint) is leaves


def test_a_revoked_key_that_is_put_back_speaks_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    new_pair(folder, "host")
    new_pair(tmp_path / "edge", "edge-1")
    authorise(folder, tmp_path / "edge" / "edge-1.key")
    backup = (folder / "edges" / "edge-1.key").read_text()
    revoke(folder, "edge-1")
    back = folder / "edges" / "edge-9.key"
    back.write_text(backup)
    back.chmod(0o644)
    found = read_authorised(folder)
    assert found.names == {}
    assert "was revoked" in " ".join(found.problems)


def test_revoking_in_a_folder_that_others_can_write_fails_aloud(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    new_pair(folder, "host")
    new_pair(tmp_path / "edge", "edge-1")
    authorise(folder, tmp_path / "edge" / "edge-1.key")
    (folder / "edges").chmod(0o775)
    with pytest.raises(KeyFileError, match="chmod 700"):
        revoke(folder, "edge-1")
