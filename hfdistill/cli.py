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

from hfdistill._version import __version__
from hfdistill.errors import HfDistillError

if TYPE_CHECKING:
    from hfdistill.recipe import Recipe
    from hfdistill.stages import Reporter

SECTIONS = ("student", "teacher", "data", "objective", "training")

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

EXAMPLES = """examples:
  hfdistill run digits
  hfdistill run fashion_mnist --seeds 3 --output runs/clothes
  hfdistill run imagefolder --data.dataset=/my/pictures --training.learning_rate=1e-4
  accelerate launch --multi_gpu --num_processes 2 -m hfdistill run cifar100
"""
EXIT_CODES = "exit codes: 0 done, 1 the run failed, 2 wrong usage or recipe, 130 interrupted (run again to go on)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never a traceback for what a user can cause, unless with --debug."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    changes, rest = _split_changes(given)
    options = _parser().parse_args(rest)
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
        command: Callable[[argparse.Namespace], int] = options.function
        return command(options)
    except KeyboardInterrupt:
        return _interrupted(options)
    except Exception as error:  # noqa: BLE001 - the last resort of a command: a clear line instead of a traceback
        return _failed(error, options.debug)


def _split_changes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Changes of the recipe (`--section.key=value` or `--section.key value`) apart from the command's own options."""
    changes, rest, waiting = [], [], False
    for argument in arguments:
        is_option = argument.startswith("--")
        if waiting and not is_option:
            changes.append(argument)
            waiting = False
        elif is_option and argument[2:].partition("=")[0].partition(".")[0] in SECTIONS:
            changes.append(argument)
            waiting = "=" not in argument
        else:
            rest.append(argument)
            waiting = False
    return changes, rest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hfdistill",
        description="Knowledge distillation for Hugging Face models: a student, its teacher, and whether that helped.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hfdistill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(
        name: str, function: Callable[[argparse.Namespace], int], text: str, *, changes: bool = False
    ) -> argparse.ArgumentParser:
        epilog = "Any value of the recipe can be changed: --section.key=VALUE, such as --training.learning_rate=1e-4."
        command = commands.add_parser(
            name, help=text, description=text, allow_abbrev=False, epilog=epilog if changes else None
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
        command.set_defaults(function=function, takes_changes=changes)
        return command

    run = add("run", _run, "Run a recipe: teacher, control, student, report. Run it again to go on.", changes=True)
    run.add_argument(
        "recipe", metavar="RECIPE", help="a shipped name (see `hfdistill recipes`) or the path of a YAML file"
    )
    run.add_argument("--output", metavar="DIR", type=Path, help="folder of the results (default: runs/RECIPE)")
    seeds = run.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", metavar="N", type=_count, help="how many seeds, counted up from the recipe's first")
    seeds.add_argument("--seed", metavar="S", type=int, nargs="+", help="these seeds")
    run.add_argument(
        "--no-control", action="store_true", help="do not train the student without the teacher: the gain stays unknown"
    )
    run.add_argument("--overwrite", action="store_true", help="do stages anew that other values of the recipe made")
    add("recipes", _recipes, "List the recipes that come with hfdistill.")
    report = add("report", _report, "Make the report of a run again.")
    report.add_argument("run_folder", metavar="RUN_FOLDER", type=Path, help="the output folder of a run")
    doctor = add(
        "doctor", _doctor, "Check whether a recipe's two models fit together, before a long run.", changes=True
    )
    doctor.add_argument("recipe", metavar="RECIPE", help="a shipped name or the path of a YAML file")
    push = add("push", _push, "Push a student with its model card to the Hub.")
    push.add_argument(
        "folder", metavar="FOLDER", type=Path, help="the output folder of a run, or a model's folder in it"
    )
    push.add_argument("repo_id", metavar="REPO_ID", help="where to, such as me/my-student")
    push.add_argument("--private", action="store_true", help="make the repository private if it is new")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected at least 1")
    return number


# ---- commands --------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    from hfdistill.stages import run_recipe
    from hfdistill.stages.processes import launch_warning

    _end_on_sigterm()
    if not options.debug:
        disable_progress_bar()  # type: ignore[no-untyped-call]
    reporter = _reporter()
    if warning := launch_warning(os.environ):
        reporter.say(f"Warning: {warning}", style="yellow")
    recipe = _recipe(options)
    output = _output(options)
    reporter.say(f"{options.recipe} -> {output}", style="bold")
    report = run_recipe(recipe, output, reporter, overwrite=options.overwrite)
    if report is not None:
        reporter.say(report.table())
        reporter.say(f"Report: {output / 'report.md'}")
        reporter.say(f"Student: {output / f'seed-{recipe.seeds[0]}' / 'student'}")
    return OK


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe with what the command line changes."""
    from dataclasses import replace

    from hfdistill.recipe import load_recipe, override_arguments

    recipe = load_recipe(options.recipe, override_arguments(options.changes))
    if options.command != "run":
        return recipe
    seeds = recipe.seeds
    if options.seeds is not None:
        seeds = [recipe.seeds[0] + number for number in range(options.seeds)]
    if options.seed is not None:
        seeds = options.seed
    return replace(recipe, seeds=seeds, control=recipe.control and not options.no_control)


def _output(options: argparse.Namespace) -> Path:
    return Path(options.output or Path("runs") / Path(options.recipe).stem)


def _recipes(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from hfdistill.recipe.shipped import shipped_recipes

    table = Table("recipe", "what it does", box=None, pad_edge=False)
    for name, description in shipped_recipes().items():
        table.add_row(name, description)
    Console().print(table)
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
        if options.command == "run":
            kept = (
                f" What is finished and the last checkpoint are kept in {_output(options)}; to go on: {options.again}"
            )
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
