"""The OPC UA server against a real client: every field, in time, in order, and only for who may."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from asyncua import Client, ua
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import UserRole
from asyncua.crypto.security_policies import SecurityPolicyAes256Sha256RsaPss, SecurityPolicyBasic256Sha256
from asyncua.server.internal_session import SessionState
from asyncua.ua.uaerrors import (
    BadIdentityTokenRejected,
    BadInvalidArgument,
    BadInvalidState,
    BadNotSupported,
    BadSecurityModeInsufficient,
    BadTooManySubscriptions,
    BadUserAccessDenied,
    UaError,
)
from typer.testing import CliRunner

from contract.event import LineCode
from plugin.connectors.base import LineOutput, LineState, Plant, RecipeState
from plugin.connectors.opcua import OpcUa
from plugin.connectors.opcua_guard import (
    CONNECTIONS_PER_ADDRESS,
    LOOK_S,
    SUBSCRIPTIONS_PER_CLIENT,
    ClientUser,
    Fields,
    Processor,
    TimelySubscription,
    _unwelcome,
)
from plugin.connectors.opcua_model import METHODS, VARIABLES, VisionSystem
from plugin.dispatch import make_connector
from plugin.errors import ConfigError, ConnectorError
from plugin.opcua_certificates import TrustList, make_certificate, own_certificate, rejected, trust
from plugin.opcua_cli import app
from plugin.opcua_folder import KEY, NODESET, NOTICE, TRUSTED, Users, take_nodeset
from tests.plugin.opcua_client import (
    CLIENT_URI,
    PASSWORDS,
    Loop,
    Scada,
    content_of,
    identity,
    make_folder,
    make_identity,
    nodesets,
)
from tests.plugin.synthetic import Dealer, HostProcess, frames, state, until

MANDATORY = ("ResultId", "IsPartial", "ResultState", "InternalRecipeId", "InternalConfigurationId", "JobId")
OPTIONAL = ("IsSimulated", "MeasId", "PartId", "ExternalRecipeId", "ProductId", "ExternalConfigurationId")
BASE = ("EventId", "EventType", "SourceNode", "SourceName", "Time", "ReceiveTime", "LocalTime", "Message", "Severity")
RECIPES, AUTOMATIC = "line-1.RecipeManagement", "line-1.VisionStateMachine.AutomaticModeStateMachine"
MACHINE = "line-1.VisionStateMachine"
DUE = "challenge due: a shift began at 06:00"
PRODUCTIVE, STANDBY = 1, 2
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def output(number: int, code: LineCode = LineCode.PASS, wait_s: float = 60.0, **more: Any) -> LineOutput:
    now_ns = time.monotonic_ns()
    reason = None if code is LineCode.PASS else "score 2.4 above 1.2"
    made = LineOutput(
        "line-1", number, "edge-1", f"p{number}", "cam-1", number, code, reason, now_ns + int(wait_s * 1e9),
        number, now_ns, 0.5, 0xCAFE0001,
    )  # fmt: skip
    return made._replace(**more)


class Rig:
    """A served line whose host is this test."""

    def __init__(self, folder: Path, options: str = "") -> None:
        self.trouble: str | None = None
        self.held: str | None = None
        self.refusal: str | None = None
        self.failed: dict[int, str] = {}
        self.recipes: list[int] = []
        self.asked: list[tuple[str, str | None]] = []
        self.triggered: tuple[str, ...] = ("edge-1/p900",)
        made = make_connector(f"opcua://127.0.0.1:0?folder={folder}{options}", folder)
        assert isinstance(made, OpcUa)
        self.connector = made
        self.loop = Loop()
        self.clients: list[Scada] = []
        made.start(
            Plant(
                lines=("line-1",),
                trouble=lambda line: self.trouble or self.held,
                last_number=lambda line: 41,
                deadline_ms=lambda line: 1000,
                counted=lambda line, counters, t_ns: None,
                recipe=lambda line: RecipeState(4, 0xCAFE0001),
                select_recipe=self._select,
                fail=lambda output, detail: self.failed.setdefault(output.number, detail),
                ask=self._ask,
                state=lambda line: LineState(challenge="due" if self.held else "passed", held=self.held),
            )
        )
        self.until_ready()

    @property
    def port(self) -> int:
        return int(self.connector.address[1])

    def until_ready(self) -> None:
        until(lambda: self.connector.status()["ready"], 60.0, "the server is ready")

    def client(self, own: tuple[Path, Path] | None = None) -> Scada:
        self.clients.append(Scada(self.loop, self.port, own))
        return self.clients[-1]

    def drop_clients(self) -> None:
        while self.clients:
            self.clients.pop().close()

    def close(self) -> None:
        self.drop_clients()
        self.connector.close()
        self.loop.close()

    def _select(self, line: str, number: int, done: Callable[[str | None], None]) -> None:
        self.recipes.append(number)
        done(self.refusal)

    def _ask(
        self, line: str, what: str, serial: str | None, done: Callable[[str | None, tuple[str, ...]], None]
    ) -> None:
        self.asked.append((what, serial))
        if self.refusal is None and what in ("start", "stop"):
            self.trouble = "edge-1: inspection is stopped by request" if what == "stop" else None
        done(self.refusal, self.triggered if what == "trigger" else ())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(make_folder(tmp_path_factory.mktemp("opcua")))
    yield rig
    rig.close()


@pytest.fixture
def rig(served: Rig) -> Iterator[Rig]:
    served.trouble = served.held = served.refusal = None
    for kept in (served.recipes, served.asked, served.failed):
        kept.clear()
    yield served
    served.drop_clients()


def test_every_field_of_a_result_arrives_and_the_verdict_is_in_its_content(rig: Rig) -> None:
    scada = rig.client().sign_in()
    scada.listen()
    codes = [LineCode.PASS, LineCode.REJECT, LineCode.REVIEW, LineCode.NOT_INSPECTED]
    for number, code in enumerate(codes, start=1):
        rig.connector.publish(output(number, code))
    until(lambda: len(scada.events) == 4, what="four results")
    for number, event in enumerate(scada.events, start=1):
        names = (*BASE, *MANDATORY, *OPTIONAL, "CreationTime", "ProcessingTimes", "ResultContent")
        assert [name for name in names if getattr(event, name, None) is None] == []
        assert event.SourceNode == scada.node("line-1").nodeid
        assert event.ResultId.Id == f"line-1/{number}"
        assert event.JobId.Id == f"edge-1/p{number}"
        assert event.PartId.Id == f"p{number}"
        assert event.InternalRecipeId.Id == "4"
        assert event.InternalRecipeId.Hash == bytes.fromhex("cafe0001")
        kinds = {type(getattr(event, name)).__name__ for name in ("InternalRecipeId", "ExternalRecipeId")}
        assert kinds == {"RecipeIdInternalDataType", "RecipeIdExternalDataType"}
        assert type(event.InternalConfigurationId).__name__ == "ConfigurationIdDataType"
        assert event.ProcessingTimes.StartTime <= event.ProcessingTimes.EndTime <= event.ReceiveTime
    assert len({event.EventId for event in scada.events}) == 4
    assert (
        len({(event.Severity, str(event.IsPartial)) for event in scada.events}) == 1
    )  # nothing else tells verdicts apart
    content = scada.results()
    assert [each["ResultEvaluation"] for each in content] == [1, 2, 3, 0]
    assert [each["Verdict"] for each in content] == ["PASS", "REJECT", "REVIEW", "NOT_INSPECTED"]
    assert [event.ResultState for event in scada.events] == [1, 1, 1, 4]
    first = content[0]
    assert (first["Number"], first["PartId"], first["EdgeId"], first["Counter"]) == (1, "p1", "edge-1", 1)
    assert first["Session"] == scada.read("line-1.Session")
    assert (first["Reason"], content[1]["Reason"], first["Stale"]) == ("", "score 2.4 above 1.2", False)
    assert 0 <= first["AgeMs"] < 20_000
    assert 30_000 < first["ValidForMs"] <= 60_000
    assert [scada.read(f"line-1.{name}") for name in ("Head", "Committed", "Results", "Passed")] == [4, 41, 4, 1]
    assert rig.failed == {}


def test_a_client_that_listens_to_the_line_alone_hears_its_results(rig: Rig) -> None:
    scada = rig.client().sign_in("panel", policy=SecurityPolicyAes256Sha256RsaPss)
    scada.listen(node=scada.node("line-1"))
    rig.connector.publish(output(11))
    until(lambda: len(scada.events) == 1, what="the result")
    assert scada.results()[0]["Number"] == 11


def test_results_come_in_order_and_once_to_each_client(rig: Rig) -> None:
    clients = [rig.client().sign_in(), rig.client().sign_in("panel")]
    for each in clients:
        each.listen(50)
    numbers = list(range(100, 300))
    for number in numbers:
        rig.connector.publish(output(number, LineCode(number % 4 + 1)))
    for each in clients:
        until(lambda each=each: len(each.events) >= len(numbers), 30.0, "every result")  # type: ignore[misc]
        assert [(one["Number"], one["Verdict"]) for one in each.results()] == [
            (number, LineCode(number % 4 + 1).name) for number in numbers
        ]


def test_who_asks_for_endpoints_is_left_to_it(rig: Rig) -> None:
    async def ask() -> int:
        client = rig.client().client
        await client.connect_socket()
        await client.send_hello()
        await client.open_secure_channel()
        await asyncio.sleep(1.2 * LOOK_S)  # meanwhile the server looks whom it trusts no more
        return len(await client.get_endpoints())

    assert rig.loop.do(ask()) == 2


def test_without_certificate_and_encryption_there_are_endpoints_and_nothing_else(rig: Rig) -> None:
    """asyncua's channel without security has the empty certificate, as which an empty claim would pass."""
    before = dict(rig.connector.status()["refused"])  # type: ignore[call-overload]
    plain = rig.client().client
    endpoints = rig.loop.do(_open(plain))
    assert {endpoint.SecurityMode for endpoint in endpoints} == {ua.MessageSecurityMode.SignAndEncrypt}
    create = ua.CreateSessionParameters()
    create.ClientCertificate, create.ClientNonce = b"", b"n" * 32
    create.ClientDescription.ApplicationUri = CLIENT_URI
    create.EndpointUrl, create.SessionName, create.RequestedSessionTimeout = plain.server_url.geturl(), "x", 60_000
    with pytest.raises(BadSecurityModeInsufficient):
        rig.loop.do(plain.uaclient.create_session(create))
    activate = ua.ActivateSessionParameters()
    activate.UserIdentityToken = ua.UserNameIdentityToken(
        PolicyId=endpoints[0].UserIdentityTokens[0].PolicyId, UserName="panel", Password=PASSWORDS["panel"].encode()
    )
    for token in (ua.NodeId(), rig.client().sign_in("panel").client.uaclient.session.authentication_token):
        plain.uaclient.protocol.authentication_token = token
        with pytest.raises(BadSecurityModeInsufficient):  # and nobody looks at a password that came in clear
            rig.loop.do(plain.uaclient.activate_session(activate))
        said = rig.loop.do(_take_over(plain, token))
        assert said == ["BadSecurityModeInsufficient"] * 3
    assert len(rig.loop.do(plain.get_endpoints())) == len(endpoints)
    until(lambda: _refused(rig, "insecure") >= before.get("insecure", 0) + 9, what="what is counted")
    assert (_refused(rig, "passwords"), rig.asked) == (before.get("passwords", 0), [])


