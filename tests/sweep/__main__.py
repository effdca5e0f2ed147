"""`python -m tests.sweep [--auto AutoModelForMaskedLM] [--only NAME ...] [--results FILE]`: the sweep, class by class.

One line a class and a table at the end. With --results, classes that the file has already are not run again.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import torch
import transformers

from tests.sweep.mappings import classes
from tests.sweep.one_class import CheckError, NotBuiltError, examine


def main() -> None:
    """Examine the chosen classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--auto", nargs="*", help="only these auto classes")
    parser.add_argument("--only", nargs="*", help="only these classes")
    parser.add_argument("--results", type=Path, help="a file of results, read and added to")
    parser.add_argument("--trace", action="store_true", help="show where a check failed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    results = read(options.results)
    for auto_class, name in classes():
        chosen = (not options.auto or auto_class in options.auto) and (not options.only or name in options.only)
        if not chosen or (name in results and not options.only):
            continue
        start = time.perf_counter()
        outcome, detail = verdict(auto_class, name, options.trace)
        seconds = time.perf_counter() - start
        results[name] = {"auto": auto_class, "outcome": outcome, "detail": detail, "seconds": round(seconds, 2)}
        say(f"{outcome:9} {seconds:5.1f} s  {auto_class.removeprefix('AutoModelFor'):24} {name}  {detail}")
        if options.results:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, **results[name]}) + "\n")
    table(results)


def verdict(auto_class: str, name: str, trace: bool) -> tuple[str, str]:
    """What came of one class."""
    try:
        return "passed", f"{examine(auto_class, name):,} parameters"
    except (CheckError, NotBuiltError) as error:
        if trace:
            traceback.print_exc()
        return "FAILED" if isinstance(error, CheckError) else "not built", str(error)


def read(path: Path | None) -> dict[str, dict[str, str]]:
    """Results of earlier runs, by class."""
    if path is None or not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row.pop("name"): row for row in rows}


def table(results: dict[str, dict[str, str]]) -> None:
    """Counts for each auto class."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in results.values():
        counts[row["auto"]][row["outcome"]] += 1
        counts["all"][row["outcome"]] += 1
    say(f"\n{'':38} passed  failed  not built  passed of built")
    for auto_class, found in sorted(counts.items()):
        tried = found["passed"] + found["FAILED"]
        share = f"{100 * found['passed'] / tried:6.1f} %" if tried else ""
        say(f"{auto_class:38} {found['passed']:6}  {found['FAILED']:6}  {found['not built']:9}  {share}")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
