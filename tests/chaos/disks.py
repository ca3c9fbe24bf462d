"""A file system of its own under a side's state folder: it is filled, fails to read-only, loses its power."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.chaos.scene import Gear, Scene
from tests.processes import children, until

SIZE_MB = 48
FILLER, PLAYHEAD = "filler", "camera-top.json"
TRIES = 50


def command(*words: object) -> str:
    """Run a tool of the system; what it printed, or RuntimeError with what it said."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _done(*words: object) -> bool:
    try:
        command(*words)
    except RuntimeError:
        return False
    return True


class Disk(Gear):
    """An ext4 image, mounted where a side keeps its state; it turns read-only at the first error, as systems set it."""

    def __init__(self, side: str) -> None:
        self.side = side
        self._boots = 0

    def lay(self, scene: Scene) -> None:
        self.at = scene.folder / self.side
        self.at.mkdir()
        self._image = scene.folder / f"{self.side}.img"
        with self._image.open("wb") as file:
            file.truncate(SIZE_MB << 20)
        command("mkfs.ext4", "-q", "-m", 0, self._image)
        self._boot_file = scene.folder / f"{self.side}.boot"
        self._mount()

    def _mount(self) -> None:
        command("mount", "-o", "loop,errors=remount-ro", self._image, self.at)

    def clear(self) -> None:
        with suppress(RuntimeError):
            command("umount", "--lazy", self.at)

    def prefix(self, side: str) -> list[str]:
        """Of another boot, where the power was cut."""
        if side != self.side or not self._boots:
            return []
        script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(self._boot_file)]

    def size(self, name: str) -> int:
        """Bytes of a file of the side's."""
        return (self.at / name).stat().st_size

    def fill(self) -> None:
        """Not a byte more fits."""
        with (self.at / FILLER).open("wb", buffering=0) as file:
            for block in (bytes(1 << 20), bytes(1 << 12), b"\0"):
                with suppress(OSError):
                    while file.write(block) == len(block):
                        pass

    def free(self) -> None:
        (self.at / FILLER).unlink()

    def fail(self) -> None:
        """An error of the file system: the kernel makes it read-only at once, whoever has it open."""
        device = command("findmnt", "--noheadings", "--output", "SOURCE", self.at).strip().rpartition("/")[2]
        Path("/sys/fs/ext4", device, "trigger_fs_error").write_text("chaos")
        try:
            (self.at / FILLER).touch()
        except OSError as error:
            assert error.errno == errno.EROFS, error
        else:
            raise RuntimeError(f"{self.at} can still be written")

    def repair(self) -> None:
        """Checked and mounted again; nobody has it open any more."""
        belt = self._belt()
        self._remount()
        try:
            (self.at / FILLER).touch()
        except OSError as error:  # the image was not let go of: another mount namespace, of another campaign, has it
            raise RuntimeError(f"{self.at} cannot be written after its repair; one campaign at a time") from error
        self._go_on(belt)

    def _remount(self) -> None:
        self._unmount()
        self._check()
        self._mount()

    def _belt(self) -> dict[str, object] | None:
        """Where the drawn line is: a belt does not know what becomes of a disk."""
        file = self.at / PLAYHEAD
        return json.loads(file.read_text()) if file.exists() else None

    def _go_on(self, belt: dict[str, object] | None, **changes: str) -> None:
        if belt is not None:
            (self.at / PLAYHEAD).write_text(json.dumps(belt | changes))

    def _unmount(self) -> None:
        """As soon as the kernel has ended whoever belonged to the side that was killed."""
        until(lambda: _done("umount", self.at), f"{self.at} is let go of", 180.0)

    def _check(self) -> None:
        done = subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout  # 1: errors were mended

    def cut_power(self, scene: Scene, log: str | None, least: int, rng: random.Random) -> None:
        """The image as it is at this moment is what the next start finds, in another boot; ``log`` is torn.

        The image is copied while the side stands still, twice, until both are alike: the kernel writes it back when it
        likes. ``log``: this file of it ends, or is garbage from, a random byte behind the ``least`` first ones.
        """
        pid = scene.running[self.side].pid
        for each in (pid, *children(pid)):
            os.kill(each, signal.SIGSTOP)
        belt = self._belt()
        copy, again = self._image.with_suffix(".copy"), self._image.with_suffix(".again")
        for _ in range(TRIES):
            shutil.copyfile(self._image, copy)
            shutil.copyfile(self._image, again)
            if copy.read_bytes() == again.read_bytes():
                break
        else:
            raise RuntimeError(f"{self._image} was never at rest")
        scene.kill(self.side, hold=True)
        self._unmount()
        copy.replace(self._image)
        again.unlink()
        self._check()
        self._mount()
        self._boots += 1
        boot_id = f"{self._boots:08x}-0000-4000-8000-000000000000"
        self._boot_file.write_text(boot_id + "\n")
        self._go_on(belt, boot_id=boot_id)
        if log is not None:
            tear(self.at / log, least, rng)


def tear(path: Path, least: int, rng: random.Random) -> None:
    """The file ends at a random byte, or is garbage from there, as what was being written when the power went."""
    size = path.stat().st_size if path.exists() else 0
    if size <= least:
        return
    at = rng.randrange(least, size)
    with path.open("r+b") as file:
        if rng.random() < 0.5:
            file.truncate(at)
        else:
            file.seek(at)
            file.write(rng.randbytes(min(size - at, 1 << 16)))
        os.fsync(file.fileno())
