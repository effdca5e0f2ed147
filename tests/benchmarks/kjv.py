"""Write the King James Bible, chapter by chapter, that README's numbers for language models were measured on.

    apt-get install bible-kjv bible-kjv-text
    python tests/benchmarks/kjv.py FOLDER

FOLDER/train.parquet, validation.parquet and test.parquet hold the column `text`, one chapter a row. Of the 1,189
chapters in their order every tenth, from the tenth on, is a test chapter, and the one after it a validation chapter.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from datasets import Dataset

COMMAND = ("bible", "-f", "gen1:1-rev22:21")
EVERY = 10


def chapters() -> list[str]:
    """The text of each chapter, a verse a line."""
    printed = subprocess.run(COMMAND, check=True, capture_output=True, text=True).stdout
    verses = [line.split(" ", 1) for line in printed.splitlines()]
    by_chapter = itertools.groupby(verses, key=lambda verse: verse[0].split(":")[0])
    return ["\n".join(text for _, text in group) for _, group in by_chapter]


def main(folder: Path) -> None:
    """Write the three splits."""
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number, text in enumerate(chapters(), start=1):
        place = number % EVERY
        splits["test" if place == 0 else "validation" if place == 1 and number > 1 else "train"].append(text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in splits.items():
        Dataset.from_dict({"text": texts}).to_parquet(folder / f"{name}.parquet")
        print(f"{name}: {len(texts)} chapters, {sum(map(len, texts)):,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
