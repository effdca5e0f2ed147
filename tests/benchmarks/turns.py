"""Several trainings in one process, one optimizer step at a time, in whatever order the caller likes.

Other work on the machine slows all of them alike only if they alternate faster than it changes; whole trainings one
after another do not. Each training runs Trainer's own loop in a thread of its own, and all but one of them wait.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from transformers import Trainer, TrainerCallback


class _Pause(TrainerCallback):  # type: ignore[misc]
    """Stops Trainer's loop at the end of each optimizer step until the next one is asked for."""

    def __init__(self, training: SteppedTraining) -> None:
        self.training = training

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.training.pause()


class SteppedTraining:
    """`trainer.train()`, taken step by step: `step()` returns when the optimizer has stepped once more.

    A step reaches from the end of the one before: next batch, forward, loss, backward, clipping, optimizer, callbacks.
    Errors of the training are raised by the `step()` in which they happen.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._asked = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._error: BaseException | None = None
        trainer.add_callback(_Pause(self))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> tuple[float, float]:
        """Take one step; wall and processor seconds."""
        wall, processor = time.perf_counter(), time.process_time()
        self._asked.release()
        self._done.acquire()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        if self._error is not None:
            raise self._error
        return wall, processor

    def finish(self) -> None:
        """Let `train()` return after its last step."""
        self.step()
        self._thread.join()

    def pause(self) -> None:
        """Say that a step is done and wait for the next; called in the training's thread."""
        self._done.release()
        self._asked.acquire()

    def _run(self) -> None:
        self._asked.acquire()
        try:
            self._trainer.train()
        except BaseException as error:  # noqa: BLE001 (raised again in step())
            self._error = error
        self._done.release()
