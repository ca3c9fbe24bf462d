"""Who may speak to the host: ZeroMQ's authentication requests, the folder of authorised keys (before hop 7).

An own ZAP handler rather than pyzmq's thread: it answers for one domain and CURVE alone, refuses whatever it does not
know, says who was refused from where, and follows the folder while the host runs.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.utils import z85

from contract.curve import FAILED, ZAP_DOMAIN, Monitor, secure_client, secure_server
from contract.errors import KeyFileError
from contract.keys import EDGES, HOST, PUBLIC, SECRET, Authorised, KeyPair, fingerprint, load_pair, read_authorised
from contract.overseer import Pulse
from plugin.errors import ConfigError
from plugin.logs import LimitedLog

WATCH_S = 0.5
"""How often the folder is looked at: a change takes effect within this and a look at the connections, under 2 s."""

EARLY_LOOKS = 20
"""How often within WATCH_S an unknown key has the folder looked at once more; a flood of them must not."""

PROOF_S = 5.0
log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]


class GateCounts:
    """What the gate met since the start. Written by its thread alone, read by any."""

    def __init__(self) -> None:
        self.unknown_key = 0
        self.malformed = 0


class Gate:
    """The host's key, the live set of authorised edges, and the ZAP socket of ``context``.

    ``name_of``, ``authorises`` and ``edges`` may be asked by any thread. Make it before the guarded sockets are bound.
    """

    def __init__(self, context: zmq.Context[Socket], folder: Path) -> None:
        self.counts = GateCounts()
        self.trouble: str | None = None
        self._folder = folder
        self._pair = load_pair(folder / f"{HOST}{SECRET}")
        self._on_revoked: list[Callable[[frozenset[str]], None]] = []
        self._stopping = threading.Event()
        self._early_looks = 0
        self._log = LimitedLog(log)
        found = read_authorised(folder)
        self._signature = self._sign()
        self._names = found.names
        self._tell_problems(found)
        self.pulse = Pulse("gate")
        self._zap = context.socket(zmq.REP)
        self._zap.set(zmq.LINGER, 0)
        self._zap.set(zmq.MAXMSGSIZE, 4096)
        self._zap.bind("inproc://zeromq.zap.01")
        log.info("%d edge(s) are authorised by %s; the host's key is %s", len(self._names), folder / EDGES, self.key)

    @property
    def public(self) -> str:
        """The host's public key, Z85."""
        return self._pair.public

    @property
    def key(self) -> str:
        """The host's public key as it is compared over the telephone."""
        return fingerprint(self._pair.public)

    def secure(self, socket: Socket) -> None:
        """Let only authorised keys connect to a socket that is not bound yet."""
        secure_server(socket, self._pair)

    def name_of(self, user_id: str | None) -> str | None:
        """The edge that a message's ``User-Id`` (its proven public key) stands for now; None: not authorised."""
        return None if user_id is None else self._names.get(user_id)

    def authorises(self, edge_id: str) -> bool:
        """Whether a key of this edge may connect now."""
        return edge_id in self._names.values()

    def edges(self) -> list[str]:
        """Every edge that may connect now."""
        return sorted(self._names.values())

    def when_revoked(self, action: Callable[[frozenset[str]], None]) -> None:
        """Call ``action`` on the gate's thread after a key lost its authorisation. Call before ``run``."""
        self._on_revoked.append(action)

    def run(self) -> None:
        """Answer and watch until stopped."""
        next_look = 0.0
        while not self._stopping.is_set():
            self.pulse.turn()
            if self._zap.poll(int(WATCH_S * 1000)):
                self._answer()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + WATCH_S
                self._early_looks = 0
                self._look()

    def stop(self) -> None:
        """End ``run`` within WATCH_S."""
        self._stopping.set()

    def close(self) -> None:
        """Let go of the ZAP socket; after ``run`` has ended and the guarded sockets are closed."""
        self._zap.close(0)

    def prove(self, endpoint: str) -> None:
        """Try a fresh key and a plain client at a bound endpoint: both must be refused. Call before ``run``.

        Raises ConfigError where either is let in or nobody answers, so that a host never starts with an open door.
        """
        public, secret = zmq.curve_keypair()
        rogue = KeyPair("rogue", public.decode(), secret)
        for what, pair in (("a key that nobody authorised", rogue), ("a client without a key", None)):
            happened = self._try(endpoint, pair)
            if happened is None or not happened & FAILED:
                found = "got no answer" if happened is None else "was let in"
                raise ConfigError(
                    f"the host does not start: {what} {found} at {endpoint}, and must be refused; this is a fault of "
                    "the installation: reinstall pyzmq with CURVE (python -c 'import zmq; print(zmq.has(\"curve\"))')"
                )
        self.counts = GateCounts()

    def _try(self, endpoint: str, pair: KeyPair | None) -> int | None:
        """What a client's handshake came to; the authentication requests meanwhile are answered here."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.set(zmq.LINGER, 0)
            if pair is not None:
                secure_client(client, pair, self._pair.public)
            monitor = Monitor(context, client)
            try:
                client.connect(_reachable(endpoint))
                deadline = time.monotonic() + PROOF_S
                while time.monotonic() < deadline:
                    if self._zap.poll(10):
                        self._answer(quiet=True)
                    for happening in monitor.happenings():
                        if happening.event & (FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED):
                            return happening.event
                return None
            finally:
                monitor.close()

    def _answer(self, quiet: bool = False) -> None:
        """One ZAP request (RFC 27). Whatever is not an authorised key of our domain is refused."""
        frames = self._zap.recv_multipart()
        if len(frames) < 6:
            self.counts.malformed += 1
            self._zap.send_multipart([b"1.0", frames[1] if len(frames) > 1 else b"", b"400", b"malformed", b"", b""])
            return
        version, request_id, domain, address, _, mechanism, *credentials = frames
        public = z85.encode(credentials[0]).decode() if [len(each) for each in credentials] == [32] else ""
        wanted = (version, domain, mechanism) == (b"1.0", ZAP_DOMAIN, b"CURVE")
        if wanted and public not in self._names and self._early_looks < EARLY_LOOKS:
            self._early_looks += 1
            self._look()  # authorised a moment ago: a refused client would only come back after a while
        if wanted and public in self._names:
            self._zap.send_multipart([b"1.0", request_id, b"200", b"OK", public.encode(), b""])
            return
        self._zap.send_multipart([b"1.0", request_id, b"400", b"not authorised", b"", b""])
        self.counts.unknown_key += 1
        if not quiet:
            where = address.decode("ascii", "replace")[:60]
            self._log.warning(
                "unknown",
                f"a key that is not authorised was refused: {public} (fingerprint {fingerprint(public)}) from {where}; "
                f"if it is an edge of yours: flawline keys authorise EDGE{PUBLIC} --dir {self._folder}",
            )

    def _sign(self) -> object:
        """Changes whenever a file of the folder does."""
        edges = self._folder / EDGES
        try:
            folders = [
                (found.st_mode, found.st_uid, found.st_mtime_ns) for found in (self._folder.stat(), edges.stat())
            ]
            files = [(path.name, path.lstat()) for path in sorted(edges.glob(f"*{PUBLIC}"))]
        except OSError:
            return None
        return folders, [
            (name, s.st_ino, s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files
        ]

    def _look(self) -> None:
        """Take over what changed in the folder; one that cannot be trusted changes nothing, and is said."""
        signature = self._sign()
        if signature == self._signature and signature is not None:
            return
        try:
            found = read_authorised(self._folder)
        except (KeyFileError, OSError) as error:
            self.trouble = f"authorised keys are not read anew, no new one is taken: {error}"
            self._log.warning("folder", self.trouble)
            self._signature = None  # read again until it can be trusted
            # Whoever can write there may take keys away, never bring any.
            edges = self._folder / EDGES
            left = {public: name for public, name in self._names.items() if (edges / f"{name}{PUBLIC}").is_file()}
            self._take_over(left)
            return
        self._signature = signature
        self._tell_problems(found)
        self._take_over(found.names)

    def _take_over(self, names: dict[str, str]) -> None:
        """These may speak from now on; the connections of those that no longer may are cut."""
        before, self._names = self._names, names
        for public, name in names.items():
            if before.get(public) != name:
                log.info("edge %s is authorised, key %s", name, fingerprint(public))
        gone = {public: name for public, name in before.items() if names.get(public) != name}
        for public, name in gone.items():
            log.warning("edge %s is no longer authorised, key %s: its connections are cut", name, fingerprint(public))
        if gone:
            for action in self._on_revoked:
                action(frozenset(gone.values()))

    def _tell_problems(self, found: Authorised) -> None:
        for problem in found.problems:
            log.error("not authorised: %s", problem)
        self.trouble = "; ".join(found.problems) or None


def _reachable(endpoint: str) -> str:
    """An address of this machine for an endpoint that is bound to every one."""
    return re.sub(r"^tcp://0\.0\.0\.0:", "tcp://127.0.0.1:", endpoint).replace("tcp://[::]:", "tcp://[::1]:")
