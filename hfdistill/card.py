"""The model card of a student: who its teacher is, what it learnt by, how good it is, whom to cite.

Nothing here reads a run or a trainer: whoever has one fills in `CardFacts`. The Hub knows four relations to a base
model (finetune, adapter, quantized, merge) and none for distillation. `base_model` is therefore the checkpoint that the
student's weights started from, with the relation finetune, or the one that its adapters belong to, with the relation
adapter; a student that started from random weights has none. The teacher stands in the text, in the tag
`knowledge-distillation` and in the key `teacher_model`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of httpx or httpx2, by version
    HFValidationError,
    HTTPError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hfdistill._atomic import write_text
from hfdistill.boxes import Boxes, Masks
from hfdistill.citations import BIBTEX, DISTILLATION, SOURCES, STANDARDIZED, TERM_SOURCES
from hfdistill.errors import HfDistillError
from hfdistill.features import FeatureTerm
from hfdistill.knowledge import Comparison, loss_name
from hfdistill.objective import Objective
from hfdistill.schedules import Weight, described, is_used

TAGS = ("knowledge-distillation", "hfdistill")
FINETUNE, ADAPTER = "finetune", "adapter"
BEGIN, END = "<!-- hfdistill: begin -->", "<!-- hfdistill: end -->"
LICENCE_SECONDS = 10
# Tasks of the Hub for which Transformers (5.23) has no pipeline, and the auto class in its place.
WITHOUT_PIPELINE = {
    "question-answering": "AutoModelForQuestionAnswering",
    "summarization": "AutoModelForSeq2SeqLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
}
# Trainer (5.23) calls a model without a checkpoint a fine-tuned version of nothing.
NO_START = ("is a fine-tuned version of [](https://huggingface.co/) on", "was trained from random values on")

_SOURCES = SOURCES | TERM_SOURCES


@dataclass(frozen=True)
class TermFacts:
    """One term of the objective.

    `loss` is a name in LOSSES, boxes or masks, the name of a function of your own, or None for the labels.
    """

    name: str
    weight: Weight
    loss: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultFacts:
    """One number of the report, for the card's metadata."""

    metric: str
    name: str
    value: float


@dataclass(frozen=True)
class CardFacts:
    """What a card says; of `teacher`, `base_model` and `dataset` only Hub ids go into the metadata.

    A teacher without a name is None. With `adapter` the student is adapters of `base_model`, of the class
    `architecture`. `repository` is where the student is published, `training` its settings, `report` Markdown about the
    results.
    """

    name: str
    teacher: str | None
    terms: tuple[TermFacts, ...]
    teacher_revision: str | None = None
    teacher_training: str | None = None
    teacher_licence: str | None = None
    base_model: str | None = None
    adapter: bool = False
    architecture: str = ""
    start: str | None = None
    task: str | None = None
    dataset: str | None = None
    dataset_name: str | None = None
    dataset_split: str = "test"
    results: tuple[ResultFacts, ...] = ()
    repository: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    report: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def distilled(self) -> bool:
        """Whether a teacher took part; a control has terms against the labels alone."""
        return any(term.loss is not None for term in self.terms)


def term_facts(objective: Objective) -> tuple[TermFacts, ...]:
    """The terms of an objective with a positive weight, each option with its value, defaults included."""
    facts = []
    for term in objective.terms:
        described = term.described() if isinstance(term, FeatureTerm) else {}
        if isinstance(term, Comparison):
            parameters = list(inspect.signature(term.loss).parameters.values())[2:]
            defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
            options = defaults | described | term.options
            facts.append(TermFacts(term.name, term.weight, loss_name(term.loss), options))
        elif isinstance(term, Boxes):
            facts.append(TermFacts(term.name, term.weight, "boxes", {"l1": term.l1, "giou": term.giou}))
        elif isinstance(term, Masks):
            facts.append(TermFacts(term.name, term.weight, "masks", {"pixels": term.pixels, "dice": term.dice}))
        else:
            facts.append(TermFacts(term.name, term.weight))
    return tuple(fact for fact in facts if is_used(fact.weight))


