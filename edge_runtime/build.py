"""Plans of an edge's recipes, built before the part that needs them: by command, or beside a line (before hop 4)."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from contract.bundle import open_bundle
from contract.errors import FlawlineError
from edge_runtime.engines import AUTO_ORDER, ON_A_CARD, choose, installed, kind_for, obstacle
from edge_runtime.engines.base import Engine, GraphSpec, graph_spec, read_graph
from edge_runtime.engines.plans import Plan
from edge_runtime.errors import EngineError
from edge_runtime.recipes import refuse_unreleased
from edge_runtime.settings import EdgeSettings, load_settings

log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """What an engine would have to build for one recipe."""

    kind: type[Engine]
    graph: bytes
    spec: GraphSpec


def wanted(settings: EdgeSettings, number: int) -> Wanted:
    """The graph of recipe ``number`` as the edge would run it. Raises FlawlineError."""
    bundle = open_bundle(settings.bundle_folders()[number])
    if settings.mode == "production":  # an unsigned graph is not even parsed
        refuse_unreleased(bundle, settings)
    kind = kind_for(settings.engine, settings.precision)
    return Wanted(kind, read_graph(bundle, settings.precision), graph_spec(bundle, settings.precision))


def builds(settings: EdgeSettings) -> bool:
    """Whether the engine that would serve here builds plans. Raises EngineError where none serves."""
    return choose(settings.engine) in ON_A_CARD


def is_built(settings: EdgeSettings, number: int) -> bool:
    """Whether the plan of recipe ``number`` is in the cache and fits. Raises FlawlineError where that is not known."""
    kind, graph, spec = wanted(settings, number)
    return kind.why_not_built(graph, spec) is None


def build_beside(settings: EdgeSettings, config: Path, serving: int, stop: threading.Event) -> None:
    """Build what is missing for the recipes that do not serve, one after the other and out of the line's way.

    Returns at once: the work is done by a thread. ``stop``: no further one is begun.
    """
    others = [number for number in sorted(settings.bundle_folders()) if number != serving]
    if others and builds(settings):
        thread = threading.Thread(target=_build_missing, args=(settings, config, others, stop), name="plans")
        thread.daemon = True  # an edge that stops does not wait; the child that builds dies with this thread
        thread.start()


def _build_missing(settings: EdgeSettings, config: Path, others: list[int], stop: threading.Event) -> None:
    try:
        numbers = list(_missing(settings, others))
        if numbers:
            log.warning(
                "no plan is built yet for recipe(s) %s; each is built now, beside the line, and selecting it waits "
                "until then. To have them before the line runs: flawline edge build %s",
                ", ".join(map(str, numbers)), config,
            )  # fmt: skip
        for number in numbers:
            if stop.is_set():
                return
            _build_one_beside(settings, number)
    except Exception:  # the line runs on; a swap builds what it needs
        log.exception("building plans ahead has ended")


def _missing(settings: EdgeSettings, numbers: list[int]) -> Iterator[int]:
    for number in numbers:
        try:
            if not is_built(settings, number):
                yield number
        except FlawlineError as error:
            log.warning("recipe %d could not be selected now: %s", number, error)


def _build_one_beside(settings: EdgeSettings, number: int) -> None:
    start = time.monotonic()
    try:
        kind, graph, spec = wanted(settings, number)
        kind.build_ahead(graph, spec, background=True)
        log.info("recipe %d: its plan is there after %.1f s", number, time.monotonic() - start)
    except FlawlineError as error:
        log.warning("recipe %d: its plan cannot be built: %s", number, error)


def build_edge(config: Path) -> int:
    """Build and try the plan of every recipe, and say what became of each; 0, or 1 where one could not be built."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    settings = load_settings(config)
    engine = choose(settings.engine)
    if engine not in ON_A_CARD:
        _say_nothing_to_build(settings.engine, engine)
        return 0
    if (why := obstacle(engine)) is not None:
        raise EngineError(why)
    numbers = sorted(settings.bundle_folders())
    failed = 0
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as progress:
        for count, number in enumerate(numbers, start=1):
            what = f"recipe {number}, {settings.bundle_folders()[number].name}"
            task = progress.add_task(f"{what} ({count} of {len(numbers)}): building takes up to some minutes")
            try:
                _say(f"{what}: {_build(settings, number)}")
            except FlawlineError as error:
                failed += 1
                _say(f"{what}: FAILED: {error}")
            progress.remove_task(task)
    _say(f"{len(numbers) - failed} of {len(numbers)} recipe(s) ready for {engine} in {settings.precision}")
    return 1 if failed else 0


def _build(settings: EdgeSettings, number: int) -> str:
    start = time.monotonic()
    kind, graph, spec = wanted(settings, number)
    plan: Plan | None = kind.build_ahead(graph, spec)
    if plan is None:
        return "nothing has to be built"
    size = f"{len(plan.data) / 1e6:.1f} MB"
    return f"built and tried in {time.monotonic() - start:.1f} s, {size}" if plan.built else f"in the cache, {size}"


def _say_nothing_to_build(asked: str, engine: str) -> None:
    for name in AUTO_ORDER if asked == "auto" else ():
        if name in ON_A_CARD and installed(name):
            _say(f"engine {name!r} is installed and passed over: {obstacle(name)}")
    _say(f"engine {engine!r} compiles a graph whenever it is opened, within seconds: nothing has to be built")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
