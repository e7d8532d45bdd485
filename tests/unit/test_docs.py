"""What the docs say of the code and of its figures is made of them."""

from __future__ import annotations

import docs


def test_the_tree_is_that_of_the_code() -> None:
    assert docs.TREE.read_text() == docs.tree(), "run `make docs`"


def test_the_figures_are_those_of_the_records() -> None:
    assert docs.MEASURED.read_text() == docs.measured(), "run `make docs`"


def test_every_benchmark_has_its_place() -> None:
    from kto_ray.cli import bench

    assert {command.name for command in bench.app.registered_commands} | {"demo"} == set(docs.ORDER)
