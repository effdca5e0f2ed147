"""The card of a published cache: whose targets these are, what the columns mean, how to use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from hfdistill.cache import Manifest
from hfdistill.cache.contents import LOGITS, PLACES, ROWS
from hfdistill.cache.top_k import HIGH, LOGS, LOW, REST, SCALE
from hfdistill.cache_tables import KEY
from hfdistill.card import TAGS, hub_id
from hfdistill.filling import readable

FILES = "data/*.parquet"
SIZES = {10**3: "1K", 10**4: "10K", 10**5: "100K", 10**6: "1M", 10**7: "10M", 10**8: "100M", 10**9: "1B"}
PARTS = {
    LOW: "the lower 16 bits of the most likely classes' indices, most likely first",
    HIGH: "their higher bits, packed from the lowest on",
    LOGS: "the log-probabilities of these classes at temperature 1",
    SCALE: "steps of the log-probabilities, which are negative multiples of them",
    REST: "the log of the sum of the other classes' probabilities, each to the power of 1/T, for each temperature T",
}
ALONG = {None: "example", ROWS: "place that counts for the loss", PLACES: "place that is no padding"}


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a cache: its name in commands, how many examples and bytes it has."""

    name: str
    examples: int
    size: int


def cache_card(manifest: Manifest, facts: CardFacts) -> str:
    """A data set card in Markdown with a YAML head that tells the Hub, and `datasets`, where the shards are."""
    teacher = hub_id(manifest.teacher.name)
    head = {
        "tags": [*TAGS, "teacher-cache"],
        "size_categories": [size_category(facts.examples)],
        "configs": [{"config_name": "default", "data_files": FILES}],
        **({"teacher_model": teacher} if teacher else {}),
    }
    of = f"[{teacher}](https://huggingface.co/{teacher})" if teacher else f"a `{manifest.teacher.class_name}`"
    revision = f" at revision `{manifest.teacher.revision}`" if manifest.teacher.revision else ""
    text = f"""# Targets of {teacher or manifest.teacher.class_name}

What {of}{revision} (weights `{manifest.teacher.weights}`) says of {facts.examples:,} inputs for
{manifest.task.replace("_", " ")}: {readable(facts.size)}, made by hfdistill {manifest.version} to distil students from
without the teacher. The inputs are not in here: `{KEY}` is the hash of what the teacher read. See what the teacher's
licence says about models trained on its outputs.

```python
from hfdistill import CachedTeacher, DistillationTrainer
from hfdistill.cache_exchange import import_cache

import_cache("{facts.name}", "cache")
trainer = DistillationTrainer(student, args, teacher_model=CachedTeacher("cache"), train_dataset=train_dataset)
```

| column | what it holds |
| --- | --- |
{_columns(manifest)}
"""
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{text}"


def size_category(examples: int) -> str:
    """The Hub's word for so many examples."""
    below = [word for limit, word in SIZES.items() if examples < limit]
    above = [word for limit, word in SIZES.items() if examples >= limit]
    if not above:
        return f"n<{below[0]}"
    return f"{above[-1]}<n<{below[0]}" if below else f"n>{above[-1]}"


def _columns(manifest: Manifest) -> str:
    contents = manifest.contents
    kinds: Mapping[str, str | None] = contents.kinds
    lines = [f"| `{KEY}` | the example: XXH3 (128 bits) of the teacher's inputs |"]
    for name, kind in kinds.items():
        part = name.removeprefix(f"{LOGITS}.")
        what = PARTS.get(part, "") if contents.top_k and part != name else f"the teacher's outputs in {contents.dtype}"
        lines.append(f"| `{name}` | {what}; an entry for each {ALONG[kind]} |")
    return "\n".join(lines)
