"""Audited passes: drawn on the edge, shown blindly, exported with their probability, read by a program's token."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.event import Verdict
from contract.verdicts import VerdictPage
from plugin.database import Place
from plugin.errors import AccountError
from plugin.queries import Reader
from plugin.store import Store, chance
from tests.plugin import synthetic as s
from tests.plugin.older import older
from tests.plugin.people import PASSWORD, TEST, Site, accounts_in
from tests.plugin.synthetic import ROOT, Dealer, HostProcess
from tests.plugin.test_store import put

SHARE = 0.25
TELLING = ("reject", "score", "factor", "told", "no. ", 'class="badge pass"', "peak")


def audited(seq: int, part: str, score: float = 0.4) -> list[list[bytes]]:
    """As the edge sends a part that passed and was drawn: as a flagged one, but PASS."""
    more = {"audit_share": SHARE, "audited": True, "reason": None}
    return s.flagged(seq, part, Verdict.PASS, score, seed=seq, **more)


@pytest.fixture
def store(tmp_path: Path, where: Place) -> Iterator[Store]:
    store = Store(tmp_path, where=where)
    yield store
    store.close()


@pytest.fixture
def reader(store: Store, where: Place) -> Iterator[Reader]:
    reader = Reader(where)
    yield reader
    reader.close()


def test_an_audited_pass_waits_among_the_flagged_parts(store: Store, reader: Reader) -> None:
    put(store, *(s.frames(s.result(n, verdict=Verdict.REJECT, score=1.2 + n / 10)) for n in range(1, 41)))
    put(store, *(s.frames(s.result(100 + n, audit_share=SHARE, audited=True)) for n in range(40)))
    put(store, s.frames(s.result(200, audit_share=SHARE)), s.frames(s.result(201)))
    places = [part["audited"] for part in reader.queue(100)]
    assert (len(places), sum(places), reader.waiting(), reader.waiting(7)) == (80, 40, 80, 7)
    assert 0 < sum(places[:40]) < 40  # neither first nor last, so that a place tells nothing
    assert reader.audit()["drawn"] == 40


@pytest.mark.parametrize(
    "more", [{"audited": True}, {"audited": True, "audit_share": SHARE, "verdict": Verdict.REJECT}]
)
def test_what_cannot_have_been_drawn_is_not_audited(store: Store, reader: Reader, more: dict[str, Any]) -> None:
    put(store, s.frames(s.result(1, **more)))
    assert (reader.part(1) or {})["audited"] is False


def test_a_store_of_before_is_brought_forward(tmp_path: Path) -> None:
    store = Store(tmp_path / "newer")
    put(store, s.frames(s.result(1, verdict=Verdict.REJECT)), s.frames(s.result(2)))
    store.review(1, "good", "Ada")
    store.close()
    older(store.path, tmp_path / "store.sqlite", "0001", ("events", "parts", "reviews"))
    config = tmp_path / "host.toml"
    config.write_text('state_dir = "."\n')
    refused = flawline("export", str(config), str(tmp_path / "out.jsonl"))
    assert refused.returncode == 2 and "written by an older Flawline; start the host once" in refused.stderr
    Store(tmp_path).close()
    reader = Reader(tmp_path / "store.sqlite")
    (page,) = pages_of(reader)
    reader.close()
    assert [(part.audit_share, part.inclusion, part.judged) for part in page.parts] == [(0.0, 1.0, "good")]
    assert [(some.audit_share, some.parts) for some in page.passed] == [(0.0, 1)]


def pages_of(reader: Reader, limit: int = 1000) -> list[VerdictPage]:
    pages = [reader.verdicts(0, limit)]
    while pages[-1].next is not None:
        pages.append(reader.verdicts(pages[-1].next, limit))
    return pages


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_the_export_says_what_stands_and_counts_what_nobody_was_shown(store: Store, reader: Reader, limit: int) -> None:
    share = {"audit_share": SHARE}
    put(
        store,
        s.frames(s.result(1, "taken back", Verdict.REJECT, score=2.5, **share)),
        s.frames(s.result(2, "corrected", Verdict.REVIEW, **share)),
        s.frames(s.result(3, "drawn", audited=True, **share)),
        s.frames(s.result(4, "unseen", **share)),
        s.frames(s.result(5, "unseen too", **share)),
        s.frames(s.result(6, "other share", audit_share=0.5)),
        s.frames(s.missed(7, "missed")),
        s.frames(s.result(8, "not inspected", Verdict.NOT_INSPECTED, reason="dark", **share)),
        s.frames(s.trigger(9, "open")),
        s.frames(s.result(10, "looked up", **share)),
    )
    number = {part["part_id"]: part["id"] for part in reader.parts(0, 100)}
    for part, said in (
        ("taken back", "good"),
        ("taken back", "undo"),
        ("corrected", "defect"),
        ("corrected", "good"),
        ("drawn", "good"),
        ("looked up", "defect"),  # of its own accord: with what probability nobody knows
    ):
        store.review(number[part], said, "Ada")  # type: ignore[arg-type]
    pages = pages_of(reader, limit)
    parts = {part.part_id: part for page in pages for part in page.parts}
    assert {name: (part.judged, part.inspector, part.inclusion) for name, part in parts.items()} == {
        "taken back": (None, None, 1.0),
        "corrected": ("good", "Ada", 1.0),
        "drawn": ("good", "Ada", SHARE),
    }
    first = parts["taken back"]
    assert (first.score, first.flags_above, first.model_sha256, first.engine) == (2.5, 1.0, "ab" * 32, "openvino fp32")
    assert (first.calibration_id, first.picture, first.verdict) == ("cal-7", False, Verdict.REJECT)
    counted: dict[float, int] = {}
    for some in (each for page in pages for each in page.passed):
        counted[some.audit_share] = counted.get(some.audit_share, 0) + some.parts
    assert counted == {SHARE: 3, 0.5: 1}


def flawline(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flawline", "host", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def names_of_blind(wanted: bool) -> Iterator[str]:
    numbers = (f"washer-{n}" for n in range(1000))
    return (name for name in numbers if (chance("blind", {"edge_id": s.EDGE, "part_id": name}) < 0.5) == wanted)


def likeness(page: str, name: str) -> str:
    """A part's page without its name, its numbers, and the way to its neighbours."""
    page = re.sub(r'<p class="steps">.*?</p>|data-preload="[^"]*"', "", page, flags=re.DOTALL)
    return re.sub(r"\d+(\.\d+)?", "#", page.replace(name, "NAME"))


