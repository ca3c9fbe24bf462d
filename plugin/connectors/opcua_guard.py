"""What asyncua's server lacks before it may stand on a machine network, around it and not in it (hop 10).

Tried on 2.1.0: whoever connects without security, or with any certificate, may open a session, take over another's by
its number, and register servers; a header may announce four gigabytes; a subscription without an interval lasts for
ever; one client's leaks use up the places of all. See docs/decisions/0095.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from asyncua import Server, ua
from asyncua.common.connection import TransportLimits
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import SimpleRoleRuleset, User, UserRole
from asyncua.crypto.security_policies import SecurityPolicyNone
from asyncua.crypto.validator import CertificateValidator, CertificateValidatorOptions
from asyncua.server import server as server_module
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_session import InternalSession, SessionState
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.server.subscription_service import SubscriptionService
from asyncua.server.uaprocessor import UaProcessor
from asyncua.ua.ua_binary import struct_from_binary, uatcp_to_binary

from plugin.errors import ConfigError
from plugin.logs import LimitedLog
from plugin.opcua_certificates import TrustList
from plugin.opcua_folder import Machine, Users
from plugin.throttle import Key, Throttle

CONNECTIONS = 32
CONNECTIONS_PER_ADDRESS = 16
SUBSCRIPTIONS = 64
SUBSCRIPTIONS_PER_CLIENT = 16
ITEMS_PER_SUBSCRIPTION = 256
QUEUE = 1000
"""Events that may wait for a client that does not ask for them; then the oldest go."""

FASTEST_MS, SLOWEST_MS = 20.0, 5000.0
ABANDONED_MS = 120_000.0
"""How long a subscription lasts that nobody asks anything of."""

SESSION_MS = 60_000
ACTIVATION_S = 10.0
MESSAGE_BYTES = 1 << 20
CHUNK_BYTES = 65535
UNREAD_BYTES = 4 << 20
"""Of answers that a client has asked for and does not read, beside what the system's own buffers hold."""

PENDING = 1000
PENDING_BYTES = 4 << 20
"""Of one connection: clients do ask hundreds of small questions at once."""

LOOK_S = 1.0
FREE_GUESSES = 3

IDS = ua.ObjectIds
CREATE, ACTIVATE, CLOSE = (
    IDS.CreateSessionRequest_Encoding_DefaultBinary,
    IDS.ActivateSessionRequest_Encoding_DefaultBinary,
    IDS.CloseSessionRequest_Encoding_DefaultBinary,
)
DISCOVERY = {IDS.GetEndpointsRequest_Encoding_DefaultBinary, IDS.FindServersRequest_Encoding_DefaultBinary}
NEVER = {
    IDS.RegisterServerRequest_Encoding_DefaultBinary,
    IDS.RegisterServer2Request_Encoding_DefaultBinary,
    IDS.AddNodesRequest_Encoding_DefaultBinary,
    IDS.DeleteNodesRequest_Encoding_DefaultBinary,
    IDS.AddReferencesRequest_Encoding_DefaultBinary,
    IDS.DeleteReferencesRequest_Encoding_DefaultBinary,
    IDS.HistoryReadRequest_Encoding_DefaultBinary,
    IDS.HistoryUpdateRequest_Encoding_DefaultBinary,
}
WITHOUT_SESSION = DISCOVERY | {CREATE, ACTIVATE, IDS.CloseSecureChannelRequest_Encoding_DefaultBinary}
OF_SUBSCRIPTIONS: dict[int, type] = {
    IDS.ModifySubscriptionRequest_Encoding_DefaultBinary: ua.ModifySubscriptionParameters,
    IDS.DeleteSubscriptionsRequest_Encoding_DefaultBinary: ua.DeleteSubscriptionsParameters,
    IDS.TransferSubscriptionsRequest_Encoding_DefaultBinary: ua.TransferSubscriptionsParameters,
    IDS.SetPublishingModeRequest_Encoding_DefaultBinary: ua.SetPublishingModeParameters,
    IDS.CreateMonitoredItemsRequest_Encoding_DefaultBinary: ua.CreateMonitoredItemsParameters,
    IDS.ModifyMonitoredItemsRequest_Encoding_DefaultBinary: ua.ModifyMonitoredItemsParameters,
    IDS.DeleteMonitoredItemsRequest_Encoding_DefaultBinary: ua.DeleteMonitoredItemsParameters,
    IDS.SetMonitoringModeRequest_Encoding_DefaultBinary: ua.SetMonitoringModeParameters,
    IDS.RepublishRequest_Encoding_DefaultBinary: ua.RepublishParameters,
}
_PROVEN: ContextVar[ClientUser | None] = ContextVar("proven", default=None)
log = logging.getLogger(__name__)


