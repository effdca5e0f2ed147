"""A teacher whose targets lie on the disk: read where they are there, and else asked for and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hfdistill.cache.collator import KEYS, MASK
from hfdistill.cache.contents import LOGITS, PLACES, ROWS, SEEN, Contents, Entry
from hfdistill.cache.manifest import Manifest, TeacherIdentity, input_description, no_cache
from hfdistill.cache.shown import Shown
from hfdistill.cache.store import Store, of_packed
from hfdistill.cache.top_k import LOGS, LOW, REST, TopK
from hfdistill.errors import HfDistillError
from hfdistill.sight import NOTHING, Seen, Sight
from hfdistill.tasks import Task, Tokens
from hfdistill.tasks.layouts import Examples, Spans, first_tensor
from hfdistill.tasks.pairs import ImageTextPairs
from hfdistill.teachers import KeptLogits, LiveTeacher, Targets
from hfdistill.teachers.live import Read
from hfdistill.views import STORED

MANY_CLASSES = 2048
"""From so many classes on `top_k="auto"` keeps the most likely ones."""
K = 64


@dataclass(frozen=True)
class Settings:
    """In what form a cache that is new keeps logits."""

    top_k: int | str | None = "auto"
    dtype: str = "float16"
    probabilities: str = "float16"
    temperatures: tuple[float, ...] = (1.0,)
    processor: str = ""

    def contents(
        self,
        outputs: Mapping[str, torch.Tensor],
        masks: Mapping[str, torch.Tensor],
        task: Task,
        layers: Mapping[str, int],
    ) -> Contents:
        """What is kept of a teacher's outputs, from those of a first batch."""
        entries = {}
        for name, tensor in outputs.items():
            kind = _kind(name, task)
            along = kind if kind in masks and tensor.shape[:2] == masks[kind].shape else None
            entries[name] = Entry(tuple(tensor.shape[1:] if along is None else tensor.shape[2:]), along)
        return Contents(entries, self.dtype, self._top_k(entries, task), dict(layers))

    def _top_k(self, entries: Mapping[str, Entry], task: Task) -> TopK | None:
        logits = entries.get(LOGITS)
        fits = isinstance(task.layout, Examples | Tokens) and logits is not None
        classes = logits.shape[-1] if logits is not None and logits.shape else 0
        if self.top_k is None or (self.top_k == "auto" and (not fits or classes < MANY_CLASSES)):
            return None
        if not fits:
            raise HfDistillError(
                f"top_k={self.top_k} came for {task.name}, whose outputs are no single distribution a row; expected "
                "top_k=None, which keeps them whole."
            )
        k = K if self.top_k == "auto" else int(self.top_k)
        return TopK(k, classes, self.temperatures, self.probabilities)


def _kind(name: str, task: Task) -> str:
    """Which places of a text an output has an entry for, if it has one for each place of something."""
    if name.startswith(SEEN):
        return ROWS if ".decoder" in name else "" if ".vision" in name else PLACES
    return ROWS if isinstance(task.layout, Tokens) else PLACES if isinstance(task.layout, Spans) else ""


class Noted(Mapping[str, Any]):
    """A model's outputs, which note what is read of them."""

    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs
        self.read: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> Any:
        given = self.outputs
        value = given[name] if isinstance(given, Mapping) else vars(given)[name]
        if isinstance(value, torch.Tensor):
            self.read[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs if isinstance(self.outputs, Mapping) else vars(self.outputs))

    def __len__(self) -> int:
        return len(self.outputs if isinstance(self.outputs, Mapping) else vars(self.outputs))


@dataclass(frozen=True)
class Reading:
    """How targets are taken from a teacher's outputs: `read`, `columns` and `fields` as a LiveTeacher has them.

    `tokens` are the teacher's classes of each of the student's tokens, -1 for none, where vocabularies differ.
    """

    read: Read
    columns: torch.Tensor | None = None
    fields: Sequence[str] = ()
    tokens: Sequence[int] | None = None

    def places(self, classes: int) -> torch.Tensor | None:
        """The student's class of each of so many of the teacher's, -1 for none; None where they are the same."""
        columns = self.columns if self.tokens is None else torch.tensor(self.tokens)
        if columns is None:
            return None
        places = torch.full((classes,), -1)
        known = columns >= 0
        places[columns[known]] = torch.arange(len(columns))[known]
        return places


