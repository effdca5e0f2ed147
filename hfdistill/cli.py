"""The command line: `hfdistill run RECIPE` and its smaller sisters.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hfdistill.errors import HfDistillError
from hfdistill.options import command_line, split_changes

if TYPE_CHECKING:
    from hfdistill.recipe import Recipe
    from hfdistill.report import Report
    from hfdistill.stages import Reporter

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never a traceback for what a user can cause, unless with --debug."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    changes, rest = split_changes(given)
    options = command_line().parse_args(rest)
    if changes and not options.takes_changes:
        print(
            f"hfdistill {options.command}: error: {changes[0]} changes a recipe, and this command has none",
            file=sys.stderr,
        )
        return USAGE
    options.changes = changes
    options.again = shlex.join(["hfdistill", *given])
    try:
        _set_environment(options.debug)
        return _commands()[options.command](options)
    except KeyboardInterrupt:
        return _interrupted(options)
    except Exception as error:  # noqa: BLE001 - the last resort of a command: a clear line instead of a traceback
        return _failed(error, options.debug)


# ---- commands --------------------------------------------------------------------------------------------------------


def _commands() -> dict[str, Callable[[argparse.Namespace], int]]:
    return {
        "run": _run,
        "sweep": _sweep,
        "cache": _cache,
        "recipes": _recipes,
        "report": _report,
        "doctor": _doctor,
        "push": _push,
    }


def _run(options: argparse.Namespace) -> int:
    from hfdistill.stages import run_recipe

    reporter = _long_reporter(options)
    recipe = _recipe(options)
    output = _output(options)
    reporter.say(f"{options.recipe} -> {output}", style="bold")
    _say_report(run_recipe(recipe, output, reporter, overwrite=options.overwrite), recipe, output, reporter)
    return OK


def _say_report(report: Report | None, recipe: Recipe, output: Path, reporter: Reporter) -> None:
    if report is not None:
        reporter.say(report.table())
        reporter.say(f"Report: {output / 'report.md'}")
        reporter.say(f"Student: {output / f'seed-{recipe.seeds[0]}' / 'student'}")


def _sweep(options: argparse.Namespace) -> int:
    from hfdistill.recipe import RecipeError, override_arguments
    from hfdistill.sweep import BEST, grid_of, run_best, run_sweep

    reporter = _long_reporter(options)
    given = {"objective.temperature": options.temperature, "objective.alpha": options.alpha}
    short = {key: values for key, values in given.items() if values is not None}
    changes = override_arguments(options.changes)
    for key in short.keys() & changes.keys():
        raise RecipeError(f"{key} came twice, as --{key.rpartition('.')[2]} too; expected it once.")
    grid = grid_of(options.recipe, {**short, **changes}, agreed=options.yes)
    if options.seeds is not None:
        first = grid.seeds[0]
        grid = grid.with_seeds(
            options.seeds if isinstance(options.seeds, list) else range(first, first + options.seeds)
        )
    output = _output(options)
    reporter.say(f"{options.recipe}, {len(grid.trials)} combinations -> {output}", style="bold")
    results = run_sweep(grid, output, reporter, overwrite=options.overwrite)
    reporter.say(f"Table: {output / 'sweep.md'}")
    assert results.best is not None, "run_sweep refuses to end without one"
    if options.run_best:
        report = run_best(results, output, reporter, overwrite=options.overwrite)
        _say_report(report, results.best.trial.recipe, output / BEST, reporter)
    else:
        reporter.say(f"With its control and its test: {results.command(results.best.trial)}")
    return OK


def _cache(options: argparse.Namespace) -> int:
    from hfdistill.stages.filling import cache_of, fill_recipe

    reporter = _long_reporter(options)
    recipe, output = _recipe(options), _output(options)
    reporter.say(f"{options.recipe} -> {cache_of(recipe, output)}", style="bold")
    filled = fill_recipe(recipe, output, reporter)
    reporter.say(filled.sentence())
    if options.push is not None:
        _push_cache(filled.folder, options, reporter)
    if recipe.teacher.cache:
        reporter.say("Training with the same recipe reads it: hfdistill run, hfdistill sweep.")
    else:
        reporter.say(f"To train from it, add to `hfdistill run` or `hfdistill sweep`: --teacher.cache={filled.folder}")
    return OK


def _push_cache(folder: Path, options: argparse.Namespace, reporter: Reporter) -> None:
    """One process speaks to the Hub; the others have nothing left to do."""
    if _is_main_process():
        from hfdistill.cache_exchange import push_cache

        pushed = push_cache(folder, options.push, private=options.private or None, bar=reporter.bar)
        reporter.say(f"Pushed to {pushed}")


def _cache_folder(options: argparse.Namespace) -> Path:
    from hfdistill.stages.filling import cache_of

    return cache_of(_recipe(options), _output(options))


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe with what the command line changes."""
    from dataclasses import replace

    from hfdistill.recipe import load_recipe, override_arguments

    recipe = load_recipe(options.recipe, override_arguments(options.changes), options.method)
    if options.command not in ("run", "cache"):
        return recipe
    seeds = recipe.seeds
    if options.seeds is not None:
        seeds = [recipe.seeds[0] + number for number in range(options.seeds)]
    if options.seed is not None:
        seeds = options.seed
    control = recipe.control and not (options.command == "run" and options.no_control)
    return replace(recipe, seeds=seeds, control=control)