@dataclass
class ClientUser(User):
    """A user of the folder, as it stood when its password was right."""

    machine: Machine | None = None

    @property
    def may_control(self) -> bool:
        return self.machine is None or self.machine.role == "control"


class Fields(list[ua.Variant]):
    """An event's fields as one subscription wants them; ``renew`` puts in what holds at the moment of sending."""

    renew: Callable[[Fields], None] = staticmethod(lambda _fields: None)


class TimelySubscription(InternalSubscription):
    """Renews what its events say when they leave, whether for the first time or again."""

    def _pop_triggered_events(self, result: ua.PublishResult) -> None:
        super()._pop_triggered_events(result)
        _renew(result.NotificationMessage)

    def republish(self, nb: int) -> ua.NotificationMessage:
        message = super().republish(nb)
        _renew(message)
        return message


def _renew(message: ua.NotificationMessage) -> None:
    for notification in message.NotificationData or []:
        if isinstance(notification, ua.EventNotificationList):
            for event in notification.Events:
                if isinstance(event.EventFields, Fields):
                    event.EventFields.renew(event.EventFields)


class Subscriptions(SubscriptionService):
    """Every client has its own share of subscriptions, and none lasts for ever."""

    iserver: GuardedServer

    async def create_subscription(
        self,
        params: ua.CreateSubscriptionParameters,
        callback: Callable[..., Any],
        session_id: ua.NodeId,
        request_callback: Callable[..., Any] | None = None,
    ) -> ua.CreateSubscriptionResult:
        if (
            request_callback is not None
            and self.count_of(self.iserver.owner_of(session_id)) >= SUBSCRIPTIONS_PER_CLIENT
        ):
            raise ServiceError(ua.StatusCodes.BadTooManySubscriptions)
        if len(self.subscriptions) >= SUBSCRIPTIONS:
            raise ServiceError(ua.StatusCodes.BadTooManySubscriptions)
        self._sub_id_counter += 1
        result = ua.CreateSubscriptionResult()
        result.SubscriptionId = number = self._sub_id_counter
        result.RevisedPublishingInterval = min(max(params.RequestedPublishingInterval, FASTEST_MS), SLOWEST_MS)
        longest = int(ABANDONED_MS / result.RevisedPublishingInterval)
        result.RevisedLifetimeCount = min(params.RequestedLifetimeCount or longest, longest)
        most = max(result.RevisedLifetimeCount // 3, 1)
        result.RevisedMaxKeepAliveCount = min(params.RequestedMaxKeepAliveCount or most, most)
        self.subscriptions[number] = subscription = TimelySubscription(
            result,
            self.aspace,
            callback,
            session_id,
            request_callback=request_callback,
            delete_callback=lambda: self.subscriptions.pop(number, None),
            no_acks_limit=self.iserver.max_unacked_messages_per_subscription,
            max_queue_size=self.iserver.max_monitored_item_queue_size,
            publishing_enabled=params.PublishingEnabled,
        )
        await subscription.start()
        return result

    async def create_monitored_items(
        self, params: ua.CreateMonitoredItemsParameters
    ) -> list[ua.MonitoredItemCreateResult]:
        subscription = self.subscriptions.get(params.SubscriptionId)
        held = 0 if subscription is None else len(subscription.monitored_item_srv._monitored_items)
        if held + len(params.ItemsToCreate) > ITEMS_PER_SUBSCRIPTION:
            raise ServiceError(ua.StatusCodes.BadTooManyMonitoredItems)
        made: list[ua.MonitoredItemCreateResult] = await super().create_monitored_items(params)
        return made

    def modify_monitored_items(self, params: ua.ModifyMonitoredItemsParameters) -> list[ua.MonitoredItemModifyResult]:
        for item in params.ItemsToModify:
            asked = item.RequestedParameters
            asked.QueueSize = min(asked.QueueSize or QUEUE, QUEUE)  # the library takes 0 for no limit here
        modified: list[ua.MonitoredItemModifyResult] = super().modify_monitored_items(params)
        return modified

    def count_of(self, owner: str) -> int:
        """How many subscriptions a client holds, those of its ended sessions too."""
        return sum(self.iserver.owner_of(each.session_id) == owner for each in self.subscriptions.values())


class GuardedServer(InternalServer):
    """Knows who opened each session, and names sessions so that nobody guesses them."""

    def __init__(self, users: UserProof, rules: Rules) -> None:
        super().__init__(user_manager=users)
        self._owners: dict[ua.NodeId, str] = {}
        self.rules = rules
        self.trust: TrustList | None = None
        """None: no security, on loopback, as it was asked for."""

        self.users = users
        self.counts: Counter[str] = Counter()
        self.log = LimitedLog(log)
        self.subscription_service = Subscriptions(self.aspace, iserver=self)
        self.isession.subscription_service = self.subscription_service
        self.max_connections = CONNECTIONS
        self.max_pending_activation_seconds = ACTIVATION_S
        self.max_session_timeout_ms = SESSION_MS
        self.max_unacked_messages_per_subscription = 100
        self.max_monitored_item_queue_size = QUEUE
        self.max_pending_messages_per_connection = PENDING
        self.max_subscriptions = SUBSCRIPTIONS

    def register_external_session(self, session: InternalSession) -> None:
        session.auth_token = ua.NodeId(secrets.token_bytes(32), 0, ua.NodeIdType.ByteString)
        super().register_external_session(session)

    def note_owner(self, session: InternalSession, owner: str) -> None:
        """Whose a session is; forgotten when neither it nor a subscription of it is left."""
        held = {each.session_id for each in self.subscription_service.subscriptions.values()}
        held |= {each.session_id for each in self._external_sessions.values()}
        self._owners = {number: who for number, who in self._owners.items() if number in held}
        self._owners[session.session_id] = owner

    def owner_of(self, session_id: ua.NodeId) -> str:
        return self._owners.get(session_id, "")

    def refuse(self, what: str, who: object, why: str) -> None:
        """Count and say that somebody was turned away."""
        self.counts[what] += 1
        self.log.warning(what, f"a client at {who} was turned away: {why}")


class UserProof:
    """asyncua asks for a user in its loop; here is only read what was proven outside it."""

    def __init__(self, users: Users | None) -> None:
        self.users = users
        self._throttle = Throttle()
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="passwords")

    def get_user(
        self, iserver: object, username: object = None, password: object = None, certificate: object = None
    ) -> User | None:
        """What was proven for the session that is activated at this moment."""
        return _PROVEN.get()

    async def prove(self, name: str, password: str, client: str) -> ClientUser | None:
        """The user of this name and password; guessing gets slower for the client that does it, for no other."""
        if self.users is None:
            return None
        key = Key(f"{client} {name}", FREE_GUESSES)
        if self._throttle.admit(key) > 0:
            return None
        loop = asyncio.get_running_loop()
        machine = await loop.run_in_executor(self._hashing, self.users.check, name, password)
        if machine is None:
            return None
        self._throttle.take_back(key)
        return ClientUser(UserRole.User, name, machine)

    def stands(self, user: object) -> bool:
        """Whether a user is still one, with the same password and role."""
        if self.users is None or not isinstance(user, ClientUser) or user.machine is None:
            return True
        return self.users.all().get(user.machine.name) == user.machine


