"""Every shipped method on one recipe: the same teacher, students, data, steps and seeds, chosen on validation only.

    python tests/benchmarks/methods.py fashion_mnist --output methods-fm --seeds 3 --data.labelled=2000
    python tests/benchmarks/methods.py digits --output methods-digits --method dkd rkd

First the recipe itself is run: teacher, controls, and students with its own objective. Then, for each method, one
student for each of two settings: the paper's weights, and `weight: auto` for every term that is not the labels'. What
does better on the validation split is trained with all seeds and tested. Schedules that a paper gives in epochs of its
240 are shortened to the recipe's. Run the same command again to go on. Out come a Markdown table and
OUTPUT/methods.json: test metric of each method, and its gains over the control and over plain distillation (`kd`) with
the paired 95 % t interval over the seeds. Methods that do not fit the two models (MiniLM's relations in a ResNet) are
listed with their reason. What a step costs in time and memory is measured by method_cost.py, with nothing beside it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers.utils.logging import disable_progress_bar

from hfdistill._atomic import write_json, write_text
from hfdistill.errors import HfDistillError
from hfdistill.intervals import Estimate, over_seeds
from hfdistill.main_metric import main_metric
from hfdistill.recipe import Recipe, TeacherSection, load_recipe, override_arguments
from hfdistill.recipe.shipped import shipped_methods
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.folders import STAGE_FILE
from hfdistill.stages.run import Run
from hfdistill.stages.settings import CONTROL, STUDENT, TEACHER

Facts = dict[str, Any]

PAPERS_EPOCHS = 240
"""What "20 epochs of warm-up" is a part of in the papers, which train on CIFAR-100 for so long."""
PLAIN = "kd"
BASE, START = "base", "start"
"""The folders of the recipe's own run, and of the same with the teacher that it has made."""


def stage(folder: Path, name: str, seed: int) -> Facts:
    """What a finished stage has written."""
    file = folder / f"seed-{seed}" / name / "stage.json"
    content: Facts = json.loads(file.read_text(encoding="utf-8"))
    return content


def candidates(recipe: Recipe) -> dict[str, Recipe]:
    """The settings that are tried: the paper's, and gradients as long as that of the labels' term."""
    paper, auto = copy.deepcopy(recipe.objective), copy.deepcopy(recipe.objective)
    shorten(paper.terms, recipe)
    shorten(auto.terms, recipe)
    found = {"paper": dataclasses.replace(recipe, objective=paper)}
    others = [options for entry in auto.terms or [] for kind, options in entry.items() if kind != "task"]
    if others and len(others) < len(auto.terms or []):
        for options in others:
            options["weight"] = "auto"
        found["auto"] = dataclasses.replace(recipe, objective=auto)
    return found


def shorten(options: Any, recipe: Recipe) -> None:
    """Bring every `epochs` in it from the papers' length to that of this training."""
    if isinstance(options, dict):
        if "epochs" in options:
            options["epochs"] *= recipe.training["num_train_epochs"] / PAPERS_EPOCHS
        options = list(options.values())
    if isinstance(options, list):
        for each in options:
            shorten(each, recipe)


def share_teacher(recipe: Recipe, output: Path, folder: Path, kind: str) -> None:
    """Give a new run the examined teacher of the runs before, or them its own; all of them have the same."""
    kept, own = output / f"teacher-{kind}", folder / TEACHER
    source, target = (kept, own) if kept.is_dir() else (own, kept)
    if (source / STAGE_FILE).is_file() and not target.is_dir() and not recipe.teacher.beside:
        shutil.copytree(source, target)
        # By this file a folder is known as that of a run.
        write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))


def validation(recipe: Recipe, folder: Path, output: Path) -> Facts:
    """Train one student, or find it finished, and look at the validation split alone."""
    share_teacher(recipe, output, folder, "validated")
    run = Run(
        dataclasses.replace(recipe, seeds=recipe.seeds[:1], control=False), folder, Reporter(silent=True), tested=False
    )
    for planned in run.open(overwrite=False):
        run.do(planned)
    share_teacher(recipe, output, folder, "validated")
    metrics: Facts = stage(folder, STUDENT, recipe.seeds[0])["validation_metrics"]
    return metrics


