"""What one class of the auto mappings has to do: learn from a teacher of its kind, in five ways that can go wrong."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, HiddenStates, Logits, Objective
from hfdistill.features import FeatureWatch
from hfdistill.loading import restore
from hfdistill.sight import NOTHING
from hfdistill.tasks import TASKS, Classes, architecture_task, task_of
from tests.sweep.batches import ROWS, Batch, Maker, cut
from tests.sweep.exceptions import OF_CLASS
from tests.sweep.tiny_configs import LABELS, field_names, shrunk

MOST_PARAMETERS = 5_000_000
# Of the way to a loss of 0, in one step.
SHARE = 0.05


# GLPN pools the pixels of a whole batch under one root, ProphetNet predicts several tokens ahead, and the others hold
# each label against the logits of its own place, where ours is the next token.
OTHER_LOSS = {
    "CpmAntForCausalLM",
    "GLPNForDepthEstimation",
    "ProphetNetForCausalLM",
    "ProphetNetForConditionalGeneration",
    "TrOCRForCausalLM",
    "XLMWithLMHeadModel",
    "XLNetLMHeadModel",
}


class NotBuiltError(Exception):
    """The class cannot be built small from its config alone."""


class CheckError(Exception):
    """One of the checks did not hold; the message begins with its name."""


@dataclass(frozen=True)
class Gradients:
    """What one optimizer step sees: gradients by parameter, and each term's part."""

    of: dict[str, torch.Tensor]
    parts: dict[str, float]


@contextmanager
def checking(name: str) -> Iterator[None]:
    """Give any error inside the name of the check."""
    try:
        yield
    except CheckError as error:
        raise CheckError(f"{name}: {error}") from error
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckError(f"{name}: {type(error).__name__}: {first[:160]}") from error


def examine(auto_class: str, class_name: str) -> int:
    """Run all checks of one class; the number of its parameters.

    Errors: NotBuiltError, or CheckError for the first check that does not hold.
    """
    student, teacher = pair(auto_class, class_name)
    with checking("batch"):
        batch = Maker(student, task_of(student), auto_class).batch()
    with checking("trainer"):
        trainer = DistillationTrainer(
            student, arguments(), teacher_model=teacher, train_dataset=[row(batch, place) for place in range(ROWS)]
        )
    with checking("step"):
        whole = gradients(trainer, [batch])
    with checking("finite"):
        finite(whole)
    with checking("reach"):
        reach(trainer, batch, whole)
    with checking("invariance"):
        invariant(trainer, batch, whole)
    with checking("features"):
        features(trainer, batch)
    with checking("learning"):
        learn(trainer, batch)
    with checking("reload"):
        reload(trainer, batch)
    return student.num_parameters()


# ---- the models --------------------------------------------------------------------------------------------------


