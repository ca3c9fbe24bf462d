"""An edge made of a plain DEALER and invented events, for the tests of the host."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import zmq

from contract.curve import secure_client
from contract.event import (
    MAGIC,
    REPLY,
    Ack,
    Attachment,
    CameraState,
    Drift,
    DriftMeasure,
    DriftQuantile,
    DriftTest,
    Envelope,
    Gap,
    Header,
    Held,
    Missed,
    Nack,
    PartRef,
    Region,
    Result,
    Shadow,
    ShadowScore,
    State,
    Timing,
    Trigger,
    Verdict,
    encode_header,
    part_ref,
    to_frames,
)
from contract.keys import KeyPair

ROOT = Path(__file__).resolve().parents[2]
EDGE = "edge-1"
SPOOL = "spool-1"
Value = TypeVar("Value")


def until(question: Callable[[], Value], timeout_s: float = 30.0, what: str = "") -> Value:
    """Ask until the answer is true; fail after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what or question}; last answer {answer!r}")
        time.sleep(0.01)


def fields(seq: int, part: str | None = None, **more: Any) -> dict[str, Any]:
    number = more.pop("trigger_id", seq)
    return {
        "edge_id": EDGE,
        "spool_id": SPOOL,
        "run_id": "run-1",
        "seq": seq,
        "t_wall_ns": 1_790_000_000_000_000_000 + seq * 10**9,
        "part_id": part or f"part-{seq:05d}",
        "camera_id": "cam-1",
        "trigger_id": number,
        "frame_no": 10 * number,
        "timing": Timing(
            t_capture_ns=10**12,
            t_trigger_ns=10**12 + 2_100_000,
            t_taken_ns=10**12 + 3_000_000,
            t_prepared_ns=10**12 + 9_400_000,
            t_inferred_ns=10**12 + 41_000_000,
            t_decided_ns=10**12 + 44_300_000,
            t_spooled_ns=10**12 + 46_000_000,
        ),
        **more,
    }


def trigger(seq: int, part: str | None = None, **more: Any) -> Trigger:
    return Trigger(**fields(seq, part, **more))


def result(seq: int, part: str | None = None, verdict: Verdict = Verdict.PASS, **more: Any) -> Result:
    score = {Verdict.PASS: 0.4, Verdict.REVIEW: 1.1, Verdict.REJECT: 2.4, Verdict.NOT_INSPECTED: None}[verdict]
    values: dict[str, Any] = {
        "verdict": verdict,
        "score": score,
        "threshold": 1.2,
        "review_threshold": 1.0,
        "map_threshold": 0.5,
        "recipe": "washer",
        "bundle_id": "washer-2026-11-20",
        "model_sha256": "ab" * 32,
        "calibration_id": "cal-7",
        "engine": "openvino fp32",
        **more,
    }
    return Result(**fields(seq, part, **values))


def missed(seq: int, part: str | None = None, reason: str = "the station was busy", **more: Any) -> Missed:
    return Missed(**fields(seq, part, reason=reason, **more))


def attachment(seq: int, part: str, result_seq: int, parts: tuple[PartRef, ...], **more: Any) -> Attachment:
    values = fields(seq, part, parts=parts, result_seq=result_seq, **more)
    return Attachment(**{name: value for name, value in values.items() if name in Attachment.model_fields})


def shadow(seq: int, scores: Iterable[ShadowScore] = (), **more: Any) -> Shadow:
    """A candidate's scores; counts as if it had scored all that it was offered."""
    of = tuple(scores)
    told = {
        "bundle_id": "washer-next",
        "model_sha256": "cd" * 32,
        "calibration_id": "cal-8",
        "beside_bundle_id": "washer",
        "beside_calibration_id": "cal-7",
        "engine": "onnxruntime fp32",
    }
    counts = {"recipe": "washer", "recipe_number": 1, "threshold": 1.3, "offered": len(of), "scored": len(of)}
    values = fields(seq, **{**told, **counts, "scores": of, **more})
    return Shadow(**{name: value for name, value in values.items() if name in Shadow.model_fields})


def shadow_score(part: str, live: Verdict, verdict: Verdict, **more: Any) -> ShadowScore:
    values = {"camera_id": "cam-1", "result_seq": 1, "score": 1.42, **more}
    return ShadowScore(part_id=part, live=live, verdict=verdict, **values)


def gap(seq: int, reason: str = "the edge was stopped", **more: Any) -> Gap:
    values = fields(seq, reason=reason, from_wall_ns=10**18, to_wall_ns=10**18 + 5 * 10**9, duration_ns=5 * 10**9)
    return Gap(
        **{**{name: value for name, value in values.items() if name in Gap.model_fields}, **more, "camera_id": None}
    )