def hub_id(name: str | None) -> str | None:
    """The name if it can be a repository of the Hub, and not a folder or a description; otherwise None."""
    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def known_licence(name: str | None, revision: str | None = None) -> str | None:
    """The licence of a model, from the README of its folder or from the Hub; None when neither tells."""
    if name is None:
        return None
    readme = Path(name) / "README.md"
    if readme.is_file():
        licence = _loaded(readme).data.get("license")
    elif hub_id(name) is None:
        return None
    else:
        try:
            info = HfApi().model_info(name, revision=revision, timeout=LICENCE_SECONDS)
        except (HTTPError, OSError, ValueError):  # not found, no network, offline mode
            return None
        licence = info.card_data.get("license") if info.card_data is not None else None
    return None if licence is None else str(licence)


def distillation_card(facts: CardFacts) -> ModelCard:
    """A whole card for a student whose folder has none yet."""
    return _extended(ModelCard(f"---\nlibrary_name: transformers\n---\n\n# {facts.name}\n"), facts)


def extend_card(folder: Path, facts: CardFacts) -> None:
    """Write the distillation into README.md of the folder, in place.

    What Trainer or a person wrote there stays; what this function wrote before is replaced. Without a README.md one is
    made. Errors: HfDistillError when the file cannot be read or written.
    """
    readme = folder / "README.md"
    card = _extended(_loaded(readme), facts) if readme.exists() else distillation_card(facts)
    write_text(readme, str(card))


def _loaded(readme: Path) -> ModelCard:
    try:
        card: ModelCard = ModelCard.load(readme)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise HfDistillError(
            f"got {readme}, whose metadata cannot be read ({error}), expected a model card; mend or remove the file"
        ) from error
    return card


def _extended(card: ModelCard, facts: CardFacts) -> ModelCard:
    data: Any = card.data
    tags = TAGS if facts.distilled else TAGS[1:]
    data.tags = list(dict.fromkeys([*(data.tags or []), *tags]))
    data.library_name = "peft" if facts.adapter else data.library_name or "transformers"
    data.pipeline_tag = data.pipeline_tag or facts.task
    # What Trainer guessed may be the description of a config or a local folder, which the Hub refuses.
    data.base_model = hub_id(facts.base_model)
    data["base_model_relation"] = (ADAPTER if facts.adapter else FINETUNE) if data.base_model else None
    data["teacher_model"] = hub_id(facts.teacher)
    if hub_id(facts.dataset):
        data.datasets = facts.dataset
    if facts.results:
        data.model_name = data.model_name or facts.name
        data.metrics = [result.metric for result in facts.results]
        data.eval_results = [_eval_result(result, facts) for result in facts.results]
    text = _without_ours(card.text).replace(*NO_START).rstrip()
    card.text = f"{text}\n\n{BEGIN}\n\n{_section(facts)}\n\n{END}\n"
    return card


def _eval_result(result: ResultFacts, facts: CardFacts) -> EvalResult:
    return EvalResult(
        task_type=facts.task or "other",
        dataset_type=hub_id(facts.dataset) or "custom",
        dataset_name=facts.dataset_name or facts.dataset or "custom",
        dataset_split=facts.dataset_split,
        metric_type=result.metric,
        metric_name=result.name,
        metric_value=round(result.value, 6),
    )


