"""A new version of a library that lacks what we borrow is told by name, before it fails somewhere else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

import kto_ray
from kto_ray.borrowed import BORROWED, Borrowed

HOUSE = Path(kto_ray.__file__).parent
PRIVATE = re.compile(r"from (ray|vllm|trl|transformers|peft)[\w.]*\._\w[\w.]* import")


def source_of(module: str) -> str:
    """Found from its package's folder, for importing it may be slow."""
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    path = Path(spec.submodule_search_locations[0], *rest.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    assert file.is_file(), f"{module} is gone; see kto_ray/borrowed.py for who used it"
    return file.read_text()


@pytest.mark.parametrize("borrowed", BORROWED, ids=lambda one: f"{one.module}:{one.text}")
def test_what_is_borrowed_is_there(borrowed: Borrowed) -> None:
    assert borrowed.text in source_of(borrowed.module), (
        f"{borrowed.package} {importlib.metadata.version(borrowed.package.replace('vllm', _vllm()))} lacks "
        f"{borrowed.text!r} in {borrowed.module}, which {borrowed.used_by} uses ({borrowed.why}); it was read in "
        f"{borrowed.version}"
    )


def _vllm() -> str:
    """The distribution that holds vLLM here."""
    return importlib.metadata.packages_distributions()["vllm"][0]


@pytest.mark.parametrize("borrowed", BORROWED, ids=lambda one: f"{one.module}:{one.text}")
def test_every_user_is_there(borrowed: Borrowed) -> None:
    assert (HOUSE / borrowed.used_by).is_file()


def test_no_private_module_is_imported_beyond_the_list() -> None:
    listed = {HOUSE / borrowed.used_by for borrowed in BORROWED}
    for file in HOUSE.rglob("*.py"):
        if PRIVATE.search(file.read_text()):
            assert file in listed, f"{file} imports a private name: put it into kto_ray/borrowed.py"
