"""``flawline edge update`` and ``slots``: another bundle beside the line, and one step back (before hop 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import typer

from contract.bundle import Bundle, open_bundle, read_manifest
from contract.errors import BundleError, ConfigError, FlawlineError
from edge_runtime.desk import Answer, ask
from edge_runtime.errors import EdgeError
from edge_runtime.recipes import load_judge, open_fit
from edge_runtime.run import only_one
from edge_runtime.settings import EdgeSettings, load_settings
from edge_runtime.slots import NAMES, Slots, in_slot, slots_of

ASK_S = 5.0
STARTING_S = 0.5
"""Between two looks at an edge that is starting."""


class UpdateError(EdgeError):
    """The edge that runs does not take the bundle; what it runs with goes on."""


class UnknownError(EdgeError):
    """Nobody knows whether the bundle was taken over."""

    exit_code = 1


class Wanted(NamedTuple):
    """Which recipe of which edge is to change, and for how long that is tried."""

    settings: EdgeSettings
    number: int
    timeout_s: float

    @property
    def slots(self) -> Slots:
        return slots_of(self.settings, self.number)


def update(config: Path, bundle: Path, number: int, timeout_s: float) -> None:
    """Bring ``bundle`` into the idle slot of recipe ``number`` and have it take over. Raises FlawlineError."""
    wanted = Wanted(load_settings(config), number, timeout_s)
    slots = wanted.slots
    with slots.alone():
        digest = read_manifest(bundle).digest
        if slots.active is not None and _digest(slots.path(slots.active)) == digest:
            _say(f"recipe {number}: slot {slots.active} is active and holds this very bundle: nothing to do")
            return
        name = slots.idle
        if _digest(slots.path(name)) == digest:
            _say(f"slot {name}: holds this very bundle already")
        else:
            open_fit(in_slot(wanted.settings, number, bundle), number)  # what it says then names the user's own folder
            _put(slots, name, bundle)
        try:
            _take_over(wanted, name)
        except UnknownError:
            raise  # the edge may still take it: the next update looks where the link points
        except FlawlineError:
            slots.try_to_end()
            raise
        slots.try_to_end()


def roll_back(config: Path, number: int, timeout_s: float) -> None:
    """Have the slot before take over again. Raises FlawlineError."""
    wanted = Wanted(load_settings(config), number, timeout_s)
    slots = wanted.slots
    with slots.alone():
        name = slots.idle
        if slots.active is None or not slots.path(name).is_dir():
            raise ConfigError(f"recipe {number}: {slots.path(name)} holds no bundle, so there is no step back")
        _take_over(wanted, name)


def list_slots(config: Path) -> None:
    """Print what each recipe's slots hold, and what runs. Raises FlawlineError."""
    settings = load_settings(config)
    for number, link in sorted(settings.bundle_links().items()):
        try:
            slots = slots_of(settings, number)
        except ConfigError:
            _say(f"recipe {number}: {link}, run in place, without slots")
            continue
        _say(f"recipe {number}: {slots.root}")
        for name in NAMES:
            mark = "active" if name == slots.active else "      "
            _say(f"  {name}  {mark}  {_described(slots.path(name))}")
    answer = ask(settings.state_dir, ASK_S, what="status")
    _say("no edge runs" if answer is None else _running(answer))


def _running(answer: Answer) -> str:
    what = f": recipe {answer.recipe_number}, bundle {answer.bundle_id}" if answer.bundle_id else ""
    return f"the edge is {answer.state or 'starting'}{what}"


def _described(folder: Path) -> str:
    if not folder.is_dir():
        return "empty"
    try:
        opened = open_bundle(folder)
    except BundleError as error:
        return f"DAMAGED: {error}"
    manifest = opened.manifest
    return f"{manifest.name}, {manifest.id}, {opened.state}, made {manifest.created}, content {opened.content[:16]}"


def _digest(folder: Path) -> str | None:
    """Of a whole, undamaged bundle; None where there is none."""
    if not folder.is_dir():
        return None
    try:
        return open_bundle(folder).manifest.digest
    except BundleError:
        return None


def _put(slots: Slots, name: str, bundle: Path) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    size = sum(entry.size for entry in read_manifest(bundle).files.values())
    with Progress(TextColumn("copying"), BarColumn(), DownloadColumn(), transient=True) as progress:
        task = progress.add_task("", total=size)
        opened = slots.put(bundle, lambda done: progress.advance(task, done))
    _say(f"slot {name}: {_named(opened)} copied, every file as it was written")


def _named(bundle: Bundle) -> str:
    return f"{bundle.manifest.name} ({bundle.manifest.id}, {bundle.state})"


def _take_over(wanted: Wanted, name: str) -> None:
    """Let slot ``name`` serve: by the edge that runs, else by the link alone, once the engine is proven here."""
    slot = wanted.slots.path(name)
    placed = in_slot(wanted.settings, wanted.number, slot)
    bundle = open_fit(placed, wanted.number)
    start = time.monotonic()
    while time.monotonic() - start < wanted.timeout_s:
        answer = _asked(wanted, slot, bundle)
        if answer is not None:
            _judge_answer(answer, wanted, name, time.monotonic() - start)
            return
        with _without_edge(wanted.settings) as nobody:
            if nobody:
                with _step(f"{_named(bundle)}: loading and proving it on its golden images"):
                    load_judge(placed, wanted.number).engine.close()
                _activate(wanted.slots, name)
                _say(f"recipe {wanted.number}: slot {name} is active; no edge runs now, the next start takes it")
                return
        time.sleep(STARTING_S)  # it is starting, and listens once it has its engine
    raise UpdateError(f"an edge is starting on {wanted.settings.state_dir} and does not answer; ask again when it runs")


def _asked(wanted: Wanted, slot: Path, bundle: Bundle) -> Answer | None:
    found = ask(wanted.settings.state_dir, ASK_S, what="status")
    if found is None or found.state in ("", "stopping", "stopped"):
        return None
    with _step(f"{_named(bundle)}: the edge loads and proves it, and goes on meanwhile"):
        return ask(
            wanted.settings.state_dir,
            wanted.timeout_s + ASK_S,
            what="update",
            number=wanted.number,
            slot=slot,
            within_s=wanted.timeout_s,
        )


def _judge_answer(answer: Answer, wanted: Wanted, name: str, took_s: float) -> None:
    if answer.outcome == "refused":
        raise UpdateError(f"the edge refuses: {answer.reason}; what it ran with goes on")
    if answer.outcome == "unknown":
        raise UnknownError(f"no answer ({answer.reason}): it may or may not have been done; flawline edge slots says")
    serves = answer.recipe_number == wanted.number
    how = "took over between two parts" if serves else f"is active; recipe {answer.recipe_number} serves now"
    _say(f"recipe {wanted.number}: slot {name} {how}, {took_s:.1f} s. One step back: --rollback")


def _activate(slots: Slots, name: str) -> None:
    try:
        slots.activate(name)
    except OSError as error:
        raise ConfigError(f"{slots.root}: the link cannot be written ({error.strerror}); all is as before") from error


@contextmanager
def _without_edge(settings: EdgeSettings) -> Iterator[bool]:
    """Whether no edge runs on the state folder; none can start while this lasts."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = only_one(settings.state_dir)
        lock.__enter__()
    except ConfigError:
        yield False
        return
    try:
        yield True
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def _step(what: str) -> Iterator[None]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as progress:
        progress.add_task(what)
        yield


_say: Callable[[str], None] = typer.echo