def test_passed_and_flagged_parts_are_shown_alike_until_judged(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer], tmp_path: Path
) -> None:
    host, share = make_host(), {"audit_share": SHARE}
    dealer = make_dealer(host.endpoint)
    hidden, shown = next(names_of_blind(True)), next(names_of_blind(False))
    for message in (
        *audited(1, "drawn"),
        *s.flagged(4, hidden, Verdict.REJECT, 3.0, seed=2, **share),
        *s.flagged(7, shown, Verdict.REJECT, 2.0, seed=3, **share),
        *s.flagged(10, "elsewhere", Verdict.REJECT, 2.0, seed=4),  # of an edge that audits nothing
        s.frames(s.result(13, "unseen", **share)),
    ):
        dealer.send(message)
    dealer.wait_acked(*range(1, 14))
    with httpx.Client(base_url=host.url) as web:
        number = {part["part_id"]: part["id"] for part in web.get("/api/parts").json()}
        pages = {name: web.get(f"/parts/{number[name]}").text for name in ("drawn", hidden, shown, "elsewhere")}
        for name in ("drawn", hidden):
            text = pages[name].lower()
            assert "to judge" in text and "until you have decided" in text
            assert [word for word in TELLING if word in text.replace("rejected", "")] == [], name
            assert "reconstruction" in text and "&#34;map&#34;: null" in text
        assert likeness(pages["drawn"], "drawn") == likeness(pages[hidden], hidden)
        for name in (shown, "elsewhere"):
            assert 'class="badge reject"' in pages[name] and "factor" in pages[name]
        cards = web.get("/queue").text.split('<li><a class="card"')
        blind = [card for card in cards if "to judge" in card]
        assert len(cards) == 5 and len(blind) == 2
        assert not any("×" in card or "badge reject" in card or "badge pass" in card for card in blind)
        assert web.post(f"/api/parts/{number['drawn']}/verdict", json={"decision": "defect"}).status_code == 201
        told = web.get(f"/parts/{number['drawn']}").text
        assert 'class="badge pass"' in told and "factor" in told and "0.333×" in told
        counts = web.get("/counts").text
        assert "1, 0 of them not decided" in counts and "1 of 1" in counts
        page = VerdictPage.model_validate(web.get("/api/export/verdicts").json())
        assert {part.part_id: (part.judged, part.inclusion, part.picture) for part in page.parts} == {
            "drawn": ("defect", SHARE, True),
            hidden: (None, 1.0, True),
            shown: (None, 1.0, True),
            "elsewhere": (None, 1.0, True),
        }
        for query in ("limit=0", "limit=1001", "after=-1"):
            assert web.get(f"/api/export/verdicts?{query}").status_code == 422
    file = tmp_path / "verdicts.jsonl"
    done = flawline("export", str(host.config), str(file))  # while the host runs
    assert (done.returncode, "Wrote 4 part(s)" in done.stdout, "1 of them judged" in done.stdout) == (0, True, True)
    assert VerdictPage.model_validate(json.loads(file.read_text())) == page
    again = flawline("export", str(host.config), str(file))
    assert again.returncode == 2 and "exists already" in again.stderr
    host.config.write_text(host.config.read_text().replace("[http]", "[review]\nblind_share = 1.5\n[http]"))
    assert "review.blind_share" in flawline("run", str(host.config)).stderr


