"""Two slots for a bundle and a link to the one that runs: an update never touches what serves (before hop 3).

``slots/a`` and ``slots/b`` hold a bundle each, ``slots/active`` is a symbolic link to one of them, and edge.toml names
the link. A slot gets its bundle in one piece, a rename of a complete and verified copy; the link is replaced in one
piece too. What the slot held stands aside until the link has moved, and comes back where it has not: the step back
outlives an update that is refused. A power cut at any moment leaves the link at a complete slot.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from contract.bundle import MANIFEST, Bundle, Manifest, open_bundle, read_manifest
from contract.errors import BundleError, ConfigError, FlawlineError
from edge_runtime.settings import EdgeSettings

if TYPE_CHECKING:
    from edge_runtime.recipes import Judge

LINK = "active"
NAMES = ("a", "b")
INCOMING, OUTGOING = ".incoming", ".outgoing"
LOCK = ".lock"
CHUNK_BYTES = 1 << 20
SPARE_BYTES = 64 << 20
"""Left free on the disk by a copy: the spool and the state file need room too."""


class Slots:
    """The folder that holds the slots. Whoever writes holds ``alone``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def active(self) -> str | None:
        """The slot that the link names; None before the first update. Raises ConfigError for a link to elsewhere."""
        link = self.root / LINK
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{link}: expected a link that `flawline edge update` made ({error.strerror})") from error
        if target not in NAMES:
            raise ConfigError(f"{link}: names {target!r}, expected {' or '.join(NAMES)}; remove the link, update again")
        return target

    @property
    def idle(self) -> str:
        """The slot that does not serve."""
        return next(name for name in NAMES if name != self.active)

    def path(self, name: str) -> Path:
        return self.root / name

    def _aside(self, name: str) -> Path:
        """Where the bundle of slot ``name`` stands while another tries to take over; empty if there was none."""
        return self.root / f".before-{name}"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other update out, and end what one that was cut short has left.

        Raises ConfigError where one is at work, or the folder cannot be written.
        """
        there = next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())
        if os.geteuid() == 0 and there.stat().st_uid != 0:  # what root writes there, the edge could not replace
            raise ConfigError(
                f"{there}: belongs to {there.owner()}; run this as that user: sudo -u {there.owner()} ..."
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / LOCK).open("w")
        except OSError as error:
            raise ConfigError(
                f"{self.root}: cannot be written ({error.strerror}); run this as the user that owns the edge's state, "
                "under systemd: sudo -u flawline flawline edge update ..."
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"{self.root}: another update is at work; wait for it") from error
            try:
                self.end_update()
            except OSError as error:
                raise ConfigError(
                    f"{self.root}: what an update has left cannot be put right ({error.strerror})"
                ) from error
            yield

    def put(self, source: Path, advance: Callable[[int], object] = lambda done: None) -> Bundle:
        """Copy a bundle into the idle slot, verified there; what it held stands aside until ``end_update``.

        ``advance`` is given the bytes that were copied since its last call. Raises BundleError and ConfigError.
        """
        manifest = read_manifest(source)
        incoming = self.root / INCOMING
        with ExitStack() as undo:
            undo.callback(self.try_to_end)
            try:
                self.end_update()
                self._refuse_full(manifest)
                incoming.mkdir()
                for relative in (MANIFEST, *(entry.path for entry in manifest.files.values())):
                    _copy(source, incoming, relative, advance)
                for folder in (*(path for path in incoming.rglob("*") if path.is_dir()), incoming):
                    sync_folder(folder)
                copied = open_bundle(incoming)
                if copied.manifest.digest != manifest.digest:
                    raise BundleError(f"{source}: was changed while it was copied; nothing was changed here: try again")
                slot = self._bring_in(incoming)
            except OSError as error:
                raise ConfigError(
                    f"{source}: cannot be copied to {self.root} ({error.strerror}); all is as before"
                ) from error
            opened = open_bundle(slot)
            undo.pop_all()
        return opened

    def _bring_in(self, incoming: Path) -> Path:
        """Have a complete copy take the place of what the idle slot holds. Raises OSError."""
        slot, aside = self.path(self.idle), self._aside(self.idle)
        if slot.exists():
            slot.rename(aside)
        else:
            aside.mkdir()
        incoming.rename(slot)
        sync_folder(self.root)
        return slot

    def try_to_end(self) -> None:
        """``end_update`` now, or else the next update does it."""
        with suppress(OSError):
            self.end_update()

    def end_update(self) -> None:
        """Keep the new bundle where the link names it, else bring back what stood aside for it. Raises OSError."""
        self._discard()
        for name in NAMES:
            aside = self._aside(name)
            if not aside.exists():
                continue
            if name == self.active:
                aside.rename(self.root / OUTGOING)
            else:
                if self.path(name).exists():
                    self.path(name).rename(self.root / OUTGOING)
                if any(aside.iterdir()):
                    aside.rename(self.path(name))
                else:
                    aside.rmdir()
            sync_folder(self.root)
            self._discard()

    def activate(self, name: str) -> None:
        """Let the link name ``name``, on the disk when this returns. Raises OSError; the link is as before then."""
        before = self.active
        self._point(name)
        try:
            sync_folder(self.root)
        except OSError:
            with suppress(OSError):
                if before is None:
                    (self.root / LINK).unlink()
                else:
                    self._point(before)
            raise

    def _point(self, name: str) -> None:
        draft = self.root / f".{LINK}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(name)
        draft.replace(self.root / LINK)

    def _discard(self) -> None:
        for name in (INCOMING, OUTGOING):
            if (self.root / name).exists():
                shutil.rmtree(self.root / name)

    def _refuse_full(self, manifest: Manifest) -> None:
        wanted = sum(entry.size for entry in manifest.files.values()) + SPARE_BYTES
        free = shutil.disk_usage(self.root).free
        if free < wanted:
            raise ConfigError(f"{self.root}: {free >> 20} MiB are free and {wanted >> 20} MiB needed; free some space")


def _copy(source: Path, target: Path, relative: str, advance: Callable[[int], object]) -> None:
    """One file that the manifest names, on the disk when this returns."""
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise BundleError(f"{source}: path {relative!r} leaves the bundle")
    made = target / relative
    made.parent.mkdir(parents=True, exist_ok=True)
    try:
        reader = (source / relative).open("rb")
    except OSError as error:
        raise BundleError(f"{source / relative}: cannot be read ({error.strerror}): copy the bundle again") from error
    with reader, made.open("xb") as writer:
        while piece := reader.read(CHUNK_BYTES):
            writer.write(piece)
            advance(len(piece))
        writer.flush()
        os.fsync(writer.fileno())


def slots_of(settings: EdgeSettings, number: int) -> Slots:
    """Where the slots of recipe ``number`` are. Raises ConfigError where edge.toml has none for it."""
    links = settings.bundle_links()
    if number not in links:
        raise ConfigError(f"no recipe {number}; there are: {', '.join(map(str, sorted(links)))}")
    link = links[number]
    if link.name != LINK or (link.exists() and not link.is_symlink()):
        where = "slots" if number == 1 else f"slots-{number}"
        raise ConfigError(
            f"recipe {number}: edge.toml has bundle = {str(link)!r}, a folder that is run in place; to have slots, "
            f'stop the edge, write bundle = "{where}/{LINK}" there, give this command the bundle, start the edge'
        )
    return Slots(link.parent)


def in_slot(settings: EdgeSettings, number: int, slot: Path) -> EdgeSettings:
    """``settings`` as if recipe ``number`` were run from ``slot``."""
    if number == 1:
        return settings.model_copy(update={"bundle": slot})
    recipes = [
        recipe.model_copy(update={"bundle": slot}) if recipe.number == number else recipe for recipe in settings.recipes
    ]
    return settings.model_copy(update={"recipes": recipes})


def overtaken(judge: Judge, settings: EdgeSettings) -> str | None:
    """Why a recipe that was made ready may not take over any more: its slot or its link was changed meanwhile."""
    if judge.slot is None:
        stands = settings.bundle_folders().get(judge.number)
        if stands is None or judge.bundle.root.resolve() == stands:
            return None
        return f"recipe {judge.number} was updated while it was loaded; ask again"
    try:
        found = read_manifest(judge.slot).digest
        _ = Slots(judge.slot.parent).active  # a link to elsewhere is refused here, not between two parts
    except FlawlineError as error:
        return str(error)
    same = found == judge.bundle.manifest.digest
    return None if same else f"{judge.slot}: was changed while it was loaded; update again"


def settle(judge: Judge, settings: EdgeSettings) -> None:
    """Make a recipe's slot the active one, where it came from a slot.

    Raises OSError, and BundleError where another update reached the slot at the last moment; all is as before then.
    """
    if judge.slot is None:
        return
    slots = Slots(judge.slot.parent)
    before = slots.active
    slots.activate(judge.slot.name)
    if (changed := overtaken(judge, settings)) is not None:
        if before is not None:
            slots.activate(before)
        raise BundleError(changed)


def sync_folder(path: Path) -> None:
    """Have the disk keep what was renamed in ``path``. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
