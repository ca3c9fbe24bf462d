"""What a person sees while a model trains: a bar on a terminal, elsewhere plain lines (before hop 1)."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Reporter(Protocol):
    """What the loop tells: sentences, and where it is. ``share`` is the part of the budget used, 0 to 1."""

    def say(self, sentence: str) -> None: ...

    def step(self, step: int, share: float, left_s: float, numbers: dict[str, float]) -> None: ...

    def milestone(self, step: int, share: float, left_s: float, numbers: dict[str, float]) -> None: ...


class Quiet:
    """Says nothing: for tests and programs."""

    def say(self, sentence: str) -> None:
        return

    def step(self, step: int, share: float, left_s: float, numbers: dict[str, float]) -> None:
        return

    def milestone(self, step: int, share: float, left_s: float, numbers: dict[str, float]) -> None:
        return


class Terminal:
    """A progress bar on a terminal; elsewhere one line a milestone."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
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

    def step(self, step: int, share: float, left_s: float, numbers: dict[str, float]) -> None:
        if not self._console.is_terminal:
            return
        if self._task is None:
            self._task = self._bar.add_task("training", total=1.0, text="")
        self._bar.update(self._task, completed=share, text=line(step, left_s, numbers))

    def milestone(self, step: int, share: float, left_s: float, numbers: dict[str, float]) -> None:
        self.step(step, share, left_s, numbers)
        if not self._console.is_terminal:
            self.say(f"{share:4.0%}  {line(step, left_s, numbers)}")


def line(step: int, left_s: float, numbers: dict[str, float]) -> str:
    """``step 120  contextual 0.0410  validation 0.0398  1:20 left``."""
    shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
    return f"step {step}  {shown}  {int(left_s) // 60}:{int(left_s) % 60:02d} left"
