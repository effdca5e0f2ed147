"""Every shipped method on one recipe: the same teacher, students, data, steps and seeds, chosen on validation only.

    python tests/benchmarks/methods.py fashion_mnist --output methods-fm --seeds 3 --data.labelled=2000
    python tests/benchmarks/methods.py digits --output methods-digits --method dkd rkd

First the recipe itself is run: teacher, controls, and students with its own objective. Then, for each method, one
student for each of two settings: the paper's weights, and `weight: auto` for every term that is not the labels'. What
does better on the validation split is trained with all seeds and tested. Run the same command again to go on. Out come
a Markdown table and OUTPUT/methods.json: test metric of each method, its gain over the control with the paired 95 % t
interval over the seeds, and the seconds a step in shares of the recipe's own objective. Methods that do not fit the two
models (MiniLM's relations in a ResNet) are listed with their reason.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from hfdistill._atomic import write_json
from hfdistill.errors import HfDistillError
from hfdistill.intervals import over_seeds
from hfdistill.main_metric import main_metric
from hfdistill.recipe import Recipe, TeacherSection, load_recipe, override_arguments
from hfdistill.recipe.shipped import shipped_methods
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.run import Run
from hfdistill.stages.settings import CONTROL, STUDENT, TEACHER

Facts = dict[str, Any]


def stage(folder: Path, name: str, seed: int) -> Facts:
    """What a finished stage has written."""
    file = folder / f"seed-{seed}" / name / "stage.json"
    content: Facts = json.loads(file.read_text(encoding="utf-8"))
    return content


def candidates(recipe: Recipe) -> dict[str, Recipe]:
    """The settings that are tried: the paper's, and gradients as long as that of the labels' term."""
    found = {"paper": recipe}
    terms = copy.deepcopy(recipe.objective.terms or [])
    others = [options for entry in terms for kind, options in entry.items() if kind != "task"]
    if others and len(others) < len(terms):
        for options in others:
            options["weight"] = "auto"
        found["auto"] = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, terms=terms))
    return found


def validation(recipe: Recipe, folder: Path) -> Facts:
    """Train one student, or find it finished, and look at the validation split alone."""
    run = Run(
        dataclasses.replace(recipe, seeds=recipe.seeds[:1], control=False), folder, Reporter(silent=True), tested=False
    )
    for planned in run.open(overwrite=False):
        run.do(planned)
    metrics: Facts = stage(folder, STUDENT, recipe.seeds[0])["validation_metrics"]
    return metrics


def method_numbers(
    base: Recipe, name: str, output: Path, teacher: TeacherSection, overrides: dict[str, str], recipe: str
) -> Facts:
    """A method's students: the better of its settings on validation, tested over all seeds."""
    loaded = load_recipe(recipe, overrides, name)
    given = dataclasses.replace(loaded, teacher=teacher, seeds=base.seeds, control=False)
    if given.assistants:
        chosen, tried = "paper", {}
        final = given
    else:
        tried = {key: validation(each, output / name / key) for key, each in candidates(given).items()}
        metric = main_metric(
            json.loads((output / "base" / "report.json").read_text())["problem_type"], next(iter(tried.values()))
        )
        chosen = max(tried, key=lambda key: metric.sign * tried[key][metric.key])
        final = candidates(given)[chosen]
    run_recipe(final, output / name / "final", Reporter(silent=True))
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
    run_recipe(base, options.output / "base", reporter)
    own = base.teacher.finetune is not None
    teacher = TeacherSection(model=str(options.output / "base" / TEACHER)) if own else base.teacher
    results: dict[str, Facts] = {}
    for name in options.method:
        reporter.say(name, style="bold")
        try:
            results[name] = method_numbers(base, name, options.output, teacher, overrides, options.recipe)
        except HfDistillError as error:
            results[name] = {"refused": str(error)}
            reporter.say(f"  {error}")
        write_json(options.output / "methods.json", results)
    print(table(base, options.output, results))


def table(base: Recipe, output: Path, results: dict[str, Facts]) -> str:
    """The results in Markdown, best first; `results` gets the numbers too."""
    report = json.loads((output / "base" / "report.json").read_text(encoding="utf-8"))
    controls = [stage(output / "base", CONTROL, seed)["metrics"] for seed in base.seeds]
    metric = main_metric(report["problem_type"], controls[0])
    plain = [stage(output / "base", STUDENT, seed) for seed in base.seeds]
    step = sum(each["seconds"] / each["steps"] for each in plain)
    rows = []
    for name, found in {"(the recipe's own)": {"folder": str(output / "base"), "chosen": "–"}, **results}.items():
        if "refused" in found:
            rows.append((float("-inf"), f"| `{name}` | refused: {found['refused']} | | | |"))
            continue
        students = [stage(Path(found["folder"]), STUDENT, seed) for seed in base.seeds]
        scores = over_seeds([each["metrics"][metric.key] for each in students])
        pairs = zip(students, controls, strict=True)
        gain = over_seeds([metric.gain(each["metrics"][metric.key], control[metric.key]) for each, control in pairs])
        time = sum(each["seconds"] / each["steps"] for each in students) / step
        found |= {"scores": dataclasses.asdict(scores), "gain": dataclasses.asdict(gain), "step_time": time}
        rows.append(
            (
                gain.mean,
                f"| `{name}` | {found['chosen']} | {metric.value(scores.mean)}{metric.spread(scores.sd or 0)} "
                f"| {metric.difference(gain.mean)} ({metric.span(gain.low, gain.high)}) | {time:.2f} |",
            )
        )
    write_json(output / "methods.json", results)
    control = over_seeds([each[metric.key] for each in controls])
    head = [
        f"Teacher {metric.value(report['models']['teacher']['main']['mean'])}, control {metric.value(control.mean)}",
        "",
        f"| method | weights | test {metric.name} | gain over the control | time of a step |",
        "|---|---|---:|---:|---:|",
    ]
    return "\n".join([*head, *(row for _, row in sorted(rows, reverse=True))])


if __name__ == "__main__":
    main(sys.argv[1:])