class Rules(SimpleRoleRuleset):
    """Whoever may only read calls no method that changes something."""

    def __init__(self) -> None:
        super().__init__()
        self.controls: set[ua.NodeId] = set()

    def check_validity(self, user: User, action_type_id: ua.NodeId, body: Any) -> bool:
        if not super().check_validity(user, action_type_id, body):
            return False
        if action_type_id.Identifier != IDS.CallRequest_Encoding_DefaultBinary:
            return True
        if isinstance(user, ClientUser) and user.may_control:
            return True
        called = struct_from_binary(ua.CallParameters, body.copy())
        return not any(method.MethodId in self.controls for method in called.MethodsToCall)


class Processor(UaProcessor):
    """Lets in only who is trusted, and answers a refusal instead of leaving the client waiting."""

    iserver: GuardedServer

    async def process(self, header: Any, body: Any) -> bool:
        try:
            return bool(await super().process(header, body))
        except Exception as error:  # noqa: BLE001 - whatever was sent, the sender hears of it and is closed
            code = getattr(error, "code", ua.StatusCodes.BadSecurityChecksFailed)
            self.iserver.refuse("messages", self.name, f"{type(error).__name__} {str(error)[:200]!r}")
            self._transport.write(uatcp_to_binary(ua.MessageType.Error, ua.ErrorMessage(ua.StatusCode(code), "")))
            return False

    def open_secure_channel(self, algohdr: Any, seqhdr: Any, body: Any) -> None:
        trust = self.iserver.trust
        certificate = algohdr.SenderCertificate
        if trust is not None and algohdr.SecurityPolicyURI != SecurityPolicyNone.URI and not trust.trusts(certificate):
            trust.reject(certificate or b"")
            self.iserver.refuse("untrusted", self.name, "its certificate is not in trusted/ but now in rejected/")
            raise ServiceError(ua.StatusCodes.BadCertificateUntrusted)
        super().open_secure_channel(algohdr, seqhdr, body)

    def get_publish_request(self, subscription_id: int) -> Any:
        """None where nobody would read the answer now: what is due then stays in its queue, and is renewed."""
        if self._transport.is_closing() or self._transport.get_write_buffer_size() > CHUNK_BYTES:
            return None
        return super().get_publish_request(subscription_id)

    def send_response(
        self, requesthandle: Any, seqhdr: Any, response: Any, msgtype: Any = ua.MessageType.SecureMessage
    ) -> None:
        if self._transport.get_write_buffer_size() > UNREAD_BYTES:
            self.iserver.refuse("unread", self.name, "it does not read what it is sent")
            self._transport.abort()
            return
        super().send_response(requesthandle, seqhdr, response, msgtype)

    async def _process_message(self, typeid: Any, requesthdr: Any, seqhdr: Any, body: Any) -> bool:
        self._check(typeid.Identifier, requesthdr, body)
        if typeid.Identifier != ACTIVATE:
            done = await super()._process_message(typeid, requesthdr, seqhdr, body)
            if typeid.Identifier == CREATE and self.session is not None:
                self.iserver.note_owner(self.session, self._client())
            return bool(done)
        proven = _PROVEN.set(await self._prove(requesthdr, body))
        try:
            return bool(await super()._process_message(typeid, requesthdr, seqhdr, body))
        finally:
            _PROVEN.reset(proven)

    def _check(self, kind: int, requesthdr: Any, body: Any) -> None:
        """Raise ServiceError where this is not to be done on this connection."""
        if kind in NEVER:
            raise ServiceError(ua.StatusCodes.BadServiceUnsupported)
        if kind in DISCOVERY:
            return
        # The library has b"" for none, and leaves its own check of rights out then.
        if self.iserver.trust is not None and not self._connection.security_policy.peer_certificate:
            self.iserver.refuse("insecure", self.name, "it asked without security for more than the endpoints")
            raise ServiceError(ua.StatusCodes.BadSecurityModeInsufficient)
        if kind == CREATE:
            self._check_create(body)
        elif kind == ACTIVATE and self.session is None:
            self._check_owner(requesthdr)
        elif kind not in WITHOUT_SESSION:
            session = self.session
            if session is None or requesthdr.AuthenticationToken != session.auth_token:
                raise ServiceError(ua.StatusCodes.BadSessionIdInvalid)
            if kind != CLOSE and not self.iserver.rules.check_validity(session.user, ua.NodeId(kind), body):
                raise ServiceError(ua.StatusCodes.BadUserAccessDenied)
            self._check_subscriptions(kind, body)

    def _check_create(self, body: Any) -> None:
        if self.session is not None and self.session.state is not SessionState.Closed:
            raise ServiceError(ua.StatusCodes.BadTooManySessions)
        claimed = struct_from_binary(ua.CreateSessionParameters, body.copy()).ClientCertificate
        if self.iserver.trust is not None and claimed != self._connection.security_policy.peer_certificate:
            raise ServiceError(ua.StatusCodes.BadCertificateInvalid)

    def _check_owner(self, requesthdr: Any) -> None:
        """A session goes on over another connection only for the client that opened it."""
        session = self.iserver.lookup_external_session(requesthdr.AuthenticationToken)
        if session is None or self.iserver.owner_of(session.session_id) != self._client():
            raise ServiceError(ua.StatusCodes.BadSessionIdInvalid)

    def _check_subscriptions(self, kind: int, body: Any) -> None:
        """A subscription is touched only by the client that made it."""
        if kind not in OF_SUBSCRIPTIONS:
            return
        asked = struct_from_binary(OF_SUBSCRIPTIONS[kind], body.copy())
        ids = [asked.SubscriptionId] if hasattr(asked, "SubscriptionId") else asked.SubscriptionIds
        held = self.iserver.subscription_service.subscriptions
        if any(each in held and self.iserver.owner_of(held[each].session_id) != self._client() for each in ids):
            raise ServiceError(ua.StatusCodes.BadSubscriptionIdInvalid)

    async def _prove(self, requesthdr: Any, body: Any) -> ClientUser | None:
        """The user that an activation names, its password looked at outside the loop."""
        if self.iserver.trust is None:
            return ClientUser(UserRole.User, "anyone on this machine")
        token = struct_from_binary(ua.ActivateSessionParameters, body.copy()).UserIdentityToken
        session = self.session or self.iserver.lookup_external_session(requesthdr.AuthenticationToken)
        if session is None or not isinstance(token, ua.UserNameIdentityToken):
            return None  # the library says that the token is rejected
        try:
            name, password = self.iserver.decrypt_user_token(session, token)
        except Exception as error:
            raise ServiceError(ua.StatusCodes.BadIdentityTokenInvalid) from error
        user = await self.iserver.users.prove(str(name), str(password), self._client())
        if user is None:
            self.iserver.refuse("passwords", self.name, f"no such user and password: {str(name)[:60]!r}")
        return user

    def _client(self) -> str:
        """Who is at the other end: its certificate, or its address where there is no security."""
        certificate = self._connection.security_policy.peer_certificate
        return hashlib.sha256(certificate).hexdigest() if certificate else str(self.name[0])