def test_export_without_a_store_is_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text("")
    done = flawline("export", str(config), str(tmp_path / "out.jsonl"))
    assert done.returncode == 2 and "there is no store" in done.stderr and not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


def bearer(site: Site, token: str, method: str = "GET", path: str = "/api/export/verdicts") -> httpx.Response:
    return site.browser().request(method, path, headers={"authorization": f"Bearer {token}"})


def test_a_token_reads_what_its_account_may_and_writes_nothing(site: Site) -> None:
    engineer, inspector = (site.accounts.make_token(name, 1, TEST) for name in ("eve", "ivan"))
    assert bearer(site, engineer).status_code == 200
    assert bearer(site, inspector).status_code == 403
    assert bearer(site, inspector, path="/api/queue").status_code == 200
    administrator = site.accounts.make_token("ada", 1, TEST)
    assert bearer(site, administrator).status_code == 200
    for page in ("/accounts", "/queue", "/"):  # pages are a person's, whatever the account may
        assert bearer(site, administrator, path=page).status_code in (303, 401), page
    for path in ("/api/control", "/api/parts/1/verdict", "/api/v1/parts/1/verdicts"):
        headers = {"authorization": f"Bearer {engineer}"}
        answer = site.browser().post(path, headers=headers, json={"decision": "good"})
        assert answer.status_code == 403 and "this one is to read" in answer.text, path
    for wrong in ("x", engineer[:-1], engineer + "x", "é"):
        asked = site.browser().get("/api/parts", headers={"authorization": f"Bearer {wrong}".encode("latin-1")})
        assert asked.status_code == 401
    # A token beside a session's cookie does not lift it beyond what the token may.
    signed_in = site.signed_in("ada")
    assert signed_in.get("/api/parts", headers={"authorization": "Bearer x"}).status_code == 401