def _refused(rig: Rig, what: str) -> int:
    refused: Any = rig.connector.status()["refused"]
    return int(refused.get(what, 0))


@pytest.mark.parametrize(
    ("certificate", "session", "stays"), [(b"", False, True), (b"", True, False), (b"x", True, False)]
)
def test_no_session_stays_without_a_trusted_certificate(certificate: bytes, session: bool, stays: bool) -> None:
    """Where one ever came to be: the second look, of every connection, once a second."""
    connection = SimpleNamespace(
        processor=SimpleNamespace(_connection=SimpleNamespace(security_policy=SimpleNamespace()))
    )
    connection.processor._connection.security_policy.peer_certificate = certificate
    state = SimpleNamespace(state=SessionState.Activated, user=ClientUser(UserRole.User, "scada"))
    connection.processor.session = state if session else None
    users = SimpleNamespace(stands=lambda _user: True)
    internal: Any = SimpleNamespace(trust=SimpleNamespace(trusts=lambda _certificate: False), users=users)
    assert (_unwelcome(internal, connection) is None) == stays


def test_what_leaves_after_its_deadline_says_not_inspected(rig: Rig) -> None:
    scada = rig.client().sign_in()
    scada.listen(period_ms=3000)
    rig.connector.publish(output(400, wait_s=60))
    until(lambda: scada.events, what="a result in time, and with it the beginning of a period")
    rig.connector.publish(output(401, wait_s=0.3))
    rig.connector.publish(output(402, LineCode.REJECT, wait_s=0.3))
    until(lambda: len(scada.events) == 3, what="late results")
    assert [each["ResultEvaluation"] for each in scada.results()] == [1, 0, 0]
    assert [(each["Verdict"], each["Stale"], each["ValidForMs"]) for each in scada.results()[1:]] == [
        ("NOT_INSPECTED", True, 0)
    ] * 2
    assert rig.failed == {401: "no client took it by its deadline", 402: "no client took it by its deadline"}