def pair(auto_class: str, class_name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student and a teacher of one class, with different weights."""
    try:
        model_class = getattr(transformers, class_name)
        settings = dict(OF_CLASS.get(class_name, {}))
        if transformers_task(class_name) is Classes.NAMED:
            settings["num_labels"] = LABELS
        if "ctc_loss_reduction" in field_names(model_class.config_class):
            settings["ctc_loss_reduction"] = "mean"  # the sum over a batch depends on its size
        if auto_class == "AutoModelForCausalLM" and "is_decoder" in field_names(model_class.config_class):
            settings["is_decoder"] = True
        config = shrunk(model_class.config_class, **settings)
        with torch.device("meta"):
            size = model_class(config).num_parameters()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotBuiltError(f"{type(error).__name__}: {first[:160]}") from error
    if size > MOST_PARAMETERS:
        raise NotBuiltError(f"{size / 1e6:.0f} M parameters at its smallest")
    return built(model_class, config, 1), built(model_class, config, 2)


def transformers_task(class_name: str) -> Classes:
    """How the classes of a head are matched."""
    name = architecture_task(class_name)
    return TASKS[name].classes if name is not None else Classes.NAMED


def built(model_class: type[PreTrainedModel], config: transformers.PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model with weights of a seed, larger than usual, so that logits of two seeds differ well beyond rounding."""
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and name != "A_log":
                enlarge(module, parameter)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # Padding is 0 when Transformers makes a model, and when it loads one.
            module.weight.data[module.padding_idx] = 0
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # some heads name no setting for it
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = functools.partial(frozen, module)  # type: ignore[method-assign]
    return model


@torch.no_grad()
def enlarge(module: nn.Module, parameter: nn.Parameter) -> None:
    """Draw a parameter so that what it multiplies keeps its size."""
    if parameter.ndim > 1:
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        inputs = parameter[0].numel() if convolution else parameter.shape[-1]
        nn.init.normal_(parameter, std=max(inputs, 1) ** -0.5)
    elif parameter.ndim == 1 and not parameter.any():
        nn.init.normal_(parameter, std=0.1)


def frozen(norm: nn.modules.batchnorm._BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """A batch norm that keeps its statistics, since those of a batch belong to a micro-batch by definition.

    Not by `eval()`: the backward pass of torch 2.13 is wrong there for one row whose gradient comes channels last.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    shape = (1, -1, *(1 for _ in values.shape[2:]))
    normal = (values - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    if norm.weight is None:
        return normal
    # The products with 1 give each parameter a gradient of its own memory: those of two biases that are added may
    # else be views of one tensor for one row of one pixel, and the next micro-batch would be added to it twice.
    return normal * (1.0 * norm.weight).view(shape) + (1.0 * norm.bias).view(shape)


@functools.cache
def arguments() -> DistillationConfig:
    """Settings of a trainer that writes nothing."""
    return DistillationConfig(
        output_dir=tempfile.mkdtemp(prefix="sweep-"), alpha=0.9, temperature=2.0, report_to="none", use_cpu=True
    )


def row(batch: Batch, place: int) -> Batch:
    """One example of a data set."""
    return {name: value[place] for name, value in batch.items()}


# ---- the checks --------------------------------------------------------------------------------------------------


def gradients(trainer: DistillationTrainer, micro_batches: list[Batch]) -> Gradients:
    """Gradients of one optimizer step over some micro-batches, counted and divided as the trainer does it."""
    model = trainer.model.train()
    model.zero_grad(set_to_none=True)
    batches, counts = trainer.get_batch_samples(iter(micro_batches), len(micro_batches), torch.device("cpu"))
    assert counts is not None
    parts: dict[str, float] = {}
    for batch in batches:
        torch.manual_seed(0)
        _, context = trainer.outputs_and_context(model, batch)
        trainer._watch_faults(context)
        total, own = trainer.distillation_objective(context, counts)
        total.backward()
        for name, value in own.items():
            parts[name] = parts.get(name, 0.0) + float(value)
    return Gradients(collected(model), parts)


def collected(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients that are there."""
    return {
        name: parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def finite(step: Gradients) -> None:
    """Loss and gradients are numbers, and teacher and student differ."""
    for name, value in step.parts.items():
        if not torch.isfinite(torch.tensor(value)):
            raise CheckError(f"{name} is {value}")
    for name, value in step.of.items():
        if not torch.isfinite(value).all():
            raise CheckError(f"the gradient of {name} is not finite")
    if step.parts["kd"] <= 0:
        raise CheckError(f"kd is {step.parts['kd']}, though the teacher is another")


def reach(trainer: DistillationTrainer, batch: Batch, step: Gradients) -> None:
    """Every parameter that the head's own loss reaches has a gradient here too; and the task loss is that loss."""
    model = trainer.model
    parameters = inspect.signature(model.forward).parameters
    if not all(name in parameters for name in trainer.task.label_names):
        return
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(0)
    try:
        asked = {"return_loss": True} if "return_loss" in parameters else {}
        loss = model(**{name: value for name, value in batch.items() if name in parameters}, **asked).loss
        loss.backward()
    except Exception:  # noqa: BLE001
        # Plain training does not work; there is nothing to compare with.
        return
    plain = collected(model)
    # Decoders cut from encoder-decoders hold a label against the logits of its own place: not the next token.
    other = trainer.task.name == "causal_lm" and type(model.config)().is_encoder_decoder
    ours = step.parts.get("task", loss.item())
    if abs(loss.item() - ours) > 1e-3 * abs(loss.item()) and not (other or type(model).__name__ in OTHER_LOSS):
        raise CheckError(f"the head's own loss is {loss.item():.6g}, ours {ours:.6g}")
    largest = max(float(value.abs().max()) for value in plain.values())
    for name, value in plain.items():
        if float(value.abs().max()) > 1e-6 * largest and not step.of.get(name, torch.zeros(1)).any():
            raise CheckError(f"plain training reaches {name}, distillation does not")


def invariant(trainer: DistillationTrainer, batch: Batch, whole: Gradients) -> None:
    """Four rows at once and four micro-batches of one row give the same step."""
    if trainer.task.name.startswith("image_text"):
        return  # each pair is told from the others of its micro-batch
    if trainer.task.loss_inside:
        # A model's own loss pools the batch, and may draw points of it at random.
        trainer.distillation_objective = Objective(
            [term for term in trainer.distillation_objective.terms if term.needs_teacher]
        )
        whole = gradients(trainer, [batch])
    by_row = [cut(batch, place) for place in range(ROWS)]
    try:
        same(whole, gradients(trainer, by_row))
    except CheckError:
        # Some random networks enlarge the rounding of float32 beyond all bounds; in float64 the truth can be seen.
        wide = trainer.model, trainer.teacher.model
        for model in wide:
            model.double()
        same(gradients(trainer, [widened(batch)]), gradients(trainer, [widened(each) for each in by_row]))
        for model in wide:
            model.float()


def widened(batch: Batch) -> Batch:
    """A batch with its real numbers in float64."""
    return {name: wide(value) for name, value in batch.items()}


def wide(value: Any) -> Any:
    """Real numbers in float64, in whatever holds them."""
    if isinstance(value, list):
        return [wide(each) for each in value]
    if isinstance(value, dict):
        return {name: wide(each) for name, each in value.items()}
    return value.double() if value.is_floating_point() else value


def same(one: Gradients, other: Gradients) -> None:
    """Gradients and parts agree within the rounding of float32 sums taken in another order."""
    for name, value in one.parts.items():
        if abs(value - other.parts[name]) > 1e-4 * abs(value) + 1e-6:
            raise CheckError(f"{name} is {value:.6g} at once and {other.parts[name]:.6g} row by row")
    largest = max(float(value.abs().max()) for value in one.of.values())
    for name, value in one.of.items():
        rest = (value - other.of.get(name, torch.zeros(1))).abs().max()
        if float(rest) > 2e-3 * float(value.abs().max()) + 1e-4 * largest:
            raise CheckError(f"the gradient of {name} differs by {float(rest):.2g} of {float(value.abs().max()):.2g}")


# Gemma 3n, DeepSeek V4, GLM 5 Next and HY V4 keep several streams of hidden states, Reformer's are outside of autograd,
# BLIP-2 and InstructBLIP give none.
NO_FEATURES = {
    "Blip2ForConditionalGeneration",
    "DeepseekV4ForCausalLM",
    "Gemma3nForCausalLM",
    "Glm5NextForConditionalGeneration",
    "HYV4ForCausalLM",
    "InstructBlipForConditionalGeneration",
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerModelWithLMHead",
}


def features(trainer: DistillationTrainer, batch: Batch) -> None:
    """Hidden states of every layer are compared, in every part, and the step does not depend on its cut."""
    name = type(trainer.model).__name__
    parts = [part for part in (None, "encoder", "decoder", "text", "vision") if shows(trainer, batch, part)]
    if bool(parts) == (name in NO_FEATURES):
        raise CheckError(f"{name} shows hidden states of {len(parts)} parts; NO_FEATURES says otherwise")


def shows(trainer: DistillationTrainer, batch: Batch, part: str | None) -> bool:
    """Whether a part of the models has hidden states that can be learnt from; raises CheckError if wrongly."""
    before = trainer.distillation_objective, trainer.features
    trainer.distillation_objective = Objective(
        [HiddenStates("cosine_distance", layers="uniform", part=part, name="kd")]
    )
    trainer.features = FeatureWatch.of(trainer.distillation_objective.active, trainer.args.device)
    try:
        trainer._bind_features()
        whole = gradients(trainer, [batch])
        finite(whole)
        same(whole, gradients(trainer, [cut(batch, place) for place in range(ROWS)]))
    except HfDistillError:
        return False
    except RuntimeError as error:
        if "does not require grad" in str(error):
            return False
        raise
    finally:
        trainer.distillation_objective, trainer.features = before
        trainer.teacher.sight = NOTHING
    return True


def learn(trainer: DistillationTrainer, batch: Batch) -> None:
    """Two steps on one batch, by the teacher alone, bring the student nearer to it.

    The length of a step is a share of the loss over the squared gradient: how far a straight descent to 0 would go.
    """
    model = trainer.model
    trainer.distillation_objective = Objective([Logits(trainer.task.default_loss)])
    seen = [gradients(trainer, [batch])]
    for _ in range(2):
        squared = sum(float(value.double().square().sum()) for value in seen[-1].of.values())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in seen[-1].of:
                    parameter -= SHARE * seen[-1].parts["kd"] / squared * seen[-1].of[name]
        seen.append(gradients(trainer, [batch]))
    falls = [step.parts["kd"] for step in seen]
    if not falls[2] < falls[0]:
        raise CheckError(f"kd went {' to '.join(f'{value:.6g}' for value in falls)}")


def reload(trainer: DistillationTrainer, batch: Batch) -> None:
    """A fresh model restored from what the trainer has saved gives equal logits."""
    student = trainer.model.eval()
    assert isinstance(student, PreTrainedModel)
    before = logits(trainer, student, batch)
    fresh = built(type(student), student.config, 3).eval()
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_model(folder)
        restore(fresh, folder)
    after = logits(trainer, fresh, batch)
    if not torch.equal(before, after):
        raise CheckError(f"logits differ by {float((before - after).abs().max()):.2g}")


@torch.no_grad()
def logits(trainer: DistillationTrainer, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """A model's logits for a batch."""
    torch.manual_seed(0)
    return trainer.task.logits(model(**trainer.views.student(batch)), batch)
