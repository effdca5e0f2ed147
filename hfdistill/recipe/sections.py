"""The sections of a recipe: one frozen dataclass each, checked when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfdistill.recipe.adapters import adapters_of
from hfdistill.recipe.beside import KEYS as BESIDE
from hfdistill.recipe.beside import check_beside
from hfdistill.recipe.cache import check_cache
from hfdistill.recipe.ensemble import check_ensemble
from hfdistill.recipe.forward import check_forward
from hfdistill.recipe.generation import check_generation
from hfdistill.recipe.objective import terms_of
from hfdistill.recipe.training import training_settings
from hfdistill.recipe.values import RecipeError, converted, unknown_key

if TYPE_CHECKING:
    from peft import PeftConfig

    from hfdistill.objective import Objective

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
DataTask = Literal[
    "causal_lm",
    "masked_lm",
    "token_classification",
    "question_answering",
    "seq2seq_lm",
    "semantic_segmentation",
    "object_detection",
    "ctc",
]
BoxFormat = Literal["coco", "pascal_voc"]
SEGMENTATION, DETECTION = "semantic_segmentation", "object_detection"
Augmentation = Literal["random_crop", "horizontal_flip", "random_resized_crop"]


def settle(section: Any, name: str, value: Any) -> None:
    """Set a value of a frozen section while it is built."""
    object.__setattr__(section, name, value)


@dataclass(frozen=True)
class TeacherSection:
    """The teacher: `model` (Hub id or folder) or `config` (model_type and its settings, trained from scratch).

    With `finetune` (TrainingArguments' names, over those of `training`) it is first trained on the labels; without, it
    is used as it is. `processor` is a Hub id or folder, by default that of `model`. With `zero_shot` the model is one
    of images and texts that is asked by the names of the classes: `templates` (texts with one {} each) and
    `class_names` (words for the data's names), both optional. With `ensemble` several teachers are used as they are,
    each with `model`, `revision` and `init_kwargs` of its own; `weights`, `average` (probabilities or logits) and
    `confidence` are those of EnsembleTeacher, and all are of one processor. With `ema` (a decay such as 0.999) the
    moving average of the student's weights teaches, with `peer` ("student", or the keys of a student section) a second
    student that learns in turn; both read what the student reads, and `processor` is that of a student from a config.
    `dtype`, `attn_implementation`, `batch_size`, `device`, `sharded` and `prefetch` say how it is run while it teaches:
    they are DistillationConfig's, with `teacher_` before them. `cache` keeps its targets on the disk: true, a folder,
    or a mapping with the keys of CacheSettings.
    """

    SECTION: ClassVar[str] = "teacher"

    model: str | None = None
    config: dict[str, Any] | None = None
    revision: str | None = None
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    processor: str | None = None
    finetune: dict[str, Any] | None = None
    zero_shot: dict[str, Any] | None = None
    ensemble: list[dict[str, Any]] | None = None
    weights: list[float] | None = None
    average: Literal["probabilities", "logits"] = "probabilities"
    confidence: bool = False
    ema: float | None = None
    peer: str | dict[str, Any] | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    attn_implementation: str | None = None
    batch_size: int | None = None
    device: str | None = None
    sharded: bool = False
    prefetch: bool = False
    cache: bool | str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        names = ("model", "config", "ensemble", *BESIDE)
        _check_source(self, {name: vars(self)[name] for name in names})
        check_ensemble(self)
        check_beside(self)
        check_forward(self)
        check_cache(self)
        if self.zero_shot is not None:
            self._check_zero_shot(self.zero_shot)
        if self.finetune is not None:
            settle(self, "finetune", training_settings(self.finetune, "teacher.finetune"))
        elif self.config is not None:
            raise RecipeError(
                "teacher.config: a teacher built from a config knows nothing yet; add teacher.finetune (it "
                "may be {} to train like the student), or name a trained teacher in teacher.model."
            )

    @property
    def beside(self) -> bool:
        """Whether it learns beside the student, and is not there before."""
        return self.ema is not None or self.peer is not None

    @property
    def members(self) -> list[TeacherSection]:
        """Each of several teachers as a section of its own; a single teacher alone."""
        if self.ensemble is None:
            return [self]
        return [TeacherSection(**{"processor": self.processor, **entry}) for entry in self.ensemble]

    def _check_zero_shot(self, settings: Mapping[str, Any]) -> None:
        path = "teacher.zero_shot"
        if self.model is None or self.finetune is not None:
            raise RecipeError(
                f"{path}: such a teacher is used as it is; name a CLIP or SigLIP in teacher.model, and set "
                "teacher.finetune to null."
            )
        kinds = {"templates": list[str], "class_names": dict[str, str]}
        for key, value in settings.items():
            if key not in kinds:
                raise unknown_key(f"{path}.{key}", kinds)
            converted(value, kinds[key], f"{path}.{key}")
        templates = settings.get("templates", ["{}"])
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise RecipeError(
                f"{path}.templates: got {templates}; expected texts with one {{}} each, such as ['a photo of a {{}}.']."
            )


@dataclass(frozen=True)
class StudentSection:
    """The student: `model`, `config`, or `from_teacher` (options of student_from_teacher, such as {layers: 2}).

    `from_teacher` takes layers of the teacher as it is loaded, before `teacher.finetune`, so that the control has
    learnt nothing from the fine-tuned teacher. `finetune` asks for a last fine-tune of the distilled student on the
    labels. With `peft` (`peft_type`, lora by default, and PEFT's own options of it) adapters of `model` alone learn and
    are saved. With `distillation_token` a ViT, DeiT or LeViT gets a second head that learns from the teacher.
    """

    SECTION: ClassVar[str] = "student"

    model: str | None = None
    config: dict[str, Any] | None = None
    from_teacher: dict[str, Any] | None = None
    revision: str | None = None
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    processor: str | None = None
    finetune: dict[str, Any] | None = None
    peft: dict[str, Any] | None = None
    distillation_token: bool = False

    def __post_init__(self) -> None:
        _check_source(self, {"model": self.model, "config": self.config, "from_teacher": self.from_teacher})
        if self.peft is not None and self.model is None:
            raise RecipeError(
                "student.peft: adapters alone are saved, and others need the model below them; expected a Hub id or "
                "folder in student.model."
            )
        self.adapters()
        if self.finetune is not None:
            settle(self, "finetune", training_settings(self.finetune, "student.finetune"))

    def adapters(self) -> PeftConfig | None:
        """PEFT's config of `peft`, if there is one."""
        return None if self.peft is None else adapters_of(self.peft, "student.peft")


def _check_source(section: TeacherSection | StudentSection, sources: Mapping[str, Any]) -> None:
    given = [name for name, value in sources.items() if value is not None]
    names = ", ".join(sources)
    if len(given) != 1:
        came = f"{' and '.join(given)} came" if given else "none came"
        hint = f" Set the others to null, such as {section.SECTION}.{given[0]}: null." if given else ""
        raise RecipeError(f"{section.SECTION}: expected exactly one of {names}; {came}.{hint}")
    if section.config is not None and "model_type" not in section.config:
        raise RecipeError(f"{section.SECTION}.config: model_type is missing; expected one such as vit, resnet or bert.")
    if section.revision is not None and section.model is None:
        raise RecipeError(
            f"{section.SECTION}.revision: it belongs to a Hub id in {section.SECTION}.model, and there is none."
        )


@dataclass(frozen=True)
class DataSection:
    """The examples: a Hub id, local files or folders, or the embedded `digits`. recipes/README.md tells each key."""

    SECTION: ClassVar[str] = "data"

    dataset: str | dict[str, Any]
    name: str | None = None
    revision: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = "test"
    validation_fraction: float = 0.1
    test_fraction: float | None = None
    split_seed: int = 0
    image_column: str | None = None
    audio_column: str | None = None
    text_columns: str | list[str] | None = None
    label_column: str | list[str] = "label"
    task: DataTask | None = None
    problem_type: ProblemType | None = None
    mask_probability: float = 0.15
    max_length: int | None = None
    doc_stride: int = 128
    max_answer_length: int = 30
    max_target_length: int = 128
    prefix: str = ""
    generation: dict[str, Any] | None = field(default_factory=dict)
    image_size: int | list[int] | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    max_seconds: float | None = None
    sampling_rate: int | None = None
    normalized_transcripts: bool = False
    class_names: str | list[str] | None = None
    reduce_labels: bool = False
    box_format: BoxFormat = "coco"
    augment: list[Augmentation] = field(default_factory=list)
    labelled: int | None = None
    unlabelled: Literal["teacher", "drop"] = "teacher"
    teacher_labels: Literal["same", "all"] = "same"
    teacher_sees: Literal["same", "unchanged"] = "same"
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    def __post_init__(self) -> None:
        self._check_task()
        self._check_parts_of_images()
        self._check_recordings()
        self._check_written_texts()
        for name in ("validation_fraction", "test_fraction", "mask_probability"):
            fraction = getattr(self, name)
            if fraction is not None and not 0 < fraction < 1:
                raise RecipeError(f"data.{name}: got {fraction}, expected a share between 0 and 1.")
        for name in (
            "labelled",
            "max_train_samples",
            "max_eval_samples",
            "max_length",
            "doc_stride",
            "max_answer_length",
            "max_target_length",
            "sampling_rate",
        ):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise RecipeError(f"data.{name}: got {number}, expected a whole number of at least 1.")
        if isinstance(self.text_columns, str):
            settle(self, "text_columns", [self.text_columns])
        if self.text_columns is not None and len(self.text_columns) not in (1, 2):
            raise RecipeError(f"data.text_columns: got {self.text_columns}, expected one column, or two for pairs.")
        inputs = [name for name in ("image_column", "audio_column", "text_columns") if getattr(self, name) is not None]
        if len(inputs) > 1:
            raise RecipeError(f"data: {' and '.join(inputs)} came; expected one kind of input. Set the others to null.")
        if self.teacher_sees == "unchanged" and not self.augment:
            raise RecipeError("data.teacher_sees: nothing is changed without data.augment; set it to same, or augment.")
        if self.text_columns is not None and self.augment:
            raise RecipeError("data.augment: these change images, and the recipe reads text; set it to [].")
        if self.test_fraction is not None and self.test_split is not None:
            raise RecipeError(
                "data.test_fraction: a test_split is named too; set data.test_split to null to carve one."
            )

    def _check_task(self) -> None:
        if self.task is None:
            return
        if self.problem_type is not None:
            raise RecipeError(
                f"data.problem_type: it is for classifiers, and data.task is {self.task}; set it to null."
            )
        if self.image_column is not None and self.task not in (SEGMENTATION, DETECTION):
            raise RecipeError(f"data.image_column: {self.task} reads text; name data.text_columns.")
        if self.labelled is None or self.task in ("token_classification", "question_answering", "ctc", SEGMENTATION):
            return
        if self.task == "seq2seq_lm":
            raise RecipeError(
                "data.labelled: a decoder reads its target, so that seq2seq_lm learns nothing from a row without one; "
                "set max_train_samples."
            )
        if self.task == DETECTION:
            raise RecipeError(
                "data.labelled: a detector's own loss wants the objects of every image of a batch; set "
                "max_train_samples."
            )
        raise RecipeError(f"data.labelled: the text itself is the label of {self.task}; set max_train_samples.")

    def _check_written_texts(self) -> None:
        answering, writing = "question_answering", "seq2seq_lm"
        keys = {
            "doc_stride": (self.doc_stride != 128, answering),
            "max_answer_length": (self.max_answer_length != 30, answering),
            "max_target_length": (self.max_target_length != 128, writing),
            "prefix": (self.prefix != "", writing),
            "generation": (self.generation != {}, writing),
        }
        for key, (given, task) in keys.items():
            if given and self.task != task:
                raise RecipeError(f"data.{key}: it is for data.task {task}, and data.task is {self.task}.")
        if self.generation:
            check_generation(self.generation)

    def _check_recordings(self) -> None:
        if self.max_seconds is not None:
            if self.max_seconds <= 0:
                raise RecipeError(f"data.max_seconds: got {self.max_seconds}, expected a number above 0, such as 1.5.")
            if self.task is not None:
                raise RecipeError(
                    f"data.max_seconds: the transcript of {self.task} is of the whole recording; set it to null, and "
                    "leave out recordings that are too long."
                )
        if self.normalized_transcripts and self.task not in ("ctc", "seq2seq_lm"):
            raise RecipeError(
                "data.normalized_transcripts: it is for transcripts (data.task: ctc or seq2seq_lm), and data.task is "
                f"{self.task}."
            )

    def _check_parts_of_images(self) -> None:
        keys = {
            "class_names": (self.class_names is not None, (SEGMENTATION, DETECTION)),
            "reduce_labels": (self.reduce_labels, (SEGMENTATION,)),
            "box_format": (self.box_format != "coco", (DETECTION,)),
        }
        for key, (given, tasks) in keys.items():
            if given and self.task not in tasks:
                raise RecipeError(
                    f"data.{key}: it is for data.task {' and '.join(tasks)}, and data.task is {self.task}."
                )
        if self.task == DETECTION and set(self.augment) - {"horizontal_flip"}:
            raise RecipeError(
                f"data.augment: got {self.augment}; expected [horizontal_flip] at most, since a crop may cut objects "
                "away."
            )


@dataclass(frozen=True)
class ObjectiveSection:
    """What the student learns: `alpha` (the teacher's share) and `temperature`, or a list of `terms`.

    `mixup`, `cutmix` and `mix_probability` are those of DistillationConfig, for the student alone.
    """

    SECTION: ClassVar[str] = "objective"

    alpha: float | None = None
    temperature: float | None = None
    terms: list[dict[str, Any]] | None = None
    mixup: float | None = None
    cutmix: float | None = None
    mix_probability: float | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "mix_probability"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < float("inf"):
                raise RecipeError(f"objective.{name}: got {number}, expected a number of at least 0.")
        if self.terms is not None and (self.alpha is not None or self.temperature is not None):
            raise RecipeError(
                "objective: terms came beside alpha or temperature; expected one way. Put them in the terms."
            )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise RecipeError(f"objective.alpha: got {self.alpha}, expected the teacher's share of the loss, 0 to 1.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise RecipeError(f"objective.temperature: got {self.temperature}, expected a number above 0, such as 2.")
        if self.terms is not None and not self._objective().needs_teacher:
            raise RecipeError(
                "objective.terms: no term learns from the teacher; add one such as {logits: {weight: 0.5}}."
            )

    def build(self) -> Objective | None:
        """The objective of `terms`, or None for the default, which takes the config's alpha and temperature."""
        return None if self.terms is None else self._objective()

    def _objective(self) -> Objective:
        from hfdistill.errors import HfDistillError
        from hfdistill.objective import Objective

        terms = terms_of(self.terms or [], "objective.terms")
        try:
            return Objective(terms)
        except HfDistillError as error:
            raise RecipeError(f"objective.terms: {error}") from error

    def arguments(self) -> dict[str, float]:
        """Those that are arguments of the trainer, where they are given."""
        names = ("alpha", "temperature", "mixup", "cutmix", "mix_probability")
        given = {name: getattr(self, name) for name in names}
        return {key: value for key, value in given.items() if value is not None}