def test_what_is_sent_again_is_renewed_as_well() -> None:
    fields = Fields([ua.Variant(1)])
    fields.renew = lambda mine: mine.__setitem__(0, ua.Variant(0))  # as a result does whose deadline is over
    sent = ua.PublishResult()
    sent.NotificationMessage.NotificationData = [ua.EventNotificationList([ua.EventFieldList(1, fields)])]
    subscription = TimelySubscription(ua.CreateSubscriptionResult(), None, None, ua.NodeId())
    subscription._not_acknowledged_results[7] = sent
    again = subscription.republish(7)
    assert [value.Value for value in again.NotificationData[0].Events[0].EventFields] == [0]


@pytest.mark.parametrize(("closing", "unread"), [(True, 0), (False, 100_000)])
def test_nothing_leaves_for_a_client_that_does_not_read(closing: bool, unread: int) -> None:
    class Transport:
        def is_closing(self) -> bool:
            return closing

        def get_write_buffer_size(self) -> int:
            return unread

    processor = Processor.__new__(Processor)
    processor._transport = Transport()
    assert processor.get_publish_request(77) is None  # with requests there it would have taken one


def test_nobody_listens_and_that_is_said(rig: Rig) -> None:
    rig.connector.publish(output(500))
    until(lambda: rig.failed, what="the outcome")
    assert rig.failed == {500: "no client listens to results"}


