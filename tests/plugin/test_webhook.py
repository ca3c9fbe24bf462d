"""The webhook connector against a real HTTP server: signed, tried again in time under one id, and never led astray."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme

from contract.event import LineCode
from plugin.connectors.base import Connector
from plugin.connectors.webhook import sign
from plugin.dispatch import make_connector
from plugin.errors import ConfigError, ConnectorError
from tests.plugin.bench import World, output
from tests.plugin.receiver import SECRET, Receiver, write_secret
from tests.processes import until


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def connector(world: World, receiver: Receiver, tmp_path: Path) -> Connector:
    write_secret(tmp_path)
    return world.start(f"webhook+http://127.0.0.1:{receiver.port}/flawline?secret=webhook.secret", tmp_path)


def only_results(action: Any) -> Any:
    """Misbehave towards results, and not for ever: ``action`` says whether nothing more happens."""
    return lambda handler, body: body["kind"] == "result" and action(handler)


def results(receiver: Receiver) -> list[tuple[dict[str, str], dict[str, Any]]]:
    return [each for each in receiver.raw if each[1]["kind"] == "result"]


def test_the_signature_is_the_one_of_the_specification() -> None:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    headers = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_a_receiver_gets(connector: Connector, receiver: Receiver) -> None:
    connector.publish(output(7, LineCode.REJECT))
    ((headers, body),) = results(receiver)
    assert headers["webhook-id"] == f"{body['session']}-line-1-7"
    assert headers["content-type"] == "application/json"
    assert (body["number"], body["verdict"], body["part"]) == (7, "REJECT", "part-7")
    until(lambda: receiver.inspected, "the status")
    assert connector.status()["trouble"] is None


def test_the_status_follows_the_line_and_the_host_s_end(connector: Connector, receiver: Receiver, world: World) -> None:
    until(lambda: receiver.inspected, "the line is inspected")
    world.trouble = "edge-1: inference fails"
    until(lambda: receiver.status and receiver.status["trouble"] == "edge-1: inference fails", "the trouble")
    world.trouble = None
    until(lambda: receiver.inspected, "and its end")
    connector.close()
    assert receiver.status is not None
    assert receiver.status["trouble"] == "the host was stopped"


def test_while_masters_are_due_the_beat_goes_on_and_nothing_is_ok(
    connector: Connector, receiver: Receiver, world: World
) -> None:
    """What MQTT's status does too: it comes from the same place."""

    def beats_of(trouble: str) -> list[tuple[int, bool]]:
        statuses = [body for _, body in receiver.raw if body["kind"] == "status" and body["trouble"] == trouble]
        return [(body["beat"], body["inspected"]) for body in statuses]

    until(lambda: receiver.inspected, "the line is inspected")
    world.held = "challenge due: a shift began at 06:00"
    until(lambda: len(beats_of(str(world.held))) > 1, "two beats")
    told = beats_of(str(world.held))
    assert told[1][0] == told[0][0] + 1
    assert not any(inspected for _, inspected in told)
    world.trouble = "edge-1: inference fails"
    until(lambda: len(beats_of("edge-1: inference fails")) > 1, "the trouble, twice")
    assert len({beat for beat, _ in beats_of("edge-1: inference fails")}) == 1


@pytest.mark.parametrize("code", [500, 503, 429])
def test_what_is_not_taken_is_sent_again_under_one_id(connector: Connector, receiver: Receiver, code: int) -> None:
    ids: list[str] = []

    def refuse_twice(handler: Any) -> bool:
        ids.append(handler.headers["webhook-id"])
        if len(ids) < 3:
            handler.answer(code)
        return len(ids) < 3

    receiver.behave = only_results(refuse_twice)
    connector.publish(output(1))
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert [took.number for took in receiver.taken] == [1]


