"""Frames from one process to another: our two ways against imagezmq and a pickle through a pipe, interleaved.

ring            shared memory, as between a capture process and the station: put, announce, wake, copy out, release
spool           as between edge and host: written to SQLite, DEALER to ROUTER, hash checked, acknowledged, forgotten
imagezmq_req    imagezmq's REQ and REP: one frame at a time, each answered
imagezmq_pub    imagezmq's PUB and SUB: nothing answered, what is too much is dropped
pickle_pipe     multiprocessing's Pipe

For each size: as fast as it goes (frames_per_s, mb_per_s, lost), and the processor time that both processes and the
kernel for them then spend on a frame (cpu_ms_per_frame), which is the fairer figure on a busy machine: there a way that
is held up by its own work gets its share of the processors and no more, while one that sleeps and wakes all the time
gets ahead of others. Then at a steady rate, from before the hand-over until the receiver holds the pixels (latency_ms).
after_kill: numbered frames, the receiver killed with SIGKILL while it has one in hand, and started again; how many of
those whose sending had succeeded no receiver has finished with.

imagezmq (MIT) is measured where it can be imported: pip install imagezmq

    python -m benchmarks.transport --json benchmarks/results/transport.json
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import select
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq

from benchmarks.common import machine, parser, write
from contract.event import MAGIC, Ack, Attachment, Chunk, Held, attachment_of, check_parts, from_frames, part_ref
from contract.images import PixelFormat
from contract.versions import installed
from edge_runtime.account import percentile
from edge_runtime.emitter import Emitter
from edge_runtime.ring import Record, Ring
from edge_runtime.settings import HostLink
from edge_runtime.spool import Draft, Spool
from tests.processes import free_port

SIZES = {"640x480": (480, 640), "1.3 MP": (1024, 1280), "5 MP": (2048, 2448)}
STEADY_FPS = 15  # or half of what goes, where that is less
KILL_FRAMES, KILL_AT, KILL_FPS = 60, 30, 40
IN_HAND = -2
SLOTS = 8
PATIENCE_S = 10.0
QUIET_S = 5.0  # nothing for so long: nothing more will come
GUARANTEES = {
    "ring": "one machine; what was announced stands when the sender is killed; gone with the station, a declared gap",
    "spool": "kept on disk until it is acknowledged, sent again: either side may be killed; after a power cut what was "
    "neither synced (10 ms) nor acknowledged is a declared gap",
    "imagezmq_req": "one frame under way, answered; a receiver killed with it leaves the sender waiting for ever",
    "imagezmq_pub": "none: what the receiver does not take in time, or while it is away, is dropped without a word",
    "pickle_pipe": "none: what the receiver holds is lost; killed while it reads, it leaves a pipe of no use any more",
}

Send = Callable[[np.ndarray], None]
Got = Callable[[np.ndarray], None]


class Way(NamedTuple):
    """``sender``: a context that gives a function which hands one frame over. ``receive``: the other process."""

    sender: Callable[[Any], Any]
    receive: Callable[[Any, Got], None]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    made.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    options = made.parse_args()
    before = machine() | {"imagezmq": installed("imagezmq")}
    ways = {name: way for name, way in WAYS.items() if not name.startswith("imagezmq") or has_imagezmq()}
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for size in options.sizes:
            for name in ways:
                rounds.setdefault((size, name), []).append(measure(name, SIZES[size], options.seconds))
    rows = [{"frame": size, "way": name} | medians(found) for (size, name), found in rounds.items()]
    killed = [{"way": name} | kill(name) | {"guarantee": GUARANTEES[name]} for name in ways if name != "ring"]
    killed.append({"way": "ring", "guarantee": GUARANTEES["ring"]})
    question = (__doc__ or "").splitlines()[0]
    write(options.json, {"question": question, "rounds": options.rounds, "rows": rows, "after_kill": killed}, before)


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the rounds."""
    return {key: round(statistics.median(each[key] for each in found), 3) for key in found[0]}


def has_imagezmq() -> bool:
    return importlib.util.find_spec("imagezmq") is not None


# One measurement ------------------------------------------------------------------------------------------------------


