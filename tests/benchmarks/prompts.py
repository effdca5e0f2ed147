"""Real recordings for the recipes of sounds, from packages that every Debian mirror has; nothing else is downloaded.

    apt-get download asterisk-core-sounds-{en,es,fr,it,ru}-wav fillets-ng-data fillets-ng-data-{cs,nl}
    for package in *.deb; do dpkg -x $package unpacked; done
    python tests/benchmarks/prompts.py FOLDER --root unpacked

FOLDER/languages: prompts of a telephone exchange in five languages (8 kHz), in pieces of at most two seconds, with the
language as label. One speaker a language, the same one for English and Spanish, so that a model may listen to the voice
as well as to the language. A prompt is in the same split in all languages.
FOLDER/dialogs: lines of a computer game, spoken by actors in Czech and Dutch (22 and 44 kHz), with their transcripts.
The licences are in the packages' copyright files (CC BY-SA 3.0, GPL 2).
"""

from __future__ import annotations

import argparse
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import soundfile

LANGUAGES = {"en_US": "English", "es_MX": "Spanish", "fr_CA": "French", "it_IT": "Italian", "ru_RU": "Russian"}
NO_SPEECH = ("silence", "tone", "beep", "moh", "music")
PIECE, SHORTEST = 2.0, 0.8
LINE = re.compile(r'dialogId\("(?P<name>[^"]+)",\s*"[^"]*",\s*"[^"]*"\)\s*dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\)')


def split_of(name: str) -> str:
    """A tenth for validation, a fifth for the test."""
    place = zlib.crc32(name.encode()) % 10
    return "validation" if place == 0 else "test" if place < 3 else "train"


def pieces(root: Path) -> Iterator[dict[str, Any]]:
    for folder in sorted((root / "usr/share/asterisk/sounds").iterdir()):
        language = LANGUAGES.get(folder.name[:5])
        for file in sorted(folder.rglob("*.wav")) if language else ():
            name = file.relative_to(folder).with_suffix("").as_posix()
            if any(word in name for word in NO_SPEECH):
                continue
            samples, rate = soundfile.read(file, dtype="int16")
            length = int(PIECE * rate)
            for start in range(0, len(samples), length):
                piece = samples[start : start + length]
                if len(piece) >= SHORTEST * rate:
                    stored = io.BytesIO()
                    soundfile.write(stored, piece, rate, format="WAV")
                    audio = {"bytes": stored.getvalue(), "path": None}
                    yield {"split": split_of(name), "audio": audio, "label": language, "prompt": name}


def lines(root: Path) -> Iterator[dict[str, Any]]:
    game = root / "usr/share/games/fillets-ng"
    for script in sorted(game.glob("script/**/dialogs_*.lua")):
        language = script.stem.removeprefix("dialogs_")
        for found in LINE.finditer(script.read_text(encoding="utf-8")):
            name, text = found["name"], found["text"].replace('\\"', '"').strip()
            file = game / "sound" / script.parent.relative_to(game / "script") / language / f"{name}.ogg"
            if file.is_file() and text:
                audio = {"bytes": file.read_bytes(), "path": None}
                yield {"split": split_of(name), "audio": audio, "text": text, "language": language}


def write(rows: list[dict[str, Any]], folder: Path, features: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")} for name in ("audio",)}
    for split in ("train", "validation", "test"):
        chosen = [row for row in rows if row["split"] == split]
        columns = {name: [row[name] for row in chosen] for name in ("audio", *features)}
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(stored | features))
        made.cast_column("audio", datasets.Audio(decode=False)).to_parquet(folder / f"{split}.parquet")
        print(f"{folder / split}: {len(made)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the packages are installed or unpacked")
    arguments = parser.parse_args()
    text = datasets.Value("string")
    names = datasets.ClassLabel(names=sorted(LANGUAGES.values()))
    if (arguments.root / "usr/share/asterisk/sounds").is_dir():
        write(list(pieces(arguments.root)), arguments.folder / "languages", {"label": names, "prompt": text})
    if (arguments.root / "usr/share/games/fillets-ng").is_dir():
        every = list(lines(arguments.root))
        for language in sorted({row["language"] for row in every}):
            chosen = [row for row in every if row["language"] == language]
            write(chosen, arguments.folder / "dialogs" / language, {"text": text})


if __name__ == "__main__":
    main()
