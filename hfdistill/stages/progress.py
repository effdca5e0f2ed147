"""What a run says while it works: bars on a terminal, a few plain lines in a log file, nothing from other processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Reporter:
    """Speaks for one process; a silent one is for the other processes of a launch.

    `above`, where it is set, gives what stands above each bar on a terminal.
    """

    def __init__(self, console: Console | None = None, *, silent: bool = False) -> None:
        self.console = Console(quiet=True) if silent else console or Console()
        self.above: Callable[[], RenderableType] | None = None

    def say(self, what: Any, style: str | None = None) -> None:
        """A text as it is, or any rich renderable."""
        self.console.print(what, style=style, markup=False, highlight=False, soft_wrap=isinstance(what, str))

    def bar(self, items: Sequence[Any], title: str) -> Iterator[Any]:
        """The items, with a bar on a terminal."""
        if not self.console.is_terminal or len(items) < 2:
            yield from items
            return
        with self._progress() as progress:
            task = progress.add_task(f"  {title}", total=len(items), note="")
            for item in items:
                yield item
                progress.advance(task)

    @contextmanager
    def training(self, title: str) -> Iterator[TrainerCallback]:
        """A callback that shows a training's steps."""
        if not self.console.is_terminal:
            yield PlainSteps(self.console, title)
            return
        with self._progress() as progress:
            yield BarSteps(progress, title)

    def _progress(self) -> Progress:
        return _Bars(
            self.above,
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )


class _Bars(Progress):
    """Bars with something above them that is drawn anew each time."""

    def __init__(self, above: Callable[[], RenderableType] | None, *columns: ProgressColumn, **options: Any) -> None:
        self.above = above  # read by the first drawing, which happens while Progress is made
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from top to bottom."""
        if self.above is not None:
            yield self.above()
        yield from super().get_renderables()


def _note(logs: dict[str, float] | None) -> str:
    shown = {key: value for key, value in (logs or {}).items() if key in ("loss", "eval_loss", "eval_accuracy")}
    return "  ".join(f"{key} {value:.4g}" for key, value in shown.items())


class BarSteps(TrainerCallback):
    """A live bar over optimizer steps."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress = progress
        self.task = progress.add_task(f"  {title}", total=None, note="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn how many steps there are, and where a resumed training begins."""
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on."""
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the latest loss."""
        if note := _note(logs):
            self.progress.update(self.task, note=note)


class PlainSteps(TrainerCallback):
    """A line at every tenth of the steps."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.note = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the latest loss for the next line."""
        self.note = _note(logs) or self.note

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Speak at every tenth."""
        tenth = max(state.max_steps // 10, 1)
        if state.global_step % tenth == 0 or state.global_step == state.max_steps:
            line = f"  {self.title}: step {state.global_step} of {state.max_steps}  {self.note}".rstrip()
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Clock(TrainerCallback, ExportableState):
    """Seconds of training, those before an interruption included: they are saved with each checkpoint."""

    def __init__(self, before: float = 0.0) -> None:
        self.before = before
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.perf_counter() - self.started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self.started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What Trainer saves in trainer_state.json."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}