def test_the_heartbeat_counts_only_while_the_line_is_inspected(rig: Rig) -> None:
    scada = rig.client().sign_in()
    first = scada.read("line-1.Heartbeat")
    until(lambda: scada.read("line-1.Heartbeat") > first + 3, what="a heartbeat")
    assert scada.state() == ("Operational", "ContinuousExecution")
    rig.trouble = "edge-1: inference fails"
    until(lambda: not scada.read("line-1.Inspected"), what="the trouble")
    stopped = scada.read("line-1.Heartbeat")
    assert scada.read("line-1.Trouble") == "edge-1: inference fails"
    time.sleep(0.4)
    assert scada.read("line-1.Heartbeat") == stopped
    assert scada.state() == ("Error", "")
    rig.trouble = None
    until(lambda: scada.read("line-1.Heartbeat") > stopped, what="the heartbeat again")


def test_while_masters_are_due_the_heartbeat_goes_on_and_nothing_is_running(rig: Rig) -> None:
    """The belt has to move for the masters; a controller that stops it without a heartbeat could never be released."""
    scada = rig.client().sign_in()
    scada.listen(types=(1018, 1019, 1020))
    rig.held = DUE
    until(lambda: scada.read("line-1.Trouble") == DUE, what="it is due")
    first = scada.read("line-1.Heartbeat")
    until(lambda: scada.read("line-1.Heartbeat") > first + 3, what="a heartbeat")
    assert (scada.read("line-1.Inspected"), scada.state()) == (False, ("Operational", "Ready"))
    assert scada.read("line-1.SystemState").State == STANDBY
    with pytest.raises(BadInvalidState):  # it runs already
        scada.call(AUTOMATIC, "StartContinuous", None, None, None, None, None)
    assert scada.call(MACHINE, "Halt", 0, "") == 0
    until(lambda: scada.state() == ("Halted", "") and rig.trouble == scada.read("line-1.Trouble"), what="Halted")
    rig.trouble = None  # begun again by somebody else, and still due
    until(lambda: scada.state() == ("Operational", "Ready"), what="Ready again")
    rig.trouble = "edge-1: inference fails"
    until(lambda: scada.state()[0] == "Error", what="Error, though masters are due")
    stopped = scada.read("line-1.Heartbeat")
    time.sleep(0.4)
    assert scada.read("line-1.Heartbeat") == stopped
    rig.trouble = rig.held = None
    until(lambda: scada.state() == ("Operational", "ContinuousExecution"), what="running")
    until(lambda: scada.read("line-1.Inspected"), what="released")
    assert [event.Message.Text for event in scada.events if event.EventType.Identifier == 1019] == [
        "edge-1: inference fails"
    ]


@pytest.mark.parametrize(("before", "after"), [(None, DUE), (DUE, None), (DUE, "challenge due: dent failed")])
def test_the_moment_at_which_masters_become_due_is_no_trouble(before: str | None, after: str | None) -> None:
    """Whichever side of the change trouble was asked on."""
    for trouble in (before, after):
        states = iter([LineState(held=before), LineState(held=after)])
        plant = Plant(("line-1",), lambda _: trouble, *(lambda *_: None,) * 6, state=lambda _: next(states))  # type: ignore[arg-type] # noqa: B023
        assert plant.trouble_and_held("line-1") == (trouble, trouble is not None)
    plant = Plant(("line-1",), lambda _: "silent", *(lambda *_: None,) * 6, state=lambda _: LineState(held=DUE))  # type: ignore[arg-type]
    assert plant.trouble_and_held("line-1") == ("silent", False)


def test_states_follow_the_line_and_are_told(rig: Rig) -> None:
    scada = rig.client().sign_in()
    scada.listen(types=(1018, 1019, 1020))
    rig.trouble = "edge-1: silent"
    until(lambda: scada.state()[0] == "Error", what="Error")
    rig.trouble = "edge-1: inspection is stopped by request"
    until(lambda: scada.state() == ("Operational", "Ready"), what="Ready")
    rig.trouble = None
    until(lambda: scada.state() == ("Operational", "ContinuousExecution"), what="running")
    until(lambda: len(scada.events) >= 5, what="the events")
    told = [(event.EventType.Identifier, event.Message.Text) for event in scada.events]
    assert told == [
        (1018, "Operational to Error"),
        (1019, "edge-1: silent"),
        (1018, "Error to Operational"),
        (1020, "the line is inspected again"),
        (1018, "Ready to ContinuousExecution"),
    ]
    changed = scada.events[0]
    assert (changed.FromState.Text, changed.ToState.Text) == ("Operational", "Error")
    identifier = scada.do(scada.node(f"{MACHINE}.CurrentState.Id").read_value())
    name = scada.do(scada.client.get_node(identifier).read_browse_name()).Name
    assert name == "Operational"


