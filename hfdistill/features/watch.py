"""The features of a training: what both models have to show, which terms read what, and the projectors between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.features.layout import config_widths
from hfdistill.features.projectors import ATTRIBUTE, ModulePlan, Projectors
from hfdistill.features.terms import Binding, FeatureTerm, Look
from hfdistill.knowledge import Logits, Term
from hfdistill.shards import gathered, whole
from hfdistill.sight import NOTHING, Seen, Sight, unwrapped, watched
from hfdistill.tasks.layouts import first_tensor
from hfdistill.teachers import Targets
from hfdistill.temperatures import TEMPERATURE, LearnedTemperature, TemperatureModule

PROJECTED = "distillation_features"


@dataclass(frozen=True)
class FeatureStep:
    """What the terms of one micro-batch see of the insides of both models."""

    student: Seen
    teacher: Seen
    bindings: Mapping[str, Binding]


@dataclass
class FeatureWatch:
    """Owned by a trainer; idle where no term asks for features."""

    terms: tuple[FeatureTerm, ...] = ()
    looks: dict[str, Look] = field(default_factory=dict)
    bindings: dict[str, Binding] = field(default_factory=dict)
    student_sight: Sight = NOTHING
    teacher_widths: frozenset[int] = frozenset()
    projectors: Projectors = field(default_factory=lambda: Projectors({}, 0, torch.device("cpu")))
    learned: Mapping[str, TemperatureModule] = field(default_factory=dict)

    @classmethod
    def of(cls, terms: Sequence[Term], device: torch.device) -> FeatureWatch:
        """For the terms of an objective."""
        learned = {
            term.name: term.options[TEMPERATURE].module()
            for term in terms
            if isinstance(term, Logits) and isinstance(term.options.get(TEMPERATURE), LearnedTemperature)
        }
        others = _named(learned)
        features = tuple(term for term in terms if isinstance(term, FeatureTerm))
        return cls(features, projectors=Projectors({}, 0, device, others), learned=learned)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def look(self, student: nn.Module, teacher: nn.Module) -> Sight:
        """Find out what both bare models have to show; returns the teacher's.

        Errors: HfDistillError for modules that one of them lacks.
        """
        self.looks = {term.name: term.look(student, teacher) for term in self.terms}
        self.student_sight = _together([look.student for look in self.looks.values()])
        self.teacher_widths = config_widths(teacher)
        return _together([look.teacher for look in self.looks.values()])

    @property
    def arguments(self) -> dict[str, bool]:
        """What is given to the student's forward beside its inputs."""
        return self.student_sight.arguments

    def bind(self, student: nn.Module, inputs: Mapping[str, Any], teacher: Seen | None, seed: int) -> None:
        """Run the student once on a small batch, beside what the teacher has shown, and make the projectors.

        Errors: HfDistillError for layers and widths that do not fit, and for a model that shows no hidden states.
        """
        if teacher is None:
            return
        seen = _dry(student, self.student_sight, inputs)
        widths = (config_widths(student), self.teacher_widths)
        self.bindings = {term.name: term.bound(self.looks[term.name], seen, teacher, widths) for term in self.terms}
        plans: dict[str, ModulePlan] = {
            term.key(name): plan
            for term, binding in zip(self.terms, self.bindings.values(), strict=True)
            for name, plan in (*binding.plans.items(), *binding.others.items())
        }
        # Where the batches are; a student that is to be sharded is brought there only when it is.
        self.projectors = Projectors(plans, seed, first_tensor(inputs).device, _named(self.learned))

    def attached(self, student: nn.Module) -> bool:
        """Whether a training has its projectors on the student."""
        return ATTRIBUTE in unwrapped(student)._modules

    def load(self, checkpoint: Path) -> None:
        """Read the projectors of a checkpoint, where there are any to read."""
        if len(self.projectors):
            self.projectors.load(checkpoint)

    @contextmanager
    def watching(self, model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[Seen]:
        """Note what the bare student shows in the forward within the block, and project it inside that forward.

        Inside, because DistributedDataParallel looks from the outputs for the parameters that a step uses, and because
        those that are sharded are whole only there.
        """
        seen = Seen(inputs)
        if not self.terms and not self.learned:
            yield seen
            return

        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            seen.outputs = output
            self._project(seen)
            if not seen.projected or not isinstance(output, Mapping):
                return output
            # A plain dictionary: a ModelOutput cannot be put together again with a field that it does not know.
            return {**output, PROJECTED: dict(seen.projected)}

        inner = unwrapped(model)
        with watched(inner, self.student_sight, seen):
            # First of all hooks: those of FSDP and ZeRO-3 take the weights away again, and look at the outputs too.
            handle = inner.register_forward_hook(hook, prepend=True)
            try:
                yield seen
            finally:
                handle.remove()

    def step(self, student: Seen, outputs: Any, targets: Targets | None) -> FeatureStep | None:
        """What the terms see; `outputs` are the student's."""
        if student.outputs is None and (self.terms or self.learned):
            # A compiled model does not call hooks that are newer than itself.
            student.outputs = outputs
            self._project(student)
        if targets is None or targets.seen is None:
            return None
        return FeatureStep(student, targets.seen, self.bindings)

    def temperatures(self, seen: Seen) -> dict[str, torch.Tensor]:
        """The temperatures that are learnt, by the name of their term."""
        return {name: seen.projected[key] for name, key in zip(self.learned, _named(self.learned), strict=True)}

    def learned_temperatures(self) -> dict[str, float]:
        """The present temperatures, as `temperature/<term>` for the logs; all processes have to ask."""
        found = {}
        for name, module in self.learned.items():
            with gathered(module):
                # Not by a call, since ZeRO-3's hooks count those.
                found[f"temperature/{name}"] = float(whole(module.forward().detach()))
        return found

    def _project(self, seen: Seen) -> None:
        for key, module in _named(self.learned).items():
            seen.projected[key] = module()
        for term in self.terms:
            term.project(self.bindings[term.name], seen, self.projectors)


def _named(learned: Mapping[str, TemperatureModule]) -> dict[str, nn.Module]:
    return {f"temperature__{name}".replace(".", "_"): module for name, module in learned.items()}


def _together(sights: Sequence[Sight]) -> Sight:
    whole = Sight()
    for sight in sights:
        whole |= sight
    return whole


@torch.no_grad()
def _dry(model: nn.Module, sight: Sight, inputs: Mapping[str, Any]) -> Seen:
    seen = Seen(inputs)
    training = model.training
    model.eval()
    there = send_to_device(inputs, next(model.parameters()).device)
    try:
        with gathered(model), watched(model, sight, seen):
            seen.outputs = model(**there, **sight.arguments)
    except TypeError as error:
        raise HfDistillError(
            f"{type(model).__name__} cannot be asked for {' and '.join(sight.arguments)} ({error}); expected a "
            "Transformers model, or terms over named modules: Module('name.of.a.module')."
        ) from error
    finally:
        model.train(training)
    return seen