@dataclass
class StoredTeacher:
    """Gives targets for batches that a CachingCollator has made.

    `model` is the teacher, or its skeleton; `live` fills in what is missing, None where nothing may be. What it gives
    is brought to the stored form first, so that a batch has the same targets in every epoch. `identity` says which
    model `live` is.
    """

    store: Store
    task: Task
    reading: Reading
    settings: Settings
    model: nn.Module
    live: LiveTeacher | None = None
    identity: TeacherIdentity | None = None
    sight: Sight = NOTHING
    shown: Shown = field(default_factory=Shown)
    _noted: list[Noted] = field(default_factory=list, init=False)
    _known_places: list[torch.Tensor | None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.task.layout, ImageTextPairs):
            raise HfDistillError(
                f"A CachedTeacher came for {self.task.name}, where a picture's logits are about the texts of its "
                "batch, and these change with the order; expected a live teacher."
            )
        if self.store.manifest is not None:
            self.store.manifest.check_task(self.task.name, self.store.folder)
            if self.identity is not None:
                self.store.manifest.check_teacher(self.identity, self.store.folder)
        elif self.live is None:
            raise no_cache(self.store.folder)
        if self.live is not None:
            self.live.read, self.live.columns = self._noting, None
        elif self.store.manifest is not None:
            self.shown.layers.update(self.store.manifest.contents.layers)

    @property
    def complete(self) -> bool:
        """Whether there is no model to ask for what is missing."""
        return self.live is None

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch of the teacher's inputs."""
        plain = {name: value for name, value in inputs.items() if not name.startswith(STORED)}
        if len(plain) == len(inputs):
            return self.fresh(plain)
        if KEYS in inputs:
            return self._targets(self._asked(plain, inputs), plain)
        return self._targets({name: value for name, value in inputs.items() if name.startswith(STORED)}, plain)

    def fresh(self, inputs: Mapping[str, Any]) -> Targets:
        """What the live teacher says of inputs that no collator has looked up.

        Errors: HfDistillError where there is none.
        """
        if self.live is None:
            raise HfDistillError(
                "A batch came that a cache without a teacher has not looked up; expected batches of the trainer's own "
                "loaders (get_train_dataloader, get_eval_dataloader), or the teacher too: CachedTeacher(path, "
                "teacher_model=...)."
            )
        targets = self.live(inputs)
        columns = self.reading.columns
        if columns is None:
            return targets
        return replace(targets, logits=targets.logits.index_select(-1, columns.to(targets.logits.device)))

    def look(self, inputs: Mapping[str, Any]) -> Seen | None:
        """What the teacher shows of a batch, before any is kept: what is read of it now is what will be kept.

        Errors: HfDistillError for terms on attention maps and scores.
        """
        if self.sight.attentions or self.sight.scores:
            raise HfDistillError(
                "A CachedTeacher came with a term on attention maps or scores, which are too large to keep; expected "
                "terms on logits, hidden states, relations or named modules, or a live teacher."
            )
        if self.live is None:
            return self(inputs).seen
        self.live.sight = self.sight
        plain = {name: value for name, value in inputs.items() if not name.startswith(STORED)}
        seen = self.live(plain).seen
        return None if seen is None else self.shown.noting(seen)

    def flush(self) -> None:
        """Write what is waiting to be written."""
        self.store.flush()

    def _noting(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        self._noted.append(Noted(outputs))
        return self.reading.read(self._noted[-1], inputs)

    def _asked(self, plain: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The live teacher's targets in the stored form, which are kept where they are new."""
        assert self.live is not None, "only with a live teacher does a collator leave examples out"
        self._noted.clear()
        targets = self.live(plain)
        # A teacher that reads fewer rows at a time has given its outputs in as many pieces.
        names = self._noted[0].read
        outputs = {name: torch.cat([each.read[name] for each in self._noted]) for name in names} | dict(targets.fields)
        self._noted.clear()
        if targets.seen is not None:
            outputs |= self.shown.tensors(targets.seen)
        masks = {name.removeprefix(MASK): inputs[name].bool() for name in inputs if name.startswith(MASK)}
        if self.store.manifest is None:
            self._begin(outputs, masks, plain)
        assert self.store.manifest is not None, "it was written just now"
        contents = self.store.manifest.contents
        if set(contents.entries) != set(outputs):
            raise HfDistillError(
                f"{self.store.folder} keeps {', '.join(contents.entries)} of its teacher, and the objective asks for "
                f"{', '.join(outputs)}. Give this objective a cache of its own."
            )
        packed = contents.packed(outputs, masks)
        if KEYS in inputs:
            self.store.add(inputs[KEYS].cpu().numpy().view("u8"), packed)
        device = first_tensor(plain).device
        on_host = {kind: mask.cpu() for kind, mask in masks.items()}
        return {name: each.to(device) for name, each in contents.unpacked(of_packed(packed), on_host).items()}

    def _begin(
        self, outputs: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
    ) -> None:
        assert self.identity is not None, "a live teacher has an identity"
        contents = self.settings.contents(outputs, masks, self.task, self.shown.layers)
        own = Manifest(self.identity, self.task.name, input_description(plain), contents, self.settings.processor)
        self.store.manifest = own.write(self.store.folder)
        self.store.manifest.check_task(self.task.name, self.store.folder)
        self.store.manifest.check_teacher(own.teacher, self.store.folder)

    def _targets(self, stored: Mapping[str, torch.Tensor], inputs: Mapping[str, Any]) -> Targets:
        assert self.store.manifest is not None, "what is stored has a manifest"
        fields = {name: stored[STORED + name].float() for name in self.reading.fields}
        insides = {
            name.removeprefix(STORED): each.float() for name, each in stored.items() if name.startswith(STORED + SEEN)
        }
        seen = self.shown.stored(inputs, insides) if insides else None
        top_k = self.store.manifest.contents.top_k
        if top_k is None:
            outputs = {name.removeprefix(STORED): each.float() for name, each in stored.items()}
            logits = self.reading.read(outputs, inputs)
            if self.reading.columns is not None:
                logits = logits.index_select(-1, self.reading.columns.to(logits.device))
            return Targets(logits, fields, seen)
        indices, logs, rest = (stored[STORED + name] for name in (LOW, LOGS, REST))
        kept = KeptLogits(indices, logs, rest, top_k.temperatures, self._places(top_k.classes, indices.device))
        return Targets(kept.log_probabilities.float(), fields, seen, kept=kept)

    def _places(self, classes: int, device: torch.device) -> torch.Tensor | None:
        """`Reading.places`, made in the first step: a vocabulary is long."""
        if self._known_places is None:
            self._known_places = [self.reading.places(classes)]
        (places,) = self._known_places
        if places is not None and places.device != device:
            places = self._known_places[0] = places.to(device)
        return places


class KeepsTargets(TrainerCallback):
    """Writes what is waiting wherever a training may stop."""

    def __init__(self, teacher: StoredTeacher) -> None:
        self.teacher = teacher

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """With each checkpoint."""
        self.teacher.flush()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """So that the workers of the next epoch find it."""
        self.teacher.flush()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each evaluation."""
        self.teacher.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At the end."""
        self.teacher.flush()
