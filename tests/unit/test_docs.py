"""What the docs say of the code and of its figures is made of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "deploy" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tree_is_that_of_the_code() -> None:
    made = docs()
    assert made.TREE.read_text() == made.tree(), "run `make docs`"


def test_the_figures_are_those_of_the_records() -> None:
    made = docs()
    assert made.MEASURED.read_text() == made.measured(), "run `make docs`"


def test_every_benchmark_has_its_place() -> None:
    from kto_ray.cli import bench

    assert {command.name for command in bench.app.registered_commands} == set(docs().ORDER)
