"""Signing keys: files that are ours alone, people who are trusted with a role, and trust that is taken back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.errors import KeyFileError
from contract.signing import (
    MAX_SIGNERS,
    distrust,
    load_signer,
    load_signing_pair,
    new_signing_pair,
    read_trusted,
    signed_by,
    trust,
)
from flawline import main


@pytest.fixture
def ada(tmp_path: Path) -> Path:
    """Ada's secret file; her public one lies beside it."""
    new_signing_pair(tmp_path / "keys", "ada")
    return tmp_path / "keys" / "ada.sign_secret"


def test_a_pair_signs_and_only_its_own_key_and_message_verify(ada: Path) -> None:
    pair, other = load_signing_pair(ada), new_signing_pair(ada.parent, "grace")
    assert load_signer(ada.with_suffix(".sign")) == pair.public
    signature = pair.sign(b"message")
    assert signed_by(pair.public, signature, b"message")
    assert not signed_by(pair.public, signature, b"massage")
    assert not signed_by(other.public, signature, b"message")
    assert not signed_by(pair.public, "00" * 64, b"message")
    assert not signed_by("ff" * 32, signature, b"message")
    assert pair.secret.hex() not in repr(pair)


def test_files_have_their_modes_and_are_not_overwritten(ada: Path) -> None:
    assert ada.stat().st_mode & 0o777 == 0o600
    assert ada.parent.stat().st_mode & 0o777 == 0o700
    before = ada.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        new_signing_pair(ada.parent, "ada")
    assert ada.read_bytes() == before
    assert b"secret" not in ada.with_suffix(".sign").read_bytes().replace(b"secret-key =", b"secret-key =")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666])
def test_a_secret_that_others_may_read_is_refused(ada: Path, mode: int) -> None:
    ada.chmod(mode)
    with pytest.raises(KeyFileError, match=r"expected 0600.*chmod 600"):
        load_signing_pair(ada)


def test_a_folder_that_others_may_write_to_is_refused(ada: Path) -> None:
    ada.parent.chmod(0o777)
    with pytest.raises(KeyFileError, match="chmod 700"):
        load_signing_pair(ada)


