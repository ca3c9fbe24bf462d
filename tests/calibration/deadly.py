"""An archive of which one part ends whatever process reads it, as a decoder does that is broken by a picture."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

from calibration.archive import Archive, Item, LeftOut, Place
from contract.part_pictures import AS_CUT, Line
from contract.preprocess import Picture
from contract.recipe import Recipe

DEADLY = "test/good/part_003.png"


class DeadlyArchive:
    def __init__(self, place: Place) -> None:
        self._archive = place.open()
        self.left_out: LeftOut = self._archive.left_out

    def items(self) -> Iterator[Item]:
        return self._archive.items()

    def read(self, key: str, recipe: Recipe, line: Line = AS_CUT) -> Picture:
        if key == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._archive.read(key, recipe, line)


class DeadlyPlace(NamedTuple):
    """In a place's place."""

    place: Place

    @property
    def source(self) -> object:
        return self.place.source

    @property
    def is_host(self) -> bool:
        return self.place.is_host

    @property
    def query(self) -> tuple[tuple[str, str], ...]:
        return ()

    def open(self) -> Archive:
        return DeadlyArchive(self.place)