def _without_ours(text: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before.rstrip() + after if begin and end else text


def _section(facts: CardFacts) -> str:
    """The section "Distillation" of the card's text."""
    lines = _teacher(facts) if facts.distilled else ["This model is a *control*: it was trained without a teacher."]
    if facts.start:
        lines.append(f"Its weights started from {facts.start}.")
    if facts.dataset:
        lines.append(f"Trained on {_linked(facts.dataset, 'datasets/')}.")
    parts = ["## Distillation", " ".join(lines), *_use(facts), _objective(facts)]
    if facts.training:
        settings = ", ".join(f"`{key}` {value}" for key, value in facts.training.items())
        parts.append(f"Settings of the training, beside the defaults: {settings}.")
    if facts.report:
        parts += ["### Results", facts.report]
    if facts.versions:
        parts.append("Made with " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".")
    if facts.distilled:
        papers = "\n\n".join(BIBTEX[paper] for paper in _papers(facts.terms))
        parts += ["### Citation", f"```bibtex\n{papers}\n```"]
    return "\n\n".join(parts)


def _teacher(facts: CardFacts) -> list[str]:
    teacher = f"the teacher {_linked(facts.teacher)}" if facts.teacher else "a teacher that has no name"
    if facts.teacher_revision:
        teacher += f" at revision `{facts.teacher_revision}`"
    if facts.teacher_training:
        teacher += f" ({facts.teacher_training})"
    return [
        f"This model is a *student*: it learnt by knowledge distillation from {teacher}.",
        f"Licence of the teacher: {facts.teacher_licence or 'unknown'}. Check what it says about models trained on the "
        "teacher's outputs.",
    ]


def _use(facts: CardFacts) -> list[str]:
    if facts.task is None or facts.repository is None:
        return []
    if facts.adapter:
        return [_adapters(facts)]
    if facts.task in WITHOUT_PIPELINE:
        kind = WITHOUT_PIPELINE[facts.task]
        calls = [f'student = {kind}.from_pretrained("{facts.repository}")']
        calls.append(f'tokenizer = AutoTokenizer.from_pretrained("{facts.repository}")')
        return ["```python\nfrom transformers import {}, AutoTokenizer\n\n{}\n```".format(kind, "\n".join(calls))]
    call = f'student = pipeline("{facts.task}", model="{facts.repository}")'
    return [f"```python\nfrom transformers import pipeline\n\n{call}\n```"]


def _adapters(facts: CardFacts) -> str:
    lines = [
        "from peft import PeftModel",
        f"from transformers import AutoConfig, {facts.architecture}",
        "",
        f'config = AutoConfig.from_pretrained("{facts.repository}")',
        f'base = {facts.architecture}.from_pretrained("{facts.base_model}", config=config)',
        f'student = PeftModel.from_pretrained(base, "{facts.repository}")',
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _objective(facts: CardFacts) -> str:
    rows = ["| term | weight | loss | options |", "| --- | ---: | --- | --- |"]
    for term in facts.terms:
        source = _SOURCES.get(term.loss or "")
        loss = "loss against the labels" if term.loss is None else f"`{term.loss}`"
        if source is not None:
            loss += f": {source.formula}"
        options = ", ".join(f"{key} = {value}" for key, value in term.options.items())
        rows.append(f"| {term.name} | {described(term.weight)} | {loss} | {options} |")
    note = "The loss is the weighted sum of these terms, each a mean over examples, or over tokens, pixels or frames."
    if any(term.options.get("standardized") for term in facts.terms):
        note += f" With `standardized`: {STANDARDIZED.formula}."
    return f"{note} p, q: probabilities of teacher and student; z: logits; T: temperature.\n\n" + "\n".join(rows)


def _papers(terms: tuple[TermFacts, ...]) -> list[str]:
    """Keys of the papers to cite, Hinton's first, none twice."""
    papers = [DISTILLATION]
    for term in terms:
        source = _SOURCES.get(term.loss or "")
        papers += source.papers if source is not None else ()
        papers += STANDARDIZED.papers if term.options.get("standardized") else ()
    return list(dict.fromkeys(papers))


def _linked(name: str, prefix: str = "") -> str:
    return f"[{name}](https://huggingface.co/{prefix}{name})" if hub_id(name) else f"`{name}`"
