"""Training options that need CUDA: a 4-bit base on one GPU, a base shared by two."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kto_ray.adapters.files import read_sound
from kto_ray.config import Config
from kto_ray.records.training import TrainResult
from tests.support.sealed import Sealed, config, seal, train_task
from tests.support.training import losses

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def ray_with_gpus() -> Iterator[None]:
    import ray

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", num_cpus=8, include_dashboard=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal(tmp_path_factory.mktemp("snapshot"))


def run(home: Path, rows: Sealed, **train: object) -> tuple[Config, TrainResult]:
    import ray

    settings = config(home).model_dump()
    settings["train"] |= {"device": "gpu", **train}
    validated = Config.model_validate(settings)
    return validated, ray.get(train_task.remote(validated, "run", rows.manifest, rows.uri))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_our_step_takes_those_of_trl(sealed: Sealed, tmp_path: Path, dtype: str, tolerance: float) -> None:
    found = [run(tmp_path / step, sealed, dtype=dtype, step=step)[1] for step in ("exact", "trl")]
    ours, trl = (losses(result) for result in found)
    assert ours[0] == pytest.approx((1.25 + 1.0) / 4, abs=1e-6) and ours[-1] < ours[0] / 2
    assert ours == pytest.approx(trl, abs=tolerance)


def test_a_gpu_of_today_trains_in_bf16_by_itself(sealed: Sealed, tmp_path: Path) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("the CUDA device has no bf16")
    assert run(tmp_path, sealed)[1].dtype == "bfloat16"


@pytest.mark.parametrize("step", ["exact", "trl"])
def test_a_4_bit_base_learns_and_its_adapter_is_sound(sealed: Sealed, tmp_path: Path, step: str) -> None:
    settings, result = run(tmp_path, sealed, quantize="nf4", step=step)
    assert result.loss_first == pytest.approx((1.25 + 1.0) / 4, abs=1e-6)
    assert result.loss_last < result.loss_first
    assert read_sound(result.adapter_dir, settings.serve.max_lora_rank).rank == settings.kto.rank


def test_two_gpus_that_share_the_base_take_the_steps_of_one(sealed: Sealed, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    same = {"dtype": "float32"}
    _, one = run(tmp_path / "one", sealed, micro_batches=2, **same)
    _, two = run(tmp_path / "two", sealed, workers=2, sharding="fsdp", **same)
    assert [r.loss for r in two.history] == pytest.approx([r.loss for r in one.history], abs=1e-4)