def _output(options: argparse.Namespace) -> Path:
    name = Path(options.recipe).stem
    if options.command in ("run", "cache") and options.method is not None:
        name = f"{name}-{Path(options.method).stem}"
    return Path(options.output or Path("runs") / (f"{name}-sweep" if options.command == "sweep" else name))


def _recipes(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from hfdistill.recipe.shipped import shipped_methods, shipped_recipes

    for what, shipped in (("recipe", shipped_recipes()), ("method", shipped_methods())):
        table = Table(what, "what it does", box=None, pad_edge=False)
        for name, description in shipped.items():
            table.add_row(name, description)
        Console().print(table, "")
    return OK


def _report(options: argparse.Namespace) -> int:
    from hfdistill.report import write_report

    report = write_report(options.run_folder)
    reporter = _reporter()
    reporter.say(report.table())
    reporter.say(f"Report: {options.run_folder / 'report.md'}")
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from hfdistill.doctor import diagnose

    reporter = _reporter()
    diagnosis = diagnose(_recipe(options), reporter)
    reporter.say(diagnosis.table())
    return OK if diagnosis.healthy else FAILED


def _push(options: argparse.Namespace) -> int:
    from hfdistill.hub import push_folder

    url = push_folder(options.folder, options.repo_id, private=options.private)
    print(f"Pushed to {url}")
    return OK


# ---- how it speaks ---------------------------------------------------------------------------------------------------


def _reporter() -> Reporter:
    from rich.console import Console

    from hfdistill.stages.processes import is_main
    from hfdistill.stages.progress import Reporter

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    return Reporter(console, silent=not is_main())


def _long_reporter(options: argparse.Namespace) -> Reporter:
    """The reporter of a command that trains, which may be ended from outside or launched wrongly."""
    from transformers.utils.logging import disable_progress_bar

    from hfdistill.stages.processes import launch_warning

    _end_on_sigterm()
    if not options.debug:
        disable_progress_bar()  # type: ignore[no-untyped-call]
    reporter = _reporter()
    if warning := launch_warning(os.environ):
        reporter.say(f"Warning: {warning}", style="yellow")
    return reporter


def _set_environment(debug: bool) -> None:
    """Let hfdistill speak alone (the libraries' bars and hints are for their own users) and its threads wait asleep."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Threads that wait by spinning made two threads beside a busy process tens of times slower than one. Read by
    # OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if debug:
        return
    warnings.filterwarnings("ignore")
    # Read by the libraries when they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it before they kill."""


def _end_on_sigterm() -> None:
    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, end)


def _interrupted(options: argparse.Namespace) -> int:
    if _is_main_process():
        kept = ""
        if options.command in ("run", "sweep"):
            kept = (
                f" What is finished and the last checkpoint are kept in {_output(options)}; to go on: {options.again}"
            )
        if options.command == "cache":
            kept = f" What the teacher has said is kept in {_cache_folder(options)}; to go on: {options.again}"
        print(f"\nInterrupted.{kept}", file=sys.stderr)
    return INTERRUPTED


def _failed(error: Exception, debug: bool) -> int:
    from hfdistill.recipe.values import RecipeError

    if debug:
        traceback.print_exc()
    wrong_recipe = isinstance(error, RecipeError)
    if _is_main_process() or not wrong_recipe:
        who = "" if _is_main_process() else f" (process {os.environ['RANK']})"
        print(f"hfdistill: error{who}: {_message(error)}", file=sys.stderr)
    return USAGE if wrong_recipe else FAILED


def _message(error: Exception) -> str:
    if isinstance(error, HfDistillError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error}. Check the path, its permissions, the space on the disk and the network."
    return f"{type(error).__name__}: {error}. This is not foreseen: run again with --debug and report what it prints."


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
