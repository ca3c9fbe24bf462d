"""Accounts, sessions and the audit in their file; the command that keeps them."""

from __future__ import annotations

import os
import pty
import sqlite3
import stat
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type
from click.testing import Result
from typer.testing import CliRunner

from plugin import user_cli
from plugin.accounts import COMMON, DATABASE, MAX_SESSIONS, SHORTEST, Accounts, Lifetimes, Proven, default_hasher
from plugin.errors import AccountError, ConfigError
from plugin.throttle import LONGEST_S, Key, Throttle
from tests.plugin.people import PASSWORD, TEST, Clock, accounts_in, cheap
from tests.plugin.synthetic import ROOT

LIFETIMES = Lifetimes({"inspector": 1800.0, "engineer": 600.0, "administrator": 600.0}, 43200.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock) -> Iterator[Accounts]:
    accounts = accounts_in(tmp_path, clock)
    yield accounts
    accounts.close()


def proven(accounts: Accounts, name: str) -> Proven:
    found = accounts.check(name, PASSWORD)
    assert found is not None
    return found


def test_the_default_is_argon2id_of_todays_strength_in_one_lane() -> None:
    parameters = extract_parameters(default_hasher().hash("x"))
    assert (parameters.type, parameters.memory_cost, parameters.time_cost) == (Type.ID, 65536, 3)
    assert parameters.parallelism == 1


def test_the_file_is_its_owners_alone_and_holds_no_secret(accounts: Accounts) -> None:
    token = accounts.open_session(proven(accounts, "ada"), "10.0.0.1")
    files = list(accounts.path.parent.glob(f"{DATABASE}*"))
    assert len(files) == 3
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert PASSWORD.encode() not in file.read_bytes()
        assert token.encode() not in file.read_bytes()


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    accounts_in(tmp_path).close()
    (tmp_path / DATABASE).chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 640.*chmod 600"):
        accounts_in(tmp_path)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_damaged_or_newer_file_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / DATABASE
    file.write_bytes(content)
    file.chmod(0o600)
    if not content:
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA user_version=99")
        connection.close()
    with pytest.raises(ConfigError, match=r"99|cannot be opened"):
        Accounts(file, cheap())


@pytest.mark.parametrize(
    "name",
    ["", " ada", "a b", "ädä", "ａｄａ", "ada\n", "ada\0", "-ada", "a/b", "x" * 61, "<b>", "a'--", "🦊", "\ud800"],
)
def test_names_are_identifiers(accounts: Accounts, name: str) -> None:
    with pytest.raises(AccountError, match="no name for an account"):
        accounts.add(name, PASSWORD, "inspector", TEST)
    assert accounts.check(name, PASSWORD) is None


def test_a_name_is_one_whatever_its_case(accounts: Accounts) -> None:
    with pytest.raises(AccountError, match="already"):
        accounts.add("ADA", PASSWORD, "inspector", TEST)
    assert proven(accounts, "ADA").name == "ada"


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("", "10 to 256"),
        ("nine char", "10 to 256"),
        ("x" * 257, "10 to 256"),
        ("x" * 10_000_000, "10 to 256"),
        ("surrogate \ud800 in it", "10 to 256"),
        ("Maximilian", "first that anybody tries"),
        ("Password123", "first that anybody tries"),
        ("aaaaaaaaaaaa", "first that anybody tries"),
        ("１２３４５６７８９０", "first that anybody tries"),
    ],
)
def test_easy_and_absurd_passwords_are_refused(accounts: Accounts, password: str, words: str) -> None:
    with pytest.raises(AccountError, match=words):
        accounts.add("maximilian", password, "inspector", TEST)
    assert accounts.epoch("maximilian") == -1


def test_the_commonest_are_as_people_would_type_them() -> None:
    assert all(len(word) >= SHORTEST and word == word.casefold() for word in COMMON)


def test_a_password_is_the_same_on_every_keyboard(accounts: Accounts) -> None:
    text = "Größe über Maß"
    accounts.set_password("ada", unicodedata.normalize("NFD", text), TEST)
    assert accounts.check("ada", unicodedata.normalize("NFC", text)) is not None
    assert accounts.check("ada", text.replace("ö", "o")) is None


@pytest.mark.parametrize("password", ["", "x", "x" * 257, "x" * 10_000_000, "\ud800", "\0" * 20])
def test_absurd_attempts_are_only_wrong(accounts: Accounts, password: str) -> None:
    assert accounts.check("ada", password) is None