def test_recipes_are_read_back_and_prepared(rig: Rig) -> None:
    scada = rig.client().sign_in()
    scada.listen(types=(1022,))
    complete, count, _handle, found, error = scada.call(RECIPES, "GetRecipeListFiltered", None, None, 0, 10, 0, 0)
    assert (complete, count, error, [each.Id for each in found]) == (True, 1, 0, ["4"])
    named, done, error = scada.call(RECIPES, "PrepareRecipe", ua.RecipeIdExternalDataType(Id="7"), None)
    assert (named.Id, done, error, rig.recipes) == ("7", True, 0, [7])
    until(lambda: scada.events, what="RecipePrepared")
    assert scada.events[0].InternalId.Id == "7"
    rig.refusal = "edge-1: there is no recipe 8"
    assert scada.call(RECIPES, "PrepareRecipe", None, ua.RecipeIdInternalDataType(Id="8"))[1:] == [False, -1]
    until(lambda: scada.read("line-1.Refusal") == "recipe 8: edge-1: there is no recipe 8", what="the refusal")
    for wrong in ("", "0", "65536", "seven", "9" * 5000, "²"):
        with pytest.raises(BadInvalidArgument):
            scada.call(RECIPES, "PrepareRecipe", ua.RecipeIdExternalDataType(Id=wrong), None)
    with pytest.raises(BadNotSupported):
        scada.call(RECIPES, "UnprepareRecipe", ua.RecipeIdExternalDataType(Id="7"), None)
    assert rig.recipes == [7, 8]


def test_a_client_that_may_control_halts_and_resets(rig: Rig) -> None:
    scada = rig.client().sign_in()
    assert scada.call(MACHINE, "Halt", 0, "changing the belt") == 0
    until(lambda: scada.state() == ("Halted", ""), what="Halted")
    with pytest.raises(BadInvalidState):
        scada.call(MACHINE, "SelectModeAutomatic")
    assert scada.call(MACHINE, "Reset", 0, "done") == 0
    until(lambda: scada.state() == ("Operational", "ContinuousExecution"), what="running")
    assert scada.call(AUTOMATIC, "Stop", 0, "") == 0
    until(lambda: scada.state() == ("Operational", "Ready"), what="Ready")
    job, error = scada.call(AUTOMATIC, "StartContinuous", None, None, None, None, None)
    assert (job.Id, error) == (f"{scada.read('line-1.Session')}/continuous", 0)
    assert [what for what, _ in rig.asked] == ["stop", "start", "stop", "start"]
    assert scada.call(MACHINE, "ConfirmAll", ua.LocalizedText("seen")) is None
    with pytest.raises(BadInvalidState):  # this line triggers by itself
        scada.call(AUTOMATIC, "StartSingleJob", None, None, None, None, None)


def test_a_client_that_may_read_controls_nothing_and_nobody_writes(rig: Rig) -> None:
    panel, scada = rig.client().sign_in("panel"), rig.client().sign_in()
    assert panel.call(RECIPES, "GetRecipeListFiltered", None, None, 0, 10, 0, 0)[1] == 1
    for method, (place, _, changes) in METHODS.items():
        if changes:  # whatever its arguments
            with pytest.raises(BadUserAccessDenied):
                panel.call(f"line-1.{place.replace('/', '.')}", method)
    assert (rig.asked, rig.recipes) == ([], [])
    for client in (panel, scada):
        for name in (*(f"line-1.{each}" for each in VARIABLES), f"{MACHINE}.CurrentState", "line-1.SystemState"):
            value = client.do(client.node(name).read_data_value())
            with pytest.raises(BadUserAccessDenied):
                client.do(client.node(name).write_value(ua.DataValue(value.Value)))


@pytest.mark.parametrize("how", ["anonymous", "password", "nobody", "no-password"])
def test_who_does_not_sign_in_right_gets_nothing(rig: Rig, how: str) -> None:
    client = rig.client()
    if how == "anonymous":
        client.do(client.client.set_security(SecurityPolicyBasic256Sha256, *map(str, identity())))
        with pytest.raises((BadIdentityTokenRejected, UaError)):
            client.connect()
        return
    user, password = {"password": ("scada", "wrong"), "nobody": ("eve", "x" * 12), "no-password": ("scada", "")}[how]
    with pytest.raises(BadUserAccessDenied):
        client.sign_in(user, password)


def test_a_stranger_is_turned_away_until_a_person_trusts_its_certificate(rig: Rig, tmp_path: Path) -> None:
    folder = rig.connector._folder
    stranger = make_identity(tmp_path, "a stranger")
    with pytest.raises((UaError, ConnectionError, TimeoutError)):
        rig.client(stranger).sign_in()
    waiting = rejected(folder)
    assert [path.read_bytes() for path in waiting] == [stranger[0].read_bytes()]
    moved = trust(folder, waiting[0].name)
    assert rejected(folder) == []
    client = rig.client(stranger).sign_in()
    assert client.read("line-1.Inspected")
    moved.unlink()
    until(lambda: _is_cut_off(client), what="a client that is trusted no more is closed")


def test_a_user_who_is_taken_away_is_out_within_seconds(rig: Rig) -> None:
    users = Users(rig.connector._folder, PasswordHasher(1, 8, 1))
    users.put("night-shift", "control", PASSWORDS["scada"])
    client = rig.client().sign_in("night-shift", PASSWORDS["scada"])
    assert client.read("line-1.Inspected")
    users.remove("night-shift")
    until(lambda: _is_cut_off(client), what="the connection of a user who is none any more is closed")
    with pytest.raises(BadUserAccessDenied):
        rig.client().sign_in("night-shift", PASSWORDS["scada"])


