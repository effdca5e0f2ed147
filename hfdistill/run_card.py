"""What the card of a run's student says: from the recipe, the stage and the report."""

from __future__ import annotations

from pathlib import Path

from hfdistill.card import CardFacts, ResultFacts, known_licence, term_facts
from hfdistill.config import DistillationConfig
from hfdistill.data.sources import DIGITS, PYDOC_TOPICS
from hfdistill.objective import Objective
from hfdistill.recipe import Recipe, recipe_of
from hfdistill.recipe.beside import beside_in_words
from hfdistill.report import Report, report_of
from hfdistill.report_text import ROLE_NAMES, comparison
from hfdistill.run_folder import RunFolder, Stage, read_json
from hfdistill.tasks import TASKS

TASK_TAGS = {
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForAudioClassification": "audio-classification",
    "ForVideoClassification": "video-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
}
"""The Hub's task for the end of an architecture's name."""

PROBLEM_TAGS = {
    "seq2seq_lm": "text2text-generation",
    "speech_seq2seq": "automatic-speech-recognition",
    "ctc": "automatic-speech-recognition",
    "semantic_segmentation": "image-segmentation",
    "object_detection": "object-detection",
}
"""The Hub's task where the kind of problem tells it: Whisper and T5 are both called ...ForConditionalGeneration."""

SUMMARIES = ("summary", "highlights")
"""Columns that make a summarization out of texts to texts."""

EMBEDDED = {DIGITS: "scikit-learn's handwritten digits", PYDOC_TOPICS: "the help texts that ship with Python"}
"""Data without an address on the Hub, in words."""

FROM_SCRATCH = "none of its own, it was trained from random values in this run"


def run_card_facts(run: RunFolder, stage: Stage, repository: str) -> CardFacts:
    """What the card says about a student of a run."""
    recipe, report = recipe_of(run.recipe), report_of(run)
    seed = stage.folder.parent.name.removeprefix("seed-")
    metric = report.main_metric
    published, value = metric.published(report.models[stage.name].by_seed[int(seed)])
    known = run.teacher.facts.get("model") if run.teacher else recipe.teacher.config
    teacher = beside_in_words(recipe.teacher) if recipe.teacher.beside else recipe.teacher.model or str(known)
    started = recipe.student.model or (recipe.teacher.model if recipe.student.from_teacher is not None else None)
    return CardFacts(
        name=repository.rpartition("/")[2],
        repository=repository if "/" in repository else None,
        training=stage.facts.get("settings") or {},
        teacher=teacher,
        teacher_revision=recipe.teacher.revision,
        teacher_training=_teacher_training(recipe),
        teacher_licence=_teacher_licence(recipe),
        terms=term_facts(_objective(recipe, run.problem_type)),
        base_model=started,
        adapter=recipe.student.peft is not None,
        architecture=_architecture(stage.folder),
        start=_start(recipe),
        task=_task_tag(recipe, run.problem_type, stage.folder),
        dataset=_dataset(recipe),
        dataset_name=recipe.data.name,
        dataset_split=recipe.data.test_split or "held-out part of the train split",
        results=(ResultFacts(published, metric.name, value),),
        report=_results(report, stage, seed),
        versions=report.machine["versions"],
    )


def _results(report: Report, stage: Stage, seed: str) -> str:
    others = [str(other) for other in report.seeds if str(other) != seed]
    which = f"These weights: {ROLE_NAMES[stage.name]}, seed {seed}"
    if others:
        which += f" (also run: {', '.join(others)}; the choice did not look at results)"
    return f"{which}.\n\n{comparison(report)}"


def _objective(recipe: Recipe, problem_type: str) -> Objective:
    given = recipe.objective.build()
    if given is not None:
        return given
    defaults = {"alpha": DistillationConfig.alpha, "temperature": DistillationConfig.temperature}
    row = "seq2seq_lm" if problem_type == "speech_seq2seq" else problem_type
    given_arguments = {key: value for key, value in recipe.objective.arguments().items() if key in defaults}
    return Objective.default(TASKS[row], **(defaults | given_arguments))


def _teacher_training(recipe: Recipe) -> str | None:
    if recipe.teacher.beside:
        return "which learnt beside it in this run"
    if recipe.teacher.zero_shot is not None:
        return "asked by the names of the classes, and not trained on the data"
    return None if recipe.teacher.finetune is None else "trained on the labels of the same data first"


def _teacher_licence(recipe: Recipe) -> str | None:
    if recipe.teacher.beside:
        peer = recipe.peer()
        return "none of its own, it learnt in this run" if peer is None else known_licence(peer.model, peer.revision)
    if recipe.teacher.config is not None:
        return FROM_SCRATCH
    members = recipe.teacher.members
    licences = [known_licence(member.model, member.revision) for member in members]
    if len(members) == 1:
        return licences[0]
    return "; ".join(f"{member.model}: {found or 'unknown'}" for member, found in zip(members, licences, strict=True))


def _start(recipe: Recipe) -> str:
    if recipe.student.model is not None:
        return f"`{recipe.student.model}`"
    if recipe.student.from_teacher is not None:
        return "layers of the teacher as it was before any training here"
    return "random values"


def _dataset(recipe: Recipe) -> str:
    dataset = recipe.data.dataset
    if not isinstance(dataset, str):
        return "local files"
    return EMBEDDED.get(dataset, dataset)


def _task_tag(recipe: Recipe, problem_type: str, model: Path) -> str | None:
    if problem_type == "seq2seq_lm" and recipe.data.label_column in SUMMARIES:
        return "summarization"
    if problem_type in PROBLEM_TAGS:
        return PROBLEM_TAGS[problem_type]
    architecture = _architecture(model)
    return next((tag for suffix, tag in TASK_TAGS.items() if architecture.endswith(suffix)), None)


def _architecture(model: Path) -> str:
    return str((read_json(model / "config.json").get("architectures") or [""])[0])
