"""The rules of the house that a reader would otherwise have to watch: layers, lazy imports, public names, sizes."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hfdistill

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hfdistill"

# Each module or subpackage of hfdistill and its layer; a module imports from its own layer or a lower one.
# `__init__` is not here: nobody inside imports from the package itself.
BOTTOM = -1
LAYERS = {
    "_atomic": BOTTOM,
    "_resources": BOTTOM,
    "_version": BOTTOM,
    "errors": BOTTOM,
    "losses": 0,
    "reversal": 0,
    "rows": 1,
    "schedules": 1,
    "shards": 1,
    "temperatures": 1,
    "tasks": 1,
    "attention_calls": 2,
    "boxes": 2,
    "knowledge": 2,
    "embeddings": 2,
    "objective": 2,
    "features": 2,
    "sight": 2,
    "teachers": 2,
    "adapters": 3,
    "arguments": 3,
    "balance": 3,
    "cache": 3,
    "caching": 3,
    "card": 3,
    "channels": 3,
    "checkpoints": 3,
    "citations": 3,
    "config": 3,
    "contract": 3,
    "ensembles": 3,
    "faults": 3,
    "filling": 3,
    "first_look": 3,
    "fused_head": 3,
    "heads": 3,
    "loading": 3,
    "mixed_views": 3,
    "mixing": 3,
    "mutual": 3,
    "pairing": 3,
    "parts": 3,
    "replay": 3,
    "teacher_forward": 3,
    "teaching": 3,
    "trainer": 3,
    "views": 3,
    "vocabulary": 3,
    "cache_card": 4,
    "cache_exchange": 4,
    "cache_tables": 4,
    "compression": 4,
    "data": 4,
    "detection_sheet": 4,
    "doctor": 4,
    "fidelity": 4,
    "hub": 4,
    "intervals": 4,
    "main_metric": 4,
    "measure": 4,
    "metrics": 4,
    "metrics_dense": 4,
    "metrics_detection": 4,
    "metrics_generation": 4,
    "metrics_text": 4,
    "plots": 4,
    "recipe": 4,
    "report": 4,
    "report_text": 4,
    "run_card": 4,
    "run_folder": 4,
    "score_sheet": 4,
    "search_space": 4,
    "stages": 4,
    "students": 4,
    "sum_sheet": 4,
    "sweep": 4,
    "trainer_metrics": 4,
    "__main__": 5,
    "cli": 5,
    "options": 5,
}
# The lowest layer that may import a library; any other (datasets, PIL, yaml, huggingface_hub, rich, ...) from 4 up.
LIBRARIES = {"torch": 0, "numpy": 1, "transformers": 1, "accelerate": 2, "peft": 3}
ANY_OTHER_LIBRARY = 4
# Modules that stay below what their layer allows, and exceptions to it: (module, library) -> reason.
TORCH_ONLY = {"losses", "rows"}
EXCEPTIONS = {
    ("_atomic", "safetensors"): "the one place that writes tensor files",
    ("_atomic", "torch"): "for type checkers only",
    ("tasks", "scipy"): "queries are matched by the Hungarian algorithm",
    ("cache", "safetensors"): "shards are written as such files",
    ("cache", "xxhash"): "examples are known by their hash",
    ("card", "huggingface_hub"): "the trainer writes the model card, which is the Hub's format",
    ("card", "yaml"): "the head of a model card is YAML",
    ("shards", "deepspeed"): "where it runs it gathers what it has partitioned",
    ("features", "safetensors"): "projectors are read back from their file",
    ("teachers", "safetensors"): "so is a moving average",
    ("views", "PIL"): "raw columns hold PIL images",
}
MOST_LINES = 400
MOST_LINES_MEDIAN = 150
MOST_LINES_IN_FUNCTION = 60


@dataclass(frozen=True)
class Import:
    """One imported module: who imports it, what, and in which line."""

    path: Path
    line: int
    name: str
    typing_only: bool

    @property
    def owner(self) -> str:
        """The module or subpackage of hfdistill that the importing file belongs to."""
        return unit(self.path)

    @property
    def target(self) -> str | None:
        """The module or subpackage of hfdistill that is imported; None for other libraries."""
        first, _, rest = self.name.partition(".")
        return rest.partition(".")[0] if first == "hfdistill" else None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.name}"


def unit(path: Path) -> str:
    """Return the module or subpackage of hfdistill that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    """Return every Python file of the package, but not the table of public names."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports() -> Iterator[Import]:
    """Yield every import in the package, also those inside functions and for type checkers only."""
    for path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        typing_only = {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in imported_names(path, node):
                    yield Import(path, node.lineno, name, typing_only=id(node) in typing_only)


def imported_names(path: Path, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the full names of the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} write relative imports in full"
    # `from hfdistill import losses` names a module, `from hfdistill.losses import x` a name in one.
    if node.module == "hfdistill":
        return [f"hfdistill.{alias.name}" for alias in node.names]
    return [str(node.module)]


def test_every_module_has_a_layer() -> None:
    """A new module is put into the table on purpose."""
    homeless = sorted({unit(path) for path in files()} - LAYERS.keys())
    assert not homeless, f"{homeless}: give it a layer in {Path(__file__).name}, as CONTRIBUTING.md describes them"


def test_modules_import_only_from_below() -> None:
    """The layers hold, also inside functions and for type checkers."""
    offenders = [
        f"{found}: layer {LAYERS[found.owner]} may not know layer {LAYERS[found.target]}"
        for found in imports()
        if found.target in LAYERS and found.owner in LAYERS and LAYERS[found.target] > LAYERS[found.owner]
    ]
    assert not offenders, "\n".join(offenders)


def test_nobody_imports_from_the_package_itself() -> None:
    """Public names are for users: inside, an import says which module it needs."""
    modules = {unit(path) for path in files()}
    offenders = [
        str(found) for found in imports() if found.target is not None and found.target not in modules | LAYERS.keys()
    ]
    assert not offenders, "import from the module that has the name: " + "\n".join(offenders)


def test_imports_form_no_circle() -> None:
    """Modules of one layer may use each other, but only one way; a name that only a type needs does not count."""
    graph: dict[str, set[str]] = {name: set() for name in LAYERS}
    for found in imports():
        if found.target and found.target != found.owner and not found.typing_only:
            graph.setdefault(found.owner, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("these import each other: " + " <- ".join(error.args[1]))


def test_libraries_are_imported_where_they_belong() -> None:
    """Losses and rows know torch only; data, pictures, YAML and the Hub are met in layer 4."""
    offenders = []
    for found in imports():
        library = found.name.partition(".")[0]
        if found.target is not None or library in sys.stdlib_module_names | {"__future__"}:
            continue
        lowest = LIBRARIES.get(library, ANY_OTHER_LIBRARY)
        allowed = LAYERS.get(found.owner, ANY_OTHER_LIBRARY) >= lowest
        if found.owner in TORCH_ONLY:
            allowed = library == "torch"
        if not allowed and (found.owner, library) not in EXCEPTIONS:
            offenders.append(f"{found}: {library} belongs in layer {lowest} and above")
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("start", [["-c", "import hfdistill"], ["-m", "hfdistill", "--help"]], ids=["import", "help"])
def test_starting_loads_neither_torch_nor_transformers(start: list[str]) -> None:
    """What is not used is not waited for: transformers' Trainer alone takes five seconds."""
    # -X importtime names every module on standard error as it is loaded.
    command = [sys.executable, "-X", "importtime", *start]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "hfdistill" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "accelerate", "numpy", "matplotlib", "sklearn"}