def test_guessing_slows_the_guesser_alone(rig: Rig) -> None:
    for _ in range(5):
        with pytest.raises(BadUserAccessDenied):
            rig.client().sign_in("panel", "a wrong one")
    with pytest.raises(BadUserAccessDenied):  # the right one has to wait as well, from this client
        rig.client().sign_in("panel")
    assert rig.client().sign_in("scada").read("line-1.Inspected")


def _is_cut_off(client: Scada) -> bool:
    try:
        client.do(client.node("line-1.Head").read_value(), 3)
    except (UaError, ConnectionError, TimeoutError):
        return True
    return False


def test_a_session_is_not_to_be_taken_over(rig: Rig, tmp_path: Path) -> None:
    """As asyncua 2.1 by itself lets anybody do, who knows or guesses its number."""
    scada = rig.client().sign_in()
    token = scada.client.uaclient.session.authentication_token
    assert token.NodeIdType is ua.NodeIdType.ByteString  # and none guesses it
    plain = Client(f"opc.tcp://127.0.0.1:{rig.port}/", timeout=20)
    assert len(rig.loop.do(_open(plain))) == 2  # the endpoints, which anybody may ask for
    other = make_identity(tmp_path, "other")
    shutil.copy(other[0], rig.connector._folder / TRUSTED)
    secured = Client(f"opc.tcp://127.0.0.1:{rig.port}/", timeout=20)
    rig.loop.do(secured.set_security(SecurityPolicyBasic256Sha256, *map(str, other)))
    rig.loop.do(_open(secured))
    for thief in (plain, secured):
        assert "done" not in rig.loop.do(_take_over(thief, token))
        thief.disconnect_socket()
    assert scada.read("line-1.Inspected")
    (rig.connector._folder / TRUSTED / other[0].name).unlink()


async def _open(client: Client) -> Any:
    await client.connect_socket()
    await client.send_hello()
    await client.open_secure_channel()
    return await client.get_endpoints()


async def _take_over(thief: Client, token: Any) -> list[str]:
    """Activate another's session, then read over it; what came of each."""
    activate, read = ua.ActivateSessionRequest(), ua.ReadRequest()
    read.Parameters.NodesToRead = [ua.ReadValueId(ua.NodeId(2256), ua.AttributeIds.Value)]
    protocol = thief.uaclient.protocol
    protocol.authentication_token = token
    said = []
    for request in (activate, read, ua.CreateSessionRequest()):
        try:
            await protocol.send_request(request)
            said.append("done")
        except (UaError, ServiceError, ConnectionError, TimeoutError) as error:
            said.append(type(error).__name__)
    return said


def test_a_leaky_client_takes_no_place_of_another(rig: Rig, tmp_path: Path) -> None:
    leaky_identity = make_identity(tmp_path, "leaky")
    shutil.copy(leaky_identity[0], rig.connector._folder / TRUSTED)
    leaky = rig.client(leaky_identity).sign_in("panel")
    for _ in range(SUBSCRIPTIONS_PER_CLIENT):
        leaky.do(leaky.client.create_subscription(1000, leaky))
    with pytest.raises(BadTooManySubscriptions):
        leaky.do(leaky.client.create_subscription(1000, leaky))
    leaky.do(leaky.client.uaclient.close_session(False))
    sockets = []
    for _ in range(2 * CONNECTIONS_PER_ADDRESS):  # and one that only connects
        raw = socket.socket()
        raw.bind(("127.0.0.2", 0))
        raw.connect(("127.0.0.1", rig.port))
        sockets.append(raw)
    scada = rig.client().sign_in()
    subscription = scada.listen()
    rig.connector.publish(output(700))
    until(lambda: scada.events, what="a result")
    again = rig.client(leaky_identity).sign_in("panel")
    with pytest.raises(UaError):  # another's subscription is not to be deleted
        results = again.do(again.client.uaclient.delete_subscriptions([subscription.subscription_id]))
        results[0].check()
    for raw in sockets:
        raw.close()
    (rig.connector._folder / TRUSTED / leaky_identity[0].name).unlink()


def test_a_header_that_promises_gigabytes_is_closed(rig: Rig) -> None:
    with socket.create_connection(("127.0.0.1", rig.port), 5) as raw:
        raw.sendall(b"HELF" + struct.pack("<I", 0x7FFFFFFF))
        with pytest.raises(OSError):
            for _ in range(1000):
                raw.sendall(bytes(65536))
    assert rig.client().sign_in().read("line-1.Inspected")


def test_a_server_that_dies_is_started_again_at_the_same_port(tmp_path: Path) -> None:
    rig = Rig(make_folder(tmp_path), "&insecure=1")
    try:
        scada = rig.client()
        scada.connect().listen(period_ms=3000)
        rig.connector.publish(output(1))
        until(lambda: scada.events, what="a result")
        rig.connector.publish(output(2))
        pid = rig.connector.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: rig.failed == {2: "the OPC UA server ended before a client took it"}, what="the outcome")
        with pytest.raises(ConnectorError, match="is being started"):
            rig.connector.publish(output(3))
        until(lambda: rig.connector.starts == 2, 20.0, "another process")
        rig.until_ready()
        again = rig.client().connect()
        again.listen()
        rig.connector.publish(output(4))
        until(lambda: again.events, what="a result")
        assert again.results()[0]["Number"] == 4
    finally:
        rig.close()