class Protocol(OPCUAProtocol):
    """A connection whose memory is bounded before anybody is known."""

    iserver: GuardedServer
    _held = 0

    def connection_made(self, transport: Any) -> None:
        peer = (transport.get_extra_info("peername") or ("?",))[0]
        alike = sum((each.peer_name or ("",))[0] == peer for each in self.clients)
        if alike >= CONNECTIONS_PER_ADDRESS:
            self.iserver.refuse("crowded", peer, f"{alike} connections of this address are open")
            transport.abort()
            return
        super().connection_made(transport)
        if self.transport is not None:
            self.processor = Processor(self.iserver, self.transport, self.limits)
            self.processor.set_policies(self.policies)

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            return
        self._held = len(data) + (0 if self.messages.empty() else self._held)
        super().data_received(data)
        if len(self._buffer) > CHUNK_BYTES or self._held > PENDING_BYTES:
            self.iserver.refuse("messages", self.peer_name, "a message of more than it may have")
            self.transport.abort()


class Listener(BinaryServer):
    """Serves a socket that the host opened, so that the port is held while this process is started anew."""

    socket: socket.socket

    def _make_protocol(self) -> OPCUAProtocol:
        return Protocol(self.iserver, self._policies, self.clients, self.closing_tasks, self.limits)

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._make_protocol, sock=self.socket)
        self.cleanup_task = asyncio.create_task(self._close_task_loop())


