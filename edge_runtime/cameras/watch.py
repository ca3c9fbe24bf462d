"""A folder that something else writes pictures into: each becomes a frame once, when it is whole (hop 1).

The folder is listed again and again, since the kernel tells nothing of what others write to a network share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

from contract.errors import ImageError
from contract.images import MAX_FILE_BYTES, SUFFIXES, PixelFormat, declared_size, decode_image, is_whole
from edge_runtime.cameras.base import NAP_S, BadFrame, Camera, CameraFrame, Source
from edge_runtime.errors import CameraError

LOOK_S = 0.1  # between two looks at the folder; longer where a look takes long
LOOK_AGAIN_S = 1.0  # between two looks into a file that has no end yet
LOOK_SHARE = 0.2  # most of the time that may go into looking
LOOK_MOST_S = 0.5  # files that are looked into after so long wait for the next look
MOST = 20_000  # pictures in the folder at once, and those remembered that are gone from it
DONE, TAKEN = "done", "taken"


class Seen(NamedTuple):
    """What tells a file from another one of the same name."""

    size: int
    mtime_ns: int
    inode: int

    def key(self) -> tuple[int, int]:
        """What tells it under its name: inode numbers of network shares change by themselves."""
        return self.size, self.mtime_ns

    def told_apart(self) -> bool:
        """Whether another picture can hardly have the same key and inode: not where time counts in whole seconds."""
        return self.inode != 0 and self.mtime_ns % 1_000_000_000 != 0


class ForgetfulError(Exception):
    """What was given could not be written down."""


class Memory:
    """Which pictures were given, in a file that outlives the process: at most once each, whatever is killed.

    A picture is written down as taken before it is given, and as done once it has been announced. One that was taken
    and not done when everything stopped may have its verdict, and is never given again. Raises ForgetfulError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, Seen] = {}
        self._names: dict[Seen, str] = {}  # under which name each was given
        self.interrupted: str | None = None
        try:
            for name, seen, state in _lines(path):
                self._hold(name, seen)
                self.interrupted = name if state == TAKEN else None
            self._file = self._begin()
        except OSError as error:
            raise ForgetfulError(error.strerror) from error

    def knows(self, name: str, seen: Seen, present: Mapping[str, Seen]) -> bool:
        """Whether it was given, under this name or under one that is gone from the folder: then it was renamed."""
        held = self._held.get(name)
        if held is not None and held.key() == seen.key():
            return True
        old = self._names.get(seen) if seen.told_apart() else None
        if old is None or present.get(old) == seen:
            return False
        self._drop(old)
        self._hold(name, seen)
        self._write(name, DONE)
        return True

    def take(self, name: str, seen: Seen) -> None:
        """Before it is given; on the disk when this returns."""
        self._hold(name, seen)
        self._write(name, TAKEN)

    def _hold(self, name: str, seen: Seen) -> None:
        self._drop(name)
        self._held[name] = seen
        self._names[seen] = name

    def _drop(self, name: str) -> None:
        seen = self._held.pop(name, None)
        if seen is not None and self._names.get(seen) == name:
            del self._names[seen]

    def finish(self, name: str) -> None:
        """The picture that was taken has been announced."""
        self._write(name, DONE)

    def forget_beyond(self, most: int, present: Mapping[str, Seen]) -> None:
        """Forget the oldest of those that are gone from the folder, and begin the file anew where it has grown long."""
        if self._length < 2 * (most + len(present)):
            return
        gone = [name for name in self._held if name not in present]
        for name in gone[: max(0, len(gone) - most)]:
            self._drop(name)
        try:
            self._file.close()
            self._file = self._begin()
        except OSError as error:
            raise ForgetfulError(error.strerror) from error

    def _write(self, name: str, state: str) -> None:
        try:
            self._file.write(json.dumps([name, self._held[name], state]) + "\n")
            self._file.flush()
            if state == TAKEN:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise ForgetfulError(error.strerror) from error
        self._length += 1

    def _begin(self) -> TextIO:
        """The file anew with one line a picture, so that it does not grow for ever."""
        new = self._path.with_suffix(".new")
        with new.open("w") as file:
            for name, seen in self._held.items():
                file.write(json.dumps([name, seen, TAKEN if name == self.interrupted else DONE]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        self._length = len(self._held)
        return self._path.open("a")

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[tuple[str, Seen, str]]:
    """What the file holds; its last line may be torn, and older ones do not name an inode."""
    found = []
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            name, (size, mtime_ns, *inode), state = json.loads(line)
            found.append((str(name), Seen(int(size), int(mtime_ns), int(*inode)), str(state)))
        except (ValueError, TypeError):
            continue
    return found


class Mounted:
    """Tells an empty folder from a share that is not mounted, whose bare mount point is an empty folder as well."""

    def __init__(self, folder: Path, memory: Path, options: Mapping[str, str]) -> None:
        """``memory``: where the folder's mount point is remembered, over restarts."""
        self._folder = folder
        self._memory = memory
        self._marker = options.get("marker")
        self._seen: tuple[int, int] | None = None

    def fault(self, first: bool) -> str | None:
        """What is wrong with the folder now, None: nothing. ``first``: the folder is being opened. Raises OSError."""
        status = self._folder.stat()
        seen = (status.st_dev, status.st_ino)
        if self._marker is not None and not (self._folder / self._marker).exists():
            return f"its marker {self._marker!r} is missing; is the share mounted?"
        if not first:
            return None if seen == self._seen else "it is another folder than when it was opened; is the share mounted?"
        self._seen = seen
        point, before = _mount_point(self._folder), self._remembered()
        if before is not None and before != point and before.is_relative_to(point):
            return (
                f"it was on the share {before}, which is not mounted now: mount it; where the folder is a local one "
                f"from now on, remove {self._memory}"
            )
        return None

    def remember(self) -> None:
        """Note the mount point for the next start. Raises OSError."""
        point = _mount_point(self._folder)
        if self._remembered() != point:
            self._memory.write_text(f"{point}\n")

    def _remembered(self) -> Path | None:
        try:
            return Path(self._memory.read_text().rstrip("\n"))
        except (FileNotFoundError, UnicodeDecodeError):
            return None


def _mount_point(folder: Path) -> Path:
    """The file system's root that the folder lies under."""
    folder = folder.resolve()
    while not os.path.ismount(folder):
        folder = folder.parent
    return folder


class _Waiting(NamedTuple):
    """A file that is not whole yet: how it was seen, since when it has been so, and when to look into it next."""

    seen: Seen
    since_s: float
    look_s: float


class WatchedFolder(Camera):
    """``watch:///folder``; options ``fps`` (most pictures a second, 10), ``settle`` (0.3 s without a change until a
    file counts as written), ``wait`` (10 s until one that has no end counts as broken), ``channels`` (3; 1: grey) and
    ``marker`` (a name that must be in the folder, so that a share that is not mounted is told from an empty one).

    Pictures are given in the order in which they were whole; those that are found whole at the same look by time of
    modification, then by name. The capture time is when a picture was taken from the folder. Names that begin with a
    dot and other suffixes than those of pictures are left alone: write under such a name and rename.
    """

    live = False
    waits = True

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        source.only("fps", "settle", "wait", "channels", "marker")
        self._folder = Path(source.place)
        self.fps = source.option("fps", 10, 0.01, 1000)
        self._settle_s = source.option("settle", 0.3, 0.01, 60)
        self._wait_s = source.option("wait", 10, 0.1, 3600)
        self._format = PixelFormat.MONO8 if source.option("channels", 3, 1, 3) == 1 else PixelFormat.RGB8
        self._memory: Memory | None = None
        self._mounted = Mounted(self._folder, source.state_dir / f"camera-{source.camera_id}.mount", source.options)
        self._found: dict[str, Seen] = {}  # by the look that is going on
        self._entries: os._ScandirIterator[str] | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._whole: dict[str, None] = {}  # in the order in which they are given
        self._gone: list[str] = []
        self._last: str | None = None
        self._next_no = 0
        self._next_look_s = self._next_give_s = 0.0
        if not self._folder.is_dir():
            raise self.error(f"{self._folder}: no such folder")

    def open(self) -> None:
        self.hold_to_controls()
        try:
            self.source.state_dir.mkdir(parents=True, exist_ok=True)
            self._check(first=True)
            self._mounted.remember()
            self._memory = Memory(memory_file(self.source))
        except (ForgetfulError, OSError) as error:
            raise self._forgetful(error) from error

    def read(self) -> CameraFrame | BadFrame | None:
        if self._memory is None:
            raise self.error("read before it was opened")
        now = time.monotonic()
        try:
            if self._memory.interrupted is not None:
                return self._give_up_interrupted(self._memory)
            if now >= self._next_look_s:
                self._look(self._memory, now)
            if self._gone:
                return self._bad(self._gone.pop(0), "it was taken away before it could be read")
            if self._whole and now >= self._next_give_s:
                self._next_give_s = now + 1 / self.fps
                name = next(iter(self._whole))
                del self._whole[name]
                return self._give(self._memory, name)
        except ForgetfulError as error:
            raise self._forgetful(error) from error
        until = self._next_give_s if self._whole else self._next_look_s
        time.sleep(min(max(0.0, until - now), NAP_S))
        return None

    def taken(self) -> None:
        name, self._last = self._last, None
        if name is None or self._memory is None:
            return
        try:
            self._memory.finish(name)
        except ForgetfulError as error:
            raise self._forgetful(error) from error

    # Which files are whole --------------------------------------------------------------------------------------------

    def _look(self, memory: Memory, now: float) -> None:
        """Go on listing the folder; once it is listed, see what has come, stayed as it was, or gone."""
        started = time.monotonic()
        if not self._listed(started):
            return
        found, self._found = self._found, {}
        memory.forget_beyond(MOST, found)
        for name, seen in sorted(found.items(), key=lambda item: (item[1].mtime_ns, item[0])):
            if name not in self._whole and not memory.knows(name, seen, found):
                self._follow(name, seen, now, time.monotonic() - started < LOOK_MOST_S)
        inodes = {seen.inode for seen in found.values()}
        for name in [name for name in self._waiting if name not in found]:
            if self._waiting.pop(name).seen.inode not in inodes:  # else it has another name now
                self._gone.append(name)
        took = time.monotonic() - started
        self._next_look_s = now + max(LOOK_S, took / LOOK_SHARE)

    def _listed(self, started: float) -> bool:
        """List for at most LOOK_MOST_S, so that a slow share is no camera that hangs; true at the folder's end.

        Raises CameraError where it is another folder than before, has too many pictures, or cannot be listed.
        """
        try:
            if self._entries is None:
                self._check()
                self._found, self._entries = {}, os.scandir(self._folder)
            for entry in self._entries:
                self._note(entry)
                if time.monotonic() - started > LOOK_MOST_S:
                    return False
            self._entries = None
            self._check()  # what was unmounted meanwhile gave no end of its own
        except OSError as error:
            raise self._unlisted(error) from error
        return True

    def _note(self, entry: os.DirEntry[str]) -> None:
        if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in SUFFIXES:
            return
        try:
            if not entry.is_file():
                return
            status = entry.stat()
        except FileNotFoundError:
            return
        self._found[entry.name] = Seen(status.st_size, status.st_mtime_ns, status.st_ino)
        if len(self._found) > MOST:
            raise self.error(f"{self._folder}: more than {MOST} pictures; move away what has been inspected")

    def _check(self, first: bool = False) -> None:
        """Raise CameraError where the folder is not the one that was opened, or that the last run saw."""
        try:
            fault = self._mounted.fault(first)
        except OSError as error:
            raise self._unlisted(error) from error
        if fault is not None:
            raise self.error(f"{self._folder}: {fault}")

    def _unlisted(self, error: OSError) -> CameraError:
        return self.error(f"{self._folder}: cannot be listed ({error.strerror}); is the share mounted?")

    def _follow(self, name: str, seen: Seen, now: float, may_read: bool) -> None:
        """Wait until a file has stopped changing and has the end of a picture, or has had none for too long."""
        held = self._waiting.get(name)
        if held is None or held.seen.key() != seen.key():
            self._waiting[name] = _Waiting(seen, now, now + self._settle_s)
        elif now < held.look_s or not may_read:
            return
        elif now - held.since_s >= self._wait_s or self._ends(name):
            del self._waiting[name]
            self._whole[name] = None
        else:
            self._waiting[name] = held._replace(look_s=now + LOOK_AGAIN_S)

    def _ends(self, name: str) -> bool:
        """Whether the file has the end that its format demands. One that cannot be read is waited for."""
        try:
            return is_whole(_bytes_of(self._folder / name)) is not False
        except (OSError, ImageError):
            return False

    # Giving them ------------------------------------------------------------------------------------------------------

    def _give(self, memory: Memory, name: str) -> CameraFrame | BadFrame | None:
        """Read one file; None where it began to change again."""
        path = self._folder / name
        seen: Seen | None = None
        try:
            seen = _seen(path)
            data = _bytes_of(path)
            if _seen(path).key() != seen.key():
                return None  # the next look finds it as a new one
        except FileNotFoundError:
            return self._bad(name, "it was taken away before it could be read")
        except (OSError, ImageError) as error:
            if seen is None:
                return self._bad(name, str(error))
            data = b""
            fault: str | None = f"it cannot be read ({error.strerror if isinstance(error, OSError) else error})"
        else:
            fault = self.source.too_large(declared_size(data), self._format.planes)
        memory.take(name, seen)
        self._last = name
        if fault is None:
            try:
                pixels = decode_image(data, 1 if self._format is PixelFormat.MONO8 else 3, "its content")
                return CameraFrame(pixels, self._format, self._number(), time.monotonic_ns())
            except ImageError as error:
                fault = str(error)
        return self._bad(name, fault)

    def _give_up_interrupted(self, memory: Memory) -> BadFrame:
        name, memory.interrupted = str(memory.interrupted), None
        self._last = name
        return self._bad(name, "the edge stopped while it was being inspected; it is not inspected twice")

    def _bad(self, name: str, fault: str) -> BadFrame:
        shown = name.encode("utf-8", "replace").decode()  # a name need not be text
        return BadFrame(f"{shown}: {fault}"[:280], self._number(), time.monotonic_ns())

    def _number(self) -> int:
        self._next_no += 1
        return self._next_no - 1

    def _forgetful(self, error: Exception) -> CameraError:
        return self.error(
            f"{memory_file(self.source)}: cannot be written ({error}); without it a picture might be inspected "
            "twice, so none is"
        )

    def close(self) -> None:
        if self._entries is not None:
            self._entries.close()
            self._entries = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def memory_file(source: Source) -> Path:
    """Where a folder's pictures are remembered; it outlives a clean stop."""
    return source.state_dir / f"camera-{source.camera_id}.watched.jsonl"


def _seen(path: Path) -> Seen:
    status = path.stat()
    return Seen(status.st_size, status.st_mtime_ns, status.st_ino)


def _bytes_of(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ImageError(f"{path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    return path.read_bytes()
