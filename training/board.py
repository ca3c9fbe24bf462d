"""What TensorBoard shows of a run: losses, and pictures of good and of defective tiles (before hop 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.checkpoint import checkpoint_path
from training.heldout import set_exam
from training.pictures import judge_tiles, strip
from training.report import Progress
from training.settings import TrainSettings

SHOWN = 4
EXAM_SEED = 7


class Board(Protocol):
    """Takes down one milestone."""

    def write(self, progress: Progress, judge: nn.Module) -> None: ...


class NoBoard:
    """Takes down nothing."""

    def write(self, progress: Progress, judge: nn.Module) -> None:
        return


class TensorBoard:
    """Scalars and pictures in ``folder``; a disk that fills up costs these, not the training, and is said once."""

    def __init__(self, folder: str, validation: Tensor, say: Callable[[str], None]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(folder)
        self._folder = folder
        self._say = say
        self._broken = False
        self._good = validation[torch.linspace(0, len(validation) - 1, min(SHOWN, len(validation))).round().long()]
        self._defective = set_exam(self._good, EXAM_SEED, SHOWN).tiles[len(self._good) :]

    def write(self, progress: Progress, judge: nn.Module) -> None:
        with self._bearing_a_full_disk():
            for name, value in {**progress.numbers, "images_per_s": progress.images_per_s}.items():
                self._writer.add_scalar(name, value, progress.step)
            self._add_pictures(progress.step, judge)

    def _add_pictures(self, step: int, judge: nn.Module) -> None:
        tiles = torch.cat([self._good, self._defective])
        drawings, deviations = judge_tiles(judge, tiles)
        # One scale for all pictures of a milestone, else a good tile's noise looks like a defect.
        top = float(deviations.max())
        for index, shown in enumerate(zip(tiles, drawings, deviations, strict=True)):
            number = index - len(self._good)
            name = f"good validation/{index}" if number < 0 else f"synthetic defect/{number}"
            self._writer.add_image(name, strip(*shown, top), step, dataformats="HWC")

    def close(self) -> None:
        with self._bearing_a_full_disk():
            self._writer.close()

    @contextmanager
    def _bearing_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # which TensorBoard raises again and again
            if not self._broken:
                self._say(f"{self._folder}: TensorBoard's file cannot be written ({error.strerror}); training goes on")
            self._broken = True


@contextmanager
def open_board(settings: TrainSettings, validation: Tensor, first: bool, say: Callable[[str], None]) -> Iterator[Board]:
    """TensorBoard where the settings ask for it and this is the ``first`` process; ``say`` tells a person."""
    if not settings.tensorboard or not first:
        yield NoBoard()
        return
    board = TensorBoard(str(checkpoint_path(settings.out).parent / "tensorboard"), validation, say)
    try:
        yield board
    finally:
        board.close()
