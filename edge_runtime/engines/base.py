"""The engine seam: uint8 tiles in, scores and deviation maps out, checked on both sides (hop 4)."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from contract.bundle import GRAPHS, Bundle, Precision
from contract.errors import BundleError
from contract.images import Pixels
from edge_runtime.errors import EngineError

if TYPE_CHECKING:
    from edge_runtime.engines.plans import Plan

INPUT = "image"
SCORE = "score"
MAP = "map"
RECONSTRUCTION = "reconstruction"
OUTPUTS = (SCORE, MAP, RECONSTRUCTION)
SLOTS = 3
"""Inferences that may be under way in an engine: one computes, the next two wait with their tiles in place.

With one waiting the engine stood idle whenever its station was held up for as long as one inference takes.
"""

TRIES = 15
"""Of an inference whose time is measured; the quickest counts, since whatever else runs only makes it longer."""

GREY_TOLERANCE = 0.02  # of a score, relative: far above rounding in any precision, far below another graph's answer

log = logging.getLogger(__name__)


class GraphSpec(NamedTuple):
    """What the bundle promises about its graph: the batch is the recipe's tiles, ``map_hw`` None where unknown."""

    batch: int
    tile_hw: tuple[int, int]
    channels: int
    map_hw: tuple[int, int] | None
    precision: Precision = "fp32"

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, C] of every inference."""
        return (self.batch, *self.tile_hw, self.channels)


class EngineOutput(NamedTuple):
    """``scores`` float32 [N] and ``maps`` float32 [N, h, w], higher = more deviant; the caller's own copies."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]


def graph_spec(bundle: Bundle, precision: Precision = "fp32") -> GraphSpec:
    """The shapes that the bundle's recipe and model promise."""
    recipe = bundle.manifest.recipe
    return GraphSpec(recipe.tiles, recipe.tile_hw, recipe.channels, bundle.manifest.model.map_hw, precision)


def read_graph(bundle: Bundle, precision: Precision = "fp32") -> bytes:
    """The bytes of the graph of ``precision``, held against the manifest once more. Raises BundleError.

    Engines are given these bytes and never a path: the file cannot change between check and use, and a graph
    cannot pull in weights from outside the bundle.
    """
    role = GRAPHS[precision]
    if precision != "fp32" and role not in bundle.manifest.files:
        missing = {
            "fp16": "it was trained without one, or fp16 did not agree with FP32 (its training said so)",
            "int8": f"make it with flawline calibrate int8 {bundle.root} --data DIR, where it agrees with FP32",
        }[precision]
        raise BundleError(f"{bundle.root}: the bundle has no {precision} graph: {missing}; use precision = 'fp32'")
    path = bundle.path(role)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the graph cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(data).hexdigest() != bundle.manifest.files[role].sha256:
        raise BundleError(f"{path}: the graph changed after the bundle was opened; copy the bundle again")
    return data


class Bell:
    """Counts what is done; a thread can wait for it beside sockets and cameras.

    Its descriptor is closed when nobody holds the bell any more, so that no late ring can reach another file.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def ring(self) -> None:
        """From any thread."""
        os.eventfd_write(self._fd, 1)

    def hush(self) -> None:
        """Take one ring back, where there is one."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)


class Started(NamedTuple):
    """A part that is under way: by which number its caller asks for it, and where it lies.

    ``place``: its first tile among the ``tiles`` of the slot's inference.
    """

    ticket: int
    slot: int
    place: int
    tiles: int


