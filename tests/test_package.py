"""What a stranger gets from `pip install hfdistill`: the package, its recipes, its command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import hfdistill
from hfdistill._resources import recipe_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built as pip builds it."""
    builder = WheelBuilder(str(ROOT))
    return Path(next(builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])))


def test_the_wheel_has_the_recipes_the_types_and_the_licence(wheel: Path) -> None:
    """Nothing is left in the checkout that a run needs, and nothing else comes along."""
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "recipes").rglob("*") if path.is_file()]
    recipes = {f"hfdistill/{path.relative_to(ROOT).as_posix()}" for path in files}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hfdistill").rglob("*.py")}
    about = f"hfdistill-{hfdistill.__version__}.dist-info/"
    assert {"hfdistill/recipes/digits.yaml", "hfdistill/recipes/methods/dkd.yaml"} <= recipes
    assert {name for name in names if not name.startswith(about)} == recipes | modules | {"hfdistill/py.typed"}
    assert {f"{about}licenses/LICENSE", f"{about}entry_points.txt"} <= names


def test_recipes_are_found_beside_the_installed_package(wheel: Path, tmp_path: Path) -> None:
    """In an installed wheel they lie inside the package, in a checkout beside it."""
    assert recipe_folder() == ROOT / "recipes"
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = "from hfdistill._resources import recipe_folder; print(recipe_folder() / 'digits.yaml')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "hfdistill" / "recipes" / "digits.yaml"
    (tmp_path / "hfdistill" / "recipes").rename(tmp_path / "elsewhere")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "recipes that come with hfdistill are missing: expected them in" in done.stderr


def test_constraints_pin_every_requirement_once() -> None:
    """The tested set names each direct dependency, so `pip install -c constraints.txt` gives what was tested."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==")[0].lower().replace("_", "-") for line in lines if not line.startswith("#")]
    assert len(pins) == len(set(pins))
    metadata = WheelBuilder(str(ROOT)).metadata.core
    extras = [requirement for name in ("sweep", "test", "dev") for requirement in metadata.optional_dependencies[name]]
    wanted = {requirement.split(">")[0].split("<")[0].strip().lower() for requirement in metadata.dependencies + extras}
    assert {name.replace("_", "-") for name in wanted} <= set(pins)
