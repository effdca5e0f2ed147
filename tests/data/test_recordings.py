"""Recordings: what is read of files, how they are cut, what models hear, and folders of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import ASTFeatureExtractor, AutoConfig, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from hfdistill import HfDistillError
from hfdistill.contract import processing_differences
from hfdistill.data.changes import Changes
from hfdistill.data.columns import input_columns
from hfdistill.data.extractors import Extractor, extractor_of
from hfdistill.data.kind import SourceRequest
from hfdistill.data.recordings import Recordings, RecordingView, SpokenClasses
from hfdistill.data.sounds import read_wave
from hfdistill.data.sources import load_splits
from hfdistill.recipe import DataSection, RecipeError, StudentSection
from hfdistill.stages.exam import without_bar
from tests import sounds
from tests.sounds import RATE

RAMP = np.arange(400) / 400


def plain(**settings: Any) -> Extractor:
    """Samples as they are."""
    return Extractor(Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=False, **settings))


def waves(*values: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"audio": list(values)})


def source(
    dataset: datasets.Dataset, seconds: float | None, budget: int, *rates: int, split: str = "train"
) -> Recordings:
    kind = SpokenClasses(dataset, DataSection("anywhere", max_seconds=seconds), ("audio",))
    views = {
        f"view{place}": RecordingView(Extractor(Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=False)))
        for place, rate in enumerate(rates or (RATE,))
    }
    return kind.source(SourceRequest(dataset, split, views, budget, without_bar))


def ramps(lengths: list[int]) -> datasets.Dataset:
    """Samples that say where they stand."""
    return sounds.recordings(
        [sounds.stored(np.arange(length) / 10_000) for length in lengths], label=[0, 1] * (len(lengths) // 2)
    )


def test_bytes_and_paths_of_any_form(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "ramp.wav", RAMP, RATE, subtype="FLOAT")
    forms = [
        sounds.stored(RAMP),
        {"bytes": None, "path": str(tmp_path / "ramp.wav")},
        {"bytes": None, "path": "ramp.wav"},
    ]
    for dataset in (waves(*forms), waves("ramp.wav"), waves(sounds.stored(RAMP)["bytes"])):
        for row in range(len(dataset)):
            found = read_wave(dataset, "audio", row, RATE, tmp_path)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, RAMP, atol=1e-7)


def test_the_mean_of_two_channels_at_another_rate() -> None:
    both = np.stack([np.full(800, 0.5), np.full(800, -0.1)], axis=1)
    found = read_wave(waves(sounds.stored(both)), "audio", 0, 2 * RATE, Path())
    assert len(found) == 1600
    np.testing.assert_allclose(found[400:1200], 0.2, atol=1e-3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"bytes": b"not a sound", "path": None}, r"Row 1 of 'audio' cannot be read as a recording \(.+\); mend or"),
        ({"bytes": None, "path": "nowhere.wav"}, "Row 1 of 'audio': there is no file 'nowhere.wav'"),
        ({"bytes": None, "path": None}, "Row 1 of 'audio' holds no recording"),
        (sounds.stored(np.zeros(100)), r"Row 1 of 'audio' holds 0.0125 seconds of sound; expected at least 0.025"),
    ],
    ids=["broken", "missing", "null", "short"],
)
def test_a_row_that_cannot_be_heard_is_named(value: Any, message: str) -> None:
    with pytest.raises(HfDistillError, match=message):
        read_wave(waves(sounds.stored(RAMP), value), "audio", 1, RATE, Path())


@pytest.mark.parametrize(("package", "rate"), [("soundfile", RATE), ("soxr", 2 * RATE)])
def test_a_missing_library_names_its_extra(package: str, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HfDistillError, match=rf"needs the package {package}.*pip install 'hfdistill\[speech\]'"):
        read_wave(waves(sounds.stored(RAMP)), "audio", 0, rate, Path())


@pytest.mark.parametrize("budget", [0, 2**30], ids=["disk", "memory"])
def test_the_middle_at_evaluation_and_a_draw_in_training(budget: int) -> None:
    found = source(ramps([1000, 400]), 0.1, budget)
    assert (found.waves is None) == (budget == 0) and found.heard is None
    rows = torch.tensor([0, 1])
    middle = found.batch(rows, "view0", None)["input_values"]
    assert middle.shape == (2, 800)
    assert (middle[0] * 10_000).round().long().tolist() == list(range(100, 900))
    assert (middle[1, 400:] == 0).all() and middle[1, 399] > 0
    changes = Changes((), seed=3)
    starts = []
    for epoch in range(6):
        changes.epoch[0] = epoch
        cut = found.batch(rows, "view0", changes.draws(rows))["input_values"]
        first = round(float(cut[0, 0]) * 10_000)
        assert first == int(float(changes.draws(rows).places[0, 0]) * 201)
        assert round(float(cut[0, -1]) * 10_000) == first + 799
        torch.testing.assert_close(cut[1], middle[1])
        starts.append(first)
    assert len(set(starts)) > 3


def test_two_rates_are_cut_at_the_same_place() -> None:
    found = source(ramps([4000, 4000]), 0.1, 2**30, RATE, 2 * RATE)
    draws = Changes((), seed=1).draws(torch.tensor([1]))
    slow, fast = (found.batch(torch.tensor([1]), view, draws)["input_values"][0] for view in ("view0", "view1"))
    assert len(fast) == 2 * len(slow)
    assert float(slow[400]) == pytest.approx(float(fast[800]), abs=2e-4)


def test_memory_and_disk_give_the_same_and_a_row_knows_nothing_of_its_batch() -> None:
    dataset = ramps([1000, 600, 800, 400])
    kept, read = (source(dataset, None, budget) for budget in (2**30, 0))
    assert kept.heard is not None and read.heard is None
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(kept.batch(rows, "view0", None), read.batch(rows, "view0", None))
    alone = read.batch(rows[:1], "view0", None)["input_values"]
    assert alone.shape == (1, 400)
    assert torch.equal(kept.batch(rows, "view0", None)["input_values"][0, :400], alone[0])


def test_validation_is_kept_as_it_is_heard() -> None:
    assert source(ramps([1000, 400]), 0.1, 2**30, split="validation").heard is not None


def test_masks_come_where_the_extractor_makes_them() -> None:
    heard = [plain(return_attention_mask=True).heard(np.ones(length, np.float32)) for length in (3, 5)]
    batch = plain().padded(heard)
    assert batch["attention_mask"].dtype == torch.int64
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert set(plain().heard(np.ones(3, np.float32))) == {"input_values"}


def test_extractors_made_for_configs() -> None:
    def made(settings: dict[str, Any], teacher: Extractor | None = None, **data: Any) -> Extractor:
        options = dict(settings)
        config = AutoConfig.for_model(options.pop("model_type"), **options)
        return extractor_of(StudentSection(config=settings), config, DataSection("anywhere", **data), teacher)

    waves = made(sounds.WAV2VEC2, sampling_rate=RATE)
    assert isinstance(waves.inner, Wav2Vec2FeatureExtractor) and waves.rate == RATE
    assert waves.inner.return_attention_mask
    spectrogram = made(sounds.SPECTROGRAM)
    assert isinstance(spectrogram.inner, ASTFeatureExtractor) and spectrogram.rate == 16_000
    assert spectrogram.heard(sounds.tone(300, 1600).astype(np.float32))["input_values"].shape == (32, 32)
    whisper = {"model_type": "whisper", "num_mel_bins": 16, "max_source_positions": 50}
    made_for_whisper = made(whisper)
    assert isinstance(made_for_whisper.inner, WhisperFeatureExtractor) and made_for_whisper.inner.n_samples == 16_000
    assert made(whisper, made_for_whisper) is made_for_whisper
    assert made(whisper | {"num_mel_bins": 20}, made_for_whisper).inner.feature_size == 20
    with pytest.raises(RecipeError, match=r"max_source_positions: 60 positions are 1\.2 seconds .* such as 50 for one"):
        made(whisper | {"max_source_positions": 60})
    with pytest.raises(RecipeError, match="a bert hears no recordings"):
        made({"model_type": "bert"})


def test_differences_of_extractors_are_told() -> None:
    ours = Wav2Vec2FeatureExtractor()
    assert processing_differences(ours, Wav2Vec2FeatureExtractor()) == []
    assert processing_differences(ours, Wav2Vec2FeatureExtractor(sampling_rate=RATE)) == [
        "sampling_rate 16000 against 8000"
    ]
    assert processing_differences(ours, WhisperFeatureExtractor()) == [
        "Wav2Vec2FeatureExtractor against WhisperFeatureExtractor"
    ]


def test_folders_by_class_with_and_without_splits(tmp_path: Path) -> None:
    for split, rows in (("train", 2), ("test", 1)):
        for name in ("low", "high"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for row in range(rows):
                soundfile.write(folder / f"{row}.flac", RAMP, RATE)
    found = load_splits(DataSection(str(tmp_path)))
    assert {name: len(split) for name, split in found.items()} == {"train": 4, "test": 2}
    assert found["test"].features["label"].names == ["high", "low"]
    assert found["train"]["label"][:] == [0, 0, 1, 1]
    assert input_columns(found["train"], DataSection("anywhere")) == ("audio", ("audio",))
    one = load_splits(DataSection(str(tmp_path / "train"), test_split=None, test_fraction=0.5))
    assert len(one["train"]) == 4
    soundfile.write(tmp_path / "train" / "stray.wav", RAMP, RATE)
    with pytest.raises(HfDistillError, match=r"lie 1 to 2 folders deep; expected SPLIT/CLASS/NAME\.wav"):
        load_splits(DataSection(str(tmp_path)))


def test_a_folder_that_a_metadata_file_tells_of(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    soundfile.write(tmp_path / "train" / "one.wav", RAMP, RATE)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\none.wav,a word\n")
    found = load_splits(DataSection(str(tmp_path), test_split=None))["train"]
    assert found["text"][:] == ["a word"]
    np.testing.assert_allclose(read_wave(found, "audio", 0, RATE, Path()), RAMP, atol=1e-4)
    (tmp_path / "train" / "metadata.csv").write_text("name,text\none.wav,a word\n")
    with pytest.raises(HfDistillError, match="has the columns name, text; expected file_name among them"):
        load_splits(DataSection(str(tmp_path), test_split=None))


def test_keys_that_do_not_fit_recordings_are_refused() -> None:
    dataset = sounds.classes(3)
    with pytest.raises(RecipeError, match=r"data\.audio_column: 'label' holds"):
        input_columns(dataset, DataSection("anywhere", audio_column="label"))
    with pytest.raises(RecipeError, match=r"data\.augment: these change images, and the recipe reads recordings"):
        SpokenClasses(dataset, DataSection("anywhere", augment=["random_crop"]), ("audio",))
    with pytest.raises(RecipeError, match=r"data\.max_seconds: got 0\.0, expected a number above 0"):
        DataSection("anywhere", max_seconds=0.0)
    with pytest.raises(RecipeError, match=r"data\.max_seconds: the transcript of ctc is of the whole recording"):
        DataSection("anywhere", max_seconds=1.0, task="ctc")
    with pytest.raises(RecipeError, match=r"data\.normalized_transcripts: it is for transcripts"):
        DataSection("anywhere", normalized_transcripts=True)
