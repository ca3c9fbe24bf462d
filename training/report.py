"""What a person sees while a model trains: a bar on a terminal, elsewhere plain lines (before hop 1)."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Protocol

from rich import progress as bars
from rich.console import Console
from rich.progress import TaskID


class Progress(NamedTuple):
    """Where a run is: ``share`` of the budget used, 0 to 1, the latest losses and validation loss by name."""

    step: int
    share: float
    left_s: float
    images_per_s: float
    numbers: dict[str, float]


class Reporter(Protocol):
    """What the loop tells: sentences, and where it is."""

    def say(self, sentence: str) -> None: ...

    def step(self, progress: Progress) -> None: ...

    def milestone(self, progress: Progress) -> None: ...


class Quiet:
    """Says nothing: for tests and programs."""

    def say(self, sentence: str) -> None:
        return

    def step(self, progress: Progress) -> None:
        return

    def milestone(self, progress: Progress) -> None:
        return


class Terminal:
    """A progress bar on a terminal; elsewhere one line a milestone."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Terminal:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def step(self, progress: Progress) -> None:
        if not self._console.is_terminal:
            return
        if self._task is None:
            self._task = self._bar.add_task("training", total=1.0, text="")
        self._bar.update(self._task, completed=progress.share, text=line(progress))

    def milestone(self, progress: Progress) -> None:
        self.step(progress)
        if not self._console.is_terminal:
            self.say(f"{progress.share:4.0%}  {line(progress)}")


def line(progress: Progress) -> str:
    """``step 120  contextual 0.0410  validation 0.0398  84 images/s  1:20 left``."""
    shown = "  ".join(f"{name} {value:.4f}" for name, value in progress.numbers.items())
    left = f"{int(progress.left_s) // 60}:{int(progress.left_s) % 60:02d} left"
    return f"step {progress.step}  {shown}  {progress.images_per_s:.0f} images/s  {left}"
