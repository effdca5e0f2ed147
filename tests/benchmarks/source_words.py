"""Write lines of Python source with the role of each name, a task for taggers whose data ship with every Python.

    python tests/benchmarks/source_words.py FOLDER

FOLDER/train.parquet, validation.parquet and test.parquet hold a line of the standard library a row: `tokens`, and
`tags` (B-function, B-class, B-parameter, B-argument, B-call, B-method, B-attribute, B-import, or O). The roles are
those that Python's own parser finds, which sees the whole file; a tagger sees the line. A file belongs to the test
split if the CRC-32 of its name leaves 0 when divided by 10, to the validation split if 1; of lines that occur several
times in the library only the first is kept, so that none is in two splits.
"""

from __future__ import annotations

import ast
import io
import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

FEWEST, MOST = 4, 40
"""Words of a line."""
LONGEST = 30
"""Characters of a word: long strings are cut."""
Place = tuple[int, int]


def roles(tree: ast.AST) -> dict[Place, str]:
    """The role of the name that begins at a line and column, for all but the `def` and `class` names."""
    found: dict[Place, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found[node.lineno, node.col_offset] = "parameter"
        elif isinstance(node, ast.keyword) and node.arg:
            found[node.lineno, node.col_offset] = "argument"
        elif isinstance(node, ast.alias):
            found[node.lineno, node.col_offset] = "import"
        elif isinstance(node, ast.Attribute):
            found.setdefault(_attribute(node), "attribute")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found[_attribute(node.func)] = "method"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found[node.func.lineno, node.func.col_offset] = "call"
    return found


def _attribute(node: ast.Attribute) -> Place:
    return node.end_lineno or 0, (node.end_col_offset or 0) - len(node.attr)


def lines(source: str) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tags of each logical line."""
    known = roles(ast.parse(source))
    words: list[str] = []
    tags: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            if FEWEST <= len(words) <= MOST:
                yield words, tags
            words, tags = [], []
        elif token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING):
            role = {"def": "function", "class": "class"}.get(words[-1] if words else "") or known.get(token.start)
            words.append(token.string[:LONGEST])
            tags.append(f"B-{role}" if role and token.type == tokenize.NAME else "O")


def main(folder: Path) -> None:
    """Write the three splits."""
    splits: dict[str, list[dict[str, list[str]]]] = {"train": [], "validation": [], "test": []}
    seen: set[tuple[str, ...]] = set()
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = file.read_text(encoding="utf-8")
        if not source.isascii():  # the parser counts bytes, the tokeniser characters
            continue
        name = {0: "test", 1: "validation"}.get(zlib.crc32(file.name.encode()) % 10, "train")
        for words, tags in lines(source):
            if tuple(words) not in seen:
                seen.add(tuple(words))
                splits[name].append({"tokens": words, "tags": tags})
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
        print(f"{name}: {len(rows):,} lines, {sum(len(row['tokens']) for row in rows):,} words")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
