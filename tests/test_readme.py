"""The README's Python runs as it is printed, with tiny local models and data in the place of the Hub's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.pictures import picture_folder, saved_pair

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """Local folders for the Hub ids that README names."""
    student, teacher = saved_pair(tmp_path)
    return {
        "merve/beans-vit-224": str(teacher),
        "google/mobilenet_v2_0.35_96": str(student),
        "AI-Lab-Makerere/beans": str(picture_folder(tmp_path / "beans", "train", "validation")),
        "num_train_epochs=5": "num_train_epochs=1, report_to='none', use_cpu=True, save_strategy='no'",
    }


def test_first_screen_runs(stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[0]
    for printed, local in stand_ins.items():
        assert printed in code, printed
        code = code.replace(printed, local)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "beans-student" / "model.safetensors").is_file()


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_other_blocks_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_commands_exist() -> None:
    from hfdistill.cli import main

    shown = set(re.findall(r"hfdistill (\w+)", "\n".join(re.findall(r"^    (.*)$", README, flags=re.MULTILINE))))
    assert shown >= {"run", "doctor"}
    for command in sorted(shown):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0, command


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_files_exist() -> None:
    root = Path(__file__).parents[1]
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True).stdout.split()
    for path in set(re.findall(r"`((?:examples|tests|recipes|hfdistill)/[\w./-]+)`", README)):
        assert (root / path).exists(), path
        assert not tracked or any(each.startswith(path.rstrip("/")) for each in tracked), path
