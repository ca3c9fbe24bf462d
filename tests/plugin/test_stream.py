"""The stream of results, decisions and alarms: resumed without a gap, bounded, ended in good form."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.event import Verdict
from plugin.alarms import LASTS_S, AlarmBoard
from plugin.feed import Cursor
from plugin.models import Part
from plugin.review import stream
from tests.plugin import synthetic as s
from tests.plugin.following import Client, Heard
from tests.plugin.people import TEST, Site
from tests.plugin.synthetic import Dealer, until


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


@pytest.fixture
def token(site: Site) -> str:
    return site.accounts.make_token("eve", 1, TEST)


@pytest.fixture
def dealer(site: Site) -> Iterator[Dealer]:
    dealer = Dealer(site.service.endpoint)
    yield dealer
    dealer.close()


def results(count: int) -> Callable[[list[Heard]], bool]:
    return lambda heard: sum(each.name == "result" for each in heard) >= count


def parts(heard: list[Heard]) -> list[str]:
    return [Part.model_validate(each.data).part_id for each in heard if each.name == "result"]


def send(dealer: Dealer, *seqs: int, **more: str) -> None:
    for seq in seqs:
        dealer.send(s.frames(s.result(seq, **more)))
    dealer.wait_acked(*seqs)


def test_results_as_they_come_and_again_from_where_one_was(site: Site, token: str, dealer: Dealer) -> None:
    send(dealer, 1)
    client = Client(site.service.url, token)
    assert client.status == 200 and "content-type: text/event-stream" in client.head
    hello = client.read(lambda heard: len(heard) == 1)[0]
    assert hello.name == "hello" and Cursor.parse(hello.id) is not None
    for message in s.flagged(2, "bad", Verdict.REJECT, 4.0, seed=1):
        dealer.send(message)
    dealer.wait_acked(2, 3, 4)
    heard = client.read(results(1))
    assert parts(heard) == ["bad"], "what was there before is not told to whom does not ask"
    assert heard[-1].data["verdict"] == "REJECT" and heard[-1].data["recipe"] == "washer"
    client.close()
    send(dealer, 5, 6, 7)
    again = Client(site.service.url, token, last=heard[-1].id)
    missed = again.read(results(3))
    assert parts(missed) == ["part-00005", "part-00006", "part-00007"]
    again.close()
    from_the_start = Client(site.service.url, token, last="0-0-0")
    assert parts(from_the_start.read(results(5)))[:2] == ["part-00001", "bad"]
    from_the_start.close()


def test_decisions_come_too_and_a_part_comes_once(site: Site, token: str, dealer: Dealer) -> None:
    client = Client(site.service.url, token)
    client.read(lambda heard: len(heard) == 1)
    dealer.send(s.frames(s.trigger(1, "x")))
    dealer.send(s.frames(s.missed(2, "x")))
    dealer.send(s.frames(s.missed(3, "x", reason="a second end, which changes nothing")))
    dealer.wait_acked(1, 2, 3)
    web = site.signed_in("ivan")
    body = {"decision": "defect"}
    assert web.post("/api/v1/parts/1/verdicts", json=body, headers={"x-csrf-token": web.token()}).status_code == 201
    heard = client.read(lambda heard: any(each.name == "review" for each in heard))
    assert [each.name for each in heard if each.name != "alarm"] == ["result", "review"]
    assert heard[-1].data["inspector"] == "ivan" and heard[-1].data["decision"] == "defect"
    client.close()


def test_alarms_come_and_stand_in_the_greeting(site: Site, token: str) -> None:
    client = Client(site.service.url, token)
    told = alarms(client.read(lambda heard: bool(alarms(heard))))
    later = Client(site.service.url, token)
    (alarm,) = alarms(later.read(lambda heard: len(heard) == 1))
    assert (alarm["source"], alarm["name"], alarm["text"]) == ("line", "line-1", "no edge has been heard of")
    assert told == [alarm]
    web = site.browser(headers={"authorization": f"Bearer {token}"})
    assert web.get("/api/v1/alarms").json()["items"] == [alarm]
    client.close()
    later.close()


def alarms(heard: list[Heard]) -> list[dict[str, str]]:
    """Those that stood when the client came, and those that it was told."""
    found: list[dict[str, str]] = [*heard[0].data["standing"]] if heard else []
    return found + [each.data for each in heard if each.name == "alarm"]


def test_whoever_reads_too_slowly_is_sent_away_told_and_goes_on(
    site: Site, token: str, dealer: Dealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLOW_S", 0.3)
    door = site.service._door
    assert door is not None
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what it accepts from now on keeps little in the kernel
    slow, quick = Client(site.service.url, token, buffer=2048), Client(site.service.url, token)
    send(dealer, *range(1, 201), reason="x" * 500)
    assert len(parts(quick.read(results(200)))) == 200, "nobody waits for the slow one"
    until(lambda: site.service._streams.status()["unread_s"] > 0.3, what="nothing is read")
    heard = slow.read(lambda heard: bool(heard) and heard[-1].name == "dropped")
    assert heard[-1].data == {"reason": "too little was read"}
    assert slow.read(lambda _: False) == [] and slow.ended
    before = parts(heard)
    assert 0 < len(before) < 200
    quicker = Client(site.service.url, token, last=heard[-1].id)
    rest = parts(quicker.read(results(200 - len(before))))
    assert before + rest == [f"part-{seq:05d}" for seq in range(1, 201)]
    assert until(lambda: site.service._streams.status()["clients"] == 2, what="the slow one is gone")
    assert site.service._streams.status()["dropped"] == 1
    for client in (slow, quick, quicker):
        client.close()


def test_there_is_a_most_of_them_and_who_leaves_makes_room(
    site: Site, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST", 2)
    clients = [Client(site.service.url, token) for _ in range(2)]
    assert status(site, token) == 503
    clients[0].close()
    until(lambda: site.service._streams.status()["clients"] == 1, what="it is gone")
    assert status(site, token) == 200
    clients[1].close()


def status(site: Site, token: str) -> int:
    """The answer's status; the client leaves at once."""
    client = Client(site.service.url, token)
    client.close()
    return client.status