def make_server(users: Users | None, trust: TrustList | None, listener: socket.socket, rules: Rules) -> Server:
    """An asyncua server behind these guards; ``trust`` None: without security. Not initialised yet."""
    internal = GuardedServer(UserProof(users), rules)
    internal.trust = trust
    server = Server(iserver=internal)
    server.limits = TransportLimits(CHUNK_BYTES, CHUNK_BYTES, MESSAGE_BYTES // CHUNK_BYTES + 1, MESSAGE_BYTES)
    server_module.BinaryServer = type("Listening", (Listener,), {"socket": listener})
    if trust is None:
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        server.set_identity_tokens([ua.AnonymousIdentityToken])
        return server
    server.set_security_policy(
        [
            ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
            ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
        ]
    )
    server.set_identity_tokens([ua.UserNameIdentityToken])
    options = CertificateValidatorOptions.EXT_VALIDATION | CertificateValidatorOptions.PEER_CLIENT
    server.set_certificate_validator(CertificateValidator(options))
    return server


async def turn_out(server: Server) -> None:
    """For as long as the server runs: close what belongs to a certificate or a user that is no longer trusted."""
    internal: Any = server.iserver
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            for connection in list(server.bserver.clients if server.bserver else []):
                why = _unwelcome(internal, connection)
                if why is not None:
                    internal.refuse("turned_out", connection.peer_name, why)
                    if connection.processor.session is not None:
                        await connection.processor.session.close_session(True)
                    connection.transport.abort()
        except (ConfigError, OSError) as error:  # a users file that cannot be read admits nobody new either
            internal.log.warning("folder", str(error))


def _unwelcome(internal: GuardedServer, connection: Any) -> str | None:
    """Why a connection has to go; None where it may stay."""
    processor = connection.processor
    session = processor.session
    certificate = processor._connection.security_policy.peer_certificate
    # Empty where the channel is not open yet, and where it is without security and endpoints are asked for.
    if internal.trust is not None and not certificate:
        return None if session is None else "it has a session without a certificate"
    if internal.trust is not None and not internal.trust.trusts(certificate):
        return "its certificate is trusted no more"
    if session is None or session.state is not SessionState.Activated or internal.users.stands(session.user):
        return None
    return f"its user {session.user.name!r} is none any more, or has another password or role"
