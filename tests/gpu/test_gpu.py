"""The same loop on a CUDA machine: the policy and the training workers on the GPU, by config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.service import Traffic, give_labels, service

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1500)]


@pytest.fixture(autouse=True)
def cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def test_the_loop_on_one_shared_gpu(tmp_path: Path, free_port: Any) -> None:
    on_gpu = (
        "serve.device=gpu",
        "serve.gpus_per_worker=0.5",
        "serve.engine={gpu_memory_utilization: 0.3, enforce_eager: true}",
        "train.device=gpu",
        "train.gpus_per_worker=0.5",
    )
    with service(tmp_path, free_port(), *on_gpu) as run:
        given = give_labels(run, users=30)
        with Traffic(run) as traffic:
            ended = run.wait_stage("done", timeout_s=600)
        assert (ended["outcome"], traffic.failures) == ("promoted", []), ended
        assert run.get("/v1/loop")["feedback"]["stored"] == given + traffic.thumbs
