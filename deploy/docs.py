"""Make what the docs say of the code and of its figures; `make docs` runs it.

    tree.md       a line a module, which is the first line of its docstring
    measured.md   docs/measured/NAME.md, with the table of docs/measured/NAME.json, which `kto-ray bench NAME` wrote,
                  and the demo's, of docs/measured/demo-*.json, each a figures.json of `kto-ray demo`

A test holds both files to what they are made of: no module is left out, and no figure is typed.
"""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kto_ray.demo import figures

ROOT = Path(__file__).parents[1]
PACKAGE, TREE = ROOT / "kto_ray", ROOT / "kto_ray" / "docs" / "tree.md"
MEASURED, RECORDS = PACKAGE / "docs" / "measured.md", PACKAGE / "docs" / "measured"
NONE = "No record yet."
ORDER = (
    "demo",
    "learn",
    "ablation",
    "edits",
    "rounds",
    "train",
    "peeking",
    "decisions",
    "gate",
    "loop",
    "engine",
    "serve",
    "swap",
    "chat",
    "live",
    "ingest",
    "data",
    "scale",
)
MEASURED_HEAD = """# What was measured

By commands that measure their peers in the same run; to be read as ratios, for machines differ and are noisy. Each
table says by which commit, where and when. What has no record yet was last measured before records were kept: figures
of that time stand in the README of commit 9862de0.
"""
HEAD = """# The tree

A room a line of the floors in `pyproject.toml`; here a line a module, made from what each says of itself (`make docs`).
Who knows the noun knows the files: its record is `records/NOUN`, its rows are `store/NOUN`, what is shown of it is
`status/NOUN`, its route `serve/gateway/NOUN`, its command `cli/NOUN`, its tests `tests/unit/ROOM/test_NOUN`.
"""


def first_line(file: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(file.read_text()))
    if not text:
        raise ValueError(f"{file.relative_to(ROOT)} has no docstring; say in its first line what a person finds in it")
    return " ".join(text.split("\n\n")[0].split())


def tree() -> str:
    """The file's content."""
    parts = [HEAD, "## kto_ray/", ""]
    parts += [_line(file) for file in _modules(PACKAGE)]
    for room in sorted(folder for folder in PACKAGE.rglob("*") if (folder / "__init__.py").is_file()):
        parts += ["", f"## {room.relative_to(ROOT)}/", "", first_line(room / "__init__.py"), ""]
        parts += [_line(file) for file in _modules(room)]
    return "\n".join(parts) + "\n"


def measured() -> str:
    """The file's content; a benchmark that has no record yet says so."""
    parts = [MEASURED_HEAD]
    for name in ORDER:
        text = (RECORDS / f"{name}.md").read_text().strip()
        parts.append(text.replace("{{" + name + "}}", _shown(name)) + "\n")
    return "\n".join(parts)


def _shown(name: str) -> str:
    """A table as Markdown, under a line on where its figures come from."""
    if name == "demo":
        runs = [json.loads(file.read_text()) for file in sorted(RECORDS.glob("demo-*.json"))]
        where = " ".join(f"Column {i}: {_where(run['measured'])}." for i, run in enumerate(runs, start=1))
        return f"*{where}*\n\n{markdown(figures.table(runs))}" if runs else NONE
    record = RECORDS / f"{name}.json"
    if not record.is_file():
        return NONE
    report = json.loads(record.read_text())
    bench = importlib.import_module(f"kto_ray.bench.{'learn' if name == 'ablation' else name}")
    return f"*{_where(report['measured'])}.*\n\n{markdown(bench.table(report))}"


def _where(made: dict[str, Any]) -> str:
    machine = f"{made['cores']} cores of {made['processor']} ({', '.join(made['instructions'])})"
    return f"{machine}; commit {made['commit']}, {made['at']}"


def markdown(table: Table) -> str:
    """A rich table as a Markdown table."""
    console = Console(width=1000)

    def plain(cell: Any) -> str:
        lines = console.render_lines(cell, pad=False)
        return " ".join("".join(segment.text for segment in line).strip() for line in lines).replace("|", "\\|")

    head = [plain(column.header) for column in table.columns]
    rows = zip(*([plain(cell) for cell in column.cells] for column in table.columns), strict=True)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    title = f"{table.title}:\n\n" if table.title else ""
    return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _modules(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.py") if file.name not in ("__init__.py", "__main__.py"))


def _line(file: Path) -> str:
    return f"- `{file.name}` {first_line(file)}"


if __name__ == "__main__":
    TREE.write_text(tree())
    MEASURED.write_text(measured())