def test_a_connection_that_ends_after_the_body_was_read_is_tried_again_and_taken_once(
    connector: Connector, receiver: Receiver
) -> None:
    came: list[int] = []

    def take_and_drop(handler: Any) -> bool:
        came.append(1)
        if len(came) > 1:
            return False
        handler.close_connection = True
        return True

    taken = receiver.behave = only_results(take_and_drop)
    real_take = receiver.take

    def behave(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> bool:
        if body["kind"] == "result" and not came:
            real_take({name.lower(): value for name, value in handler.headers.items()}, body)
        return bool(taken(handler, body))

    receiver.behave = behave
    connector.publish(output(1))
    connector.publish(output(2))
    assert [body["number"] for _, body in results(receiver)] == [1, 1, 2]
    assert results(receiver)[0][1] == results(receiver)[1][1]
    assert [took.number for took in receiver.taken] == [1, 2]


def test_a_receiver_that_says_500_for_ever_is_given_up_at_the_deadline(
    connector: Connector, receiver: Receiver
) -> None:
    receiver.behave = only_results(lambda handler: handler.answer(500) or True)
    began = time.monotonic()
    with pytest.raises(ConnectorError, match="had not taken it by its deadline: it answers 500"):
        connector.publish(output(1, due_s=0.5))
    assert 0.45 < time.monotonic() - began < 5
    receiver.behave = lambda handler, body: False
    connector.publish(output(2))
    assert [took.number for took in receiver.taken] == [2]


def test_a_receiver_that_hangs_is_given_up_at_the_deadline(connector: Connector, receiver: Receiver) -> None:
    released = threading.Event()
    receiver.behave = only_results(lambda handler: released.wait(20))
    with pytest.raises(ConnectorError, match="by its deadline"):
        connector.publish(output(1, due_s=0.3))
    released.set()


def test_an_answer_that_never_ends_is_given_up_at_the_deadline(connector: Connector, receiver: Receiver) -> None:
    released = threading.Event()

    def drip(handler: Any) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        with suppress(OSError):
            while not released.wait(0.02):
                handler.wfile.write(b"x-more: 1\r\n")
        handler.close_connection = True
        return True

    receiver.behave = only_results(drip)
    began = time.monotonic()
    with pytest.raises(ConnectorError, match="by its deadline"):
        connector.publish(output(1, due_s=0.5))
    released.set()
    assert time.monotonic() - began < 5


def test_a_huge_answer_is_not_read(connector: Connector, receiver: Receiver) -> None:
    sent: list[int] = []
    ended = threading.Event()

    def flood(handler: Any) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        with suppress(OSError):
            while len(sent) < 1000:
                handler.wfile.write(b"x" * 1_000_000)
                sent.append(1)
        handler.close_connection = True
        ended.set()
        return True

    receiver.behave = only_results(flood)
    connector.publish(output(1))
    assert ended.wait(20)
    assert len(sent) < 50, "megabytes; the system's buffers took some"


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(connector: Connector, receiver: Receiver, code: int) -> None:
    elsewhere = Receiver()
    elsewhere.start()
    location = {"location": f"http://127.0.0.1:{elsewhere.port}/"}
    receiver.behave = only_results(lambda handler: handler.answer(code, location) or True)
    with pytest.raises(ConnectorError, match=f"refuses it: it answers {code}"):
        connector.publish(output(1))
    elsewhere.stop()
    assert elsewhere.raw == []


def test_a_wrong_secret_is_refused_at_once(world: World, receiver: Receiver, tmp_path: Path) -> None:
    write_secret(tmp_path, "whsec_" + "A" * 32)
    connector = world.start(f"webhook+http://127.0.0.1:{receiver.port}/?secret=webhook.secret", tmp_path)
    with pytest.raises(ConnectorError, match="the receiver refuses it: it answers 401"):
        connector.publish(output(1))
    assert receiver.raw == []


def test_the_environment_s_proxy_gets_nothing(
    world: World, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    write_secret(tmp_path)
    connector = world.start(f"webhook+http://127.0.0.1:{receiver.port}/?secret=webhook.secret", tmp_path)
    connector.publish(output(1, due_s=5.0))
    assert [took.number for took in receiver.taken] == [1]


def test_an_untrusted_certificate_is_named(world: World, tmp_path: Path) -> None:
    receiver = Receiver(trustme.CA())
    receiver.start()
    write_secret(tmp_path)
    connector = world.start(f"webhook+https://127.0.0.1:{receiver.port}/?secret=webhook.secret", tmp_path)
    with pytest.raises(ConnectorError, match="certificate verify failed"):
        connector.publish(output(1, due_s=1.0))
    receiver.stop()
    assert receiver.raw == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("webhook+https://mes.example/flawline", "secret=FILE is missing"),
        ("webhook+https:///flawline?secret=webhook.secret", "expected the receiver's address"),
        ("webhook+https://mes.example:port/?secret=webhook.secret", "the port must be a number"),
        ("webhook+https://mes.example/?secret=webhook.secret&retries=5", "unknown option 'retries'"),
        ("webhook+http://mes.example/?secret=webhook.secret&ca=ca.pem", "ca is for webhook+https://"),
        ("webhook+https://mes.example/?secret=webhook.secret#part", "never sent"),
        ("webhook+https://mes.example/?secret=none", "none: the secret cannot be read"),
        ("webhook+https://mes.example/?secret=open", "others may read the secret"),
        ("webhook+https://mes.example/?secret=short", "24 to 64 random bytes"),
        ("webhook+https://mes.example/?secret=plain", "24 to 64 random bytes"),
        ("webhook+https://user:pw@mes.example/?secret=webhook.secret", "no place in a URL"),
    ],
)
def test_it_explains_mistakes(text: str, words: str, tmp_path: Path) -> None:
    for name, secret, mode in (
        ("open", SECRET, 0o644),
        ("short", "whsec_YWJj", 0o600),
        ("plain", "correct-horse-battery-staple-correct", 0o600),
        ("webhook.secret", SECRET, 0o600),
    ):
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError) as found:
        make_connector(text, tmp_path)
    assert words in str(found.value)
    assert "pw" not in str(found.value)