def test_inspectors_do_not_read_through_the_api_what_is_kept_from_their_pages(site: Site) -> None:
    dealer = Dealer(site.service.endpoint)
    for message in audited(1, "drawn"):
        dealer.send(message)
    dealer.wait_acked(1, 2, 3)
    dealer.close()
    inspector, engineer = site.signed_in("ivan"), site.signed_in("eve")
    number = engineer.get("/api/queue").json()[0]["id"]
    told = engineer.get(f"/api/parts/{number}").json()
    assert told["verdict"] == "PASS" and "score" in told and "header" in told
    for kept in (inspector.get("/api/queue").json()[0], inspector.get(f"/api/parts/{number}").json()):
        assert kept["part_id"] == "drawn" and kept["blind"] is True
        assert not {"verdict", "reason", "score", "threshold", "severity", "audited", "header", "line"} & set(kept)
    assert {each["role"] for each in kept["attachments"]} == {"image", "reconstruction"}
    maps = [each["id"] for each in told["attachments"] if each["role"] == "map"]
    assert [inspector.get(f"/api/attachments/{each}").status_code for each in maps] == [403] * len(maps) != []
    inspector.post(
        f"/api/parts/{number}/verdict", json={"decision": "good"}, headers={"x-csrf-token": inspector.token()}
    )
    assert inspector.get(f"/api/parts/{number}").json()["verdict"] == "PASS"


@pytest.mark.parametrize("change", ["time", "password", "role", "disabled", "ended", "clock back"])
def test_a_token_ends(site: Site, change: str) -> None:
    token = site.accounts.make_token("eve", 1, TEST)
    assert bearer(site, token).status_code == 200
    if change == "time":
        site.clock.now += 86_401
    elif change == "clock back":
        site.clock.now -= 3600
    elif change == "password":
        site.accounts.set_password("eve", PASSWORD + "!", TEST)
    elif change == "role":
        site.accounts.set_role("eve", "administrator", TEST)
    elif change == "disabled":
        site.accounts.set_enabled("eve", False, TEST)
    else:
        assert site.accounts.end_tokens("eve", TEST) == 1
    assert bearer(site, token).status_code == 401


def test_the_file_of_accounts_keeps_no_token(tmp_path: Path) -> None:
    accounts = accounts_in(tmp_path)
    token = accounts.make_token("eve", 1, TEST)
    accounts.set_enabled("ivan", False, TEST)
    with pytest.raises(AccountError, match="ivan is disabled"):
        accounts.make_token("ivan", 1, TEST)
    with pytest.raises(AccountError, match="no account 'nobody'"):
        accounts.make_token("nobody", 1, TEST)
    assert [row["action"] for row in accounts.audit(2)] == ["disabled", "token made"]
    accounts.close()
    assert not any(token.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_the_command_writes_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    config, file = tmp_path / "host.toml", tmp_path / "calibrate.token"
    config.write_text('state_dir = "."\n[http]\nsign_in = true\n')
    accounts_in(tmp_path).close()
    done = flawline("user", "token", str(config), "eve", "--token-file", str(file))
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    accounts = accounts_in(tmp_path)
    found = accounts.of_token(file.read_text().strip())
    accounts.close()
    assert found is not None and found == ("eve", "engineer", "read")
    assert file.read_text().strip() not in done.stdout + done.stderr
    again = flawline("user", "token", str(config), "eve", "--token-file", str(file))
    assert again.returncode == 2 and "cannot be written (File exists)" in again.stderr
    nobody = flawline("user", "token", str(config), "nobody", "--token-file", str(tmp_path / "none"))
    assert nobody.returncode == 2 and not (tmp_path / "none").exists()
    assert "say where the token goes" in flawline("user", "token", str(config), "eve").stderr
    assert "1 token(s) of eve ended" in flawline("user", "token", str(config), "eve", "--end").stdout
