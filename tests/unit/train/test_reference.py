"""The cache of the reference's scores over runs that are cut off."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from kto_ray.train.reference import ReferenceCache, Scores


def scored(value: float) -> Scores:
    return torch.tensor([value]), None


def never() -> Scores:
    raise AssertionError("computed again")


def test_a_run_that_goes_on_keeps_what_it_looked_up_before(tmp_path: Path) -> None:
    uri = str(tmp_path / "references")
    for key, value in (("a", 1.0), ("b", 2.0)):  # cut off after the first
        cache = ReferenceCache(uri, "run-0")
        cache.get(key, partial(scored, value))
        cache.save()
    (file,) = (tmp_path / "references").iterdir()
    assert file.name == "run-0.parquet"
    another = ReferenceCache(uri, "run-1")
    assert [float(another.get(key, never)[0]) for key in "ab"] == [1.0, 2.0]