def test_a_single_job_takes_a_picture_of_the_part_in_view(tmp_path: Path) -> None:
    rig = Rig(make_folder(tmp_path), "&insecure=1&jobs=1")
    try:
        scada = rig.client().connect()
        scada.listen(types=(1013, 1023, 1024))
        until(lambda: scada.state() == ("Operational", "Ready"), what="Ready")
        words = (ua.MeasIdDataType(Id="m-5"), ua.PartIdDataType(Id="S/N 77"), None, None, None)
        job, error = scada.call(AUTOMATIC, "StartSingleJob", *words)
        assert (job.Id, error, rig.asked) == ("edge-1/p900", 0, [("trigger", "S/N 77")])
        assert scada.state() == ("Operational", "SingleExecution")
        with pytest.raises(BadInvalidState):
            scada.call(AUTOMATIC, "StartSingleJob", *words)
        rig.connector.publish(output(900))
        until(lambda: len(scada.events) == 3, what="started, result, ready")
        assert [event.EventType.Identifier for event in scada.events] == [1013, 1024, 1023]
        result = scada.events[1]
        assert (result.JobId.Id, result.MeasId.Id, result.PartId.Id) == ("edge-1/p900", "m-5", "S/N 77")
        assert content_of(result)["PartId"] == "p900"
        assert scada.state() == ("Operational", "Ready")
        rig.refusal = 'edge-1: no camera has trigger = "software"'
        job, error = scada.call(AUTOMATIC, "StartSingleJob", *words)
        assert (job.Id, error) == ("", -1)
        assert "software" in scada.read("line-1.Refusal")
        rig.trouble = "edge-1: silent"
        until(lambda: scada.state()[0] == "Error", what="Error")
        with pytest.raises(BadInvalidState):
            scada.call(AUTOMATIC, "StartSingleJob", *words)
    finally:
        rig.close()


def test_a_host_whose_masters_are_due_beats_on(tmp_path: Path) -> None:
    """Its own words for why nothing is OK are those by which it is known that nothing else is wrong."""
    folder, loop = make_folder(tmp_path / "opcua"), Loop()
    connectors = (f"opcua://127.0.0.1:0?folder={folder}&insecure=1&jobs=1",)
    host = HostProcess(tmp_path, connectors=connectors, line='silence_ms = 60000\nedges = ["edge-1"]')
    host.start()
    dealer = Dealer(host.endpoint)
    try:
        until(lambda: host.get("/healthz")["connectors"][0]["ready"], 60.0, "the server is ready")
        scada = Scada(loop, host.get("/healthz")["connectors"][0]["address"][1]).connect()
        dealer.send(frames(state(1, edge_id="edge-1", model_sha256="ab" * 32, recipe_number=1)))
        until(lambda: scada.read("line-1.Inspected"), what="inspected")
        for name, expected in (("good", "pass"), ("dent", "reject")):
            body = {"name": name, "expected": expected}
            assert httpx.post(f"{host.url}api/lines/line-1/masters", json=body).status_code == 200
        until(lambda: scada.read("line-1.Trouble").startswith("challenge due: "), what="masters are due")
        beat = scada.read("line-1.Heartbeat")
        until(lambda: scada.read("line-1.Heartbeat") > beat + 3, what="a heartbeat")
        assert (scada.read("line-1.Inspected"), scada.state()) == (False, ("Operational", "Ready"))
        scada.close()
    finally:
        dealer.close()
        host.end(signal.SIGKILL)
        loop.close()


def test_single_jobs_take_the_pictures_of_masters_that_are_due(tmp_path: Path) -> None:
    rig = Rig(make_folder(tmp_path), "&insecure=1&jobs=1")
    try:
        scada = rig.client().connect()
        scada.listen(types=(1013, 1023, 1024))
        until(lambda: scada.state() == ("Operational", "Ready"), what="Ready")
        assert scada.read("line-1.SystemState").State == PRODUCTIVE
        rig.held = DUE
        until(lambda: scada.read("line-1.Trouble") == DUE, what="it is due")
        words = (None, ua.PartIdDataType(Id="scratch-0.3"), None, None, None)
        job, error = scada.call(AUTOMATIC, "StartSingleJob", *words)
        assert (job.Id, error, rig.asked) == ("edge-1/p900", 0, [("trigger", "scratch-0.3")])
        assert scada.state() == ("Operational", "SingleExecution")
        with pytest.raises(BadInvalidState):
            scada.call(AUTOMATIC, "StartSingleJob", *words)
        assert scada.read("line-1.Refusal") == "another job runs"
        rig.connector.publish(output(900, LineCode.NOT_INSPECTED))
        until(lambda: len(scada.events) == 3, what="started, result, ready")
        assert [each["Verdict"] for each in scada.results()] == ["NOT_INSPECTED"]
        assert scada.state() == ("Operational", "Ready")
        assert scada.read("line-1.SystemState").State == STANDBY
        rig.trouble = "edge-1: silent"
        until(lambda: scada.state()[0] == "Error", what="Error")
        with pytest.raises(BadInvalidState):
            scada.call(AUTOMATIC, "StartSingleJob", *words)
        assert scada.read("line-1.Refusal") == "edge-1: silent"
    finally:
        rig.close()


