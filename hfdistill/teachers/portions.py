"""A batch in portions: fewer rows at a time where a teacher's forward finds too little memory, the same targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from hfdistill.errors import HfDistillError
from hfdistill.sight import HIDDEN, MAPS, Seen
from hfdistill.tasks.layouts import first_tensor
from hfdistill.teachers.targets import Targets

logger = logging.getLogger(__name__)

Ask = Callable[[Mapping[str, Any]], Targets]
INSIDES = (HIDDEN, MAPS, "model_output")
"""How the names of outputs end that show something of a model's insides."""


class Portions:
    """Asks for the targets of a batch `size` rows at a time; None is all of them at once.

    With `halves` a forward that runs out of an accelerator's memory is tried again with half as many rows, and so are
    all that come later. Errors: HfDistillError for inputs and outputs that do not have a row for each example.
    """

    def __init__(self, size: int | None = None, halves: bool = True) -> None:
        self.size = size
        self.halves = halves

    def __call__(self, ask: Ask, inputs: Mapping[str, Any]) -> Targets:
        """The targets of all rows together."""
        while True:
            try:
                return self._asked(ask, inputs)
            except torch.OutOfMemoryError:
                smaller = self._half(inputs)
                if smaller is None:
                    raise
            # Only here, where the exception has let go of the tensors of the forward that failed.
            self.size = smaller
            logger.warning(
                "The teacher's forward ran out of memory; from here on it reads %d rows at a time. Set "
                "teacher_batch_size=%d to begin with that.",
                smaller,
                smaller,
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _asked(self, ask: Ask, inputs: Mapping[str, Any]) -> Targets:
        rows = len(first_tensor(inputs)) if self.size is not None else 0
        if self.size is None or rows <= self.size:
            return ask(inputs)
        parts = list(cut(inputs, rows, self.size))
        sizes = [len(first_tensor(part)) for part in parts]
        return joined([ask(part) for part in parts], sizes, inputs)

    def _half(self, inputs: Mapping[str, Any]) -> int | None:
        """Half of the rows that were too many; None where there is nothing to halve."""
        rows = len(first_tensor(inputs))
        before = rows if self.size is None else min(rows, self.size)
        return (before + 1) // 2 if self.halves and before > 1 and _odd_one(inputs, rows) is None else None


def cut(inputs: Mapping[str, Any], rows: int, size: int) -> Iterator[dict[str, Any]]:
    """Batches of `size` rows, and one of the rest. Errors: HfDistillError for an input that is not one of rows."""
    odd = _odd_one(inputs, rows)
    if odd is not None:
        value = inputs[odd]
        what = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"with {len(value)} entries"
        raise HfDistillError(
            f"{odd!r} {what} came for a batch of {rows} examples, which the teacher is to read {size} at a time; "
            "expected a row for each example. Leave teacher_batch_size out for models that read them otherwise."
        )
    for start in range(0, rows, size):
        yield {key: value[start : start + size] if _has_rows(value) else value for key, value in inputs.items()}


def joined(parts: Sequence[Targets], sizes: Sequence[int], inputs: Mapping[str, Any]) -> Targets:
    """The targets of a batch from those of its portions, which have so many rows; `inputs` are the whole batch's."""
    if any(len(part.logits) != size for part, size in zip(parts, sizes, strict=True)):
        raise _not_rows("logits", parts[0].logits, sizes[0])
    fields = {name: _together([part.fields[name] for part in parts], sizes, name) for name in parts[0].fields}
    shown = [part.seen for part in parts if part.seen is not None]
    seen = None
    if shown:
        modules = {name: _together([each.modules[name] for each in shown], sizes, name) for name in shown[0].modules}
        seen = Seen(inputs, _together([insides(each.outputs) for each in shown], sizes, "outputs"), modules)
    return Targets(_together([part.logits for part in parts], sizes, "logits"), fields, seen)


def insides(outputs: Any) -> dict[str, Any]:
    """What a model's outputs show of its insides, without all the rest."""
    if not isinstance(outputs, Mapping):
        return {}
    shown = {key: value for key, value in outputs.items() if key.endswith(INSIDES)}
    return {key: insides(value) if isinstance(value, Mapping) else value for key, value in shown.items()}


def _together(values: Sequence[Any], sizes: Sequence[int], name: str) -> Any:
    """The same of all portions as one, whether it is a tensor, several, or some by name."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _together([value[key] for value in values], sizes, key) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_together(column, sizes, name) for column in zip(*values, strict=True))
    if not isinstance(first, torch.Tensor):
        return first
    share = len(first) // sizes[0] if first.dim() else 0
    if not share or any(len(value) != share * size for value, size in zip(values, sizes, strict=True)):
        raise _not_rows(name, first, sizes[0])
    if any(value.shape[1:] != first.shape[1:] for value in values):
        raise _not_rows(name, first, sizes[0])
    return torch.cat(list(values))


def _not_rows(name: str, tensor: torch.Tensor, rows: int) -> HfDistillError:
    return HfDistillError(
        f"The teacher gives {name!r} of shape {tuple(tensor.shape)} for {rows} examples, which cannot be put together "
        "again; expected the examples first, and equal shapes for any number of them. Leave teacher_batch_size out."
    )


def _odd_one(inputs: Mapping[str, Any], rows: int) -> str | None:
    """The name of an input that does not have a row for each example."""
    return next((key for key, value in inputs.items() if _has_rows(value) and len(value) != rows), None)


def _has_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, torch.Tensor) and value.dim() > 0)
