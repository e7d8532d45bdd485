"""What a machine that trains must have is asked of that machine, not of the one that reads the config."""

from __future__ import annotations

import sys

import pytest

from kto_ray.config import load_config
from kto_ray.train.job import check_machine


@pytest.mark.parametrize(
    ("package", "extra", "override"),
    [("mlflow", "mlflow", "train.mlflow_uri=http://mlflow:5000"), ("bitsandbytes", "qlora", "train.quantize=nf4")],
)
def test_a_package_that_a_setting_needs_is_asked_for_where_it_trains(
    package: str, extra: str, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = load_config(None, (override,))
    with pytest.raises(ValueError, match=rf"{package} is not installed on .*, which trains.*kto-ray\[{extra}\]"):
        check_machine(config)


def test_the_defaults_need_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mlflow", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, package, None)
    check_machine(load_config())