def drift(seq: int, _part: str = "", alarm: str = "", evidence: float = -5.0, shift: float = 0.0, **more: Any) -> Drift:
    """A report; ``alarm``: the test that crossed its line; ``shift``: of the brightness, in spreads."""
    tests = [
        DriftTest(name=name, evidence=0.3 if name == alarm else past, alarm=name == alarm, alarms=name == alarm)  # type: ignore[arg-type]
        for name, past in (("picture", evidence), ("score", evidence / 2 - 4), ("rejects", -6.0))
    ]
    usual = {
        "main.mean": (112.0, 3.1),
        "main.focus_x": (0.31, 0.01),
        "main.likeness": (0.98, 0.005),
        "score": (0.4, 0.1),
    }
    whats = ("brightness", "focus", "position", "score")
    moved = {"main.mean": shift, "score": shift / -5}
    quantiles = tuple(
        DriftQuantile(share=share, now=usual + shift / -50, usual=usual, shift=shift / -5)
        for share, usual in ((0.1, 0.28), (0.5, 0.4), (0.9, 0.55))
    )
    measures = [
        DriftMeasure(
            name=name,
            camera_id=more.get("camera_id", "cam-1"),
            what=what,  # type: ignore[arg-type]
            now=middle + moved.get(name, 0.1) * spread,
            usual=middle,
            spread=spread,
            shift=moved.get(name, 0.1),
            quantiles=quantiles if name == "score" else (),
        )
        for what, (name, (middle, spread)) in zip(whats, usual.items(), strict=True)
    ]
    says: dict[str, Any] = {
        "inspected": 500 * seq,
        "of_parts": 500,
        "tests": tuple(tests),
        "measures": tuple(measures),
        "suspect": "lamp" if abs(shift) >= 1 else None,
        "since_part_id": "part-00003" if alarm else None,
        "last_part_id": f"part-{seq:05d}",
        "rejects_at_most": 0.12,
        "defect_share": 0.05,
        "false_alarms_per_month": 1.0,
        "baseline_parts": 60,
        "recipe": "washer",
        "bundle_id": "washer-2026-11-20",
    }
    values = {**fields(seq), **says, **more}
    return Drift(**{name: value for name, value in values.items() if name in Drift.model_fields})


def state(seq: int = 1, **more: Any) -> State:
    camera = CameraState(camera_id="cam-1", state="running", frames=100, frame_age_ms=20.0)
    lively = {"state": "running", "inference": "ok", "cameras": (camera,)}
    values: dict[str, Any] = {**fields(seq), "spool_id": "state-run-1", **lively, **more}
    return State(**{name: value for name, value in values.items() if name in State.model_fields})


def frames(
    header: Header,
    parts: Iterable[bytes] = (),
    age_ms: float = 5.0,
    attempt: int = 1,
    t_sent_ns: int = 0,
    clock_id: str = "",
) -> list[bytes]:
    envelope = Envelope(age_ms=age_ms, attempt=attempt, t_sent_ns=t_sent_ns, clock_id=clock_id)
    return to_frames(encode_header(header), tuple(parts), envelope)


class Dealer:
    """Sends frames and collects the host's replies; with a key pair and the host's public key over CURVE."""

    def __init__(self, endpoint: str, pair: KeyPair | None = None, host: str = "") -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RECONNECT_IVL, 50)
        self.socket.set(zmq.SNDHWM, 100_000)
        if pair is not None:
            secure_client(self.socket, pair, host)
        self.socket.connect(endpoint)
        self.acked: set[tuple[str, int]] = set()
        self.ack_count = 0
        self.nacks: dict[tuple[str, int], Nack] = {}
        self.held: dict[tuple[str, int], int] = {}

    def send(self, message: list[bytes]) -> None:
        self.socket.send_multipart(message)

    def collect(self, timeout_ms: int = 20) -> None:
        """Take every reply that is there; wait ``timeout_ms`` for the first."""
        while self.socket.poll(timeout_ms):
            magic, body = self.socket.recv_multipart()
            assert magic == MAGIC
            reply = REPLY.validate_json(body)
            if isinstance(reply, Ack):
                self.acked |= {(reply.spool_id, seq) for seq in reply.seqs}
                self.ack_count += len(reply.seqs)
            elif isinstance(reply, Held):
                self.held[reply.spool_id, reply.seq] = reply.offset
            else:
                self.nacks[reply.spool_id, reply.seq] = reply
            timeout_ms = 0

    def wait_acked(self, *seqs: int, spool: str = SPOOL, timeout_s: float = 30.0) -> None:
        def there() -> bool:
            self.collect()
            return {(spool, seq) for seq in seqs} <= self.acked

        until(there, timeout_s, f"acknowledgement of {len(seqs)} event(s)")

    def wait_nack(self, seq: int, spool: str = SPOOL) -> Nack:
        def there() -> Nack | None:
            self.collect()
            return self.nacks.get((spool, seq))

        return until(there, what=f"refusal of {seq}")

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()


@pytest.fixture
def make_dealer() -> Iterator[Callable[..., Dealer]]:
    made: list[Dealer] = []

    def make(endpoint: str, pair: KeyPair | None = None, host: str = "") -> Dealer:
        made.append(Dealer(endpoint, pair, host))
        return made[-1]

    yield make
    for dealer in made:
        dealer.close()