@pytest.mark.parametrize("name", ["", "../ada", "a b", ".hidden", "x" * 64, "ädä", "a/b"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="no name of a person"):
        new_signing_pair(tmp_path / "keys", name)


def test_secrets_that_are_missing_damaged_or_of_another_kind(ada: Path) -> None:
    with pytest.raises(KeyFileError, match=r"no such signing key.*sign-new bob"):
        load_signing_pair(ada.parent / "bob.sign_secret")
    with pytest.raises(KeyFileError, match=r"expected a secret signing key, NAME\.sign_secret"):
        load_signing_pair(ada.with_suffix(".sign"))
    text = ada.read_text()
    new_signing_pair(ada.parent, "eve")
    foreign = (ada.parent / "eve.sign").read_text().partition('public-key = "')[2][:64]
    own = text.partition('public-key = "')[2][:64]
    for damaged in ("", text.replace(own, foreign), text[:-40], text.replace("secret-key", "secret"), text + text):
        ada.write_text(damaged)
        with pytest.raises(KeyFileError, match=r"ada\.sign_secret"):
            load_signing_pair(ada)


@pytest.mark.parametrize("how", ["link", "fifo", "folder", "huge", "binary"])
@pytest.mark.parametrize("which", ["secret", "trusted"])
def test_files_that_are_no_plain_small_text(ada: Path, tmp_path: Path, how: str, which: str) -> None:
    trust(tmp_path / "signers", ada.with_suffix(".sign"), "release")
    path = ada if which == "secret" else tmp_path / "signers" / "release" / "ada.sign"
    held = path.read_bytes()
    path.unlink()
    if how == "link":
        (tmp_path / "elsewhere").write_bytes(held)
        (tmp_path / "elsewhere").chmod(0o600)
        path.symlink_to(tmp_path / "elsewhere")
    elif how == "fifo":
        os.mkfifo(path, 0o600)  # opening it to read would wait for ever
    elif how == "folder":
        path.mkdir()
    else:
        path.write_bytes(held + b"#" * 5000 if how == "huge" else b"\xff\xfe" + held)
        path.chmod(0o600)
    with pytest.raises(KeyFileError, match=path.name):
        load_signing_pair(path) if which == "secret" else read_trusted(tmp_path / "signers")


def test_trust_has_roles_and_ends(ada: Path, tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    public = load_signing_pair(ada).public
    with pytest.raises(KeyFileError, match="no folder of trusted signing keys"):
        read_trusted(signers)
    assert trust(signers, ada.with_suffix(".sign"), "validate") == "ada"
    assert read_trusted(signers).roles == {"validate": {public: "ada"}, "release": {}}
    trust(signers, ada.with_suffix(".sign"), "release")
    assert read_trusted(signers).roles == {"validate": {public: "ada"}, "release": {public: "ada"}}
    assert (signers / "release").stat().st_mode & 0o777 == 0o755, "an edge of another user reads it"
    assert (signers / "release" / "ada.sign").stat().st_mode & 0o777 == 0o644
    assert distrust(signers, "ada") == ["validate", "release"]
    assert read_trusted(signers).roles == {"validate": {}, "release": {}}
    with pytest.raises(KeyFileError, match=r"no key of 'ada' is trusted; trusted are: nobody"):
        distrust(signers, "ada")


def test_one_person_one_key(ada: Path, tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    trust(signers, ada.with_suffix(".sign"), "validate")
    new_signing_pair(tmp_path / "second", "ada")
    with pytest.raises(KeyFileError, match="another key of 'ada' is trusted"):
        trust(signers, tmp_path / "second" / "ada.sign", "release")
    twin = tmp_path / "bob.sign"
    twin.write_bytes(ada.with_suffix(".sign").read_bytes())
    with pytest.raises(KeyFileError, match="the key of 'ada' under another name"):
        trust(signers, twin, "release")
    (signers / "release").mkdir(mode=0o755, exist_ok=True)
    (signers / "release" / "bob.sign").write_bytes(twin.read_bytes())  # by hand, past the command
    with pytest.raises(KeyFileError, match="the same key"):
        read_trusted(signers)


def test_a_trusted_folder_that_others_may_fill_is_refused(ada: Path, tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    trust(signers, ada.with_suffix(".sign"), "validate")
    for folder in (signers, signers / "validate"):
        folder.chmod(0o775)
        with pytest.raises(KeyFileError, match="others could put keys there"):
            read_trusted(signers)
        folder.chmod(0o755)
    (signers / "validate" / "ada.sign").chmod(0o666)
    with pytest.raises(KeyFileError, match="others could change it"):
        read_trusted(signers)


def test_a_secret_in_the_trusted_folder_and_too_many_keys_are_refused(ada: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="must not travel"):
        ada.rename(tmp_path / "ada.sign")
        trust(tmp_path / "signers", tmp_path / "ada.sign", "validate")
    folder = tmp_path / "signers" / "validate"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(MAX_SIGNERS + 1):
        (folder / f"p{number}.sign").touch()
    with pytest.raises(KeyFileError, match=f"{MAX_SIGNERS + 1} keys, at most"):
        read_trusted(tmp_path / "signers")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "sign-new", "ada"]) == 0
    assert main(["keys", "sign-trust", "keys/ada.sign", "--may", "validate"]) == 0
    made = capsys.readouterr().out
    assert "ada may validate, fingerprint " in made
    mark = made.partition("fingerprint ")[2][:19]
    assert main(["keys", "sign-list"]) == 0
    listed = capsys.readouterr().out
    assert f"{mark}  may validate" in listed
    assert "nobody" in listed
    assert main(["keys", "sign-trust", "keys/ada.sign", "--may", "retire"]) == 2
    assert "there are: validate, release" in capsys.readouterr().err
    assert main(["keys", "sign-revoke", "ada"]) == 0
    assert main(["keys", "sign-list", "--dir", "nowhere"]) == 2
    assert "sign-trust" in capsys.readouterr().err