class Engine(ABC):
    """One compiled graph of fixed batch. Not thread-safe: one engine belongs to one thread.

    ``start`` and ``finish`` let the caller prepare a part while the one before computes; ``infer`` is one after the
    other. An engine that was asked to ``join`` takes several parts in one inference, and each is finished for itself.
    A back-end supplies ``_load``, ``_start``, ``_finish``, ``_ready``, ``_reconstruction`` and ``describe``, and rings
    ``_bell`` when a slot is done; every check is made here, and here alone it is known which slot, and which place in
    it, is whose.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    shares: ClassVar[bool] = False
    """Whether several engines can serve over one compiled graph; then ``_set_up`` makes what each has for itself."""
    joins: ClassVar[bool] = False
    """Whether several parts can go through one inference; then ``_load_joined`` makes ready for them."""

    def __init__(self, graph: bytes, spec: GraphSpec, threads: int = 1) -> None:
        self.spec = spec
        self.threads = threads
        self.joined = 1
        """Most parts that go through one inference; fewer are filled up to so many, a single one is not."""
        self._pays_from = 1
        self._grey: NDArray[np.float32] | None = None
        try:
            names = self._load(graph)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name}: the graph cannot be loaded: {_short(error)}") from error
        missing = [output for output in OUTPUTS if output not in names]
        if missing:
            raise EngineError(f"{self.name}: the graph has no output {missing}; it has {sorted(names)}")
        self._set_up()

    def _set_up(self) -> None:
        """What each engine over the compiled graph has for itself, as when nothing was inferred yet."""
        self.failing = False
        """Whether the last inference failed; one that is still under way says nothing."""
        self.distrusted: str | None = None
        """Why nothing is inferred until a proof succeeds."""
        self.lost: str | None = None
        """Why nothing can be inferred until the process has ended and another has begun."""
        self._under_way: deque[Started] = deque()
        self._next = 0
        self._tickets = 0
        self._shown: Started | None = None
        self._fetched: EngineOutput | EngineError | None = None
        self._bell = Bell()

    def beside(self) -> Self | None:
        """Another engine over what this one has compiled, warm, for another thread; None where that cannot be.

        Each is closed for itself. What is compiled goes with the last of them.
        """
        if not self.shares:
            return None
        other = copy.copy(self)
        other._set_up()
        return other

    @abstractmethod
    def _load(self, graph: bytes) -> set[str]:
        """Compile the graph for ``spec.input_shape`` and return the names of its outputs."""

    def _load_joined(self, graph: bytes, tiles: int) -> None:
        """Make ready for inferences of so many tiles besides those of one part, and of no other number."""
        raise EngineError(f"{self.name} takes one part at a time")

    @abstractmethod
    def _start(self, slot: int, tiles: Pixels) -> None:
        """Begin to infer in a slot that is free, behind what was started before; ``tiles`` stay the caller's.

        They are those of one part, or as many as ``_load_joined`` was told last.
        """

    @abstractmethod
    def _finish(self, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Wait for a slot; its scores and maps, which may be views that hold until it is started again."""

    @abstractmethod
    def _ready(self, slot: int) -> bool:
        """Whether ``_finish`` would not wait for long; True where the back-end cannot know."""

    @abstractmethod
    def _reconstruction(self, slot: int) -> Pixels:
        """The reconstruction of what was finished in a slot; may be a view."""

    def _lost(self) -> str | None:
        """After a failed ``_start`` or ``_finish``: why no other in this process can succeed either, or None."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """Engine, version, precision and device, as thresholds and events name it: ``openvino-2026.4 fp32 cpu``."""

    @classmethod
    def why_not_built(cls, graph: bytes, spec: GraphSpec) -> str | None:
        """Why opening the graph would first build for minutes; None where it would not. Raises EngineError."""
        return None

    @classmethod
    def build_ahead(cls, graph: bytes, spec: GraphSpec, *, background: bool = False) -> Plan | None:
        """Build now what opening the graph would else have to wait for; None where this engine builds nothing.

        ``background``: at a low priority, beside a line that runs. Raises EngineError.
        """
        return None

    def warm_up(self) -> None:
        """Run once on grey, so that the first part does not pay for first-time allocations. Raises EngineError."""
        self._grey = self._infer_grey()

    def join(self, graph: bytes, parts: int, budget_s: float) -> None:
        """Take up to ``parts`` in one inference from here on: so many that it stays within ``budget_s``.

        ``graph`` is that of the constructor. How long they take is measured here, and where joining is no faster than
        one by one there is none. Raises EngineError.
        """
        self.joined = self._pays_from = 1
        alone, asked = self._takes(), parts
        while parts > 1:
            self._load_joined(graph, parts * self.spec.batch)
            self.joined = parts
            takes = self._takes()
            if takes <= budget_s:
                break
            parts = min(parts - 1, int(parts * budget_s / takes))
        self._pays_from = int(takes / alone) + 1 if parts > 1 else 2
        if self._pays_from > parts:
            self.joined = self._pays_from = 1
            self._load_joined(graph, self.spec.batch)  # what nobody uses takes no memory
        if parts < 2:
            log.info("%s: two parts take longer than %.1f ms: each is inferred alone", self.name, 1e3 * budget_s)
            return
        log.info(
            "%s: %d of %d part(s) take %.2f ms together, one %.2f ms: %s", self.name, parts, asked, 1e3 * takes,
            1e3 * alone, f"joined from {self._pays_from} on" if self.joined > 1 else "each is inferred alone",
        )  # fmt: skip
        self.warm_up()

    def _takes(self) -> float:
        """Seconds of an inference of as many parts as are joined."""
        parts = [np.full(self.spec.input_shape, 128, np.uint8)] * self.joined
        self.infer_together(parts)  # the first one allocates
        quickest = float("inf")
        for _ in range(TRIES):
            began = time.perf_counter()
            self.infer_together(parts)
            quickest = min(quickest, time.perf_counter() - began)
        return quickest

    def together(self, waiting: int) -> int:
        """How many of so many parts that wait are best started as one inference."""
        parts = min(waiting, self.joined)
        return parts if parts >= self._pays_from else min(parts, 1)

    def prove(self) -> None:
        """Run on grey once more: it must score as at ``warm_up``. Raises EngineError; nothing is inferred then.

        Another ``prove`` that succeeds makes the engine trusted again.
        """
        before, self.distrusted = self.distrusted, None
        try:
            scores = self._infer_grey()
        except EngineError:
            self.distrusted = before
            raise
        if self._grey is not None and not np.allclose(scores, self._grey, rtol=GREY_TOLERANCE):
            self.failing = True
            self.distrusted = f"a grey image scores {scores.tolist()}, at the start {self._grey.tolist()}"
            raise EngineError(f"{self.name}: {self.distrusted}")

    def _infer_grey(self) -> NDArray[np.float32]:
        grey = np.full(self.spec.input_shape, 128, np.uint8)
        sizes = {1, self.joined}
        scores = [output.scores for size in sorted(sizes) for output in self.infer_together([grey] * size)]
        self._shown = None
        return np.concatenate(scores)

    def infer(self, tiles: Pixels) -> EngineOutput:
        """Score one part's tiles: uint8 [N, H, W, C], N the recipe's tiles. Raises EngineError.

        The result belongs to the caller. ``tiles`` must stay unchanged until this returns, not longer. Nothing may be
        under way.
        """
        return self.infer_together([tiles])[0]

    def infer_together(self, parts: Sequence[Pixels]) -> list[EngineOutput]:
        """The same for several parts in one inference, at most ``joined``."""
        if self._under_way:
            raise EngineError(f"{self.name}: {len(self._under_way)} part(s) are under way; finish them first")
        return [self.finish(ticket) for ticket in self.start_together(parts)]

    @property
    def under_way(self) -> int:
        """Parts that were started and not finished."""
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether nothing can be started before a part was finished."""
        return bool(self._under_way) and self._under_way[0].slot == self._next

    def start(self, tiles: Pixels) -> int:
        """Begin to score one part's tiles, as ``infer``; returns the ticket to ``finish`` it by, in the same order.

        ``tiles`` must stay unchanged until then. Raises EngineError: then nothing more is under way than before.
        """
        return self.start_together([tiles])[0]

    def start_together(self, parts: Sequence[Pixels]) -> list[int]:
        """The same for several parts in one inference, at most ``joined``: a ticket for each."""
        if self.full:
            raise EngineError(f"{self.name}: {SLOTS} inferences are under way; finish one first")
        slot = self._next
        try:
            self._refuse()
            admitted = self._admit(parts[0]) if len(parts) == 1 else self._admit_joined(parts)
            try:
                self._start(slot, admitted)
            except Exception as error:
                raise self._failed(error) from error
        except EngineError:
            self._shown, self.failing = None, True
            raise
        # Only now: after a start that failed the slot is free as before, and the next part gets it.
        tickets = list(range(self._tickets + 1, self._tickets + 1 + len(parts)))
        for place, ticket in enumerate(tickets):
            self._under_way.append(Started(ticket, slot, place * self.spec.batch, len(admitted)))
        self._tickets = tickets[-1]
        self._next = (slot + 1) % SLOTS
        if self._shown is not None and self._shown.slot == slot:
            self._shown = None
        return tickets

    def ready(self) -> bool:
        """Whether the oldest part under way is done, so that ``finish`` would not wait for long."""
        return bool(self._under_way) and (self.lost is not None or self._ready(self._under_way[0].slot))

    def fileno(self) -> int:
        """Readable when a part that is under way may be done."""
        return self._bell.fileno()

    def finish(self, ticket: int) -> EngineOutput:
        """Wait for the part with this ticket; its result belongs to the caller.

        Raises EngineError where it failed; it is not under way any more then either. What was started before it and
        never finished is thrown away: no part may get what belongs to another.
        """
        if all(started.ticket != ticket for started in self._under_way):
            raise EngineError(f"{self.name}: no part with ticket {ticket} is under way; start it first")
        while self._under_way[0].ticket != ticket:
            with suppress(EngineError):
                self.finish(self._under_way[0].ticket)
        started, self._shown = self._under_way.popleft(), None
        if self._fetched is None:
            self._fetched = self._fetch(started)
        fetched = self._fetched
        if not self._under_way or self._under_way[0].slot != started.slot:
            self._fetched = None  # it was the last part of its inference
        try:
            if isinstance(fetched, EngineError):
                raise EngineError(str(fetched)) from fetched
            output = self._own(started, fetched)
        except EngineError:
            self.failing = True
            raise
        self._shown, self.failing = started, False
        return output

    def _fetch(self, started: Started) -> EngineOutput | EngineError:
        """What became of an inference, for all of its parts; waits for it."""
        try:
            if self.lost is not None:
                return EngineError(self.lost)
            try:
                scores, maps = self._finish(started.slot)
            except Exception as error:  # noqa: BLE001 - whatever the back-end raises, each part is told
                failure = self._failed(error)
                failure.__cause__ = error
                return failure
            fault = self._fault(started.tiles, scores, maps)
            return EngineOutput(scores, maps) if fault is None else EngineError(f"{self.name}: {fault}")
        finally:
            self._bell.hush()

    def _own(self, started: Started, fetched: EngineOutput) -> EngineOutput:
        """One part's share of an inference, copied for the caller; what is wrong with another part is not its fault."""
        tiles = slice(started.place, started.place + self.spec.batch)
        scores, maps = fetched.scores[tiles], fetched.maps[tiles]
        finite = int(np.count_nonzero(np.isfinite(maps))) + int(np.count_nonzero(np.isfinite(scores)))
        if finite != maps.size + scores.size:
            raise EngineError(f"{self.name}: {maps.size + scores.size - finite} of the output's values are not finite")
        return EngineOutput(scores.copy(), maps.copy())

    def _refuse(self) -> None:
        """Raise EngineError where nothing is inferred any more."""
        if self.lost is not None:
            raise EngineError(self.lost)
        if self.distrusted is not None:
            raise EngineError(f"{self.name} computes wrongly: {self.distrusted}")

    def _failed(self, error: Exception) -> EngineError:
        """What to raise for a back-end's error; finds out whether another inference can succeed."""
        self.lost = self.lost or self._lost()
        return EngineError(self.lost or f"{self.name}: inference failed: {_short(error)}")

    def infer_many(self, batches: Iterable[Pixels]) -> Iterator[EngineOutput]:
        """Score many parts in order, where nobody waits for each: the next one is started while one computes."""
        try:
            for tiles in batches:
                self.start(tiles)
                if self.full:
                    yield self.finish(self._under_way[0].ticket)
            while self._under_way:
                yield self.finish(self._under_way[0].ticket)
        finally:
            self.discard()

    def discard(self) -> None:
        """Wait for everything under way and forget it."""
        while self._under_way:
            with suppress(EngineError):
                self.finish(self._under_way[0].ticket)
        self._shown = None

    def close(self) -> None:
        """Give back what the process would otherwise keep until it ends; the engine is of no use afterwards."""
        self.discard()

    def _admit(self, tiles: Pixels) -> Pixels:
        """The tiles in one piece of memory; raises EngineError where shape or type are not the graph's."""
        if tiles.dtype != np.uint8 or tiles.shape != self.spec.input_shape:
            raise EngineError(
                f"{self.name}: tiles of shape {tiles.shape}, {tiles.dtype}; expected uint8 {self.spec.input_shape}"
            )
        return np.ascontiguousarray(tiles)

    def _admit_joined(self, parts: Sequence[Pixels]) -> Pixels:
        """Tiles of several parts behind one another, filled up to an inference of ``joined`` parts."""
        if not 1 < len(parts) <= self.joined:
            raise EngineError(f"{self.name}: {len(parts)} parts in one inference; at most {self.joined}")
        batch = self.spec.batch
        tiles = np.zeros((self.joined * batch, *self.spec.input_shape[1:]), np.uint8)
        for place, part in enumerate(parts):
            tiles[place * batch : (place + 1) * batch] = self._admit(part)
        return tiles

    def _fault(self, tiles: int, scores: NDArray[np.float32], maps: NDArray[np.float32]) -> str | None:
        """What keeps an output from being that of so many tiles, or None."""
        map_hw = self.spec.map_hw
        if scores.shape != (tiles,) or maps.ndim != 3 or maps.shape[0] != tiles:
            return f"scores {scores.shape} and maps {maps.shape} for {tiles} tile(s)"
        if map_hw is not None and maps.shape[1:] != map_hw:
            return f"maps of {maps.shape[1:]}, the bundle promises {map_hw}"
        if scores.dtype != np.float32 or maps.dtype != np.float32:
            return f"{scores.dtype} scores and {maps.dtype} maps; expected float32"
        return None

    def reconstruction(self) -> Pixels:
        """What the tiles of the part finished last should look like: uint8 [N, H, W, C], the caller's own copy.

        Fetched only when asked for, because most parts are good and nobody looks; before two more are started. Raises
        EngineError where the last inference failed, there was none, or its memory serves another part by now.
        """
        if self._shown is None:
            raise EngineError(
                f"{self.name}: there is no reconstruction: nothing was inferred, it failed, or its slot is used again"
            )
        shown = self._shown
        pixels = self._reconstruction(shown.slot)
        if pixels.dtype != np.uint8 or pixels.shape != (shown.tiles, *self.spec.input_shape[1:]):
            raise EngineError(f"{self.name}: reconstruction {pixels.shape}, {pixels.dtype}; expected uint8 tiles")
        return pixels[shown.place : shown.place + self.spec.batch].copy()


def _short(error: Exception) -> str:
    """First line of a runtime's message; theirs can run over pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
