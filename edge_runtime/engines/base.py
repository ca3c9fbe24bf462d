"""The engine seam: uint8 tiles in, scores and deviation maps out, checked on both sides (hop 4)."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

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
GREY_TOLERANCE = 0.02  # of a score, relative: far above rounding in any precision, far below another graph's answer


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


class Engine(ABC):
    """One compiled graph of fixed batch. Not thread-safe: one engine belongs to one thread.

    A back-end supplies ``_load``, ``_run``, ``_reconstruction`` and ``describe``; every check is made here.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)

    def __init__(self, graph: bytes, spec: GraphSpec, threads: int = 1) -> None:
        self.spec = spec
        self.threads = threads
        self.failing = False
        """Whether the last inference failed."""
        self.distrusted: str | None = None
        """Why nothing is inferred until a proof succeeds."""
        self.lost: str | None = None
        """Why nothing can be inferred until the process has ended and another has begun."""
        self._fresh = False
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

    @abstractmethod
    def _load(self, graph: bytes) -> set[str]:
        """Compile the graph for ``spec.input_shape`` and return the names of its outputs."""

    @abstractmethod
    def _run(self, tiles: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Infer and return scores and maps; both may be views of memory that the next call overwrites."""

    @abstractmethod
    def _reconstruction(self) -> Pixels:
        """The reconstruction of the last ``_run``; may be a view."""

    def _lost(self) -> str | None:
        """After a failed ``_run``: why no other in this process can succeed either, or None."""
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
        scores = self.infer(np.full(self.spec.input_shape, 128, np.uint8)).scores
        self._fresh = False
        return scores

    def infer(self, tiles: Pixels) -> EngineOutput:
        """Score one part's tiles: uint8 [N, H, W, C], N the recipe's tiles. Raises EngineError.

        The result belongs to the caller. ``tiles`` must stay unchanged until this returns, not longer.
        """
        self._fresh, self.failing = False, True
        if self.lost is not None:
            raise EngineError(self.lost)
        if self.distrusted is not None:
            raise EngineError(f"{self.name} computes wrongly: {self.distrusted}")
        admitted = self._admit(tiles)
        try:
            scores, maps = self._run(admitted)
        except Exception as error:
            self.lost = self._lost()
            raise EngineError(self.lost or f"{self.name}: inference failed: {_short(error)}") from error
        output = self._checked(scores, maps)
        self._fresh, self.failing = True, False
        return output

    def infer_many(self, batches: Iterable[Pixels]) -> Iterator[EngineOutput]:
        """Score many parts in order, where nobody waits for each: an engine that can overlaps them."""
        for tiles in batches:
            yield self.infer(tiles)

    def close(self) -> None:
        """Give back what the process would otherwise keep until it ends; the engine is of no use afterwards."""
        self._fresh = False

    def _admit(self, tiles: Pixels) -> Pixels:
        """The tiles in one piece of memory; raises EngineError where shape or type are not the graph's."""
        if tiles.dtype != np.uint8 or tiles.shape != self.spec.input_shape:
            raise EngineError(
                f"{self.name}: tiles of shape {tiles.shape}, {tiles.dtype}; expected uint8 {self.spec.input_shape}"
            )
        return np.ascontiguousarray(tiles)

    def _checked(self, scores: NDArray[np.float32], maps: NDArray[np.float32]) -> EngineOutput:
        """The caller's own copies of what passes the checks."""
        self._check(scores, maps)
        return EngineOutput(scores.copy(), maps.copy())

    def _check(self, scores: NDArray[np.float32], maps: NDArray[np.float32]) -> None:
        batch, map_hw = self.spec.batch, self.spec.map_hw
        if scores.shape != (batch,) or maps.ndim != 3 or maps.shape[0] != batch:
            raise EngineError(f"{self.name}: scores {scores.shape} and maps {maps.shape} for {batch} tile(s)")
        if map_hw is not None and maps.shape[1:] != map_hw:
            raise EngineError(f"{self.name}: maps of {maps.shape[1:]}, the bundle promises {map_hw}")
        if scores.dtype != np.float32 or maps.dtype != np.float32:
            raise EngineError(f"{self.name}: {scores.dtype} scores and {maps.dtype} maps; expected float32")
        finite = int(np.count_nonzero(np.isfinite(maps))) + int(np.count_nonzero(np.isfinite(scores)))
        if finite != maps.size + scores.size:
            raise EngineError(f"{self.name}: {maps.size + scores.size - finite} of the output's values are not finite")

    def reconstruction(self) -> Pixels:
        """What the tiles of the last ``infer`` should look like: uint8 [N, H, W, C], the caller's own copy.

        Fetched only when asked for, because most parts are good and nobody looks. Raises EngineError where the
        last inference failed or there was none.
        """
        if not self._fresh:
            raise EngineError(f"{self.name}: there is no reconstruction: nothing was inferred, or it failed")
        pixels = self._reconstruction()
        if pixels.dtype != np.uint8 or pixels.shape != self.spec.input_shape:
            raise EngineError(f"{self.name}: reconstruction {pixels.shape}, {pixels.dtype}; expected uint8 tiles")
        return pixels.copy()


def _short(error: Exception) -> str:
    """First line of a runtime's message; theirs can run over pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