@contextmanager
def receiver(name: str, place: dict[str, Any]) -> Iterator[Any]:
    """A receiving process; yields the pipe on which it says what it got: (number, latency, its processor time), ns."""
    spawn = multiprocessing.get_context("fork" if name == "ring" else "spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=receive_all, args=(name, place, theirs), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        if not ours.poll(60):
            raise SystemExit(f"{name}: the receiver does not start")
        ours.recv()
        yield ours
    finally:
        process.kill()
        process.join()


def receive_all(name: str, place: dict[str, Any], told: Any) -> None:
    """The receiving process: stamps each frame's arrival; its number and time of sending stand in its first pixels."""

    def got(frame: np.ndarray) -> None:
        number, sent_ns = read_stamp(frame)
        latency_ns = time.monotonic_ns() - sent_ns
        if number == place.get("stop_at"):
            told.send((IN_HAND, 0, 0))
            time.sleep(3600)
        told.send((number, latency_ns, time.process_time_ns()))

    told.send("ready")
    with suppress(EOFError, BrokenPipeError):
        WAYS[name].receive(place, got)


def stamp(frame: np.ndarray, number: int) -> None:
    frame.reshape(-1)[:16] = np.array([number, time.monotonic_ns()], np.int64).view(np.uint8)


def read_stamp(frame: np.ndarray) -> tuple[int, int]:
    number, sent_ns = frame.reshape(-1)[:16].view(np.int64)
    return int(number), int(sent_ns)


class Heard:
    """What the receiver says, gathered beside the sending."""

    def __init__(self, pipe: Any) -> None:
        self.latencies: list[float] = []
        self.numbers: list[int] = []
        self.cpu_ns: list[int] = []
        self.last_s = time.monotonic()
        self.in_hand = threading.Event()
        self._pipe = pipe
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, latency_ns, cpu_ns = self._pipe.recv()
                if number == IN_HAND:
                    self.in_hand.set()
                    continue
                self.cpu_ns.append(cpu_ns)
                self.numbers.append(number)
                self.latencies.append(latency_ns / 1e6)
                self.last_s = time.monotonic()

    def wait_for(self, count: int, quiet_s: float) -> None:
        """Until so many have come, or nothing for so long."""
        while len(self.numbers) < count and time.monotonic() - self.last_s < quiet_s:
            time.sleep(0.002)


def new_place(name: str, folder: str, hw: tuple[int, int]) -> dict[str, Any]:
    place: dict[str, Any] = {"endpoint": f"tcp://127.0.0.1:{free_port()}", "folder": folder, "hw": hw}
    if name == "ring":
        place |= {"ring": Ring.create(SLOTS, hw[0] * hw[1]), "wake": os.pipe2(os.O_NONBLOCK), "freed": os.pipe()}
    if name == "pickle_pipe":
        place["pipe"] = multiprocessing.get_context("spawn").Pipe(duplex=False)
    return place


def measure(name: str, hw: tuple[int, int], seconds: float) -> dict[str, float]:
    """One way, one size: a burst, then a steady rate."""
    frame = np.random.default_rng(0).integers(0, 256, hw, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        place = new_place(name, folder, hw)
        with receiver(name, place) as pipe, WAYS[name].sender(place) as send:
            heard = Heard(pipe)
            warm_up(send, frame, heard)
            sent, begun, first = 0, time.monotonic(), len(heard.numbers)
            cpu_ns = time.process_time_ns() + heard.cpu_ns[-1]
            while time.monotonic() - begun < seconds:
                stamp(frame, sent)
                send(frame)
                sent += 1
            heard.last_s = time.monotonic()
            heard.wait_for(first + sent, QUIET_S)
            burst, took = len(heard.numbers) - first, heard.last_s - begun
            cpu_ms = (time.process_time_ns() + heard.cpu_ns[-1] - cpu_ns) / 1e6
            if not burst:
                raise SystemExit(f"{name}: no frame came through")
            first = len(heard.numbers)
            fps, begun = min(STEADY_FPS, burst / took / 2), time.monotonic()
            for number in range(max(10, int(seconds * fps))):
                time.sleep(max(0.0, begun + number / fps - time.monotonic()))
                stamp(frame, number)
                send(frame)
            heard.last_s = time.monotonic()
            heard.wait_for(first + number + 1, QUIET_S)
            steady = heard.latencies[first:] or [float("nan")]
    return {
        "frames_per_s": burst / took,
        "mb_per_s": burst * frame.nbytes / 1e6 / took,
        "lost": sent - burst,
        "cpu_ms_per_frame": cpu_ms / burst,
        "latency_p50_ms": percentile(steady, 50),
        "latency_p99_ms": percentile(steady, 99),
    }


def warm_up(send: Send, frame: np.ndarray, heard: Heard) -> None:
    """Until frames come through: a subscriber needs a moment until it is known.

    Then a burst, so that every buffer, and each of the ring's slots, has been written once: the system gives memory
    page by page, at ten times the price of a copy, and only once.
    """
    end, sent = time.monotonic() + PATIENCE_S, 0
    while not heard.numbers and time.monotonic() < end:
        stamp(frame, -1)
        send(frame)
        sent += 1
        time.sleep(0.05)
    for _ in range(2 * SLOTS):
        stamp(frame, -1)
        send(frame)
    heard.last_s = time.monotonic()
    heard.wait_for(sent + 2 * SLOTS, QUIET_S)


def kill(name: str) -> dict[str, Any]:
    """Frames whose sending succeeded and that no receiver got; the receiver is killed in the middle."""
    frame = np.zeros(SIZES["640x480"], np.uint8)
    got: set[int] = set()
    succeeded: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        place = new_place(name, folder, SIZES["640x480"])
        with WAYS[name].sender(place) as send:
            sending = threading.Thread(target=send_numbered, args=(send, frame, succeeded), daemon=True)
            with receiver(name, place | {"stop_at": KILL_AT}) as pipe:
                heard = Heard(pipe)
                warm_up(send, frame, heard)
                sending.start()
                heard.in_hand.wait(PATIENCE_S)
            got |= set(heard.numbers)
            with receiver(name, place) as pipe:
                heard = Heard(pipe)
                sending.join(PATIENCE_S)
                heard.last_s = time.monotonic()
                heard.wait_for(KILL_FRAMES, 3.0)
            got |= set(heard.numbers)
            place["hangs"] = sending.is_alive()  # a thread that waits for ever in a socket cannot be ended
    return {"sent": len(succeeded), "lost": len(set(succeeded) - got), "sender_hangs": place["hangs"]}


def send_numbered(send: Send, frame: np.ndarray, succeeded: list[int]) -> None:
    for number in range(KILL_FRAMES):
        mine = frame.copy()  # a socket may still read the one before
        stamp(mine, number)
        with suppress(OSError, ValueError):
            send(mine)
            succeeded.append(number)
        time.sleep(1 / KILL_FPS)


# The ways -------------------------------------------------------------------------------------------------------------


@contextmanager
def ring_sender(place: dict[str, Any]) -> Iterator[Send]:
    """The capture process's side; waits for a free slot, which a camera could not."""
    ring, wake, freed = place["ring"], place["wake"][1], place["freed"][0]

    def send(frame: np.ndarray) -> None:
        while (slot := ring.put(frame, PixelFormat.MONO8, 0, time.monotonic_ns())) is None:
            select.select([freed], [], [], 1.0)
            os.read(freed, 64)
        ring.announce(Record(0, 0, 0, 0, None, slot, None))
        ring.unkeep(slot)
        with suppress(BlockingIOError):
            os.write(wake, b"!")

    yield send
    ring.close()


def ring_receive(place: dict[str, Any], got: Got) -> None:
    ring, wake, freed = place["ring"], place["wake"][0], place["freed"][1]
    while True:
        select.select([wake], [], [])
        with suppress(BlockingIOError):
            os.read(wake, 4096)
        for record in ring.drain():
            pixels, _ = ring.read(record.slot)
            got(pixels)
            ring.release(record.slot)
            os.write(freed, b"!")


@contextmanager
def spool_sender(place: dict[str, Any]) -> Iterator[Send]:
    """The edge's side, at most as many waiting as are sent at once, so that the burst is not of a growing file."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    spool = Spool(Path(place["folder"]) / "spool.sqlite")
    emitter = Emitter(spool, HostLink(endpoint=place["endpoint"], resend_ms=500), context)
    emitter.start()

    def send(frame: np.ndarray) -> None:
        while spool.size[0] >= SLOTS:
            time.sleep(0.0005)
        data = frame.tobytes()
        header = Attachment(
            edge_id="bench", spool_id=spool.spool_id, run_id=spool.run_id, seq=1, t_wall_ns=time.time_ns(),
            part_id="part", result_seq=1, parts=(part_ref("image", data, codec="raw", shape=frame.shape),),
        )  # fmt: skip
        spool.append([Draft(header, (data,))])
        emitter.wake()

    try:
        yield send
    finally:
        emitter.stop()
        spool.close()
        context.term()


def spool_receive(place: dict[str, Any], got: Got) -> None:
    """A host that acknowledges once the frame has been told on, and keeps nothing on a disk."""
    begun: dict[tuple[str, int], bytearray] = {}
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(place["endpoint"])
        while True:
            peer, *frames = socket.recv_multipart()
            header, parts, _ = from_frames(frames)
            if isinstance(header, Chunk):
                reply, whole = take_chunk(header, parts, begun)
            else:
                reply = Ack(spool_id=header.spool_id, seqs=(header.seq,))
                whole = parts[0] if isinstance(header, Attachment) else None
            if whole is not None:
                got(np.frombuffer(whole, np.uint8).reshape(place["hw"]))
            socket.send_multipart([peer, MAGIC, reply.model_dump_json().encode()])


def take_chunk(
    chunk: Chunk, parts: tuple[bytes, ...], begun: dict[tuple[str, int], bytearray]
) -> tuple[Ack | Held, bytes | None]:
    """What to answer, and the frame where it is whole now, its hash checked as a host does."""
    key = (chunk.spool_id, chunk.seq)
    held = begun.setdefault(key, bytearray())
    if chunk.offset == len(held):
        held += parts[1]
    if len(held) < chunk.size:
        return Held(spool_id=chunk.spool_id, seq=chunk.seq, sha256=chunk.sha256, offset=len(held)), None
    whole = bytes(begun.pop(key))
    check_parts(attachment_of(chunk, parts[0]), (whole,))
    return Ack(spool_id=chunk.spool_id, seqs=(chunk.seq,)), whole


@contextmanager
def imagezmq_sender(place: dict[str, Any], answered: bool) -> Iterator[Send]:
    import imagezmq  # type: ignore[import-not-found]

    sender = imagezmq.ImageSender(connect_to=place["endpoint"], REQ_REP=answered)
    sender.zmq_socket.setsockopt(zmq.LINGER, 0)

    def send(frame: np.ndarray) -> None:
        sender.send_image("bench", frame if answered else frame.copy())  # unanswered, it may still be read

    yield send
    if not place.get("hangs"):
        sender.zmq_socket.close()


def imagezmq_receive(place: dict[str, Any], got: Got, answered: bool) -> None:
    import imagezmq

    if answered:
        hub = imagezmq.ImageHub(open_port=place["endpoint"].replace("127.0.0.1", "*"))
    else:
        hub = imagezmq.ImageHub(open_port=place["endpoint"], REQ_REP=False)
    while True:
        _, frame = hub.recv_image()
        got(frame)
        if answered:
            hub.send_reply(b"OK")


def req_sender(place: dict[str, Any]) -> Any:
    return imagezmq_sender(place, True)


def req_receive(place: dict[str, Any], got: Got) -> None:
    imagezmq_receive(place, got, True)


def pub_sender(place: dict[str, Any]) -> Any:
    return imagezmq_sender(place, False)


def pub_receive(place: dict[str, Any], got: Got) -> None:
    imagezmq_receive(place, got, False)


@contextmanager
def pipe_sender(place: dict[str, Any]) -> Iterator[Send]:
    yield place["pipe"][1].send


def pipe_receive(place: dict[str, Any], got: Got) -> None:
    while True:
        got(place["pipe"][0].recv())


WAYS = {
    "ring": Way(ring_sender, ring_receive),
    "spool": Way(spool_sender, spool_receive),
    "imagezmq_req": Way(req_sender, req_receive),
    "imagezmq_pub": Way(pub_sender, pub_receive),
    "pickle_pipe": Way(pipe_sender, pipe_receive),
}

if __name__ == "__main__":
    main()