def test_public_names_are_sorted_and_exist() -> None:
    """The table has one entry a name, in order, and each leads somewhere."""
    assert list(hfdistill._MODULES) == sorted(hfdistill._MODULES) == hfdistill.__all__
    for name in hfdistill.__all__:
        assert getattr(hfdistill, name).__name__ == name
    assert set(hfdistill.__all__) <= set(dir(hfdistill))
    assert hfdistill.__version__


def test_type_checkers_see_the_same_names() -> None:
    """The imports for type checkers say what the table says."""
    block = next(
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, f"write `{alias.name} as {alias.name}`: it is exported on purpose"
            seen[alias.name] = str(node.module).removeprefix("hfdistill.")
    assert seen == hfdistill._MODULES


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails at the import, and hasattr works."""
    with pytest.raises(ImportError, match="DistilationTrainer"):
        from hfdistill import DistilationTrainer  # noqa: F401
    assert not hasattr(hfdistill, "DistilationTrainer")


def test_files_and_functions_are_short() -> None:
    """A file that grows is two files, a function that grows is two functions."""
    long = []
    sizes = []
    for folder in (PACKAGE, ROOT / "tests", ROOT / "examples"):
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            lines = len(text.splitlines())
            if folder == PACKAGE:
                sizes.append(lines)
            if lines > MOST_LINES:
                long.append(f"{path.relative_to(ROOT)}: {lines} lines, {MOST_LINES} at most")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    size = (node.end_lineno or node.lineno) - node.lineno + 1
                    if size > MOST_LINES_IN_FUNCTION:
                        where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                        long.append(f"{where}: {size} lines, {MOST_LINES_IN_FUNCTION} at most")
    assert not long, "\n".join(long)
    assert statistics.median(sizes) <= MOST_LINES_MEDIAN