class Counting(PasswordHasher):
    """Counts comparisons and what they would cost."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=64, parallelism=1)
        self.compared: list[str] = []

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]
        self.compared.append(str(hash).rpartition("$")[0].rpartition("$")[0])
        return super().verify(hash, password)  # type: ignore[return-value]


def test_nobody_and_disabled_cost_what_a_wrong_password_costs(tmp_path: Path) -> None:
    hasher = Counting()
    accounts = accounts_in(tmp_path, hasher=hasher)
    accounts.set_enabled("ivan", False, TEST)
    for name, password in [("ada", "wrong password"), ("nobody", PASSWORD), ("ivan", PASSWORD), ("ada", "x" * 9999)]:
        assert accounts.check(name, password) is None
    assert len(hasher.compared) == 4
    assert set(hasher.compared) == {"$argon2id$v=19$m=64,t=1,p=1"}
    accounts.close()


def test_hashes_grow_with_the_parameters_at_the_next_sign_in(tmp_path: Path) -> None:
    accounts_in(tmp_path).close()
    stronger = Accounts(tmp_path / DATABASE, PasswordHasher(time_cost=2, memory_cost=128, parallelism=1))
    token = stronger.open_session(proven(stronger, "ada"), "here")
    assert proven(stronger, "ada").epoch == 0
    assert stronger.session(token, LIFETIMES) is not None
    stronger.close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        hashes = dict(connection.execute("SELECT name, hash FROM accounts").fetchall())
    connection.close()
    assert "m=128,t=2" in hashes["ada"]
    assert "m=64,t=1" in hashes["eve"]


def test_the_last_administrator_stays(accounts: Accounts) -> None:
    for change in (
        lambda: accounts.set_enabled("ada", False, TEST),
        lambda: accounts.set_role("ada", "engineer", TEST),
    ):
        with pytest.raises(AccountError, match="last administrator"):
            change()
    accounts.set_role("eve", "administrator", TEST)
    accounts.set_enabled("ada", False, TEST)
    with pytest.raises(AccountError, match="last administrator"):
        accounts.set_role("eve", "inspector", TEST)
    assert accounts.has_administrator()


def test_roles_and_names_that_are_not_there(accounts: Accounts) -> None:
    with pytest.raises(AccountError, match="no role 'root'"):
        accounts.set_role("eve", "root", TEST)  # type: ignore[arg-type]
    with pytest.raises(AccountError, match="no account 'nobody'"):
        accounts.set_password("nobody", PASSWORD, TEST)


def test_a_session_ends_idle_and_in_any_case(accounts: Accounts, clock: Clock) -> None:
    token = accounts.open_session(proven(accounts, "ivan"), "here")
    start = clock.now
    for _ in range(40):
        clock.now += 1000
        alive = accounts.session(token, LIFETIMES)
        assert (alive is not None) == (clock.now - start < 43200)
    token = accounts.open_session(proven(accounts, "ivan"), "here")
    clock.now += 1799
    assert accounts.session(token, LIFETIMES, touch=False) is not None
    clock.now += 2
    assert accounts.session(token, LIFETIMES) is None
    eve = accounts.open_session(proven(accounts, "eve"), "here")
    clock.now += 601
    assert accounts.session(eve, LIFETIMES) is None, "each role has its own patience"


def test_a_clock_set_back_lengthens_no_session(accounts: Accounts, clock: Clock) -> None:
    token = accounts.open_session(proven(accounts, "ivan"), "here")
    clock.now -= 30
    assert accounts.session(token, LIFETIMES) is not None
    clock.now -= 3600
    assert accounts.session(token, LIFETIMES) is None


@pytest.mark.parametrize("change", ["password", "role", "disable", "disable and enable"])
def test_a_change_ends_every_session(accounts: Accounts, change: str) -> None:
    before = proven(accounts, "ivan")
    tokens = [accounts.open_session(before, "here") for _ in range(2)]
    other = accounts.open_session(proven(accounts, "eve"), "here")
    if change == "password":
        accounts.set_password("ivan", "another good one", TEST)
    elif change == "role":
        accounts.set_role("ivan", "engineer", TEST)
    else:
        accounts.set_enabled("ivan", False, TEST)
        if "enable" in change.split():
            accounts.set_enabled("ivan", True, TEST)
    # Also one that is opened just now for a password that was checked before the change.
    tokens.append(accounts.open_session(before, "here"))
    assert [accounts.session(token, LIFETIMES) for token in tokens] == [None] * 3
    assert accounts.session(other, LIFETIMES) is not None


def test_sessions_of_an_account_are_bounded(accounts: Accounts) -> None:
    tokens = [accounts.open_session(proven(accounts, "ivan"), "here") for _ in range(MAX_SESSIONS + 3)]
    alive = [accounts.session(token, LIFETIMES) is not None for token in tokens]
    assert alive == [False] * 3 + [True] * MAX_SESSIONS
    assert len(set(tokens)) == len(tokens)


def test_the_audit_says_who_when_from_where_and_cannot_be_changed(accounts: Accounts, clock: Clock) -> None:
    token = accounts.open_session(proven(accounts, "ada"), "10.0.0.7")
    accounts.set_role("ivan", "engineer", TEST)
    accounts.close_session(token, "10.0.0.7")
    accounts.close_session("no session", "10.0.0.7")
    rows = [(row["actor"], row["address"], row["action"], row["account"], row["detail"]) for row in accounts.audit(3)]
    assert rows == [
        ("ada", "10.0.0.7", "signed out", "ada", ""),
        ("test", "here", "role changed", "ivan", "inspector to engineer"),
        ("ada", "10.0.0.7", "signed in", "ada", "administrator"),
    ]
    assert accounts.audit(1)[0]["t_s"] == clock.now
    with sqlite3.connect(accounts.path) as connection:
        for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    connection.close()


def test_delays_double_up_to_a_limit_and_are_forgotten(clock: Clock) -> None:
    throttle, key = Throttle(clock), Key("ada", 3)
    assert [throttle.admit(key) for _ in range(4)] == [0, 0, 0, 0]
    waits = []
    for _ in range(12):
        waits.append(throttle.admit(key))
        clock.now += waits[-1]
        assert throttle.admit(key) == 0
    assert waits[:4] == pytest.approx([2, 4, 8, 16], abs=0.01)
    assert waits[-1] == pytest.approx(LONGEST_S, abs=0.01)
    assert throttle.admit(Key("bert", 3)) == 0
    clock.now += 86400
    assert [throttle.admit(key) for _ in range(5)][:4] == [0, 0, 0, 0]


def test_many_at_once_gain_nothing_and_memory_stays(clock: Clock) -> None:
    throttle = Throttle(clock)
    size = throttle.__sizeof__() + sum(map(sys.getsizeof, vars(throttle).values()))
    admitted: list[float] = []

    def attack() -> None:
        for _ in range(50):
            wait_s = throttle.admit(Key("ada", 5))
            if wait_s == 0:
                admitted.append(wait_s)

    threads = [threading.Thread(target=attack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 6
    for number in range(20_000):
        throttle.admit(Key(f"name {number}", 5))
    assert throttle.__sizeof__() + sum(map(sys.getsizeof, vars(throttle).values())) == size
    assert size < 4 << 20


def user(*arguments: str, password: str = PASSWORD) -> Result:
    return CliRunner().invoke(user_cli.app, arguments, input=password)


def test_the_command_keeps_accounts(tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text("[http]\nsign_in = true\n")
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o644)
    assert "chmod 600" in str(user("add", str(config), "ada", "--password-file", str(file)).exception)
    file.chmod(0o600)
    assert user("add", str(config), "ada", "--role", "administrator", "--password-file", str(file)).exit_code == 0
    assert "--password-file" in str(user("add", str(config), "bert").exception)
    assert user("add", str(config), "bert", "--password-file", "-").exit_code == 0
    assert user("role", str(config), "bert", "engineer").exit_code == 0
    assert user("disable", str(config), "bert").exit_code == 0
    lines = user("list", str(config)).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["ada", "administrator", "enabled", "never"],
        ["bert", "engineer", "disabled", "never"],
    ]
    assert user("enable", str(config), "bert").exit_code == 0
    assert "10 to 256" in str(user("password", str(config), "bert", "--password-file", "-", password="x").exception)
    assert user("password", str(config), "bert", "--password-file", "-", password="a better one").exit_code == 0
    assert "last administrator" in str(user("disable", str(config), "ada").exception)
    accounts = Accounts(tmp_path / "host-state" / DATABASE, cheap())
    assert accounts.check("ada", PASSWORD) is not None
    assert accounts.check("bert", "a better one") is not None
    assert accounts.audit(1)[0]["actor"].startswith("command line (")
    accounts.close()


def test_the_command_says_when_nobody_is_asked_to_sign_in(tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text("")
    assert "http.sign_in" in user("list", str(config)).stderr


def test_the_command_asks_for_a_password_without_showing_it(tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text("[http]\nsign_in = true\n")
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flawline", "host", "user", "add", str(config), "ada"],
        cwd=ROOT, stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
    )  # fmt: skip
    os.close(inside)
    shown = b""
    # The space is written when typing is not shown any more; what was typed before that is thrown away.
    for question in (b"Password of ada: ", b"Repeat for confirmation: "):
        while question not in shown:
            shown += os.read(terminal, 1000)
        os.write(terminal, PASSWORD.encode() + b"\n")
    while b"Added ada" not in shown:
        shown += os.read(terminal, 1000)
    assert process.wait(30) == 0
    os.close(terminal)
    assert PASSWORD.encode() not in shown