def test_who_may_not_read_any_more_hears_that_and_a_stop_ends_it(
    site: Site, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(site, site.accounts.make_token("ivan", 1, TEST)) == 403
    assert status(site, "") == 401
    client, other = Client(site.service.url, token), Client(site.service.url, site.accounts.make_token("ada", 1, TEST))
    monkeypatch.setattr(stream, "ALIVE_S", 0.05)
    site.service.feed.wake()
    site.accounts.end_tokens("eve", TEST)
    assert client.read(lambda _: False)[-1].name == "end" and client.ended
    site.service._streams.close()
    assert other.read(lambda _: False)[-1].name == "end"
    client.close()
    other.close()


def test_an_alarm_is_what_lasts() -> None:
    troubles: dict[tuple[str, str], str | None] = {("line", "a"): "dark"}
    told: list[int] = []
    board = AlarmBoard(lambda: troubles, lambda: told.append(1))
    board.look(10.0)
    assert board.standing() == [] and not told
    troubles["line", "a"] = None
    board.look(10.5)
    troubles["line", "a"] = "dark again"
    board.look(10.6)
    board.look(10.5 + LASTS_S)
    assert board.standing() == [], "it began anew"
    board.look(10.6 + LASTS_S)
    (alarm,) = board.standing()
    assert (alarm.state, alarm.text, len(told)) == ("raised", "dark again", 1)
    troubles.clear()
    board.look(20.0)
    assert board.standing() == [alarm]
    board.look(20.0 + LASTS_S)
    assert board.standing() == []
    assert [(each.state, each.text) for each in board.after(0)] == [("raised", "dark again"), ("cleared", "dark again")]
    assert board.after(board.last) == []


@pytest.mark.parametrize("text", ["", "1", "1-2", "1-2-3-4", "-1-2-3", "a-b-c", "1-2-" + "9" * 19, "1-2-٣"])
def test_a_cursor_that_is_none(text: str) -> None:
    assert Cursor.parse(text) is None


def test_a_cursor() -> None:
    assert Cursor.parse(str(Cursor(1, 2, 3))) == (1, 2, 3)