def test_the_server_ends_with_its_host_and_a_new_one_takes_the_port(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "opcua")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = HostProcess(tmp_path, connectors=(f"opcua://127.0.0.1:{port}?folder={folder}",))
    host.start()
    try:
        until(lambda: host.get("/healthz")["connectors"][0]["ready"], 60.0, "the server is ready")
        host.end(signal.SIGKILL)
        until(lambda: _is_refused(port), what="nobody listens any more")
        host.start()
        until(lambda: host.get("/healthz")["connectors"][0]["ready"], 60.0, "the server is ready again")
        assert host.end() == 0
    finally:
        host.end(signal.SIGKILL)


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("?insecure=1", "is for 127.0.0.1"),
        ("?jobs=2", "expected 1 or 0"),
        ("?folders=x", "unknown option 'folders'"),
    ],
)
def test_what_a_url_may_not_say(tmp_path: Path, options: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_connector(f"opcua://0.0.0.0:4840{options}", tmp_path)


def test_the_nodeset_is_taken_whole_with_its_notice_or_not_at_all(tmp_path: Path) -> None:
    plant = Plant(("line-1",), *(lambda *_: None,) * 7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="flawline host opcua nodeset"):
        make_connector("opcua://127.0.0.1:0?folder=empty", tmp_path).start(plant)
    path = take_nodeset(tmp_path / "opcua", nodesets())
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("3e674541")
    assert "MIT" in (tmp_path / "opcua" / NOTICE).read_text()
    assert take_nodeset(tmp_path / "again", path).read_bytes() == path.read_bytes()
    changed = tmp_path / "changed.xml"
    changed.write_bytes(path.read_bytes().replace(b"MIT", b"TIM"))
    with pytest.raises(ConfigError, match="holds no"):
        take_nodeset(tmp_path / "third", changed)
    assert not (tmp_path / "third").exists()
    path.write_bytes(changed.read_bytes())
    with pytest.raises(ConfigError, match="not the nodeset"):
        make_connector("opcua://127.0.0.1:0?folder=opcua", tmp_path).start(plant)
    path.unlink()
    with pytest.raises(ConfigError, match=NODESET):
        make_connector("opcua://127.0.0.1:0?folder=opcua", tmp_path).start(plant)


def test_the_commands_fill_a_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "opcua", tmp_path / "secret"
    secret.write_text("a-long-password\n")
    secret.chmod(0o600)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [words[0], str(folder), *words[1:]])
        assert done.exit_code == 0, (words, done.output, done.exception)
        return done.output

    assert "checked" in run("nodeset", "--from", str(nodesets()))
    assert "SHA-256" in run("certificate", "--name", "vision.plant.local")
    assert run("user", "mes", "--role", "control", "--password-file", str(secret)) == "mes may control.\n"
    assert Users(folder).all()["mes"].role == "control"
    assert run("trust") == ""
    assert "trusted/scada-" in run("trust", str(identity()[0]))
    assert TrustList(folder).trusts(identity()[0].read_bytes())
    run("user", "mes", "--remove")
    assert Users(folder).all() == {}
    with pytest.raises(ConfigError, match="there is no role 'admin'"):
        CliRunner().invoke(app, ["user", str(folder), "x", "--role", "admin"], catch_exceptions=False)


def test_the_page_for_integrators_names_everything() -> None:
    page = (Path(__file__).parents[2] / "docs" / "opcua.md").read_text()
    assert [name for name in VARIABLES if f"`s=line-1.{name}`" not in page] == []
    system = VisionSystem(None, "line-1", 1000, "s", False, None, None)  # type: ignore[arg-type]
    system._own = 3
    content = system._content(output(1), datetime.now(UTC), time.monotonic_ns())
    assert [pair.Key.Name for pair in content.Value if f"`{pair.Key.Name}`" not in page] == []
    assert [name for name in METHODS if f"`{name}`" not in page] == []


def test_key_and_users_are_their_owner_s_alone(tmp_path: Path) -> None:
    own = make_certificate(tmp_path, ["vision.plant.local", "10.1.0.5"])
    assert own.uri.endswith(":flawline:opcua")
    assert make_certificate(tmp_path, []) == own  # kept
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(ConfigError, match="others may read the key"):
        own_certificate(tmp_path)
    users = Users(tmp_path)
    with pytest.raises(ConfigError, match="10 to 256"):
        users.put("scada", "read", "short")
    users.put("scada", "read", "long-enough-1")
    assert (tmp_path / "users").stat().st_mode & 0o777 == 0o600
    assert users.check("scada", "long-enough-1") is not None
    users.remove("scada")
    assert users.check("scada", "long-enough-1") is None
    (tmp_path / "users").chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        Users(tmp_path).all()
