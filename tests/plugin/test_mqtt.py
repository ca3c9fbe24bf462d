"""The MQTT connector against a real mosquitto: sign-in and TLS, last will, a broker that dies, freezes or refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from contract.event import LineCode
from plugin.connectors import messages, mqtt
from plugin.dispatch import make_connector
from plugin.errors import ConfigError, ConnectorError
from tests.plugin.bench import World, output
from tests.plugin.mosquitto import SECRET, Consumer, Mosquitto, login, secured
from tests.plugin.relay import Relay
from tests.processes import until

TOPIC = "flawline/plant-7/line-1/press-3"


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def relay(broker: Mosquitto) -> Iterator[Relay]:
    made = Relay(broker.port)
    yield made
    made.close()


@pytest.fixture
def consume() -> Iterator[Callable[..., Consumer]]:
    made: list[Consumer] = []

    def make(port: int, options: Any = None) -> Consumer:
        made.append(Consumer(port, TOPIC, options))
        until(lambda: made[-1].subscribed, "the consumer is subscribed")
        return made[-1]

    yield make
    for each in made:
        each.close()


def url(port: int, more: str = "") -> str:
    return f"mqtt://127.0.0.1:{port}/plant-7/press-3{more}"


def results(consumer: Consumer) -> list[dict[str, Any]]:
    return [body for _, body in consumer.raw if body["kind"] == "result"]


def test_what_a_consumer_sees(
    broker: Mosquitto, world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    consumer = consume(broker.port)
    connector = world.start(url(broker.port), tmp_path)
    connector.publish(output(7, LineCode.REJECT))
    until(lambda: results(consumer) and consumer.inspected, "a result and a beat")
    (found,) = results(consumer)
    wanted = {
        "version": 1, "kind": "result", "line": "line-1", "number": 7, "edge": "edge-1", "part": "part-7",
        "camera": "cam-1", "trigger": 7, "counter": None, "code": 2, "verdict": "REJECT", "reason": "a dent",
        "ratio": 0.3333, "model": "abababab",
    }  # fmt: skip
    times = {name: found.pop(name) for name in ("captured", "due", "sent")}
    session = found.pop("session")
    assert found == wanted
    assert times["captured"] <= times["sent"] < times["due"]
    message = next(message for message, body in consumer.raw if body["kind"] == "result")
    assert (message.topic, message.qos, message.retain) == (f"{TOPIC}/result", 1, False)
    assert message.properties is not None
    assert 25 <= message.properties.MessageExpiryInterval <= 30
    assert consumer.status is not None
    assert (consumer.status["session"], consumer.status["recipe"], consumer.status["model"]) == (session, 4, "cafe0001")
    assert connector.status() == {"connected": True, "topic": TOPIC, "trouble": None}


def test_a_late_subscriber_sees_the_status_and_waits_for_a_beat(
    broker: Mosquitto, world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    world.trouble = "edge-1: inference fails"
    world.start(url(broker.port), tmp_path)
    first = consume(broker.port)
    until(lambda: first.status, "the status")
    late = consume(broker.port)
    until(lambda: late.status, "the retained status")
    assert late.status is not None
    assert (late.status["inspected"], late.status["trouble"]) == (False, "edge-1: inference fails")
    world.trouble = None
    until(lambda: first.inspected and late.inspected, "beats")


def test_a_connection_that_breaks_leaves_the_last_will(
    broker: Mosquitto, relay: Relay, world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    consumer = consume(broker.port)
    world.start(url(relay.port), tmp_path)
    until(lambda: consumer.inspected, "the line is inspected")
    relay.close()
    until(lambda: consumer.status and not consumer.status["inspected"], "the last will")
    late = consume(broker.port)
    until(lambda: late.status, "the will is retained")
    assert late.status is not None
    assert (late.status["trouble"], late.status["sent"]) == ("the host is gone", None)


def test_a_host_that_stops_says_so(
    broker: Mosquitto, world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    consumer = consume(broker.port)
    connector = world.start(url(broker.port), tmp_path)
    until(lambda: consumer.inspected, "the line is inspected")
    connector.close()
    until(lambda: consumer.status and consumer.status["trouble"] == "the host was stopped", "its last words")
    assert not any(body["trouble"] == "the host is gone" for _, body in consumer.raw)


def test_it_stays_connected(
    broker: Mosquitto, world: World, consume: Callable[..., Consumer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "BEAT_S", 0.05)
    monkeypatch.setattr(mqtt, "TIMEOUT_S", 0.5)
    consumer = consume(broker.port)
    world.start(url(broker.port), tmp_path)
    until(lambda: consumer.status and consumer.status["beat"] >= 12, "beats for more than twice the patience")
    assert [body["beat"] for _, body in consumer.raw] == list(range(1, len(consumer.raw) + 1))
    assert broker.log().count("as flawline-plant-7-line-1-press-3") == 1


def test_an_inspection_that_hangs_does_not_look_alive_though_the_connection_lives(
    broker: Mosquitto, world: World, consume: Callable[..., Consumer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "INSPECTED_EXPIRES_S", 1)
    consumer = consume(broker.port)
    released = threading.Event()
    hangs = threading.Event()

    def ask(line: str) -> str | None:
        if hangs.is_set():
            released.wait(20)
        return None

    monkeypatch.setattr(world, "ask", ask)
    connector = world.start(url(broker.port), tmp_path)
    until(lambda: consumer.inspected, "the line is inspected")
    hangs.set()
    until(lambda: not consumer.inspected, "no beat")
    connector.publish(output(1))  # the connection itself lives
    late = consume(broker.port)
    connector.publish(output(2))
    until(lambda: results(late), "what was sent after it subscribed")
    assert late.status is None, "the retained status has expired: nobody believes what nobody repeats"
    released.set()


def test_what_nobody_subscribes_to_is_refused(broker: Mosquitto, world: World, tmp_path: Path) -> None:
    connector = world.start(url(broker.port), tmp_path)
    with pytest.raises(ConnectorError, match=f"no consumer has subscribed to {TOPIC}/result"):
        connector.publish(output(1))


def test_a_broker_that_does_not_permit_it_is_named(
    world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic read {TOPIC}/#\ntopic write {TOPIC}/status\n")
    broker = Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}")
    broker.start()
    consume(broker.port)
    connector = world.start(url(broker.port), tmp_path)
    with pytest.raises(ConnectorError, match="the broker refuses it: Not authorized"):
        connector.publish(output(1))
    broker.kill()


def test_a_broker_that_freezes_delivers_no_pass_late(
    broker: Mosquitto, world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    consumer = consume(broker.port)
    connector = world.start(url(broker.port), tmp_path)
    connector.publish(output(1))
    broker.freeze()
    try:
        for number in (2, 3):
            with pytest.raises(ConnectorError, match="by its deadline"):
                connector.publish(output(number, due_s=0.3))
        time.sleep(0.1)  # past the deadline, however the clocks are rounded
    finally:
        broker.thaw()
    connector.publish(output(4))
    until(lambda: consumer.taken and consumer.taken[-1].number == 4, "the next one in time")
    codes = {took.number: took.code for took in consumer.taken}
    assert codes.pop(1) == codes.pop(4) == LineCode.PASS
    assert set(codes) <= {2}, "the third was never given to a broker that does not answer"
    assert set(codes.values()) <= {LineCode.NOT_INSPECTED}


def test_what_was_not_acknowledged_is_sent_again_in_time_and_taken_once(
    broker: Mosquitto, relay: Relay, world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    consumer = consume(broker.port)
    connector = world.start(url(relay.port), tmp_path)
    connector.publish(output(1))
    relay.delay_s = 0.2
    sender = threading.Thread(target=connector.publish, args=(output(2),))
    sender.start()
    until(lambda: [body["number"] for body in results(consumer)] == [1, 2], "the broker has it")
    relay.cut()  # its acknowledgement is under way
    relay.delay_s = 0.0
    sender.join(20)
    assert not sender.is_alive()
    connector.publish(output(3))
    until(lambda: consumer.taken[-1].number == 3, "the next")
    first, second = (body for body in results(consumer) if body["number"] == 2)
    assert first == second, "the same message, so that it is known again"
    assert [took.number for took in consumer.taken] == [1, 2, 3]


def test_a_broker_that_is_killed_and_comes_back(
    broker: Mosquitto, world: World, consume: Callable[..., Consumer], tmp_path: Path
) -> None:
    consumer = consume(broker.port)
    connector = world.start(url(broker.port), tmp_path)
    connector.publish(output(1))
    broker.kill()
    with pytest.raises(ConnectorError, match="by its deadline"):
        connector.publish(output(2, due_s=0.2))
    broker.start()
    until(lambda: consumer.inspected, "both are back")
    connector.publish(output(3))
    until(lambda: len(consumer.taken) == 2, "the third")
    assert [took.number for took in consumer.taken] == [1, 3]


def test_tls_and_password(world: World, consume: Callable[..., Consumer], tmp_path: Path) -> None:
    broker, sign_in = secured(tmp_path)
    broker.start()
    consumer = consume(broker.port, sign_in)
    address = f"mqtts://127.0.0.1:{broker.port}/plant-7/press-3"
    connector = world.start(f"{address}?ca=ca.pem&login=mqtt.login", tmp_path)
    connector.publish(output(1))
    until(lambda: consumer.taken and consumer.inspected, "it is taken")
    connector.close()
    broker.kill()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # paho leaves the socket to the collector
def test_a_wrong_password_and_a_stranger_s_certificate_are_named(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker, _ = secured(tmp_path)
    broker.start()
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    login(tmp_path, "wrong-battery")
    address = f"mqtts://127.0.0.1:{broker.port}/plant-7/press-3"
    for ca, words in (("ca.pem", "Not authorized"), ("other.pem", "certificate verify failed")):
        connector = world.start(f"{address}?ca={ca}&login=mqtt.login", tmp_path)
        until(lambda: words in str(connector.status()["trouble"]), words)  # noqa: B023
        with pytest.raises(ConnectorError, match=words):
            connector.publish(output(1, due_s=0.05))
        connector.close()
    assert "wrong-battery" not in caplog.text
    broker.kill()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mqtt://10.1.0.9", "expected a site and a station"),
        ("mqtt://10.1.0.9/plant-7", "expected a site and a station"),
        ("mqtt://10.1.0.9/plant-7/a+b", "expected a site and a station"),
        ("mqtt:///plant-7/press-3", "expected the broker's address"),
        ("mqtt://10.1.0.9:port/plant-7/press-3", "the port must be a number"),
        ("mqtt://10.1.0.9/plant-7/press-3?qos=2", "unknown option 'qos'; there are: ca, login"),
        ("mqtt://10.1.0.9/plant-7/press-3?ca=ca.pem", "ca is for mqtts://"),
        ("mqtt://10.1.0.9/plant-7/press-3?login=mqtt.login", "would travel in clear"),
        ("mqtts://10.1.0.9/plant-7/press-3?ca=none.pem", "none.pem: cannot be used"),
        ("mqtts://10.1.0.9/plant-7/press-3?login=none", "none: the user and the password cannot be read"),
        ("mqtts://10.1.0.9/plant-7/press-3?login=open.login", "others may read the user and the password"),
        ("mqtts://10.1.0.9/plant-7/press-3?login=short.login", "expected the user on the first line"),
    ],
)
def test_it_explains_mistakes(text: str, words: str, tmp_path: Path) -> None:
    login(tmp_path, SECRET, 0o640)
    (tmp_path / "mqtt.login").rename(tmp_path / "open.login")
    (tmp_path / "short.login").write_text("flawline\n")
    (tmp_path / "short.login").chmod(0o600)
    with pytest.raises(ConfigError) as found:
        make_connector(text, tmp_path)
    assert words in str(found.value)


def test_a_password_in_the_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"login=FILE") as found:
        make_connector(f"mqtts://flawline:{SECRET}@10.1.0.9/plant-7/press-3", tmp_path)
    assert SECRET not in str(found.value)


def test_one_connector_speaks_for_one_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="speaks for one line"):
        world.start("mqtt://127.0.0.1/plant-7/press-3", tmp_path, ("line-1", "line-2"))
