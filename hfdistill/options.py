"""The words of the command line: commands with their options, and changes of the recipe among them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hfdistill._version import __version__

SECTIONS = ("student", "teacher", "data", "objective", "training", "assistants")

EXAMPLES = """examples:
  hfdistill run digits
  hfdistill run fashion_mnist --seeds 3 --output runs/clothes
  hfdistill run imagefolder --data.dataset=/my/pictures --training.learning_rate=1e-4
  hfdistill run digits --method dkd
  hfdistill cache digits --teacher.cache=caches/digits
  hfdistill sweep digits --temperature 1,2,4,8 --alpha .5,.9
  accelerate launch --multi_gpu --num_processes 2 -m hfdistill run cifar100
"""
CHANGES = "Any value of the recipe can be changed: --section.key=VALUE, such as --training.learning_rate=1e-4."
SWEPT = (
    f"{CHANGES} Of several values, parted by commas, each is tried with each of the other keys. The best is chosen on "
    "validation data, the first of equals; the test split is not looked at. Run the same command again to go on."
)
CACHED = (
    f"{CHANGES} The cache lies in teacher.cache (a folder, or a mapping with path, top_k, temperatures, dtype, "
    "probabilities and views), by default in DIR/cache. The teacher is that of the run in DIR, trained first if it has "
    "to be. Run the same command again to go on."
)
EXIT_CODES = "exit codes: 0 done, 1 the run failed, 2 wrong usage or recipe, 130 interrupted (run again to go on)"


def split_changes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
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


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands; of a parsed line `command` is the name, `takes_changes` whether a recipe is read."""
    parser = argparse.ArgumentParser(
        prog="hfdistill",
        description="Knowledge distillation for Hugging Face models: a student, its teacher, and whether that helped.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hfdistill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, changes: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False, epilog=changes or None)
        command.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
        command.set_defaults(takes_changes=bool(changes))
        return command

    run = add("run", "Run a recipe: teacher, control, student, report. Run it again to go on.", CHANGES)
    run.add_argument(
        "recipe", metavar="RECIPE", help="a shipped name (see `hfdistill recipes`) or the path of a YAML file"
    )
    _add_method(run)
    run.add_argument("--output", metavar="DIR", type=Path, help="folder of the results (default: runs/RECIPE)")
    _add_seeds(run)
    run.add_argument(
        "--no-control", action="store_true", help="do not train the student without the teacher: the gain stays unknown"
    )
    run.add_argument("--overwrite", action="store_true", help="do stages anew that other values of the recipe made")
    _add_sweep(add("sweep", "Train a student for each combination of settings, and choose the best.", SWEPT))
    _add_cache(add("cache", "Keep a teacher's targets on the disk, so that students are trained without it.", CACHED))
    add("recipes", "List the recipes and methods that come with hfdistill.")
    report = add("report", "Make the report of a run again.")
    report.add_argument("run_folder", metavar="RUN_FOLDER", type=Path, help="the output folder of a run")
    doctor = add("doctor", "Check whether a recipe's two models fit together, before a long run.", CHANGES)
    doctor.add_argument("recipe", metavar="RECIPE", help="a shipped name or the path of a YAML file")
    _add_method(doctor)
    push = add("push", "Push a student with its model card to the Hub.")
    push.add_argument(
        "folder", metavar="FOLDER", type=Path, help="the output folder of a run, or a model's folder in it"
    )
    push.add_argument("repo_id", metavar="REPO_ID", help="where to, such as me/my-student")
    push.add_argument("--private", action="store_true", help="make the repository private if it is new")
    return parser


def _add_method(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--method", metavar="METHOD", help="a method (see `hfdistill recipes`), or the path of one, for the objective"
    )


def _add_seeds(command: argparse.ArgumentParser) -> None:
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", metavar="N", type=_count, help="how many seeds, counted up from the recipe's first")
    seeds.add_argument("--seed", metavar="S", type=int, nargs="+", help="these seeds")


def _add_cache(cache: argparse.ArgumentParser) -> None:
    cache.add_argument("recipe", metavar="RECIPE", help="a shipped name or the path of a YAML file")
    _add_method(cache)
    cache.add_argument(
        "--output", metavar="DIR", type=Path, help="folder of the run, which has the teacher (default: runs/RECIPE)"
    )
    _add_seeds(cache)
    cache.add_argument("--push", metavar="REPO_ID", help="then publish it on the Hub as a data set")
    cache.add_argument("--private", action="store_true", help="with --push: make the repository private if it is new")


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument("recipe", metavar="RECIPE", help="a shipped name or the path of a YAML file")
    for name, meaning in (("temperature", "temperatures"), ("alpha", "shares of the teacher in the loss")):
        sweep.add_argument(
            f"--{name}", metavar="VALUES", help=f"{meaning} to try, parted by commas: short for --objective.{name}"
        )
    sweep.add_argument("--output", metavar="DIR", type=Path, help="folder of the results (default: runs/RECIPE-sweep)")
    sweep.add_argument(
        "--seeds", metavar="N or S,S", type=_count_or_seeds, help="how many seeds for each combination, or which"
    )
    sweep.add_argument("--run-best", action="store_true", help="then run the best, with its control and its test")
    sweep.add_argument("--overwrite", action="store_true", help="do trials anew that other values of the recipe made")
    sweep.add_argument("--yes", action="store_true", help="train also more than 200 combinations")


def _count_or_seeds(text: str) -> int | list[int]:
    """`3` is a count, `3,7` and `3,` are seeds."""
    if "," not in text:
        return _count(text)
    try:
        return [int(seed) for seed in text.rstrip(",").split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a count, such as 3, or seeds, such as 3,7") from error


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected at least 1")
    return number