def method_numbers(
    base: Recipe, name: str, output: Path, teacher: TeacherSection, overrides: dict[str, str], recipe: str
) -> Facts:
    """A method's students: the better of its settings on validation, tested over all seeds."""
    # Where a teacher that learns beside the student is the method's own, it is not what the overrides are about.
    kept = {key: value for key, value in overrides.items() if not key.startswith("teacher.")}
    loaded = load_recipe(recipe, kept, name)
    beside = bool(loaded.teacher.beside)
    if not beside:
        loaded = load_recipe(recipe, overrides, name)
    own = loaded.teacher if beside else teacher
    given = dataclasses.replace(loaded, teacher=own, seeds=base.seeds, control=False)
    if given.assistants:
        chosen, tried, trained = "paper", {}, {}
        final = given
    else:
        tried = {key: validation(each, output / name / key, output) for key, each in candidates(given).items()}
        metric = main_metric(
            json.loads((output / BASE / "report.json").read_text())["problem_type"], next(iter(tried.values()))
        )
        chosen = max(tried, key=lambda key: metric.sign * tried[key][metric.key])
        final = candidates(given)[chosen]
        folder = output / name / chosen / f"seed-{base.seeds[0]}" / STUDENT
        trained = {json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))["fingerprint"]: folder}
    if not final.assistants:
        share_teacher(final, output, output / name / "final", "tested")
    run_recipe(final, output / name / "final", Reporter(silent=True), trained=trained)
    if not final.assistants:
        share_teacher(final, output, output / name / "final", "tested")
    return {"chosen": chosen, "validation": tried, "folder": str(output / name / "final")}


def main(arguments: list[str]) -> None:
    """Run what is not finished, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more: intervals are over seeds")
    parser.add_argument("--method", nargs="+", default=sorted(shipped_methods()))
    options, rest = parser.parse_known_args(arguments)
    overrides = override_arguments(rest)
    disable_progress_bar()
    loaded = load_recipe(options.recipe, overrides)
    base = dataclasses.replace(loaded, seeds=[loaded.seeds[0] + number for number in range(options.seeds)])
    reporter = Reporter()
    run_recipe(base, options.output / BASE, reporter)
    teacher, first = base.teacher, BASE
    if base.teacher.finetune is not None:
        teacher = TeacherSection(model=str(options.output / BASE / TEACHER))
        if base.student.from_teacher is not None:
            # The methods' students begin with layers of the finished teacher, and so has their control to.
            first = START
            begun = dataclasses.replace(base, teacher=teacher)
            share_teacher(begun, options.output, options.output / START, "tested")
            run_recipe(begun, options.output / START, reporter)
    results: dict[str, Facts] = {}
    for name in options.method:
        reporter.say(name, style="bold")
        try:
            results[name] = method_numbers(base, name, options.output, teacher, overrides, options.recipe)
        except HfDistillError as error:
            results[name] = {"refused": str(error)}
            reporter.say(f"  {error}")
        write_json(options.output / "methods.json", results)
    print(table(base, options.output, results, first))


def table(base: Recipe, output: Path, results: dict[str, Facts], first: str) -> str:
    """The results in Markdown, best first; `results` gets the numbers too. `first` is the run with the control."""
    report = json.loads((output / BASE / "report.json").read_text(encoding="utf-8"))
    controls = [stage(output / first, CONTROL, seed)["metrics"] for seed in base.seeds]
    metric = main_metric(report["problem_type"], controls[0])
    everyone = {"(the recipe's own)": {"folder": str(output / first), "chosen": "–"}, **results}
    metrics = {
        name: [stage(Path(found["folder"]), STUDENT, seed)["metrics"] for seed in base.seeds]
        for name, found in everyone.items()
        if "refused" not in found
    }

    def gain(name: str, others: list[Facts]) -> Estimate:
        pairs = zip(metrics[name], others, strict=True)
        return over_seeds([metric.gain(own[metric.key], other[metric.key]) for own, other in pairs])

    def shown(interval: Estimate) -> str:
        return f"{metric.difference(interval.mean)} ({metric.span(interval.low, interval.high)})"

    rows = []
    for name in metrics:
        scores = over_seeds([each[metric.key] for each in metrics[name]])
        gains = {"gain": gain(name, controls)}
        if PLAIN in metrics and name != PLAIN:
            gains["over_kd"] = gain(name, metrics[PLAIN])
        everyone[name] |= {"scores": dataclasses.asdict(scores)}
        everyone[name] |= {key: dataclasses.asdict(each) for key, each in gains.items()}
        cells = [
            f"`{name}`",
            everyone[name]["chosen"],
            metric.value(scores.mean) + metric.spread(scores.sd or 0),
            shown(gains["gain"]),
            shown(gains["over_kd"]) if "over_kd" in gains else "–",
        ]
        rows.append((gains["gain"].mean, f"| {' | '.join(cells)} |"))
    write_json(output / "methods.json", everyone)
    control = over_seeds([each[metric.key] for each in controls])
    head = [
        f"Teacher {metric.value(report['models']['teacher']['main']['mean'])}, control "
        f"{metric.value(control.mean)}{metric.spread(control.sd or 0)}",
        "",
        f"| method | weights | test {metric.name} | gain over the control | over `{PLAIN}` |",
        "|---|---|---:|---:|---:|",
    ]
    refused = [f"- `{name}`: {found['refused']}" for name, found in results.items() if "refused" in found]
    return "\n".join([*head, *(row for _, row in sorted(rows, reverse=True)), "", *refused])


if __name__ == "__main__":
    main(sys.argv[1:])