class HostProcess:
    """A real ``flawline host run`` over a state folder that outlives it."""

    def __init__(
        self,
        folder: Path,
        deadline_ms: int = 1000,
        connectors: tuple[str, ...] | None = None,
        line: str = "",
        head: str = "",
        http: str = "",
        files: str = "",
    ) -> None:
        self.folder = folder
        # "-n 400": a process that may open so many files
        self._shell = ["sh", "-c", f'ulimit {files} && exec "$@"', "sh"] if files else []
        self.outputs = folder / "outputs.jsonl"
        self.config = folder / "host.toml"
        urls = (f"loop://{self.outputs}",) if connectors is None else connectors
        self.config.write_text(
            f'state_dir = "state"\n{head}\n[events]\nbind = "tcp://127.0.0.1:*"\n[http]\nport = 0\n{http}\n'
            f'[[lines]]\nid = "line-1"\ndeadline_ms = {deadline_ms}\n{line}\n'
            + "".join(f'[[connectors]]\nurl = "{url}"\n' for url in urls)
        )
        self.log = folder / "host.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._shell, sys.executable, "-m", "flawline", "host", "run", str(self.config)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert "ready" in line, self.log.read_text()[-3000:]
        self.endpoint = (self.folder / "state" / "endpoint").read_text().strip()
        self.url = json.loads((self.folder / "state" / "http.json").read_text())["url"]
        # A later run takes the same port again, so that an edge that reconnects finds it.
        self.config.write_text(self.config.read_text().replace("tcp://127.0.0.1:*", self.endpoint))

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Signal the process and wait; returns its exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url.rstrip("/") + path, timeout=30) as answer:
            return json.load(answer)

    def published(self) -> list[dict[str, Any]]:
        if not self.outputs.exists():
            return []
        return [json.loads(line) for line in self.outputs.read_text().splitlines()]


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A PNG of an [H, W, 3] uint8 RGB array."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")


@cache
def washer(seed: int, size: int = 256, scratched: bool = True) -> tuple[bytes, bytes, bytes, Region]:
    """A drawn washer with a scratch: (PNG of it, PNG of how it should be, float16 map [64, 64], the region)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    centre = size / 2
    radius = np.hypot(x - centre, y - centre)
    ring = (radius < 0.42 * size) & (radius > 0.17 * size)
    brushed = 150 + 14 * np.sin(np.arctan2(y - centre, x - centre) * 90) + rng.normal(0, 4, (size, size))
    good = np.where(ring, brushed, 34 + rng.normal(0, 3, (size, size)))
    angle = rng.uniform(0, 2 * math.pi)
    hit_x, hit_y = centre + 0.3 * size * math.cos(angle), centre + 0.3 * size * math.sin(angle)
    along = (x - hit_x) * math.cos(angle + 1) + (y - hit_y) * math.sin(angle + 1)
    across = -(x - hit_x) * math.sin(angle + 1) + (y - hit_y) * math.cos(angle + 1)
    scratch = np.exp(-((across / 2.2) ** 2) - (along / 17) ** 4) * scratched
    bad = good - 95 * scratch * ring
    cells = size // 4
    smooth = np.exp(-((across / 9) ** 2) - (along / 22) ** 4) * ring * scratched
    deviation = (0.08 * rng.random((cells, cells)) + 1.3 * smooth.reshape(cells, 4, cells, 4).mean((1, 3))).astype(
        "<f2"
    )
    box = (hit_x - 24.0, hit_y - 24.0, 48.0, 48.0)
    region = Region(view="main", box_px=box, area_px=820.0, area_mm2=3.28, peak=float(deviation.max()))

    def rgb(grey: np.ndarray[Any, Any]) -> bytes:
        return png(np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2))

    return rgb(bad), rgb(good), deviation.tobytes(), region


def flagged_header(seq: int, part: str) -> Result:
    region = Region(view="main", box_px=(1.0, 2.0, 3.0, 4.0), area_px=12.0, peak=1.35)
    return result(seq, part, Verdict.REJECT, regions=(region,))


def flagged(seq: int, part: str, verdict: Verdict, score: float, seed: int, **more: Any) -> list[list[bytes]]:
    """Trigger, result with its map, and the pictures as an attachment: seq, seq + 1, seq + 2."""
    image, wanted, deviation, region = washer(seed)
    to_part = (4.0, 0.0, 0.0, 0.0, 4.0, 0.0)
    map_ref = part_ref("map", deviation, codec="raw", dtype="float16", shape=(64, 64), to_part=to_part)
    pictures = (
        part_ref("image", image, codec="png", shape=(256, 256, 3)),
        part_ref("reconstruction", wanted, codec="png", shape=(256, 256, 3)),
    )
    reason = more.pop("reason", f"score {score:.4g} above 1.2")
    header = result(seq + 1, part, verdict, score=score, reason=reason, regions=(region,), parts=(map_ref,), **more)
    return [
        frames(trigger(seq, part)),
        frames(header, [deviation], age_ms=52.0 + seq % 17),
        frames(attachment(seq + 2, part, seq + 1, pictures), [image, wanted], age_ms=200.0),
    ]
