"""What a kind of examples (images, pairs of texts, recordings) has to say for itself, for a run to work on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import datasets
from torch import Tensor
from transformers import PreTrainedConfig

from hfdistill.data.examples import Progress, Source
from hfdistill.data.labels import LabelReader, LabelSpace
from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, StudentSection, TeacherSection


class View(Protocol):
    """How one model sees an example."""

    @property
    def processor(self) -> Any:
        """What is saved beside the model: a tokenizer, an image processor, a feature extractor."""
        ...

    def differences(self, other: Any) -> list[str]:
        """In words what another view of the same kind shows differently; empty when one view serves both."""
        ...


class Reader(Protocol):
    """Reads the labels of a split."""

    space: LabelSpace

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """A label, or a mark, for each row."""
        ...


class Kind(ABC):
    """One kind of examples, made from the train split: what is read, with which labels, as which tensors.

    `name` is for people. `auto_class` loads models with a fitting head. `regrouped` says that the rows of a source are
    not those of the data (blocks of running text); `drawn` that training inputs are drawn anew in each epoch even
    without augmentation. `known_names` are the classes of a teacher that is used as it is.
    """

    name: str
    auto_class: Any
    regrouped: bool = False
    drawn: bool = False

    def __init__(
        self,
        train: datasets.Dataset,
        section: DataSection,
        columns: tuple[str, ...],
        known_names: Sequence[str] | None = None,
    ) -> None:
        self.section = section
        self.columns = columns
        self.reader = self.made_reader(train, known_names)

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> Reader:
        """What reads the labels: by default one label for the whole example."""
        return LabelReader(train, self.section, known_names)

    @abstractmethod
    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: Any | None = None,
    ) -> View:
        """How the teacher sees an example, or how the student does, given the teacher's view."""

    def config_settings(self, section: TeacherSection | StudentSection, teacher: TeacherSection) -> dict[str, Any]:
        """What the config of a model with a new head has to know of the data, by default the classes.

        `section` is the model's own, and `teacher` the teacher's, whose processor a student may share.
        """
        return self.reader.space.config_settings()

    @abstractmethod
    def source(self, request: SourceRequest) -> Source:
        """The tensors of a split."""

    def of_rows(self, source: Source, values: Tensor) -> Tensor | None:
        """One value for each row of a source, from those of the data's rows; None where each has a label anyway."""
        return None if self.regrouped else values


@dataclass(frozen=True)
class SourceRequest:
    """What a source is made from: a split, the views by name, its share of memory in bytes, random changes."""

    dataset: datasets.Dataset
    split: str
    views: Mapping[str, Any]
    budget: int
    bar: Progress
    augment: Sequence[str] = field(default=())

    def only_view(self, kind: str) -> tuple[str, Any]:
        """Name and view where both models have to read the same tokens.

        Errors: HfDistillError where there are two.
        """
        if len(self.views) > 1:
            raise HfDistillError(
                f"Student and teacher have different tokenizers, or cut at different lengths; for {kind} both "
                "have to read the same tokens. Give both one tokenizer (student.processor) and set data.max_length."
            )
        ((name, view),) = self.views.items()
        return name, view
